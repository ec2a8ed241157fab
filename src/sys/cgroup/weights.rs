//! The location of a VM's cgroup and the effect of its CPU weight, from the text of kernel files.

use std::path::{Path, PathBuf};

use crate::value::{ErrorCode, Explain, VmName};

/// Why CPU weights are not available on this host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// cgroup v1 uses the cpu controller.
    #[error("the cpu controller belongs to cgroup v1, mounted at `{}`; CPU weights require cgroup \
        v2", .0.display())]
    Version1(PathBuf),
    /// cgroup v2 is not mounted.
    #[error("cgroup v2 is not mounted")]
    NotMounted,
}

impl Explain for Error {
    fn own_code(&self) -> Option<ErrorCode> {
        Some(match self {
            Self::Version1(..) | Self::NotMounted => ErrorCode::CgroupNotV2,
        })
    }

    fn own_hint(&self) -> Option<String> {
        Some(match self {
            Self::Version1(_) => "boot the host with `systemd.unified_cgroup_hierarchy=1`".into(),
            Self::NotMounted => "`mount -t cgroup2 none /sys/fs/cgroup`".into(),
        })
    }
}

/// Finds the root of the cgroup v2 hierarchy in the text of `/proc/self/mountinfo`
/// (proc_pid_mountinfo(5)).
///
/// # Errors
/// cgroup v2 is not mounted, or version 1 uses the cpu controller (both are mounted in the "hybrid"
/// layout).
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
            // If cgroup v2 is mounted several times, the standard mount point is used.
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

/// Decodes a path of mountinfo, in which space, tab, newline and backslash are written in octal,
/// such as `\040`.
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

/// Returns the cgroup that qvm creates for a VM below `root`.
pub fn of_vm(root: &Path, name: &VmName) -> PathBuf {
    root.join("qvm").join(name)
}

/// Returns the cgroup of a process below `root` from the text of `/proc/PID/cgroup` (cgroups(7)).
pub fn of_process(root: &Path, proc_cgroup: &str) -> Option<PathBuf> {
    let path = proc_cgroup.lines().find_map(|line| line.strip_prefix("0::/"))?;
    // Outside of this process's cgroup namespace, or removed while the process is in it.
    let reachable = !path.split('/').any(|part| part == "..") && !path.ends_with(" (deleted)");
    reachable.then(|| root.join(path))
}

/// One level of the path from the root of the hierarchy to a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Level {
    /// The cgroup whose CPU time is divided at this level.
    pub parent: PathBuf,
    /// The weight (`cpu.weight`) of the child on the path; 0 if idle (`cpu.idle`), `None` without
    /// the cpu controller.
    pub own: Option<u16>,
    /// The weights of its siblings that contain processes.
    pub siblings: Vec<u16>,
}

/// The effect of a weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Effect {
    /// The `cpu.weight` in the kernel.
    pub weight: Option<u16>,
    /// The VM's share of the host's CPU time if all cgroups are busy: above 0, at most 1.
    pub share: Option<f64>,
    /// Why the configured weight has no effect.
    pub void: Option<String>,
}

/// The default `cpu.weight` of the kernel.
const DEFAULT: u16 = 100;

/// Returns true if VMs are in this cgroup by default: a VM without siblings is the only running VM
/// then.
fn is_for_vms(cgroup: &Path) -> bool {
    cgroup.ends_with("qvm.slice") || cgroup.ends_with("qvm")
}

/// Returns the effect of the weight at the last level.
pub fn effect(levels: &[Level], configured: u16) -> Effect {
    let Some(last) = levels.last() else {
        let void = Some("QEMU has no separate cgroup".to_owned());
        return Effect { weight: None, share: None, void };
    };
    let share = levels.iter().map(|level| {
        let own = f64::from(level.own?);
        let all: f64 = own + level.siblings.iter().copied().map(f64::from).sum::<f64>();
        (own > 0.0).then(|| own / all)
    });
    let idle = levels.iter().find(|level| level.own == Some(0));
    // The default weight has the same effect as no weight.
    let bare = levels.iter().find(|level| level.own.is_none()).filter(|_| configured != DEFAULT);
    let slice = last.parent.display();
    let void = if let Some(level) = bare {
        Some(format!("the cpu controller is not enabled in `{}`", level.parent.display()))
    } else if let Some(level) = idle {
        Some(format!("an ancestor in `{}` is idle (`cpu.idle`)", level.parent.display()))
    } else if last.siblings.is_empty() && !is_for_vms(&last.parent) {
        Some(format!(
            "`{slice}` contains no other cgroup, so only the weight of `{slice}` has an effect"
        ))
    } else {
        let other = last.own.filter(|own| *own != configured);
        other.map(|own| format!("another program has set `cpu.weight` to {own}"))
    };
    Effect { weight: last.own, share: share.product(), void }
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
    fn root_is_the_hierarchy_with_cpu_controller() {
        assert_eq!(root(UNIFIED), Ok("/sys/fs/cgroup".into()));
        // Version 1 with other controllers does not use the cpu controller.
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
    fn version_1_is_refused() {
        let error = root(HYBRID).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the cpu controller belongs to cgroup v1, mounted at `/sys/fs/cgroup/cpu,cpuacct`; \
             CPU weights require cgroup v2"
        );
        assert!(error.hint().unwrap().contains("systemd.unified_cgroup_hierarchy=1"));
        for text in
            ["", "\n", "x", "1 2 3 - cgroup2", "1 2 3 4 - cgroup2", " - ", "23 29 0:22 / /proc rw"]
        {
            assert_eq!(root(text), Err(Error::NotMounted), "{text:?}");
        }
    }

    #[test]
    fn cgroup_of_a_process_is_parsed() {
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

    fn level(parent: &str, own: Option<u16>, siblings: &[u16]) -> Level {
        Level { parent: parent.into(), own, siblings: siblings.to_vec() }
    }

    #[test]
    fn shares_multiply_along_the_path() {
        let levels = [level("/c", Some(100), &[100]), level("/c/qvm.slice", Some(300), &[100, 0])];
        let effect = effect(&levels, 300);
        assert_eq!(effect, Effect { weight: Some(300), share: Some(0.375), void: None });
    }

    #[test]
    fn ineffective_weight_has_a_reason() {
        let top = || level("/c", Some(100), &[100]);
        for (levels, weight, share, why) in [
            (vec![], None, None, "QEMU has no separate cgroup"),
            (
                vec![top(), level("/c/x.slice", None, &[])],
                None,
                None,
                "the cpu controller is not enabled in `/c/x.slice`",
            ),
            (
                vec![level("/c", Some(0), &[100]), level("/c/x.slice", Some(300), &[100])],
                Some(300),
                None,
                "an ancestor in `/c` is idle (`cpu.idle`)",
            ),
            (
                vec![top(), level("/c/x.slice", Some(300), &[])],
                Some(300),
                Some(0.5),
                "`/c/x.slice` contains no other cgroup, so only the weight of `/c/x.slice` has an \
                 effect",
            ),
            (
                vec![top(), level("/c/x.slice", Some(77), &[77])],
                Some(77),
                Some(0.25),
                "another program has set `cpu.weight` to 77",
            ),
        ] {
            let found = effect(&levels, 300);
            assert_eq!(found, Effect { weight, share, void: Some(why.into()) });
        }
        // The only running VM is alone in the default slice, which needs no reason.
        assert_eq!(effect(&[top(), level("/c/qvm.slice", Some(300), &[])], 300).void, None);
    }

    proptest! {
        #[test]
        fn no_table_panics(text in r"([0-9 /:,-]| - cgroup2? |\\[0-7]{0,3}|cpu|\PC|\n){0,40}") {
            let _ = root(&text);
            let _ = of_process(Path::new("/"), &text);
        }
    }
}
