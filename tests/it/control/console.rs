//! The serial console and its log: earlier output, since the last boot, with times; and a
//! supervisor that is replaced meanwhile.

use std::{
    io::Read,
    os::unix::net::UnixStream,
    process::Stdio,
    sync::{Arc, Mutex},
};

use crate::lab::{Lab, guest, signal, until};

const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

#[test]
fn log_has_boots_and_times() {
    let Some(image) = guest("boot-count.qcow2") else { return };
    let lab = Lab::new();
    lab.vm("web", &image, "");
    lab.ok(&["start", "web"]);
    lab.says("web", "COUNT", 3);
    lab.ok(&["kill", "web"]);
    let first = lab.ok(&["log", "web"]);
    assert_eq!(lab.ok(&["log", "--since-boot", "web"]), first);
    lab.ok(&["start", "web"]);
    let boots = |text: &str| text.matches("BOOT-GUEST-READY").count();
    lab.says("web", "BOOT-GUEST-READY", 2);
    let (all, since) = (lab.ok(&["log", "web"]), lab.ok(&["log", "-b", "web"]));
    assert_eq!((boots(&all), boots(&since)), (2, 1), "{since}");
    assert!(all.starts_with(&first) && all[first.len()..].starts_with(&since[..16]), "{all}");
    // A reset counts as a boot.
    lab.ok(&["reboot", "--force", "web"]);
    lab.says("web", "BOOT-GUEST-READY", 3);
    let (all, since) = (lab.ok(&["log", "web"]), lab.ok(&["log", "-b", "web"]));
    assert!(boots(&all) == 3 && boots(&since) <= 1, "{since}");
    let timed = lab.ok(&["log", "--timestamps", "-n", "2", "web"]);
    for line in timed.lines().filter(|line| !line.is_empty()) {
        let (time, _) = line.split_at(19);
        assert!(jiff::civil::DateTime::strptime("%Y-%m-%d %H:%M:%S", time).is_ok(), "{line:?}");
    }
    lab.ok(&["kill", "web"]);
}

/// The output of a process, as it arrives.
fn collected(mut from: impl Read + Send + 'static) -> Arc<Mutex<String>> {
    let seen = Arc::new(Mutex::new(String::new()));
    let to = seen.clone();
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            to.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
    });
    seen
}

#[test]
fn console_has_history_and_survives_reexec() {
    let Some(image) = guest("boot-count.qcow2") else { return };
    let lab = Lab::new();
    lab.vm("web", &image, "");
    lab.ok(&["start", "web"]);
    lab.says("web", "COUNT", 5);
    let before = lab.console("web");
    let line = before.lines().rfind(|line| line.contains("COUNT")).unwrap().to_owned();
    let mut viewer = lab
        .command(&["console", "--read-only", "--scrollback", "16", "web"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let seen = collected(viewer.stdout.take().unwrap());
    until("earlier output is shown", || seen.lock().unwrap().contains(&line));
    let supervisor = lab.status("web")["supervisorPid"].as_i64().unwrap().try_into().unwrap();
    signal(supervisor, SIGKILL);
    let socket = lab.runtime("web", "control.sock");
    until("it has gone", || UnixStream::connect(&socket).is_err());
    lab.ok(&["start", "web"]);
    let count = seen.lock().unwrap().matches("COUNT").count();
    until("the viewer sees the guest go on", || {
        seen.lock().unwrap().matches("COUNT").count() > count + 2
    });
    signal(viewer.id().try_into().unwrap(), SIGTERM);
    assert_eq!(viewer.wait().unwrap().code(), Some(143));
    // The end of the VM ends a viewer.
    let ended = lab.command(&["console", "web"]).stdin(Stdio::null()).stdout(Stdio::null()).spawn();
    lab.ok(&["kill", "web"]);
    assert!(ended.unwrap().wait().is_ok());
}
