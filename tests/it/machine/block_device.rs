//! Block devices as disks, on real loop devices, with the machine's QEMU and the oldest one.

use std::{fs, path::Path};

use crate::lab::{
    Lab, guest,
    loops::Loop,
    old_qemu::{self, ShortForm},
    runs, signal, until,
};
use serde_json::json;

const SIGKILL: i32 = 9;

/// A lab of each QEMU of the long or short form; none without loop devices.
fn labs(short_form: ShortForm) -> Vec<Lab> {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root makes loop devices");
        return vec![];
    }
    old_qemu::labs(short_form)
}

/// A loop device with a copy of a guest image in `dir`.
fn device_of(image: &Path, dir: &Path, sector: u32) -> Option<Loop> {
    let raw = dir.join("device.raw");
    let image = image.to_str().unwrap();
    let convert = ["convert", "-O", "raw", image, raw.to_str().unwrap()];
    assert!(std::process::Command::new("qemu-img").args(convert).status().unwrap().success());
    Loop::new(&raw, sector)
}

/// A loop device of 8 MiB that begins with `content`.
fn blank(dir: &Path, name: &str, content: &str, sector: u32) -> Option<Loop> {
    let raw = dir.join(name);
    fs::write(&raw, content).unwrap();
    fs::File::options().write(true).open(&raw).unwrap().set_len(8 << 20).unwrap();
    Loop::new(&raw, sector)
}

/// Writes a VM file without an image.
fn write(lab: &Lab, name: &str, text: &str) {
    fs::write(lab.file(name), format!("accel = \"tcg\"\n{text}")).unwrap();
}

/// The flags with which QEMU has a path open, once for each descriptor.
fn open_flags(pid: i32, path: &Path) -> Vec<i32> {
    let mut all = vec![];
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
        if fs::read_link(entry.path()).is_ok_and(|to| to == path) {
            let number = entry.file_name().into_string().unwrap();
            let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).unwrap();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
            all.push(i32::from_str_radix(flags.trim(), 8).unwrap());
        }
    }
    all
}

#[test]
fn guest_boots_from_device_in_every_isolation() {
    let Some(image) = guest("boot.qcow2") else { return };
    for lab in labs(ShortForm::Machine) {
        // The sectors of the device may be larger than those of the firmware; its file may not
        // support O_DIRECT.
        let memory = tempfile::Builder::new().prefix("qvm").tempdir_in("/dev/shm").unwrap();
        for (dir, sector) in [(lab.path(), 512), (memory.path(), 4096)] {
            let Some(root) = device_of(&image, dir, sector) else { return };
            let Some(more) = blank(dir, "more.raw", "", sector) else { return };
            for (nr, isolation) in ["on", "off", "strict"].into_iter().enumerate() {
                let (root, more) = (root.path(), more.path());
                let name = format!("v{sector}-{nr}");
                write(
                    &lab,
                    &name,
                    &format!(
                        "mem = \"64M\"\nisolation = \"{isolation}\"\n[nic]\n\
                         [disk.root]\ndevice = \"{}\"\n\
                         [disk.more]\ndevice = \"{}\"\nreadOnly = true\n",
                        root.display(),
                        more.display()
                    ),
                );
                lab.ok(&["start", &name]);
                lab.says(&name, "BOOT-GUEST-READY", 1);
                let qemu = lab.qemu_pid(&name);
                for (path, access) in [(root, nix::libc::O_RDWR), (more, nix::libc::O_RDONLY)] {
                    let flags = open_flags(qemu, path);
                    let mask = nix::libc::O_ACCMODE | nix::libc::O_DIRECT;
                    let wanted = access | nix::libc::O_DIRECT;
                    assert!(!flags.is_empty() && flags.iter().all(|it| it & mask == wanted));
                }
                lab.ok(&["kill", &name]);
            }
        }
    }
}

#[test]
fn read_only_root_device_boots() {
    let Some(image) = guest("boot.qcow2") else { return };
    for lab in labs(ShortForm::Oldest) {
        let Some(root) = device_of(&image, lab.path(), 512) else { return };
        let path = root.path().display();
        let text = format!("mem = \"64M\"\n[disk.root]\ndevice = \"{path}\"\nreadOnly = true\n");
        write(&lab, "web", &text);
        lab.ok(&["start", "web"]);
        lab.says("web", "BOOT-GUEST-READY", 1);
        lab.ok(&["stop", "web"]);
        assert_eq!(lab.last_reason("web"), "stopped");
    }
}

#[test]
fn link_to_device_in_state_directory_boots() {
    let Some(image) = guest("boot.qcow2") else { return };
    for lab in labs(ShortForm::Machine) {
        let Some(root) = device_of(&image, lab.path(), 512) else { return };
        write(&lab, "web", "mem = \"64M\"\n");
        fs::create_dir_all(lab.state("web", "")).unwrap();
        std::os::unix::fs::symlink(root.path(), lab.state("web", "root.raw")).unwrap();
        lab.ok(&["start", "web"]);
        lab.says("web", "BOOT-GUEST-READY", 1);
        lab.ok(&["kill", "web"]);
    }
}

#[test]
fn device_survives_adoption_suspend_and_relaunch() {
    let Some(image) = guest("boot-count.qcow2") else { return };
    for lab in labs(ShortForm::Oldest) {
        let Some(root) = device_of(&image, lab.path(), 512) else { return };
        let path = root.path().display();
        write(&lab, "web", &format!("mem = \"64M\"\n[disk.root]\ndevice = \"{path}\"\n"));
        lab.ok(&["start", "web"]);
        lab.says("web", "COUNT", 1);

        let qemu = lab.qemu_pid("web");
        let supervisor = lab.status("web")["supervisorPid"].as_i64().unwrap();
        signal(supervisor.try_into().unwrap(), SIGKILL);
        until("the supervisor is gone", || !runs(supervisor.try_into().unwrap()));
        lab.ok(&["start", "web"]);
        assert_eq!(lab.qemu_pid("web"), qemu);

        lab.ok(&["suspend", "web"]);
        assert_eq!(lab.last_reason("web"), "suspended");
        lab.ok(&["start", "web"]);
        lab.wait_state("web", "running");
        assert_eq!(lab.console("web").matches("BOOT-GUEST-READY").count(), 1);

        // A reboot with a pending change launches a new QEMU process.
        let qemu = lab.qemu_pid("web");
        let text = fs::read_to_string(lab.file("web")).unwrap();
        fs::write(lab.file("web"), text.replace("64M", "96M")).unwrap();
        lab.ok(&["reload", "web"]);
        lab.ok(&["reboot", "--force", "web"]);
        lab.says("web", "BOOT-GUEST-READY", 2);
        until("the new QEMU runs", || lab.status("web")["memBytes"] == 96 << 20);
        assert_ne!(lab.qemu_pid("web"), qemu);
        lab.ok(&["kill", "web"]);
    }
}

/// Applies the VM file. `qvm apply` reports the changes that the supervisor had seen before.
fn apply(lab: &Lab) -> String {
    until("the changes are pending", || lab.status("web")["pending"] != json!([]));
    lab.ok(&["apply", "web"])
}

#[test]
fn device_is_plugged_in_and_out() {
    let Some(image) = guest("tiny.qcow2") else { return };
    for lab in labs(ShortForm::Machine) {
        let Some(root) = device_of(&image, lab.path(), 512) else { return };
        let Some(data) = blank(lab.path(), "data.raw", "", 4096) else { return };
        let Some(fixed) = blank(lab.path(), "fixed.raw", "mark-of-the-host", 512) else { return };
        let root =
            format!("mem = \"256M\"\n[nic]\n[disk.root]\ndevice = \"{}\"\n", root.path().display());
        write(&lab, "web", &root);
        lab.ok(&["start", "web"]);
        lab.ok(&["wait", "web", "--for", "agent", "--timeout", "120"]);
        let shell = |command: &str| {
            let output = lab.qvm(&["exec", "web", "--", "sh", "-c", command]);
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        };
        let node = |serial: &str| {
            format!(
                "for d in /sys/block/vd*; do [ \"$(cat $d/serial)\" = {serial} ] && \
                 echo ${{d##*/}}; done"
            )
        };
        let more = format!(
            "[disk.data]\ndevice = \"{}\"\n[disk.fixed]\ndevice = \"{}\"\nreadOnly = true\n\
             [disk.plain]\nsize = \"1M\"\n",
            data.path().display(),
            fixed.path().display()
        );
        for mark in ["mark-in-the-data", "mark-in-the-next"] {
            write(&lab, "web", &format!("{root}{more}"));
            let told = apply(&lab);
            assert!(told.contains("applied: disk.data: "), "{told}");
            assert!(told.contains("applied: disk.fixed: "), "{told}");
            assert_eq!(lab.status("web")["pending"], json!([]));
            until("the guest sees all", || {
                ["data", "fixed", "plain"].iter().all(|serial| !shell(&node(serial)).is_empty())
            });
            // Less than a sector of the device, written by the guest and read by the host.
            shell(&format!(
                "d=$({}); echo {mark} | dd of=/dev/$d bs=512 conv=sync,fsync",
                node("data")
            ));
            let bytes = fs::read(lab.path().join("data.raw")).unwrap();
            assert!(bytes.starts_with(mark.as_bytes()), "{:?}", &bytes[..32]);
            let read =
                shell(&format!("d=$({}); head -c 16 /dev/$d; cat /sys/block/$d/ro", node("fixed")));
            assert_eq!(read, "mark-of-the-host1");
            write(&lab, "web", &root);
            let told = apply(&lab);
            assert!(told.contains("applied: disk.data: "), "{told}");
            assert_eq!(lab.status("web")["pending"], json!([]));
            until("QEMU has closed both", || {
                let qemu = lab.qemu_pid("web");
                open_flags(qemu, data.path()).is_empty()
                    && open_flags(qemu, fixed.path()).is_empty()
            });
        }
        lab.ok(&["kill", "web"]);
    }
}
