//! Finds QEMU processes by their command lines and open files (proc(5)).

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, CWD, StatxFlags, makedev, statx};

/// A process with the command line of a QEMU started by qvm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QemuProcess {
    /// The PID.
    pub pid: u32,
    arguments: Vec<String>,
}

impl QemuProcess {
    /// Returns the value of an argument such as `-uuid`.
    fn value(&self, key: &str) -> Option<&str> {
        let at = self.arguments.iter().position(|argument| argument == key)?;
        self.arguments.get(at + 1).map(String::as_str)
    }

    /// Returns the name of the machine.
    pub fn name(&self) -> Option<&str> {
        self.value("-name").map(|value| value.split(',').next().unwrap_or(value))
    }

    /// Returns the UUID of the machine.
    pub fn uuid(&self) -> Option<&str> {
        self.value("-uuid")
    }

    /// Returns the files that were passed as descriptors, from `-add-fd`.
    pub fn files(&self) -> impl Iterator<Item = PathBuf> {
        let values = self.arguments.windows(2).filter(|pair| pair[0] == "-add-fd");
        values.filter_map(|pair| {
            let (_, opaque) = pair[1].split_once("opaque=")?;
            let (_, path) = opaque.split_once(' ')?;
            // QEMU's `key=value` syntax doubles commas.
            Some(PathBuf::from(path.replace(",,", ",")))
        })
    }
}

/// The read size of command lines in bytes; that of a QEMU process has 2 to 4 KiB.
const LINE: usize = 16 << 10;

/// The QEMU processes of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QemuProcesses {
    /// The processes, in the order of /proc.
    pub all: Vec<QemuProcess>,
    /// Some or all processes of other users are hidden.
    pub is_partial: bool,
}

/// Lists the QEMU processes.
///
/// # Errors
/// /proc cannot be read. A process that ends during the listing is no error.
pub fn list() -> io::Result<QemuProcesses> {
    let mut found = QemuProcesses { all: vec![], is_partial: fs::metadata("/proc/1").is_err() };
    let mut line = Vec::with_capacity(LINE);
    for pid in pids()? {
        match read_line(pid, &mut line) {
            Ok(()) => {}
            Err(error) if has_ended(&error) => continue,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                found.is_partial = true;
                continue;
            }
            Err(error) => return Err(error),
        }
        if let Some(process) = qemu(pid, &line) {
            found.all.push(process);
        }
    }
    Ok(found)
}

/// Reads the command line of a process; empty for a thread of the kernel. A start waits for the
/// scan of all processes, so three system calls a process are few: [`fs::read`] makes nine.
fn read_line(pid: u32, line: &mut Vec<u8>) -> io::Result<()> {
    let file = fs::File::open(format!("/proc/{pid}/cmdline"))?;
    line.clear();
    loop {
        line.reserve(LINE);
        match rustix::io::read(&file, rustix::buffer::spare_capacity(line)) {
            Ok(0) => return Ok(()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn pids() -> io::Result<Vec<u32>> {
    let mut pids = vec![];
    for entry in fs::read_dir("/proc")? {
        pids.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    Ok(pids)
}

/// Returns true if an error below /proc/PID means that the process has ended.
fn has_ended(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

/// Every QEMU started by qvm has both arguments.
fn qemu(pid: u32, line: &[u8]) -> Option<QemuProcess> {
    let has = |key: &[u8]| line.split(|byte| *byte == 0).any(|argument| argument == key);
    if !(has(b"-uuid") && has(b"-name")) {
        return None;
    }
    let arguments = line.split(|byte| *byte == 0);
    let arguments = arguments.map(|one| String::from_utf8_lossy(one).into_owned()).collect();
    Some(QemuProcess { pid, arguments })
}

/// Returns the QEMU processes that have one of these files open. A process whose descriptors may
/// not be read is skipped.
///
/// # Errors
/// /proc or one of the files cannot be read. A missing file is skipped.
pub fn with_open_file(paths: &[PathBuf]) -> io::Result<Vec<QemuProcess>> {
    let mut inodes = vec![];
    for path in paths {
        match fs::symlink_metadata(path) {
            Ok(meta) => inodes.push((meta.dev(), meta.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    let mut all = list()?.all;
    all.retain(|process| {
        let entries = fs::read_dir(format!("/proc/{}/fd", process.pid));
        let mut open = entries.into_iter().flatten().flatten();
        open.any(|entry| open_inode(&entry.path()).is_some_and(|inode| inodes.contains(&inode)))
    });
    Ok(all)
}

/// Returns device and inode number of the file that a link in /proc/PID/fd refers to, even if the
/// file was renamed or removed. `None` if they cannot be read.
///
/// The storage of the file is not accessed: other VMs may have files on storage that hangs.
fn open_inode(link: &Path) -> Option<(u64, u64)> {
    let stat = statx(CWD, link, AtFlags::STATX_DONT_SYNC, StatxFlags::INO).ok()?;
    Some((makedev(stat.stx_dev_major, stat.stx_dev_minor), stat.stx_ino))
}

/// Returns true if a process executes QEMU: by its file name, or because it is one of the `known`
/// files. For the dynamic loader, its argument is examined.
///
/// # Errors
/// The program cannot be determined.
pub fn executes_qemu(process: &QemuProcess, known: &[&Path]) -> io::Result<bool> {
    let link = fs::read_link(format!("/proc/{}/exe", process.pid))?;
    let text = link.to_string_lossy();
    let program = Path::new(text.strip_suffix(" (deleted)").unwrap_or(&text));
    let is_known = |path: &&Path| path.canonicalize().is_ok_and(|path| path == program);
    if is_qemu(program) || known.iter().any(is_known) {
        return Ok(true);
    }
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    let is_loader = name.starts_with("ld-") || name.starts_with("ld.so");
    Ok(is_loader && loader_argument(&process.arguments).is_some_and(is_qemu))
}

/// NixOS names a wrapped program `.qemu-system-x86_64-wrapped`.
fn is_qemu(program: &Path) -> bool {
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    let name = name.strip_prefix('.').unwrap_or(&name);
    name == "qemu" || name == "qemu-kvm" || name.starts_with("qemu-system-")
}

/// Returns the program that a dynamic loader executes (ld.so(8)).
fn loader_argument(arguments: &[String]) -> Option<&Path> {
    let mut rest = arguments.iter().skip(1);
    loop {
        match rest.next()?.as_str() {
            "--library-path" | "--preload" | "--argv0" | "--audit" => drop(rest.next()),
            option if option.starts_with("--") => {}
            program => return Some(Path::new(program)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_name_uuid_and_files() {
        let line = b"qemu-system-x86_64\0-name\0web,debug-threads=on\0-uuid\0abc\0-add-fd\0\
                     fd=40,set=40,opaque=node-root /s/vms/a,,b/root.qcow2\0-add-fd\0fd=41,set=41\0";
        let process = qemu(7, line).unwrap();
        assert_eq!((process.name(), process.uuid()), (Some("web"), Some("abc")));
        assert_eq!(process.files().collect::<Vec<_>>(), [Path::new("/s/vms/a,b/root.qcow2")]);
        assert_eq!(qemu(7, b"vi\0-name\0web\0"), None);
        assert_eq!(qemu(7, b""), None);
    }

    #[test]
    fn qemu_is_recognized_by_name_and_behind_loader() {
        for (path, is) in [
            ("/usr/bin/qemu-system-x86_64", true),
            ("/nix/store/x/bin/.qemu-system-x86_64-wrapped", true),
            ("/usr/libexec/qemu-kvm", true),
            ("/usr/bin/qemu-img", false),
            ("/bin/sh", false),
        ] {
            assert_eq!(is_qemu(Path::new(path)), is, "{path}");
        }
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let line = words("/x/ld.so --library-path /x/lib --inhibit-cache /x/qemu -L /x/roms");
        assert_eq!(loader_argument(&line), Some(Path::new("/x/qemu")));
        assert_eq!(loader_argument(&words("/x/ld.so")), None);
    }

    #[test]
    fn lists_processes_and_their_open_files() {
        assert!(!pids().unwrap().is_empty());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("open");
        let file = fs::File::create(&path).unwrap();
        let script = "read line; : -name";
        let mut child = std::process::Command::new("sh")
            .args(["-c", script, "x", "-name", "web", "-uuid", "u"])
            .stdin(std::process::Stdio::piped())
            .stdout(file)
            .spawn()
            .unwrap();
        let mut seen = vec![];
        while seen.is_empty() {
            seen = with_open_file(&[path.clone(), dir.path().join("absent")]).unwrap();
        }
        assert_eq!((seen[0].pid, seen[0].name()), (child.id(), Some("web")));
        assert!(!executes_qemu(&seen[0], &[]).unwrap());
        let shell = fs::read_link(format!("/proc/{}/exe", child.id())).unwrap();
        assert!(executes_qemu(&seen[0], &[&shell]).unwrap());
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(with_open_file(&[path]).unwrap().is_empty());
    }
}
