//! Where a VM's CPU weight is to be written when systemd does not do it: read out of the kernel's own tables.

use std::path::{Path, PathBuf};

use crate::value::{CpuWeight, VmName};

/// Why no weight can be given on this host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The cpu controller is version 1's.
    #[error("the cpu controller is cgroup v1's, at `{}`, and `cpuWeight` needs cgroup v2", .0.display())]
    Version1(PathBuf),
    /// No cgroups at all.
    #[error("no cgroup v2 is mounted, and `cpuWeight` needs one")]
    NotMounted,
}

impl Error {
    /// The way out.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Version1(_) => {
                "boot the host with `systemd.unified_cgroup_hierarchy=1`, or leave `cpuWeight` out"
                    .into()
            }
            Self::NotMounted => {
                "`mount -t cgroup2 none /sys/fs/cgroup`, or leave `cpuWeight` out".into()
            }
        })
    }
}

/// The root of the cgroup v2 hierarchy, from the text of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
///
/// # Errors
/// There is none, or the cpu controller is taken by version 1 (the "hybrid" layout has both).
pub fn root(mountinfo: &str) -> Result<PathBuf, Error> {
    let mut version_2 = None;
    for line in mountinfo.lines() {
        // ID parent major:minor root MOUNTPOINT options [tags…] - TYPE source OPTIONS
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let Some(mount_point) = before.split(' ').nth(4) else { continue };
        let mut after = after.split(' ');
        let (kind, options) = (after.next(), after.nth(1).unwrap_or(""));
        match kind {
            Some("cgroup") if options.split(',').any(|option| option == "cpu") => {
                return Err(Error::Version1(unescaped(mount_point)));
            }
            // Where there are several, the usual place is the one that is looked after.
            Some("cgroup2") => {
                let found = unescaped(mount_point);
                if version_2.is_none() || found == Path::new("/sys/fs/cgroup") {
                    version_2 = Some(found);
                }
            }
            _ => {}
        }
    }
    version_2.ok_or(Error::NotMounted)
}

/// A path of mountinfo: space, tab, newline and backslash stand there as `\040` and the like.
fn unescaped(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|digits| byte == b'\\' && digits.iter().all(is_octal));
        let code = octal.and_then(|digits| {
            u8::try_from(digits.iter().fold(0_u32, |code, d| code * 8 + u32::from(d - b'0'))).ok()
        });
        bytes.push(code.unwrap_or(byte));
        rest = if code.is_some() { after.get(3..).unwrap_or_default() } else { after };
    }
    std::ffi::OsString::from_vec(bytes).into()
}

fn is_octal(byte: &u8) -> bool {
    (b'0'..=b'7').contains(byte)
}

/// The cgroup that qvm makes for a VM below `root`.
pub fn of_vm(root: &Path, name: &VmName) -> PathBuf {
    root.join("qvm").join(name)
}

/// The cgroup that a process is in, below `root`, from the text of `/proc/PID/cgroup` (cgroups(7)); for
/// reading back the weight that systemd gave a unit.
pub fn of_process(root: &Path, proc_cgroup: &str) -> Option<PathBuf> {
    let path = proc_cgroup.lines().find_map(|line| line.strip_prefix("0::/"))?;
    // Outside of our cgroup namespace, or removed under the process.
    let reachable = !path.split('/').any(|part| part == "..") && !path.ends_with(" (deleted)");
    reachable.then(|| root.join(path))
}

/// The weight in the text of a `cpu.weight`; `None` for the 0 of a cgroup with `cpu.idle`.
pub fn read(cpu_weight: &str) -> Option<CpuWeight> {
    cpu_weight.trim().parse::<i64>().ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UNIFIED: &str = "\
23 29 0:22 / /proc rw,nosuid shared:12 - proc proc rw
32 24 0:28 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate
";
    const HYBRID: &str = "\
30 24 0:26 / /sys/fs/cgroup ro,nosuid shared:8 - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw
33 30 0:30 / /sys/fs/cgroup/cpuset rw shared:15 - cgroup cgroup rw,cpuset
34 30 0:31 / /sys/fs/cgroup/cpu,cpuacct rw shared:16 - cgroup cgroup rw,cpu,cpuacct
";

    #[test]
    fn the_root_is_where_version_2_has_the_cpu_controller() {
        assert_eq!(root(UNIFIED), Ok("/sys/fs/cgroup".into()));
        // Version 1 with other controllers only leaves the cpu to version 2.
        let mixed = HYBRID.replace("rw,cpu,cpuacct", "rw,name=elogind");
        assert_eq!(root(&mixed), Ok("/sys/fs/cgroup/unified".into()));
        let two = format!(
            "9 1 0:28 / /mnt rw - cgroup2 x rw\n{UNIFIED}10 1 0:28 / /srv rw - cgroup2 x rw"
        );
        assert_eq!(root(&two), Ok("/sys/fs/cgroup".into()));
        let odd = r"9 1 0:28 / /mnt/a\040b\134c\0 rw - cgroup2 none rw";
        assert_eq!(root(odd), Ok(r"/mnt/a b\c\0".into()));
    }

    #[test]
    fn version_1_is_refused_plainly() {
        let error = root(HYBRID).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the cpu controller is cgroup v1's, at `/sys/fs/cgroup/cpu,cpuacct`, and `cpuWeight` needs cgroup v2"
        );
        assert!(error.hint().unwrap().contains("systemd.unified_cgroup_hierarchy=1"));
        for text in
            ["", "\n", "x", "1 2 3 - cgroup2", "1 2 3 4 - cgroup2", " - ", "23 29 0:22 / /proc rw"]
        {
            assert_eq!(root(text), Err(Error::NotMounted), "{text:?}");
        }
    }

    #[test]
    fn a_process_tells_its_cgroup() {
        let root = Path::new("/sys/fs/cgroup");
        for (text, expected) in [
            ("0::/qvm.slice/qvm@web.service\n", Some("/sys/fs/cgroup/qvm.slice/qvm@web.service")),
            ("12:cpu:/x\n0::/qvm/web\n", Some("/sys/fs/cgroup/qvm/web")),
            ("0::/\n", Some("/sys/fs/cgroup/")),
            ("0::/../web\n", None),
            ("0::/qvm/web (deleted)\n", None),
            ("3:cpu:/web\n", None),
            ("", None),
        ] {
            assert_eq!(of_process(root, text), expected.map(PathBuf::from), "{text:?}");
        }
    }

    #[test]
    fn a_weight_is_read() {
        assert_eq!(read("300\n").map(CpuWeight::get), Some(300));
        for text in ["0\n", "", "default 100", "10001", "-1"] {
            assert_eq!(read(text), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn no_table_panics(text in r"([0-9 /:,-]| - cgroup2? |\\[0-7]{0,3}|cpu|\PC|\n){0,40}") {
            let _ = root(&text);
            let _ = of_process(Path::new("/"), &text);
            let _ = read(&text);
        }
    }
}
