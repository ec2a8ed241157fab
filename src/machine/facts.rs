//! Facts about the host for the command line: gathered by `machine::probe`, parsed from QEMU's
//! output here.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{
    spec,
    value::{ErrorCode, Explain, Note, NoteCode},
};

/// The facts about a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The QEMU binary to use.
    pub qemu: Qemu,
    /// Whether KVM can be used.
    pub kvm: Kvm,
    /// Whether /dev/vhost-net can be opened.
    pub vhost_net: bool,
}

/// A QEMU binary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Qemu {
    /// The path.
    pub binary: PathBuf,
    /// Its version, such as 10.0.2.
    pub version: Version,
    /// The newest versioned q35 machine type it knows, such as `pc-q35-10.0`.
    pub machine: String,
    /// QEMU supports `-sandbox`.
    pub sandbox: bool,
}

/// A version of QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version {
    /// The first component.
    pub major: u16,
    /// The second component.
    pub minor: u16,
    /// The third component.
    pub micro: u16,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// Whether KVM can be used, and if not, why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kvm {
    /// /dev/kvm can be opened and a hardware module is loaded.
    Usable,
    /// /dev/kvm does not exist.
    Missing,
    /// /dev/kvm exists but this user may not open it.
    Denied,
    /// /dev/kvm exists, but neither kvm_intel nor kvm_amd is loaded: guests may hang.
    Unproven,
}

impl Qemu {
    /// Returns true if `machine` was introduced by a later QEMU, according to its name: upstream's
    /// versioned types are named after the release. False for types of distributions.
    pub fn is_older_than(&self, machine: &str) -> bool {
        let version = machine.strip_prefix("pc-q35-").unwrap_or_default();
        let numbers = version.split('.').map(str::parse::<u16>).collect::<Result<Vec<_>, _>>();
        let own = [self.version.major, self.version.minor, u16::MAX];
        numbers.is_ok_and(|numbers| numbers.as_slice() > own.as_slice())
    }
}

impl Version {
    /// The oldest supported QEMU, that of Debian 12.
    pub const OLDEST: Self = Self { major: 7, minor: 2, micro: 0 };

    /// Parses the output of `qemu-system-x86_64 -version`: `QEMU emulator version 7.2.22 (Debian
    /// …)`.
    pub fn parse(output: &str) -> Option<Self> {
        let (_, after) = output.split_once("version ")?;
        let end = after.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(after.len());
        let mut numbers = after.get(..end)?.trim_end_matches('.').split('.').map(str::parse);
        let mut next = || numbers.next();
        Some(Self {
            major: next()?.ok()?,
            minor: next()?.ok()?,
            // Very old release candidates have no third number.
            micro: next().unwrap_or(Ok(0)).ok()?,
        })
    }
}

/// Returns the versioned machine type of the alias `q35` in the output of `-machine help`, or else
/// the newest one.
///
/// The line is `q35 … (alias of pc-q35-10.0)`. The alias is more reliable than the largest number:
/// builds of Red Hat only have types like `pc-q35-rhel9.4.0`, and Ubuntu adds `pc-q35-noble` to
/// upstream's types.
pub fn newest_q35(output: &str) -> Option<String> {
    let lines = || {
        output.lines().filter_map(|line| {
            let (name, description) = line.trim().split_once(char::is_whitespace)?;
            Some((name, description.trim()))
        })
    };
    let alias = lines().find_map(|(name, description)| {
        let (_, of) = description.split_once("(alias of ")?;
        let of = of.split(')').next()?;
        match (name, of) {
            ("q35", target) if is_versioned(target) => Some(target),
            (target, "q35") if is_versioned(target) => Some(target),
            _ => None,
        }
    });
    let newest = || {
        lines()
            .filter_map(|(name, description)| {
                let numbers = name.strip_prefix("pc-q35-")?.split('.').map(str::parse::<u16>);
                let numbers = numbers.collect::<Result<Vec<u16>, _>>().ok()?;
                let is_current = !description.contains("(deprecated");
                is_versioned(name).then_some((is_current, numbers, name))
            })
            .max()
            .map(|(_, _, name)| name)
    };
    alias.or_else(newest).map(str::to_owned)
}

/// A machine type that a QEMU has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// The type will be removed in a later QEMU.
    pub deprecated: bool,
}

/// Parses all machine types in the output of `-machine help`.
pub fn machines(output: &str) -> Vec<Machine> {
    // The first line is the heading `Supported machines are:`.
    let lines = output.lines().filter(|line| !line.ends_with(':'));
    let machine = |line: &str| {
        let (name, description) = line.trim().split_once(char::is_whitespace)?;
        let deprecated = description.contains("(deprecated");
        Some(Machine { name: name.to_owned(), deprecated })
    };
    lines.filter_map(machine).collect()
}

/// Returns true for a versioned type name, which is safe for the command line and for
/// `identity.toml`.
fn is_versioned(name: &str) -> bool {
    name.strip_prefix("pc-q35-").is_some_and(|version| {
        (1..=64).contains(&version.len())
            && version.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-+".contains(&b))
    })
}

/// The accelerator, as named by QEMU's `-accel`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// Hardware virtualization.
    Kvm,
    /// Emulation by QEMU.
    Tcg,
}

impl Accelerator {
    /// Returns the name on QEMU's command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// `accel = "kvm"` without usable KVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoKvm {
    /// /dev/kvm does not exist.
    #[error("`accel` is `kvm`, but this host has no /dev/kvm")]
    Missing,
    /// This user may not open /dev/kvm.
    #[error("`accel` is `kvm`, but this user may not open /dev/kvm")]
    Denied,
}

impl Explain for NoKvm {
    fn own_code(&self) -> Option<ErrorCode> {
        Some(match self {
            Self::Missing => ErrorCode::NoKvm,
            Self::Denied => ErrorCode::KvmDenied,
        })
    }

    fn own_hint(&self) -> Option<String> {
        Some(match self {
            Self::Missing => {
                "enable virtualization in the firmware setup and load `kvm_intel` or `kvm_amd`, or \
                 write `accel = \"auto\"` to run without KVM"
                    .into()
            }
            Self::Denied => {
                "add the user to the group of /dev/kvm (`ls -l /dev/kvm`, usually `kvm`), or write \
                 `accel = \"auto\"` to run without KVM"
                    .into()
            }
        })
    }
}

/// Selects the accelerator, with a warning if it is unexpectedly slow or unreliable.
///
/// # Errors
/// `accel = "kvm"` if /dev/kvm does not exist or may not be opened.
pub fn accelerator(wish: spec::Accel, kvm: &Kvm) -> Result<(Accelerator, Option<Note>), NoKvm> {
    use Accelerator::{Kvm as Hardware, Tcg};
    let slow = |why: &str| {
        let text = format!("{why}: the guest runs with TCG, about ten times slower");
        Ok((Tcg, Some(Note::new(NoteCode::NoKvm, text).key("accel"))))
    };
    match (wish, kvm) {
        (spec::Accel::Tcg, _) => Ok((Tcg, None)),
        (spec::Accel::Auto | spec::Accel::Kvm, Kvm::Usable) => Ok((Hardware, None)),
        (spec::Accel::Auto, Kvm::Missing) => slow("this host has no /dev/kvm"),
        (spec::Accel::Auto, Kvm::Denied) => slow("this user may not open /dev/kvm"),
        (spec::Accel::Auto, Kvm::Unproven) => slow(
            "/dev/kvm exists, but neither `kvm_intel` nor `kvm_amd` is loaded, so guests may \
                hang",
        ),
        (spec::Accel::Kvm, Kvm::Unproven) => Ok((
            Hardware,
            Some(
                Note::new(
                    NoteCode::KvmUnproven,
                    "KVM is used as configured by `accel`, but neither `kvm_intel` nor `kvm_amd` \
                     is loaded: guests may hang",
                )
                .key("accel"),
            ),
        )),
        (spec::Accel::Kvm, Kvm::Missing) => Err(NoKvm::Missing),
        (spec::Accel::Kvm, Kvm::Denied) => Err(NoKvm::Denied),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn version(major: u16, minor: u16, micro: u16) -> Option<Version> {
        Some(Version { major, minor, micro })
    }

    #[test]
    fn versions_of_all_packages_are_parsed() {
        for (output, expected) in [
            ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\n", version(7, 2, 22)),
            (
                "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)",
                version(10, 0, 2),
            ),
            ("QEMU emulator version 9.0.0 (qemu-kvm-9.0.0-10.el9)", version(9, 0, 0)),
            ("QEMU emulator version 11.1.50 (v11.1.0-3-gabc-dirty)", version(11, 1, 50)),
            ("QEMU emulator version 2.12", version(2, 12, 0)),
            ("version 8.2.", version(8, 2, 0)),
            ("", None),
            ("version ", None),
            ("version x", None),
            ("version 1", None),
            ("version 99999.1.1", None),
            ("version 1.2.99999", None),
        ] {
            assert_eq!(Version::parse(output), expected, "{output:?}");
        }
    }

    const DEBIAN_12: &str = "\
Supported machines are:
microvm              microvm (i386)
pc                   Standard PC (i440FX + PIIX, 1996) (alias of pc-i440fx-7.2)
pc-i440fx-7.2        Standard PC (i440FX + PIIX, 1996) (default)
q35                  Standard PC (Q35 + ICH9, 2009) (alias of pc-q35-7.2)
pc-q35-7.2           Standard PC (Q35 + ICH9, 2009)
pc-q35-7.1           Standard PC (Q35 + ICH9, 2009)
pc-q35-2.12          Standard PC (Q35 + ICH9, 2009)
none                 empty machine
";

    const RED_HAT_9: &str = "\
Supported machines are:
pc                   RHEL 7.6.0 PC (i440FX + PIIX, 1996) (alias of pc-i440fx-rhel7.6.0)
pc-i440fx-rhel7.6.0  RHEL 7.6.0 PC (i440FX + PIIX, 1996) (default) (deprecated)
q35                  RHEL-9.4.0 PC (Q35 + ICH9, 2009) (alias of pc-q35-rhel9.4.0)
pc-q35-rhel9.4.0     RHEL-9.4.0 PC (Q35 + ICH9, 2009)
none                 empty machine
";

    const UBUNTU: &str = "\
ubuntu-q35           Ubuntu 24.04 PC (Q35 + ICH9, 2009) (alias of pc-q35-noble)
pc-q35-noble         Ubuntu 24.04 PC (Q35 + ICH9, 2009)
q35                  Standard PC (Q35 + ICH9, 2009) (alias of pc-q35-8.2)
pc-q35-8.2           Standard PC (Q35 + ICH9, 2009)
";

    #[test]
    fn alias_q35_is_resolved() {
        for (output, expected) in
            [(DEBIAN_12, "pc-q35-7.2"), (RED_HAT_9, "pc-q35-rhel9.4.0"), (UBUNTU, "pc-q35-8.2")]
        {
            assert_eq!(newest_q35(output).as_deref(), Some(expected));
        }
        let other_way = "pc-q35-7.2  Standard PC (Q35 + ICH9, 2009) (alias of q35)";
        assert_eq!(newest_q35(other_way).as_deref(), Some("pc-q35-7.2"));
    }

    #[test]
    fn all_machine_types_are_parsed() {
        let names = |output| -> Vec<String> {
            machines(output)
                .into_iter()
                .filter(|m| m.name.contains("q35"))
                .map(|m| m.name)
                .collect()
        };
        assert_eq!(names(DEBIAN_12), ["q35", "pc-q35-7.2", "pc-q35-7.1", "pc-q35-2.12"]);
        assert_eq!(names(UBUNTU), ["ubuntu-q35", "pc-q35-noble", "q35", "pc-q35-8.2"]);
        let old: Vec<Machine> =
            machines(RED_HAT_9).into_iter().filter(|machine| machine.deprecated).collect();
        assert_eq!(old, [Machine { name: "pc-i440fx-rhel7.6.0".into(), deprecated: true }]);
        assert_eq!(machines(""), []);
    }

    #[test]
    fn newest_type_is_used_without_alias() {
        let output = "\
pc-q35-9.2  Standard PC
pc-q35-10.0 Standard PC
pc-q35-4.0.1 Standard PC
pc-q35-11.0 Standard PC (deprecated)
pc-q35-x    Standard PC
";
        assert_eq!(newest_q35(output).as_deref(), Some("pc-q35-10.0"));
        let old = "pc-q35-2.9 Standard PC (deprecated)\npc-q35-2.12 Standard PC (deprecated)";
        assert_eq!(newest_q35(old).as_deref(), Some("pc-q35-2.12"));
        for output in
            ["", "pc Standard PC", "q35 x (alias of pc-q35-1,accel=kvm)", "q35 x (alias of "]
        {
            assert_eq!(newest_q35(output), None, "{output:?}");
        }
        // Too long to store.
        let long = format!("pc-q35-{}9.2 Standard PC", "0".repeat(300));
        assert_eq!(newest_q35(&long), None);
    }

    proptest! {
        #[test]
        fn no_output_panics(output in "(version |q35 |pc-q35-|[(]alias of \
            |[0-9.]{1,8}|\\PC|\n){0,20}") {
            let _ = Version::parse(&output);
            if let Some(machine) = newest_q35(&output) {
                prop_assert!(is_versioned(&machine), "{}", machine);
            }
        }
    }

    #[test]
    fn machine_of_later_release_is_recognized() {
        let version = Version { major: 7, minor: 2, micro: 22 };
        let qemu =
            Qemu { binary: "q".into(), version, machine: "pc-q35-7.2".into(), sandbox: true };
        for (machine, later) in [
            ("pc-q35-10.0", true),
            ("pc-q35-8.0", true),
            ("pc-q35-7.3", true),
            ("pc-q35-7.2", false),
            ("pc-q35-7.2.1", false),
            ("pc-q35-6.9", false),
            ("pc-q35-rhel9.4.0", false),
            ("pc-q35-noble", false),
            ("pc-q35-99999999.1", false),
            ("q35", false),
            ("", false),
        ] {
            assert_eq!(qemu.is_older_than(machine), later, "{machine}");
        }
    }

    #[test]
    fn kvm_is_used_only_if_reliable() {
        use spec::Accel::{Auto, Kvm as Must, Tcg};
        for (wish, kvm, expected, warned) in [
            (Auto, Kvm::Usable, Some(Accelerator::Kvm), false),
            (Auto, Kvm::Missing, Some(Accelerator::Tcg), true),
            (Auto, Kvm::Denied, Some(Accelerator::Tcg), true),
            (Auto, Kvm::Unproven, Some(Accelerator::Tcg), true),
            (Must, Kvm::Usable, Some(Accelerator::Kvm), false),
            (Must, Kvm::Missing, None, false),
            (Must, Kvm::Denied, None, false),
            (Must, Kvm::Unproven, Some(Accelerator::Kvm), true),
            (Tcg, Kvm::Usable, Some(Accelerator::Tcg), false),
            (Tcg, Kvm::Missing, Some(Accelerator::Tcg), false),
            (Tcg, Kvm::Denied, Some(Accelerator::Tcg), false),
            (Tcg, Kvm::Unproven, Some(Accelerator::Tcg), false),
        ] {
            match accelerator(wish, &kvm) {
                Ok((accelerator, warning)) => {
                    assert_eq!(Some(accelerator), expected, "{wish:?} {kvm:?}");
                    assert_eq!(warning.is_some(), warned, "{wish:?} {kvm:?}");
                }
                Err(error) => {
                    assert_eq!(expected, None, "{wish:?} {kvm:?}");
                    assert!(error.hint().is_some());
                }
            }
        }
    }
}
