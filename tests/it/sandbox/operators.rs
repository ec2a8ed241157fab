//! The permissions of clients: root, `operators`, and the group of the sockets.

use std::{
    fs,
    io::{self, Read},
    os::unix::{
        fs::{PermissionsExt, chown},
        net::UnixStream,
    },
    path::Path,
    process::Output,
};

use crate::lab::{Lab, guest, until};

/// The UID and GID of Debian's `nobody`.
const NOBODY: u32 = 65534;
/// The group `qvm`; no account of this host is in it.
const GROUP: u32 = 54_321;

/// Runs `work` as `nobody` with these further groups. On Linux, each thread has its own credentials
/// (credentials(7)), which its child processes inherit.
#[allow(unsafe_code)]
fn as_nobody<T: Send>(groups: &[u32], work: impl FnOnce() -> T + Send) -> T {
    use nix::libc;
    let become_nobody = move || {
        // SAFETY: the system calls instead of glibc's wrappers, which change all threads of the
        // process; the length of the list is correct.
        let done = unsafe {
            libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr())
                | libc::syscall(libc::SYS_setresgid, NOBODY, NOBODY, NOBODY)
                | libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY)
        };
        assert_eq!(done, 0, "{}", io::Error::last_os_error());
        work()
    };
    std::thread::scope(|scope| scope.spawn(become_nobody).join().unwrap())
}

/// A VM whose sockets belong to the group, as in the directories of an installed qvm; `None` if the
/// tests are not root.
fn vm(more: &str) -> Option<Lab> {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root can change its UID");
        return None;
    }
    let image = guest("boot-keys.qcow2")?;
    let mut lab = Lab::new();
    lab.open_to_others();
    let runtime = lab.runtime("web", "");
    let above = runtime.parent().unwrap();
    fs::create_dir_all(above).unwrap();
    chown(above, None, Some(GROUP)).unwrap();
    // New files in it belong to the group too.
    fs::set_permissions(above, fs::Permissions::from_mode(0o2750)).unwrap();
    lab.vm("web", &image, more);
    lab.ok(&["start", "web"]);
    lab.says("web", "BOOT-GUEST-READY", 1);
    Some(lab)
}

fn said(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    String::from_utf8_lossy(out).into_owned() + &String::from_utf8_lossy(err)
}

fn status(output: &Output) -> serde_json::Value {
    let all: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    all[0].clone()
}

/// The reply of a VNC server; empty if it closes the connection.
fn offered(socket: &Path) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket)?;
    let mut said = vec![0; 12];
    match stream.read(&mut said) {
        Ok(count) => said.truncate(count),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => said.clear(),
        Err(error) => return Err(error),
    }
    Ok(said)
}

#[test]
fn group_reads_state_and_operators_control() {
    let Some(lab) = vm("[display]\nvnc = \"unix\"\n") else { return };
    let file = fs::read_to_string(lab.file("web")).unwrap();
    let vnc = lab.runtime("web", "vnc.sock");

    // A user outside of the group cannot connect.
    let output = as_nobody(&[], || lab.qvm(&["stop", "web"]));
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("permission denied by the supervisor's control socket"));

    // The group may read the state …
    let ask = |words: &[&str]| as_nobody(&[GROUP], || lab.qvm(words));
    let output = ask(&["status", "--json", "web"]);
    assert!(output.status.success(), "{}", said(&output));
    let told = status(&output);
    assert_eq!((&told["state"], &told["operators"]), (&"running".into(), &serde_json::json!([])));
    assert!(ask(&["events", "web"]).status.success());
    // … and nothing else.
    let calls: [(&[&str], &str); 12] = [
        (&["stop", "web"], "shut the VM down"),
        (&["kill", "web"], "force the VM off"),
        (&["reboot", "web"], "reboot the VM"),
        (&["pause", "web"], "pause the VM"),
        (&["suspend", "web"], "suspend the VM"),
        (&["apply", "web"], "apply the VM file"),
        (&["console", "web"], "use the VM's console"),
        (&["console", "--read-only", "web"], "read the VM's console"),
        (&["screenshot", "web", "-"], "view the VM's screen"),
        (&["sendkey", "web", "a"], "type on the VM's keyboard"),
        (&["exec", "web", "--", "true"], "use the guest agent"),
        (&["fsfreeze", "--thaw", "web"], "thaw the guest's file systems"),
    ];
    for (words, what) in calls {
        let output = ask(words);
        assert_eq!(output.status.code(), Some(1), "{words:?}: {}", said(&output));
        let told = said(&output);
        let start = "error: web: permission denied: ";
        assert!(told.contains(start) && told.contains(what), "{words:?}: {told}");
        let hint = format!(
            "hint: add `operators = [\"nobody\"]` to {}, then run `qvm apply web` as root",
            lab.file("web").display()
        );
        assert!(told.contains(&hint), "{words:?}: {told}");
    }
    // The sockets behind the supervisor are not accessible for the group.
    for name in ["qmp.sock", "agent.sock", "serial.sock"] {
        let socket = lab.runtime("web", name);
        let error = as_nobody(&[GROUP], || UnixStream::connect(&socket)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{name}");
    }
    // Only root may read the console log; a viewer's connection is closed at once.
    let output = ask(&["log", "web"]);
    assert!(!output.status.success(), "{}", said(&output));
    assert_eq!(as_nobody(&[GROUP], || offered(&vnc)).unwrap(), b"");
    let log = || fs::read_to_string(lab.state("web", "supervisor.log")).unwrap();
    until("the refusal is in the log", || {
        log().contains("can view the VM's screen; the client is `nobody` (uid 65534)")
    });
    assert_eq!(offered(&vnc).unwrap(), b"RFB 003.008\n");
    assert_eq!(lab.status("web")["state"], "running");

    // An operator, by a group and then by name: in effect as soon as root has applied it.
    let write = |operators: &str| {
        fs::write(lab.file("web"), format!("operators = {operators}\n{file}")).unwrap();
        lab.ok(&["apply", "web"]);
    };
    write(&format!("[\"no-such-user-here\", \"@{GROUP}\"]"));
    assert_eq!(lab.status("web")["pending"], serde_json::json!([]));
    until("an unknown name is noted", || lab.has_note("web", "unknown-operator operators"));
    let output = ask(&["pause", "web"]);
    assert!(output.status.success(), "{}", said(&output));
    lab.wait_state("web", "paused");
    write("[\"nobody\"]");
    assert_eq!(lab.status("web")["operators"], serde_json::json!(["nobody"]));
    assert_eq!(lab.status("web")["notes"], serde_json::json!([]));
    for words in
        [&["resume", "web"][..], &["apply", "web"], &["sendkey", "web", "a"], &["vnc", "web"]]
    {
        let output = ask(words);
        assert!(output.status.success(), "{words:?}: {}", said(&output));
    }
    let output = ask(&["screenshot", "web", "-"]);
    assert!(output.stdout.starts_with(b"\x89PNG"), "{}", said(&output));
    assert_eq!(as_nobody(&[GROUP], || offered(&vnc)).unwrap(), b"RFB 003.008\n");

    assert!(log().contains("request of the operator with uid 65534: resume the VM"), "{}", log());

    // The operator is removed.
    write("[]");
    let output = ask(&["stop", "web"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    write("[\"65534\"]");
    let output = ask(&["kill", "web"]);
    assert!(output.status.success(), "{}", said(&output));
    lab.wait_state("web", "stopped");
    assert_eq!(lab.last_reason("web"), "killed");
}

/// Clients that may read the console may read the output before a crash, even if no supervisor is
/// running.
#[test]
fn console_of_an_end_is_for_operators() {
    let Some(lab) = vm("") else { return };
    crate::lab::signal(lab.qemu_pid("web"), 9);
    lab.wait_state("web", "failed");
    let mine = lab.status("web");
    assert!(mine["lastStop"]["console"].to_string().contains("BOOT-GUEST-READY"), "{mine}");
    // The group may read the state directory of an installed host.
    let dir = lab.state("web", "");
    let files = ["ends.json", "last-words.json"].map(|name| dir.join(name));
    for made in dir.ancestors().take(3).chain(files.iter().map(|file| file.as_path())) {
        chown(made, None, Some(GROUP)).unwrap();
    }
    let theirs = status(&as_nobody(&[GROUP], || lab.qvm(&["status", "--json", "web"])));
    assert_eq!(theirs["lastStop"]["reason"], mine["lastStop"]["reason"], "{theirs}");
    assert!(!theirs.to_string().contains("BOOT-GUEST-READY"), "{theirs}");
}
