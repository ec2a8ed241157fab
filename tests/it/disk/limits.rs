//! Limits of disks and other properties of their devices, with the machine's QEMU and the oldest
//! one.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::Path,
    time::Instant,
};

use serde_json::{Value, json};

use crate::lab::{
    LONG, Lab, guest,
    loops::Loop,
    old_qemu::{ShortForm, labs},
    signal, until,
};

const SIGKILL: i32 = 9;

/// The tiny guest, with its agent.
fn start(lab: &Lab, image: &Path, more: &str) {
    lab.vm("web", image, &format!("mem = \"256M\"\n{more}"));
    lab.ok(&["start", "web"]);
    lab.ok(&["wait", "web", "--for", "agent", "--timeout", "1200"]);
}

/// Rewrites the VM file and applies it: all changes must be applied.
fn apply(lab: &Lab, image: &Path, more: &str) -> String {
    lab.vm("web", image, &format!("mem = \"256M\"\n{more}"));
    // `qvm apply` reports the changes that the supervisor had seen before.
    until("the changes are pending", || lab.status("web")["pending"] != json!([]));
    let told = lab.ok(&["apply", "web"]);
    assert_eq!(lab.status("web")["pending"], json!([]), "{told}");
    told
}

fn shell(lab: &Lab, command: &str) -> String {
    let output = lab.qvm(&["exec", "web", "--", "sh", "-c", command]);
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Executes the commands at QEMU's monitor without a supervisor; then the next supervisor adopts
/// QEMU.
fn ask_qemu(lab: &Lab, commands: &[(&str, Value)]) -> Vec<Result<Value, String>> {
    let qemu = lab.qemu_pid("web");
    let supervisor = lab.status("web")["supervisorPid"].as_i64().unwrap();
    signal(supervisor.try_into().unwrap(), SIGKILL);
    let control = lab.runtime("web", "control.sock");
    until("the supervisor is gone", || UnixStream::connect(&control).is_err());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let answers = runtime.block_on(async {
        let socket = lab.runtime("web", "qmp.sock");
        let session = qmp::connect(&socket, LONG).await.unwrap();
        let mut answers = vec![];
        for (command, arguments) in commands {
            let answer = session.client.raw(command, arguments.clone(), LONG).await;
            answers.push(answer.map_err(|error| error.to_string()));
        }
        answers
    });
    drop(runtime);
    lab.ok(&["start", "web"]);
    assert_eq!(lab.qemu_pid("web"), qemu);
    assert_eq!(lab.status("web")["pending"], json!([]));
    answers
}

fn limits_of(disk: &str) -> (&'static str, Value) {
    ("qom-get", json!({ "path": format!("/objects/throttle-{disk}"), "property": "limits" }))
}

#[test]
fn limits_change_while_the_guest_runs() {
    let Some(image) = guest("tiny.qcow2") else { return };
    for lab in labs(ShortForm::Oldest) {
        start(&lab, &image, "[disk.root]\niops = 500\niopsBurst = 900\niopsBurstSec = 2\n");
        let limit =
            json!({"disk": "root", "limit": "iops", "perSecond": 500, "burst": 900, "burstSec": 2});
        assert_eq!(lab.status("web")["diskLimits"], json!([limit]));
        let text = lab.ok(&["status", "web"]);
        assert!(text.contains("diskLimit:   root: iops 500, burst 900 for 2 s\n"), "{text}");

        // From a total limit to separate ones, with another disk.
        let more = "[disk.root]\niopsRead = 300\nbandwidthWrite = \"8M\"\n\
                    [disk.data]\nsize = \"8M\"\nbandwidth = \"4M\"\nbandwidthBurst = \"6M\"\n";
        let told = apply(&lab, &image, more);
        for part in [
            "applied: disk.root.iops: 500 -> -\n",
            "applied: disk.root.iopsRead: - -> 300\n",
            "applied: disk.root.bandwidthWrite: - -> 8M\n",
            "applied: disk.data: - -> 8M, virtio\n",
        ] {
            assert!(told.contains(part), "{told}");
        }
        let metrics = lab.ok(&["metrics"]);
        for line in [
            "qvm_vm_disk_limit_requests_per_second{vm=\"web\",disk=\"root\",operation=\"read\"} \
             300",
            "qvm_vm_disk_limit_bytes_per_second{vm=\"web\",disk=\"data\",operation=\"all\"} \
             4194304",
        ] {
            assert!(metrics.contains(line), "{metrics}");
        }
        let answers = ask_qemu(&lab, &[limits_of("root"), limits_of("data")]);
        let [root, data] = [0, 1].map(|nr| answers[nr].clone().unwrap());
        assert_eq!((&root["iops-total"], &root["iops-total-max"]), (&json!(0), &json!(0)));
        assert_eq!((&root["iops-read"], &root["bps-write"]), (&json!(300), &json!(8 << 20)));
        assert_eq!(
            (&data["bps-total"], &data["bps-total-max"]),
            (&json!(4 << 20), &json!(6 << 20))
        );
        assert_eq!(lab.status("web")["diskLimits"].as_array().unwrap().len(), 3);

        // An unplugged disk leaves nothing; a disk with limits can grow.
        let grown = "diskSizeG = 1\n";
        apply(&lab, &image, grown);
        assert_eq!(lab.status("web")["diskLimits"], json!([]));
        until("the guest sees it grown", || shell(&lab, "cat /sys/block/vda/size") == "2097152");
        let list = |path: &str| ("qom-list", json!({ "path": path }));
        let answers = ask_qemu(
            &lab,
            &[
                list("/objects"),
                ("query-named-block-nodes", json!({ "flat": true })),
                limits_of("root"),
            ],
        );
        let all = format!("{:?}", answers[..2].to_vec());
        assert!(all.contains("throttle-root") && !all.contains("throttle-data"), "{all}");
        assert!(!all.contains("node-data") && !all.contains("format-data"), "{all}");
        let root = answers[2].clone().unwrap();
        assert!(root.as_object().unwrap().values().all(|it| it.as_u64() <= Some(1)), "{root}");
        apply(&lab, &image, &format!("{grown}[disk.data]\nsize = \"8M\"\n"));
        lab.ok(&["kill", "web"]);
    }
}

/// The completed reads and writes of a disk.
fn requests(lab: &Lab, disk: &str) -> f64 {
    let metrics = lab.ok(&["metrics"]);
    let of = |name: &str| -> f64 {
        let name = format!("qvm_vm_disk_{name}_completed_total{{vm=\"web\",disk=\"{disk}\"}} ");
        let line = metrics.lines().find_map(|line| line.strip_prefix(&name));
        line.unwrap_or_else(|| panic!("{metrics}")).parse().unwrap()
    };
    of("reads") + of("writes")
}

/// A guest that writes at full speed stays below the limit on any machine.
fn limit_holds(lab: &Lab) {
    let disk =
        "d=$(for d in /sys/block/vd*; do [ \"$(cat $d/serial)\" = data ] && echo ${d##*/}; done)";
    let write = "while :; do dd if=/dev/zero of=/dev/$d bs=4096 count=8 conv=notrunc,fsync \
                 2>/dev/null; done";
    shell(lab, &format!("{disk}; ({write}) >/dev/null 2>&1 </dev/null & echo $! >/tmp/writer"));
    let (rate, burst) = (5.0, 10.0);
    let began = Instant::now();
    let before = requests(lab, "data");
    until("some requests are completed", || requests(lab, "data") >= before + 20.0);
    let done = requests(lab, "data") - before;
    let seconds = began.elapsed().as_secs_f64();
    assert!(done <= rate * seconds + burst, "{done} requests in {seconds} s");
}

#[test]
fn limit_bounds_the_completed_requests() {
    let Some(image) = guest("tiny.qcow2") else { return };
    for lab in labs(ShortForm::Machine) {
        let data = "[disk.data]\nsize = \"8M\"\n";
        start(&lab, &image, &format!("{data}iops = 5\n"));
        limit_holds(&lab);
        // Without the limit, the guest exceeds it by far.
        apply(&lab, &image, data);
        let before = requests(&lab, "data");
        until("many requests are completed", || requests(&lab, "data") >= before + 200.0);
        lab.ok(&["kill", "web"]);
    }
}

/// A QEMU as an earlier qvm started it: the format node is the uppermost node.
fn without_throttle(lab: &mut Lab) {
    let real = lab.qemu.clone().unwrap_or_else(|| "qemu-system-x86_64".into());
    let script = format!(
        "#!/bin/bash\nout=()\nwhile (($#)); do\n case \"$1 $2\" in\n\
         \"-object \"*throttle-group*|\"-blockdev \"*'\"driver\":\"throttle\"'*) shift 2; \
         continue;;\n\
         esac\n out+=(\"${{1//format-/node-}}\")\n shift\ndone\nexec {} \"${{out[@]}}\"\n",
        real.to_str().unwrap()
    );
    let path = lab.path().join("qemu-without-throttle");
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    lab.qemu = Some(path.into());
}

#[test]
fn guest_of_an_earlier_qvm_is_limited() {
    let Some(image) = guest("tiny.qcow2") else { return };
    for mut lab in labs(ShortForm::Oldest) {
        without_throttle(&mut lab);
        let data = "isolation = \"off\"\n[disk.data]\nsize = \"8M\"\n";
        start(&lab, &image, data);
        let told = apply(&lab, &image, &format!("{data}iops = 5\n"));
        assert!(told.contains("applied: disk.data.iops: - -> 5\n"), "{told}");
        limit_holds(&lab);
        let answers = ask_qemu(&lab, &[limits_of("data"), ("query-block", json!({}))]);
        assert!(answers[0].is_err(), "{answers:?}");
        let blocks = answers[1].clone().unwrap();
        let mut blocks = blocks.as_array().unwrap().iter();
        let block = blocks.find(|one| one["inserted"]["node-name"] == "node-data").unwrap();
        assert_eq!(block["inserted"]["iops"], 5, "{block}");
        apply(&lab, &image, data);
        let before = requests(&lab, "data");
        until("many requests are completed", || requests(&lab, "data") >= before + 200.0);
        // The disk of an earlier qvm can be grown and unplugged.
        apply(&lab, &image, &data.replace("8M", "16M"));
        apply(&lab, &image, "isolation = \"off\"\n");
        apply(&lab, &image, &format!("{data}iops = 5\n"));
        assert!(ask_qemu(&lab, &[limits_of("data")])[0].is_ok());
        lab.ok(&["kill", "web"]);
    }
}

/// The sector sizes of the disks in the guest, by serial.
fn sectors(lab: &Lab) -> String {
    shell(
        lab,
        "cd /sys/block; for d in vd* nvme*; do [ -f $d/size ] || continue; \
         echo $(cat $d/serial $d/device/serial 2>/dev/null | tr -d ' ')=$(cat \
         $d/queue/logical_block_size); done | sort | xargs",
    )
}

#[test]
fn cache_thread_and_sectors_reach_qemu() {
    let Some(image) = guest("tiny.qcow2") else { return };
    for lab in labs(ShortForm::Machine) {
        let cd = lab.path().join("cd.iso");
        fs::write(&cd, [0; 1 << 20]).unwrap();
        let more = format!(
            "[disk.root]\ncache = \"none\"\niothread = true\n\
             [disk.big]\nsize = \"8M\"\nlogicalBlockSize = 4096\niothread = true\niops = 1000\n\
             [disk.cd]\npath = \"{}\"\nmedia = \"cdrom\"\n",
            cd.display()
        );
        let fast = "[disk.fast]\nsize = \"8M\"\nbus = \"nvme\"\nlogicalBlockSize = 4096\n";
        start(&lab, &image, &format!("{more}{fast}"));
        let seen = sectors(&lab);
        assert!(seen.contains("big=4096") && seen.contains("fast=4096"), "{seen}");
        assert!(seen.contains("root=512"), "{seen}");
        let threads = ask_qemu(&lab, &[("query-iothreads", json!({}))])[0].clone().unwrap();
        let names: Vec<&Value> = threads.as_array().unwrap().iter().map(|one| &one["id"]).collect();
        assert_eq!(names.len(), 2, "{names:?}");
        // QEMU cannot save the state of an NVMe disk.
        lab.ok(&["kill", "web"]);
        start(&lab, &image, &more);
        let seen = sectors(&lab);
        lab.ok(&["suspend", "web"]);
        lab.ok(&["start", "web"]);
        lab.ok(&["wait", "web", "--for", "agent", "--timeout", "1200"]);
        assert_eq!(sectors(&lab), seen);
        // The same disk, plugged into and unplugged from a running guest.
        let hot = "[disk.hot]\nsize = \"8M\"\nlogicalBlockSize = 4096\niothread = true\n\
                   cache = \"none\"\n";
        apply(&lab, &image, &format!("{more}{hot}"));
        until("the guest sees it", || sectors(&lab).contains("hot=4096"));
        apply(&lab, &image, &more);
        let threads = ask_qemu(&lab, &[("query-iothreads", json!({}))])[0].clone().unwrap();
        assert_eq!(threads.as_array().unwrap().len(), 2, "{threads}");
        lab.ok(&["kill", "web"]);
    }
}

#[test]
fn sector_sizes_reach_the_guest() {
    let Some(image) = guest("tiny.qcow2") else { return };
    if !nix::unistd::geteuid().is_root() {
        return println!("skipped: only root makes loop devices");
    }
    for lab in labs(ShortForm::Machine) {
        let device = |name: &str, at: usize, content: &[u8]| {
            let file = lab.path().join(name);
            let mut bytes = vec![0; 8 << 20];
            bytes[at..at + content.len()].copy_from_slice(content);
            fs::write(&file, bytes).unwrap();
            Loop::new(&file, 4096)
        };
        let Some(blank) = device("blank", 0, b"") else { return };
        let (Some(large), Some(small)) =
            (device("large", 4096, b"EFI PART"), device("small", 512, b"EFI PART"))
        else {
            return;
        };
        let mut more = String::new();
        for (name, device) in [("blank", &blank), ("large", &large), ("small", &small)] {
            more += &format!("[disk.{name}]\ndevice = \"{}\"\n", device.path().display());
        }
        start(&lab, &image, &more);
        let seen = sectors(&lab);
        for disk in ["blank=4096", "large=4096", "small=512", "root=512"] {
            assert!(seen.contains(disk), "{seen}");
        }
        // The sector size that the guest has seen stays, regardless of its writes.
        shell(
            &lab,
            "for d in /sys/block/vd*; do [ \"$(cat $d/serial)\" = blank ] && \
             echo mark | dd of=/dev/${d##*/} bs=4096 conv=sync,fsync; done",
        );
        // The key overrides it.
        lab.ok(&["kill", "web"]);
        start(&lab, &image, &format!("{more}logicalBlockSize = 4096\n"));
        assert_eq!(sectors(&lab), seen.replace("small=512", "small=4096"));
        lab.ok(&["kill", "web"]);
    }
}
