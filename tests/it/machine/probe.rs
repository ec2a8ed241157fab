//! The probe of the host with fake QEMU programs and the real one.

use std::{
    ffi::{OsStr, OsString},
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use qvm::{
    machine::{
        facts::{Kvm, Version},
        probe::{self, Error, Probe},
    },
    sys::program,
};
use tempfile::TempDir;

use qvm::value::Explain;

const DEBIAN_12: &str = r#"
if [ "$1" = -sandbox ] || [ "$1" = -version ]; then
    echo 'QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)'
else
    echo 'Supported machines are:'
    echo 'q35                  Standard PC (Q35 + ICH9, 2009) (alias of pc-q35-7.2)'
    echo 'pc-q35-7.2           Standard PC (Q35 + ICH9, 2009)'
    echo 'pc-q35-7.1           Standard PC (Q35 + ICH9, 2009)'
fi
"#;

/// A fake host: a root, a PATH, a cache. One at a time, because a script that one thread writes
/// while another forks cannot be executed (ETXTBSY).
struct Host {
    directory: TempDir,
    path: OsString,
    _alone: MutexGuard<'static, ()>,
}

impl Host {
    fn new() -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = tempfile::tempdir().unwrap();
        for sub in ["bin", "state", "root/dev", "root/sys/module", "root/usr/libexec"] {
            fs::create_dir_all(directory.path().join(sub)).unwrap();
        }
        let path = directory.path().join("bin").into_os_string();
        Self { directory, path, _alone: alone }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    /// A script that first records its run.
    fn script(&self, path: &str, text: &str) -> PathBuf {
        let path = self.at(path);
        let runs = self.at("runs");
        fs::write(&path, format!("#!/bin/sh\necho >> '{}'\n{text}", runs.display())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn runs(&self) -> usize {
        fs::read(self.at("runs")).map_or(0, |bytes| bytes.len())
    }

    fn probe(&self, qemu: Option<&OsStr>) -> Result<qvm::machine::facts::Facts, Error> {
        Probe {
            qemu,
            path: Some(&self.path),
            cache: &self.at("state/qemu.json"),
            write: qvm::supervisor::start::prepare::write_facts,
            root: &self.at("root"),
            deadline: Duration::from_secs(60),
        }
        .facts()
    }
}

#[test]
fn second_probe_uses_the_cache() {
    let host = Host::new();
    let binary = host.script("bin/qemu-system-x86_64", DEBIAN_12);
    let first = host.probe(None).unwrap();
    assert_eq!(first.qemu.binary, binary);
    assert_eq!(first.qemu.version, Version { major: 7, minor: 2, micro: 22 });
    assert_eq!(first.qemu.machine, "pc-q35-7.2");
    assert_eq!(host.runs(), 2);
    assert_eq!(host.probe(None).unwrap(), first);
    assert_eq!(host.runs(), 2);
}

#[test]
fn changed_binary_is_probed_again() {
    let host = Host::new();
    host.script("bin/qemu-system-x86_64", DEBIAN_12);
    host.probe(None).unwrap();
    host.script("bin/qemu-system-x86_64", &DEBIAN_12.replace("7.2", "8.2"));
    let facts = host.probe(None).unwrap();
    assert_eq!((facts.qemu.version.major, facts.qemu.machine.as_str()), (8, "pc-q35-8.2"));
    assert_eq!(host.runs(), 4);
}

#[test]
fn two_binaries_are_cached() {
    let host = Host::new();
    let one = host.script("bin/one", DEBIAN_12);
    let two = host.script("bin/two", &DEBIAN_12.replace("7.2", "9.1"));
    for _ in 0..3 {
        assert_eq!(host.probe(Some(one.as_os_str())).unwrap().qemu.machine, "pc-q35-7.2");
        assert_eq!(host.probe(Some(two.as_os_str())).unwrap().qemu.machine, "pc-q35-9.1");
    }
    assert_eq!(host.runs(), 4);
}

#[test]
fn invalid_cache_is_replaced() {
    let host = Host::new();
    host.script("bin/qemu-system-x86_64", DEBIAN_12);
    for garbage in [&b""[..], b"[", b"{}", b"[{\"binary\":1}]", b"\xff\xfe\0", b"null"] {
        fs::write(host.at("state/qemu.json"), garbage).unwrap();
        assert_eq!(host.probe(None).unwrap().qemu.machine, "pc-q35-7.2");
        let runs = host.runs();
        host.probe(None).unwrap();
        assert_eq!(host.runs(), runs, "{garbage:?} was not replaced");
    }
}

#[test]
fn unwritable_cache_is_ignored() {
    let host = Host::new();
    host.script("bin/qemu-system-x86_64", DEBIAN_12);
    // Neither works for root: a directory in its place, and a missing directory.
    fs::create_dir(host.at("state/qemu.json")).unwrap();
    host.probe(None).unwrap();
    fs::remove_dir_all(host.at("state")).unwrap();
    host.probe(None).unwrap();
    assert_eq!(host.runs(), 4);
    assert!(!host.at("state").exists());
}

#[test]
fn cache_leaves_no_temporary_file() {
    let host = Host::new();
    host.script("bin/qemu-system-x86_64", DEBIAN_12);
    host.probe(None).unwrap();
    let names: Vec<_> =
        fs::read_dir(host.at("state")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["qemu.json"]);
}

#[test]
fn binary_search_order() {
    let host = Host::new();
    let error = host.probe(None).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot find `qemu-system-x86_64` on PATH, and /usr/libexec/qemu-kvm does not exist"
    );
    assert!(error.hint().unwrap().contains("`qemu-system-x86`"));

    let libexec = host.script("root/usr/libexec/qemu-kvm", DEBIAN_12);
    assert_eq!(host.probe(None).unwrap().qemu.binary, libexec);

    // A file that is not executable does not count; a symbolic link does.
    fs::write(host.at("bin/qemu-system-x86_64"), "").unwrap();
    assert_eq!(host.probe(None).unwrap().qemu.binary, libexec);
    fs::remove_file(host.at("bin/qemu-system-x86_64")).unwrap();
    symlink(&libexec, host.at("bin/qemu-system-x86_64")).unwrap();
    let runs = host.runs();
    assert_eq!(host.probe(None).unwrap().qemu.binary, host.at("bin/qemu-system-x86_64"));
    assert_eq!(host.runs(), runs, "the cache goes by what a link leads to");

    // An empty QVM_QEMU counts as unset; a bare name is searched for on PATH.
    host.probe(Some(OsStr::new(""))).unwrap();
    let own = host.script("bin/own-qemu", DEBIAN_12);
    assert_eq!(host.probe(Some(OsStr::new("own-qemu"))).unwrap().qemu.binary, own);
    let missing = host.probe(Some(OsStr::new("no-qemu"))).unwrap_err();
    assert!(matches!(missing, Error::NotFound(_)), "{missing}");
    for path in ["bin", "nowhere"] {
        let error = host.probe(Some(host.at(path).as_os_str())).unwrap_err();
        assert!(matches!(error, Error::NotAProgram(_)), "{error}");
        assert!(error.hint().is_some());
    }
}

#[test]
fn relative_path_entries_are_skipped() {
    let mut host = Host::new();
    let libexec = host.script("root/usr/libexec/qemu-kvm", DEBIAN_12);
    host.path = OsString::from(".::bin");
    assert_eq!(host.probe(None).unwrap().qemu.binary, libexec);
}

#[test]
fn other_programs_are_detected() {
    let host = Host::new();
    for (text, expected) in [
        ("exit 0", "printed no version; its output begins with ``"),
        ("printf '\\377\\376\\0 version \\377'", "printed no version"),
        ("echo 'QEMU emulator version 8.2.1'", "printed no machine type q35"),
        ("head -c 3000000 /dev/zero", "printed more than 1048576 bytes and was killed"),
        (
            "echo 'cannot open libfoo.so' >&2; exit 127",
            "failed (exit status: 127): cannot open libfoo.so",
        ),
        ("kill -9 $$", "failed (signal: 9 (SIGKILL)): "),
    ] {
        let binary = host.script("bin/qemu-system-x86_64", text);
        let error = host.probe(None).unwrap_err();
        let message = error.to_string();
        assert!(message.starts_with(&format!("`{}", binary.display())), "{message}");
        assert!(message.contains(expected), "{text}: {message}");
        assert!(error.hint().is_some());
    }
    // Failures are not cached.
    assert!(!host.at("state/qemu.json").exists());
}

#[test]
fn old_qemu_is_refused() {
    let host = Host::new();
    for (version, taken) in [("6.2.0", false), ("7.1.93", false), ("7.2.0", true), ("11.0.0", true)]
    {
        let text = format!(
            "[ $1 != -machine ] && echo 'QEMU emulator version {version}' || \
             echo 'q35 x (alias of pc-q35-6.2)'"
        );
        let binary = host.script("bin/qemu-system-x86_64", &text);
        let probed = host.probe(None);
        assert_eq!(probed.is_ok(), taken, "{version}: {probed:?}");
        if let Err(error) = probed {
            let told =
                format!("`{}` is QEMU {version}; qvm requires 7.2.0 or newer", binary.display());
            assert_eq!(error.to_string(), told);
        }
    }
}

#[test]
fn endless_program_is_killed_with_children() {
    let host = Host::new();
    let pids = host.at("pids");
    // A child process keeps the pipes open, like that of a wrapper script.
    let binary = host.script(
        "bin/qemu-system-x86_64",
        &format!("sleep 600 &\necho $! >> '{}'\nwait", pids.display()),
    );
    let began = Instant::now();
    let error = Probe {
        qemu: Some(binary.as_os_str()),
        path: None,
        cache: &host.at("state/qemu.json"),
        write: qvm::supervisor::start::prepare::write_facts,
        root: &host.at("root"),
        deadline: Duration::from_secs(2),
    }
    .facts()
    .unwrap_err();
    let limit = Duration::from_secs(2);
    let timed_out = |error: &Error| match error {
        Error::Program(program::Error::TimedOut { limit: at, .. }) => *at == limit,
        _ => false,
    };
    assert!(timed_out(&error), "{error}");
    assert!(began.elapsed() < Duration::from_secs(60));
    // On a very busy machine, no script may have reached its first line.
    let pids = fs::read_to_string(pids).unwrap_or_default();
    for pid in pids.lines() {
        wait_until_dead(pid);
    }
}

fn wait_until_dead(pid: &str) {
    let until = Instant::now() + Duration::from_secs(30);
    // A zombie is dead; its new parent reaps it later.
    let alive = || {
        fs::read_to_string(format!("/proc/{pid}/stat"))
            .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").trim_start().starts_with('Z'))
    };
    while alive() {
        assert!(Instant::now() < until, "{pid} lives on");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn kvm_is_usable_only_with_a_hardware_module() {
    let host = Host::new();
    let root = host.at("root");
    assert_eq!(probe::kvm(&root), Kvm::Missing);
    fs::create_dir(root.join("sys/module/kvm_intel")).unwrap();
    assert_eq!(probe::kvm(&root), Kvm::Missing);
    fs::write(root.join("dev/kvm"), "").unwrap();
    assert_eq!(probe::kvm(&root), Kvm::Usable);
    fs::rename(root.join("sys/module/kvm_intel"), root.join("sys/module/kvm_pvm")).unwrap();
    assert_eq!(probe::kvm(&root), Kvm::Unproven);
    fs::create_dir(root.join("sys/module/kvm_amd")).unwrap();
    assert_eq!(probe::kvm(&root), Kvm::Usable);

    assert!(!probe::vhost_net(&root));
    fs::write(root.join("dev/vhost-net"), "").unwrap();
    assert!(probe::vhost_net(&root));
}

#[test]
fn real_qemu_is_parsed() {
    let host = Host::new();
    let Some(path) = std::env::var_os("PATH") else { return };
    let here = std::env::split_paths(&path).any(|d| d.join("qemu-system-x86_64").is_file());
    if !here {
        let required = std::env::var("QVM_TEST_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|name| name == "qemu"), "QEMU is required");
        eprintln!("skipped: no qemu-system-x86_64");
        return;
    }
    let cache = host.at("state/qemu.json");
    let probe = Probe {
        qemu: None,
        path: Some(&path),
        cache: &cache,
        write: qvm::supervisor::start::prepare::write_facts,
        root: Path::new("/"),
        deadline: Duration::from_secs(60),
    };
    let facts = probe.facts().unwrap();
    assert!(facts.qemu.version.major >= 5, "{facts:?}");
    assert!(facts.qemu.machine.starts_with("pc-q35-"), "{facts:?}");
    assert_eq!(probe.facts().unwrap(), facts);
}
