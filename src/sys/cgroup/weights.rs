//! Where a VM's cgroup is, and what its CPU weight comes to: read out of the kernel's own tables.

use std::path::{Path, PathBuf};

use crate::value::{Explain, VmName};

/// Why no weight can be given on this host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The cpu controller is version 1's.
    #[error("the cpu controller is cgroup v1's, at `{}`, and this needs cgroup v2", .0.display())]
    Version1(PathBuf),
    /// No cgroups at all.
    #[error("no cgroup v2 is mounted, and this needs one")]
    NotMounted,
}

impl Explain for Error {
    fn own_hint(&self) -> Option<String> {
        Some(match self {
            Self::Version1(_) => "boot the host with `systemd.unified_cgroup_hierarchy=1`".into(),
            Self::NotMounted => "`mount -t cgroup2 none /sys/fs/cgroup`".into(),
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

/// One step of the way from the root of the hierarchy down to a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Level {
    /// The cgroup that the weights here share the time of.
    pub parent: PathBuf,
    /// The weight (`cpu.weight`) of the cgroup on the way; 0 where it is idle (`cpu.idle`), none without the cpu controller.
    pub own: Option<u16>,
    /// The weights of the cgroups beside it that have processes.
    pub beside: Vec<u16>,
}

/// What a weight comes to.
#[derive(Debug, Clone, PartialEq)]
pub struct Effect {
    /// `cpu.weight` as the kernel has it.
    pub weight: Option<u16>,
    /// The part of the host's CPU time that is the VM's when everybody wants all of it: above 0, at most 1.
    pub share: Option<f64>,
    /// Why the weight is not what it seems to be.
    pub void: Option<String>,
}

/// `cpu.weight` where nobody has set it.
const DEFAULT: u16 = 100;

/// Whether VMs are there by default, so that one that is alone there is the only one that runs.
fn is_for_vms(cgroup: &Path) -> bool {
    cgroup.ends_with("qvm.slice") || cgroup.ends_with("qvm")
}

/// What the weight at the end of the way comes to.
pub fn effect(levels: &[Level], configured: u16) -> Effect {
    let Some(last) = levels.last() else {
        let void = Some("QEMU is in no cgroup of its own".to_owned());
        return Effect { weight: None, share: None, void };
    };
    let share = levels.iter().map(|level| {
        let own = f64::from(level.own?);
        let all: f64 = own + level.beside.iter().copied().map(f64::from).sum::<f64>();
        (own > 0.0).then(|| own / all)
    });
    let idle = levels.iter().find(|level| level.own == Some(0));
    // The default means nothing else than no weight at all.
    let bare = levels.iter().find(|level| level.own.is_none()).filter(|_| configured != DEFAULT);
    let slice = last.parent.display();
    let void = if let Some(level) = bare {
        Some(format!("the cpu controller is not on in `{}`", level.parent.display()))
    } else if let Some(level) = idle {
        Some(format!("a cgroup of it in `{}` is idle (`cpu.idle`)", level.parent.display()))
    } else if last.beside.is_empty() && !is_for_vms(&last.parent) {
        Some(format!(
            "nothing else is in `{slice}`: the weight of that one counts among the others"
        ))
    } else {
        let other = last.own.filter(|own| *own != configured);
        other.map(|own| format!("`cpu.weight` was set to {own} by another than the VM file"))
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
            "the cpu controller is cgroup v1's, at `/sys/fs/cgroup/cpu,cpuacct`, and this needs cgroup v2"
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

    fn level(parent: &str, own: Option<u16>, beside: &[u16]) -> Level {
        Level { parent: parent.into(), own, beside: beside.to_vec() }
    }

    #[test]
    fn shares_multiply_on_the_way_down() {
        let levels = [level("/c", Some(100), &[100]), level("/c/qvm.slice", Some(300), &[100, 0])];
        let effect = effect(&levels, 300);
        assert_eq!(effect, Effect { weight: Some(300), share: Some(0.375), void: None });
    }

    #[test]
    fn a_weight_that_means_nothing_says_why() {
        let top = || level("/c", Some(100), &[100]);
        for (levels, weight, share, why) in [
            (vec![], None, None, "QEMU is in no cgroup of its own"),
            (
                vec![top(), level("/c/x.slice", None, &[])],
                None,
                None,
                "the cpu controller is not on in `/c/x.slice`",
            ),
            (
                vec![level("/c", Some(0), &[100]), level("/c/x.slice", Some(300), &[100])],
                Some(300),
                None,
                "a cgroup of it in `/c` is idle (`cpu.idle`)",
            ),
            (
                vec![top(), level("/c/x.slice", Some(300), &[])],
                Some(300),
                Some(0.5),
                "nothing else is in `/c/x.slice`: the weight of that one counts among the others",
            ),
            (
                vec![top(), level("/c/x.slice", Some(77), &[77])],
                Some(77),
                Some(0.25),
                "`cpu.weight` was set to 77 by another than the VM file",
            ),
        ] {
            let found = effect(&levels, 300);
            assert_eq!(found, Effect { weight, share, void: Some(why.into()) });
        }
        // The only VM of the host is alone in its slice, and that is as it should be.
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
