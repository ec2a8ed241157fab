//! Tests of the package on a host: a Debian with real systemd and cgroup v2, as a VM that qvm runs,
//! with guests inside it. `make test-host` builds the host and the package.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "../lab/mod.rs"]
mod lab;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use lab::{Lab, guest, saved::Key, until_within};

/// The time limit of steps in the host that its console does not show.
const BOUND: Duration = Duration::from_secs(1200);

struct Host {
    lab: Lab,
}

/// The package to test.
fn package() -> Option<PathBuf> {
    let file = env::var_os("QVM_DEB").map(PathBuf::from).filter(|file| file.exists());
    assert!(file.is_some() || !lab::required("host"), "QVM_DEB names no package: `make test-host`");
    file
}

/// The second disk of the host.
fn payload(lab: &Lab) -> PathBuf {
    lab.file("host").with_file_name("payload.ext4")
}

/// A lab with the host's VM file and a blank second disk.
fn written(vm: &str) -> Lab {
    let lab = Lab::new();
    fs::write(lab.file("host"), vm).unwrap();
    fs::File::create(payload(&lab)).unwrap().set_len(96 << 20).unwrap();
    lab
}

/// Makes a file system with `files` on the second disk.
fn fill(lab: &Lab, files: &[PathBuf]) {
    let tree = lab.path().join("payload");
    fs::create_dir(&tree).unwrap();
    for file in files {
        fs::copy(file, tree.join(file.file_name().unwrap())).unwrap();
    }
    let path = format!("{}:/usr/sbin:/sbin", env::var("PATH").unwrap());
    let mut mkfs = Command::new("mkfs.ext4");
    mkfs.env("PATH", path).args(["-q", "-F", "-d"]).arg(&tree).arg(payload(lab));
    assert!(mkfs.status().unwrap().success());
}

/// The same package with a newer version.
fn newer(lab: &Lab, package: &Path) -> PathBuf {
    let (tree, newer) = (lab.path().join("newer"), lab.path().join("newer.deb"));
    let run = |command: &mut Command| assert!(command.status().unwrap().success());
    run(Command::new("dpkg-deb").arg("-R").arg(package).arg(&tree));
    let control = tree.join("DEBIAN/control");
    let text = fs::read_to_string(&control).unwrap();
    fs::write(&control, text.replace("\nVersion: ", "\nVersion: 9")).unwrap();
    let mut build = Command::new("dpkg-deb");
    build.args(["--root-owner-group", "-Znone", "-b"]).arg(&tree).arg(&newer);
    run(build.stdout(Stdio::null()));
    newer
}

impl Host {
    /// A running host with the package, and the guests in /payload. It boots once for each host
    /// image, and the package is installed in it once: each test continues from there.
    fn new() -> Option<Self> {
        let (image, package) = (guest("host.qcow2")?, package()?);
        let mut guests = vec![];
        for name in ["boot", "boot-count", "boot-deaf", "boot-poweroff", "boot-spin", "tiny"] {
            guests.push(guest(&format!("{name}.qcow2"))?);
        }
        let vm = format!(
            "accel = \"tcg\"\nvcpu = 2\nmem = \"3G\"\nshutdownTimeoutSec = 1200\n[image]\n\
             path = {}\n\
             [disk.payload]\npath = \"payload.ext4\"\nformat = \"raw\"\nreadOnly = true\n",
            toml::Value::from(image.to_str().unwrap())
        );
        let booted = || Key::of_vm("host", || written(&vm)).and_file(&image);
        let key = booted().and(include_bytes!("main.rs")).and_file(&package);
        let key = guests.iter().fold(key, |key, file| key.and_file(file));
        let lab = Lab::saved("host", "host-installed", key, || {
            let lab = Lab::saved("host", "host-booted", booted(), || Self::boot(&vm).lab);
            Self { lab }.install(&package, guests).lab
        });
        lab.restore("host");
        Some(Self { lab })
    }

    /// A host after its first boot. Its second disk is blank: each test writes it later.
    fn boot(vm: &str) -> Self {
        let host = Self { lab: written(vm) };
        host.lab.ok(&["start", "host"]);
        host.comes_up();
        host
    }

    /// Continues a host that has booted, with the guests and the package on its second disk, and
    /// installs the package.
    fn install(self, package: &Path, mut files: Vec<PathBuf>) -> Self {
        files.push(newer(&self.lab, package));
        let renamed = self.lab.path().join("qvm.deb");
        fs::copy(package, &renamed).unwrap();
        files.push(renamed);
        fill(&self.lab, &files);
        self.lab.restore("host");
        // The next boot reads the journal of a boot.
        self.sh("mkdir -p /payload /var/log/journal && journalctl --flush && \
                 echo '/dev/vdb /payload ext4 ro 0 0' >>/etc/fstab && mount /payload");
        self.sh("dpkg -i /payload/qvm.deb");
        // The first start of a VM reads QEMU from the disk, queries its machine types and starts
        // systemd-machined: once for all tests.
        self.vm("first", "boot", "");
        self.sh("qvm start first && qvm kill first && qvm rm first --disks --yes && \
                 rm /etc/qvm/vms/first.toml && systemctl daemon-reload");
        self
    }

    fn comes_up(&self) {
        let answers = || self.run("true").is_ok();
        self.lab.until_guest("host", "the host's agent answers", answers);
        self.until("the host is up", "systemctl is-system-running | grep -qE 'running|degraded'");
    }

    /// Runs a script in the host; returns its output, or its error output if it fails.
    fn run(&self, script: &str) -> Result<String, String> {
        let script = format!("exec 2>&1; {script}");
        let output =
            self.lab.qvm(&["exec", "--timeout", "1200", "host", "--", "sh", "-c", &script]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        match output.status.success() {
            true => Ok(text),
            false => Err(text + &String::from_utf8_lossy(&output.stderr)),
        }
    }

    /// Runs a script that must succeed.
    fn sh(&self, script: &str) -> String {
        self.run(script).unwrap_or_else(|said| self.fail(&format!("{script}\n{said}")))
    }

    /// Runs a script that must fail; returns its error output.
    fn refused(&self, script: &str) -> String {
        match self.run(script) {
            Err(said) => said,
            Ok(said) => self.fail(&format!("it went well: {script}\n{said}")),
        }
    }

    fn fail(&self, what: &str) -> ! {
        let journal = self.run("journalctl --no-pager -b -o short-monotonic | tail -n 120");
        panic!("{what}\n{}", journal.unwrap_or_else(|said| said));
    }

    /// Waits in the host until a script succeeds.
    fn until(&self, what: &str, script: &str) {
        let wait =
            format!("for _ in $(seq 1140); do if {script}; then exit 0; fi; sleep 1; done; exit 1");
        if let Err(said) = self.run(&wait) {
            self.fail(&format!("never: {what}\n{said}"));
        }
    }

    /// Writes the file of a VM, and reloads systemd.
    fn vm(&self, name: &str, image: &str, more: &str) {
        self.write(
            name,
            &format!(
                "accel = \"tcg\"\n{}{}{more}\n[image]\npath = \"/payload/{image}.qcow2\"\n",
                if more.contains("mem =") { "" } else { "mem = \"64M\"\n" },
                // On a loaded machine, a clean shutdown may take any time.
                match more.contains("shutdownTimeoutSec =") {
                    true => String::new(),
                    false => format!("shutdownTimeoutSec = {}\n", BOUND.as_secs()),
                },
            ),
        );
    }

    fn write(&self, name: &str, text: &str) {
        self.sh(&format!("cat >/etc/qvm/vms/{name}.toml <<'END'\n{text}\nEND\n"));
    }

    /// Returns a property of a VM's unit.
    fn show(&self, name: &str, property: &str) -> String {
        self.sh(&format!("systemctl show -P {property} qvm@{name}")).trim().to_owned()
    }

    /// Waits for a property.
    fn wait(&self, name: &str, property: &str, value: &str) {
        let script = format!("[ \"$(systemctl show -P {property} qvm@{name})\" = {value} ]");
        self.until(&format!("{name}: {property} is {value}"), &script);
    }

    fn status(&self, name: &str) -> serde_json::Value {
        let json = self.sh(&format!("qvm status --json {name} || true"));
        serde_json::from_str::<serde_json::Value>(&json).unwrap()[0].clone()
    }

    /// Starts the units of VMs. systemd repeats a start that failed because the host is slow.
    fn start(&self, names: &[&str]) {
        let units: String = names.iter().map(|name| format!(" qvm@{name}")).collect();
        self.sh(&format!("systemctl daemon-reload; systemctl start{units} || true"));
        for name in names {
            self.wait(name, "ActiveState", "active");
        }
    }

    /// Checks the last end of a VM. A start that failed because the host is slow does not count.
    fn ended(&self, name: &str, reason: &str) {
        let status = self.status(name);
        let ends = status["ends"].as_array().map(Vec::as_slice).unwrap_or_default();
        let last = ends.iter().find(|end| end["reason"] != "start-failed");
        if last.is_none_or(|end| end["reason"] != reason) {
            let journal = format!("journalctl --no-pager -o short-monotonic -u qvm@{name}");
            let journal = self.run(&format!("{journal} | tail -n 200"));
            let journal = journal.unwrap_or_else(|said| said);
            panic!("`{name}` did not end with `{reason}`: {status:#}\n{journal}");
        }
    }

    /// The PID of QEMU.
    fn qemu(&self, name: &str) -> i64 {
        self.status(name)["pid"].as_i64().unwrap_or_else(|| self.fail(&format!("{name} is down")))
    }

    /// The journal of a VM's unit in the boot of the host that is `boots` boots back.
    fn journal(&self, name: &str, boots: i32) -> String {
        self.sh(&format!("journalctl --no-pager -o short-monotonic -b {boots} -u qvm@{name}"))
    }

    /// Waits until the counting guest prints a larger number than now. Returns the number.
    fn counts_on(&self, name: &str) -> u64 {
        self.log_counts_on(&format!("/var/lib/qvm/vms/{name}/console.log"))
    }

    /// The same by the path of the console log. The host waits, because each query costs it CPU
    /// time.
    fn log_counts_on(&self, log: &str) -> u64 {
        // The last line may be incomplete.
        let last = format!(
            "last() {{ tail -c 400 {log} 2>/dev/null | tr -d '\\r' | \
             sed -n '$d; s/^COUNT 0*\\([0-9][0-9]*\\)$/\\1/p' | tail -n 1; }}"
        );
        let script = format!(
            "{last}; first=$(last); for _ in $(seq 1140); do now=$(last); \
             if [ \"${{now:-0}}\" -gt \"${{first:-0}}\" ]; then echo $now; exit 0; fi; \
             sleep 1; done; echo \"$first\"; exit 1"
        );
        self.sh(&script).trim().parse().unwrap()
    }
}

/// The steps of an operator on a new system, and the effects of the VM file on systemd and the
/// kernel.
#[test]
#[ignore = "run by `make test-host`"]
fn vm_file_and_start_suffice() {
    let Some(host) = Host::new() else { return };
    host.vm(
        "a",
        "boot-spin",
        "cpuWeight = 300\nshutdownTimeoutSec = 7\nafter = [\"b\"]\ndescription = \"the first\"",
    );
    host.vm("b", "boot-spin", "cpuWeight = 100");
    // `qvm start` reloads a VM file that systemd has not read.
    host.sh("qvm start a b");
    assert_eq!(host.show("a", "ActiveState"), "active");
    for (property, value) in [
        ("CPUWeight", "300"),
        ("TimeoutStopUSec", "37s"),
        ("Description", "the first (virtual machine a)"),
        ("Slice", "qvm.slice"),
        ("SourcePath", "/etc/qvm/vms/a.toml"),
        ("WatchdogUSec", "1min"),
        ("ManagedOOMPreference", "avoid"),
        ("UnitFileState", "disabled"),
    ] {
        assert_eq!(host.show("a", property), value, "{property}");
    }
    assert!(host.show("a", "After").contains("qvm@b.service"));
    assert!(
        host.show("a", "DropInPaths")
            .contains("/run/systemd/generator/qvm@a.service.d/10-qvm.conf")
    );

    // Both compete for the only CPU.
    host.sh("mkdir /etc/systemd/system/qvm.slice.d && printf '[Slice]\\nAllowedCPUs=0\\n' \
             >/etc/systemd/system/qvm.slice.d/one.conf && systemctl daemon-reload");
    let ratio = || -> f64 {
        let used = "used() { sed -n 's/^usage_usec //p' \
                    /sys/fs/cgroup/qvm.slice/qvm@$1.service/cpu.stat; }";
        let text = host.sh(&format!(
            "{used}; a=$(used a) b=$(used b); until [ $(($(used a) + $(used b) - a - b)) -gt \
             8000000 ]; do sleep 1; done; \
             echo $(($(used a) - a)) $(($(used b) - b))"
        ));
        let used: Vec<f64> = text.split_whitespace().map(|n| n.parse().unwrap()).collect();
        used[0] / used[1]
    };
    let three = ratio();
    assert!((2.7..=3.3).contains(&three), "300 to 100 is {three}");
    let a = host.status("a");
    assert_eq!((&a["cpuWeight"], &a["cpuWeightEffective"]), (&300.into(), &300.into()));
    let share = |name: &str| host.status(name)["cpuShare"].as_f64().unwrap();
    assert!((share("a") / share("b") - 3.0).abs() < 0.01);

    // Live changes, by each kind of command.
    host.sh(
        "sed -i 's/^cpuWeight = 300/cpuWeight = 50/' /etc/qvm/vms/a.toml && systemctl reload qvm@a",
    );
    let half = ratio();
    assert!((0.45..=0.55).contains(&half), "50 to 100 is {half}");
    // The guests are idle from now on.
    host.sh("for name in a b; do printf n | qvm console $name >/dev/null; done");
    assert_eq!(host.status("a")["pending"], serde_json::json!([]));
    host.sh("sed -i '1i cpuQuota = 30\\nmemoryMax = \"300M\"\\nioWeight = 33\\noomScoreAdjust = \
             400' /etc/qvm/vms/a.toml && qvm reload a");
    let files =
        host.sh("cd /sys/fs/cgroup/qvm.slice/qvm@a.service && cat cpu.max memory.max io.weight");
    assert_eq!(files, "30000 100000\n314572800\ndefault 33\n");
    let scores = format!(
        "cat /proc/{}/oom_score_adj /proc/{}/oom_score_adj",
        host.qemu("a"),
        host.show("a", "MainPID")
    );
    assert_eq!(host.sh(&scores), "400\n0\n");

    // Removed keys no longer limit the VM.
    host.sh("sed -i -E '/^(cpuQuota|memoryMax|ioWeight|oomScoreAdjust) /d' /etc/qvm/vms/a.toml \
             && qvm reload a");
    let files = host.sh("cd /sys/fs/cgroup/qvm.slice/qvm@a.service && cat cpu.max memory.max");
    assert_eq!(files, "max 100000\nmax\n");
    let score = format!("cat /proc/{}/oom_score_adj", host.qemu("a"));
    assert_eq!(host.sh(&score), "0\n");

    // A lower value than that of the supervisor requires a kept capability.
    host.sh("sed -i '1i oomScoreAdjust = -200' /etc/qvm/vms/a.toml && qvm reload a");
    assert_eq!(host.sh(&score), "-200\n");

    // Block devices: one of the VM file at the start of the unit, one that is plugged in later, and
    // no others.
    host.sh("modprobe loop && for nr in 0 1 2; do truncate -s 1M /root/$nr.raw && \
             losetup /dev/loop$nr /root/$nr.raw; done");
    host.vm("b2", "boot", "[disk.one]\ndevice = \"/dev/loop0\"\n");
    host.sh("qvm start b2");
    let opened = |nr: u8| format!("ls -l /proc/{}/fd | grep -q '/dev/loop{nr}$'", host.qemu("b2"));
    host.sh(&opened(0));
    host.sh(
        "printf '[disk.two]\\ndevice = \"/dev/loop1\"\\n' >>/etc/qvm/vms/b2.toml && qvm apply b2",
    );
    host.sh(&opened(1));
    let other =
        "echo $$ >/sys/fs/cgroup/qvm.slice/qvm@b2.service/cgroup.procs && head -c 1 /dev/loop2";
    assert!(host.refused(&format!("sh -c '{other}'")).contains("Operation not permitted"));
    host.sh("qvm stop b2");

    // An operator's setting overrides the VM file, and is reported.
    host.sh("systemctl set-property qvm@b CPUWeight=77");
    let b = host.status("b");
    assert_eq!(b["cpuWeightEffective"], 77);
    assert_eq!(b["noteDetails"][0]["code"], "weight-void", "{b}");
    assert!(b["notes"].to_string().contains("77"), "{b}");
    // A weight in a separate slice has no competitors.
    host.sh("mkdir /etc/systemd/system/qvm@b.service.d && printf \
             '[Service]\\nSlice=own.slice\\n' >/etc/systemd/system/qvm@b.service.d/own.conf && \
             systemctl daemon-reload && qvm restart b && printf n | qvm console b >/dev/null");
    let b = host.status("b");
    assert_eq!(b["noteDetails"][0]["code"], "weight-void", "{b}");
    assert!(b["notes"].to_string().contains("own.slice"), "{b}");

    // Without systemd, the supervisor writes the same keys.
    host.sh("mkdir -p /root/c/vms && cp /etc/qvm/vms/a.toml /root/c/vms/solo.toml && \
             sed -i '1i cpuQuota = 30\\nmemoryMax = \"300M\"\\nioWeight = 33' \
             /root/c/vms/solo.toml");
    let solo =
        "cd /root && export QVM_CONFIG_DIR=/root/c QVM_STATE_DIR=/root/s QVM_RUNTIME_DIR=/root/r";
    host.sh(&format!("{solo} && qvm start solo"));
    let files =
        host.sh("cd /sys/fs/cgroup/qvm/solo && cat cpu.weight cpu.max memory.max io.weight");
    assert_eq!(files, "50\n30000 100000\n314572800\ndefault 33\n");
    host.sh(&format!("{solo} && sed -i '/^cpuQuota/d' c/vms/solo.toml && qvm reload solo"));
    assert_eq!(host.sh("cat /sys/fs/cgroup/qvm/solo/cpu.max"), "max 100000\n");
    host.sh(&format!("{solo} && qvm stop solo"));
    host.sh("test ! -e /sys/fs/cgroup/qvm/solo");
    host.lab.ok(&["kill", "host"]);
}

/// Crashes of each process, and the processes that survive them.
#[test]
#[ignore = "run by `make test-host`"]
fn guests_survive_crashes_but_not_stops() {
    let Some(host) = Host::new() else { return };
    host.vm("web", "boot-count", "");
    host.start(&["web"]);
    let qemu = host.qemu("web");
    let mut counted = host.counts_on("web");
    let mut goes_on = |what: &str| {
        host.wait("web", "ActiveState", "active");
        assert_eq!(host.qemu("web"), qemu, "{what}");
        let now = host.counts_on("web");
        assert!(now > counted, "{what}: {now} after {counted}");
        counted = now;
    };
    let taken_over = |times: usize| {
        let script =
            format!("[ $(journalctl -o cat -u qvm@web | grep -c ' taken over, pid ') = {times} ]");
        host.until(&format!("taken over {times} times"), &script);
    };
    // The supervisor is killed and replaced, and systemd is re-executed.
    host.sh("systemctl kill --kill-whom=main --signal=KILL qvm@web");
    taken_over(1);
    goes_on("SIGKILL");
    host.sh("systemctl kill --kill-whom=main --signal=USR2 qvm@web");
    taken_over(2);
    goes_on("SIGUSR2");
    host.sh("systemctl daemon-reexec");
    goes_on("daemon-reexec");
    host.sh("systemctl reload qvm@web");
    goes_on("reload");
    assert_eq!(host.show("web", "NRestarts"), "1");
    // The next stop is clean.
    host.sh("systemctl stop qvm@web");
    let status = host.status("web");
    assert_eq!(
        (&status["state"], &status["lastStop"]["reason"]),
        (&"stopped".into(), &"stopped".into())
    );
    assert_eq!(host.show("web", "Result"), "success");
    host.sh(&format!("! kill -0 {qemu}"));

    // A stop immediately after the crash.
    host.sh("systemctl start qvm@web");
    let qemu = host.qemu("web");
    host.sh("systemctl kill --kill-whom=main --signal=KILL qvm@web; systemctl stop qvm@web");
    host.until("no QEMU is left", &format!("! kill -0 {qemu} 2>/dev/null"));
    // systemd records the crash, and does not start the unit again.
    host.wait("web", "ActiveState", "failed");
    host.ended("web", "stopped");
    host.sh("systemctl reset-failed qvm@web");

    // The start limit; smaller from now on, because each start boots a nested guest.
    assert_eq!(host.show("web", "StartLimitBurst"), "10");
    host.sh("mkdir /etc/systemd/system/qvm@.service.d && printf '[Unit]\\nStartLimitBurst=5\\n' \
             >/etc/systemd/system/qvm@.service.d/burst.conf && systemctl daemon-reload");
    // A supervisor that crashes repeatedly is given up; its guest keeps running.
    host.sh("systemctl start qvm@web");
    let qemu = host.qemu("web");
    let crash = "systemctl kill --kill-whom=main --signal=KILL qvm@web";
    host.until(
        "it is given up",
        &format!("{crash}; journalctl -o cat -u qvm@web | grep -q 'QEMU runs without one'"),
    );
    assert_eq!(host.show("web", "ActiveState"), "failed");
    assert_eq!(host.qemu("web"), qemu);
    host.sh("qvm start web");
    assert_eq!(host.qemu("web"), qemu);
    host.wait("web", "ActiveState", "active");
    host.sh("systemctl stop qvm@web");

    // QEMU is killed: a new one is started.
    host.sh("systemctl start qvm@web");
    let qemu = host.qemu("web");
    host.sh(&format!("kill -KILL {qemu}"));
    host.until(
        "another QEMU",
        &format!(
            "p=$(sed -n 's/.*\"pid\": \\([0-9]*\\).*/\\1/p' \
                                         /run/qvm/web/record.json) && [ -n \"$p\" ] && \
                                         [ \"$p\" != {qemu} ]"
        ),
    );
    host.wait("web", "ActiveState", "active");
    host.ended("web", "qemu-signal");
    host.sh("systemctl stop qvm@web");

    // A VM that cannot start is given up; `qvm start` retries, and prints the reason.
    host.sh("head -c 100000 /payload/boot.qcow2 >/root/cut.qcow2");
    host.write("cut", "accel = \"tcg\"\nmem = \"64M\"\n[image]\npath = \"/root/cut.qcow2\"\n");
    host.refused("qvm start cut");
    let given_up = "journalctl -o cat -u qvm@cut | grep -q 'Start request repeated too quickly'";
    host.until("it is given up", given_up);
    assert_eq!(host.show("cut", "NRestarts"), "5");
    assert!(host.refused("qvm start cut").contains("error: cut: "));

    // A fault of the host is retried without a limit.
    host.vm("net", "boot", "bridge = \"br7\"");
    host.refused("qvm start net");
    host.until(
        "more tries than the limit",
        "[ $(journalctl -o cat -u qvm@net | grep -c '^error: ') -gt 6 ]",
    );
    host.sh("ip link add br7 type bridge && ip link set br7 up");
    host.wait("net", "ActiveState", "active");
    host.sh("ip link show qvm-net | grep -q 'master br7'");
    host.sh("systemctl stop qvm@net && ! ip link show qvm-net 2>/dev/null");

    // An invalid file is not retried.
    host.write("bad", "vcpu = \n");
    assert!(host.refused("qvm start bad").contains("bad.toml:1:8"));
    host.sh("systemctl daemon-reload; systemctl start qvm@bad || true");
    assert_eq!(
        (host.show("bad", "ExecMainStatus"), host.show("bad", "NRestarts")),
        ("78".into(), "0".into())
    );

    // A guest that powers itself off stays off.
    host.vm("off", "boot-poweroff", "");
    host.sh("systemctl daemon-reload && systemctl start qvm@off || true");
    host.wait("off", "ActiveState", "inactive");
    host.ended("off", "guest-shutdown");
    assert_eq!(
        (host.show("off", "Result"), host.show("off", "NRestarts")),
        ("success".into(), "0".into())
    );
    host.lab.ok(&["kill", "host"]);
}

/// The host reboots with running guests.
#[test]
#[ignore = "run by `make test-host`"]
fn reboot_stops_and_starts_guests_in_order() {
    let Some(host) = Host::new() else { return };
    host.vm("db", "boot", "autostart = true");
    host.vm("web", "boot", "autostart = true\nafter = [\"db\"]");
    host.vm("deaf", "boot-deaf", "shutdownTimeoutSec = 20");
    host.vm("sleeper", "boot-count", "autostart = true\nhostShutdown = \"suspend\"");
    host.vm("hidden", "boot-count", "hostShutdown = \"suspend\"");
    host.write("bad", "autostart = true\nvcpu = \n");
    host.sh(
        "systemctl daemon-reload && systemctl start qvm@db qvm@web qvm@deaf qvm@sleeper qvm@hidden",
    );
    let counted = (host.counts_on("sleeper"), host.counts_on("hidden"));
    let boot = host.sh("cat /proc/sys/kernel/random/boot_id");
    let _ = host.run("systemctl --no-block reboot");
    until_within(BOUND, "another boot", || {
        host.run("cat /proc/sys/kernel/random/boot_id").is_ok_and(|b| b != boot)
    });
    host.comes_up();
    for name in ["db", "sleeper", "web"] {
        host.wait(name, "ActiveState", "active");
    }

    let says = |name: &str, what: &str| {
        let journal = host.journal(name, -1);
        assert!(journal.contains(what), "{name} never printed `{what}`\n{journal}");
    };
    // The end of each guest, by its last end and by the journal of that boot.
    for (name, reason) in [
        ("db", "stopped"),
        ("web", "stopped"),
        ("deaf", "forced-off"),
        ("sleeper", "suspended"),
        ("hidden", "suspended"),
    ] {
        host.ended(name, reason);
        says(name, "Stopped qvm@");
    }
    let at = |name: &str, what: &str| -> f64 {
        let journal = host.journal(name, -1);
        let line = journal.lines().find(|line| line.contains(what));
        let line = line.unwrap_or_else(|| panic!("{name} never printed `{what}`\n{journal}"));
        line.split(['[', ']']).nth(1).unwrap().trim().parse().unwrap()
    };
    says("web", "the guest shut down, requested by a signal");
    says("deaf", "the guest did not shut down in time and was forced off");
    says("sleeper", "the guest's state was saved at the shutdown of the host");
    // `after` in the reverse order; the unresponsive guest delays no other one, and is forced off
    // at its deadline.
    let (web, db) = (at("web", "Stopped qvm@"), at("db", "Stopping qvm@"));
    assert!(web <= db, "{web} {db}");
    let (web, deaf) = (at("web", "Stopping qvm@"), at("deaf", "Stopped qvm@"));
    assert!(web < deaf, "{web} {deaf}");
    let asked = deaf - at("deaf", "Stopping qvm@");
    assert!(asked >= 19.0, "{asked}");
    // By its supervisor: systemd did not kill it.
    let journal = host.journal("deaf", -1);
    assert!(!journal.contains("timed out"), "{journal}");

    // Exactly the VMs with autostart run; one of them cannot start, and reports the reason.
    let list = host.sh("qvm list --json");
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    let up: Vec<&str> = list
        .as_array()
        .unwrap()
        .iter()
        .filter(|vm| vm["state"] == "running")
        .map(|vm| vm["name"].as_str().unwrap())
        .collect();
    assert_eq!(up, ["db", "sleeper", "web"]);
    // Saved guests continue, one automatically and one when it is started; a stop of the unit alone
    // saves nothing.
    let boots = "grep -c BOOT-GUEST-READY /var/lib/qvm/vms/sleeper/console.log";
    assert!(host.counts_on("sleeper") > counted.0);
    assert_eq!(host.sh(boots), "1\n");
    host.start(&["hidden"]);
    assert!(host.counts_on("hidden") > counted.1);
    host.sh("systemctl stop qvm@sleeper");
    host.ended("sleeper", "stopped");

    host.wait("bad", "ActiveState", "failed");
    assert_eq!(host.show("bad", "ExecMainStatus"), "78");
    assert!(host.journal("bad", 0).contains("bad.toml:2:8"), "{}", host.journal("bad", 0));
    // The journal has it as an error too.
    host.sh("journalctl -b -p err -u qvm@bad | grep -q 'bad.toml:2:8'");
    host.sh("! journalctl -b -p warning -u qvm@db | grep -q ' started, pid '");
    host.sh("systemctl is-active qvm.target multi-user.target");

    // The host's power button, with a guest that ignores its own.
    host.start(&["deaf"]);
    host.lab.ok(&["stop", "host"]);
    assert_eq!(host.lab.last_reason("host"), "stopped");
}

/// The order of starts by readiness, and systemd-machined.
#[test]
#[ignore = "run by `make test-host`"]
fn start_waits_for_readiness() {
    let Some(host) = Host::new() else { return };
    // In the long form a Linux guest with an agent, which boots slowly here; else a guest without
    // an agent, which counts as started after its time limit.
    let (image, ready) = match lab::long() {
        true => ("tiny", "readyTimeoutSec = 3600\nreadyFailure = \"fail\""),
        false => ("boot", "readyTimeoutSec = 180"),
    };
    let db = format!("mem = \"256M\"\nautostart = true\nready = \"agent\"\n{ready}");
    host.vm("db", image, &db);
    host.vm("web", "boot", "autostart = true\nafter = [\"db\"]");
    host.vm("never", "boot", "ready = \"agent\"\nreadyTimeoutSec = 3\nreadyFailure = \"fail\"");
    host.sh("systemctl daemon-reload && systemctl start --no-block qvm@db qvm@web");
    host.until(
        "db's guest boots",
        "[ \"$(systemctl show -P StatusText qvm@db)\" != '' ] && \
                                    qvm status db | grep -q 'ready: *waiting'",
    );
    assert_eq!(host.show("db", "ActiveState"), "activating");
    assert_eq!(host.show("web", "ActiveState"), "inactive");
    host.wait("web", "ActiveState", "active");
    assert_eq!(host.show("db", "ActiveState"), "active");
    if lab::long() {
        host.until("db's guest runs a command", "qvm exec db -- true");
    }

    // A guest that does not become ready fails its start, and is shut down before the next attempt.
    host.sh("! systemctl start qvm@never");
    host.until("it is tried again", "[ $(systemctl show -P NRestarts qvm@never) -gt 0 ]");
    assert!(host.journal("never", 0).contains("the guest did not get ready: not within 3 s"));
    host.sh("systemctl stop qvm@never");

    // systemd-machined lists each VM while it runs, also after an adoption.
    let listed = |names: &[&str]| {
        let script = format!(
            "[ \"$(machinectl list --no-legend | awk '{{ print $1, $2, \
             $3 }}' | sort | tr '\\n' ',')\" = '{}' ]",
            names.iter().map(|name| format!("{name} vm qvm,")).collect::<String>()
        );
        host.until(&format!("machinectl lists {names:?}"), &script);
    };
    host.sh("ip link add br7 type bridge && ip link set br7 up");
    host.vm("net", "boot-count", "bridge = \"br7\"");
    host.sh("qvm start net");
    listed(&["db", "net", "web"]);
    let leader = || host.sh("machinectl show -p Leader --value net").trim().to_owned();
    assert_eq!(leader(), host.show("net", "MainPID"));
    let interfaces = host
        .sh("busctl get-property org.freedesktop.machine1 /org/freedesktop/machine1/machine/net \
         org.freedesktop.machine1.Machine NetworkInterfaces");
    assert_eq!(interfaces, format!("ai 1 {}", host.sh("cat /sys/class/net/qvm-net/ifindex")));
    assert_eq!(host.sh("machinectl show -p Unit --value net").trim(), "qvm@net.service");
    let qemu = host.qemu("net");
    host.sh("systemctl kill --kill-whom=main --signal=KILL qvm@net");
    host.until(
        "its new supervisor is the leader",
        "[ $(machinectl show -p Leader --value net) = $(systemctl show -P MainPID qvm@net) ]",
    );
    // The commands of machinectl have their documented effects.
    host.sh("machinectl reboot net");
    host.until(
        "the guest has rebooted",
        "qvm status net | grep -q '^state: *running' && \
                                          [ $(journalctl -o cat -u qvm@net | grep -c ' started, \
                                          pid ') -gt 1 ]",
    );
    assert_ne!(host.qemu("net"), qemu);
    host.sh("machinectl poweroff net");
    host.wait("net", "ActiveState", "inactive");
    host.sh("machinectl terminate web");
    host.wait("web", "ActiveState", "inactive");
    for name in ["net", "web"] {
        host.ended(name, "stopped");
        assert_eq!(host.show(name, "Result"), "success", "{name}");
    }
    listed(&["db"]);

    // Admission: a start without enough memory fails once, and is not retried; or waits for memory.
    host.sh("printf 'reserveMem = \"2900M\"\\n' >/etc/qvm/qvm.toml");
    host.vm("big", "boot", "mem = \"512M\"");
    let said = host.refused("qvm start big");
    assert!(said.contains("the host has not enough memory left: "), "{said}");
    assert_eq!(host.show("big", "ActiveState"), "failed");
    assert_eq!(host.show("big", "ExecMainStatus"), "69");
    assert_eq!(host.sh("qvm start big 2>/dev/null || echo $?").trim(), "69");
    assert_eq!(host.show("big", "NRestarts"), "0");
    host.sh(
        "echo 'admission = \"wait\"' >>/etc/qvm/qvm.toml && systemctl start --no-block qvm@big",
    );
    host.until(
        "it waits, and systemd knows what for",
        "systemctl show -P StatusText qvm@big | grep -q 'waits for memory: '",
    );
    assert_eq!(host.show("big", "ActiveState"), "activating");
    host.sh("rm /etc/qvm/qvm.toml");
    host.wait("big", "ActiveState", "active");
    host.lab.ok(&["kill", "host"]);
}

/// An unprivileged user, whose VMs run as long as the user's service manager.
#[test]
#[ignore = "run by `make test-host`"]
fn user_vms_are_user_units() {
    let Some(host) = Host::new() else { return };
    // systemd kills a user's manager after two minutes, which is too early on a loaded machine.
    host.sh("mkdir /etc/systemd/system/user@.service.d && printf \
             '[Service]\\nTimeoutStopSec=1200\\n' \
             >/etc/systemd/system/user@.service.d/long.conf && systemctl daemon-reload");
    host.sh("useradd -m op && install -d -o op /home/op/.config/qvm/vms /home/op/.config/qvm \
             /home/op/.config");
    for (name, more) in [("web", "autostart = true"), ("nap", "hostShutdown = \"suspend\"")] {
        host.sh(&format!(
            "cat >/home/op/.config/qvm/vms/{name}.toml <<'END'\naccel = \"tcg\"\nmem = \"64M\"\n\
             shutdownTimeoutSec = 1200\n{more}\n[image]\npath = \"/payload/boot-count.qcow2\"\n\
             END\n"
        ));
    }
    let op = |script: &str| -> String {
        host.sh(&format!(
            "cd /home/op && setpriv --reuid=op --regid=op --init-groups env HOME=/home/op \
             XDG_RUNTIME_DIR=/run/user/$(id -u op) sh -c {}",
            shell_quoted(script)
        ))
    };
    let until = |what: &str, script: &str| {
        let wait = format!(
            "for _ in $(seq 1140); do if {script}; then echo yes; exit 0; fi; sleep 1; done; true"
        );
        let printed = op(&wait);
        assert!(printed.ends_with("yes\n"), "never: {what}\n{printed}");
    };
    let boots = |name: &str| {
        op(&format!("grep -c BOOT-GUEST-READY .local/share/qvm/vms/{name}/console.log || true"))
    };
    let counts_on = |name: &str| {
        host.log_counts_on(&format!("/home/op/.local/share/qvm/vms/{name}/console.log"))
    };
    // With lingering, the manager runs without a login, and starts the VMs with `autostart`.
    host.sh("loginctl enable-linger op");
    until("it is started", "systemctl --user is-active --quiet qvm@web");
    op("qvm start nap && systemctl --user is-active --quiet qvm@nap");
    let (web, nap) = (counts_on("web"), counts_on("nap"));
    // A crash of the supervisor keeps the guest here too.
    op("systemctl --user kill --kill-whom=main --signal=KILL qvm@web");
    until(
        "it is taken over",
        "qvm status web | grep -q '^supervisor:' && systemctl --user is-active --quiet qvm@web",
    );
    assert!(counts_on("web") > web);
    assert_eq!(boots("web"), "1\n");
    // The manager ends, as at a shutdown of the host: each guest is stopped by its VM file.
    host.sh("systemctl stop user@$(id -u op).service && ! pidof qemu-system-x86_64");
    host.sh("systemctl start user@$(id -u op).service");
    until("it is started again", "systemctl --user is-active --quiet qvm@web");
    op("systemctl --user start qvm@nap");
    assert!(counts_on("nap") > nap);
    assert_eq!((boots("web"), boots("nap")), ("2\n".into(), "1\n".into()));
    op("systemctl --user stop qvm@web qvm@nap");
    for name in ["web", "nap"] {
        assert!(
            op(&format!("qvm status --json {name} || true")).contains("\"reason\": \"stopped\""),
            "{name}"
        );
    }
    host.sh("! pidof qemu-system-x86_64");
    host.lab.ok(&["kill", "host"]);
}

/// Quotes a text as one word of sh(1).
fn shell_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// The package is upgraded and removed.
#[test]
#[ignore = "run by `make test-host`"]
fn upgrade_keeps_guests_and_removal_keeps_disks() {
    let Some(host) = Host::new() else { return };
    host.vm("one", "boot-count", "");
    host.vm("two", "boot", "");
    host.start(&["one", "two"]);
    let (one, two) = (host.qemu("one"), host.qemu("two"));
    let supervisor = host.show("one", "MainPID");
    let counted = host.counts_on("one");
    host.sh("dpkg -i /payload/newer.deb && dpkg -s qvm | grep -q '^Version: 9'");
    for name in ["one", "two"] {
        host.until(
            "taken over",
            &format!("journalctl -o cat -u qvm@{name} | grep -q ' taken over, pid '"),
        );
        host.wait(name, "ActiveState", "active");
    }
    assert_eq!((host.qemu("one"), host.qemu("two")), (one, two));
    assert_eq!(host.show("one", "MainPID"), supervisor);
    assert_eq!(host.sh(&format!("readlink /proc/{supervisor}/exe")), "/usr/bin/qvm\n");
    assert!(host.counts_on("one") > counted);

    host.sh("dpkg -r qvm");
    host.sh(&format!(
        "! kill -0 {one} 2>/dev/null && ! kill -0 {two} 2>/dev/null && ! pidof qemu-system-x86_64"
    ));
    host.sh("ls /var/lib/qvm/vms/one/root.qcow2 /etc/qvm/vms/one.toml");
    let end = host.sh("cat /var/lib/qvm/vms/two/ends.json");
    assert!(
        end.contains("\"reason\": \"stopped\"") || end.contains("\"reason\":\"stopped\""),
        "{end}"
    );
    host.sh("dpkg -P qvm && ls /var/lib/qvm/vms/one/root.qcow2 /etc/qvm/vms/one.toml");
    // Installed again: everything is as before.
    host.sh("dpkg -i /payload/qvm.deb && systemctl start qvm@two");
    assert_eq!(host.show("two", "ActiveState"), "active");
    host.lab.ok(&["kill", "host"]);
}
