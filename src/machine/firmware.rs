//! Selects the firmware of a VM among QEMU's firmware descriptors.
//!
//! The format is specified in QEMU's `docs/interop/firmware.json`. Unknown features, devices and
//! tags of newer descriptors are ignored.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::{
    spec::{self, Format},
    value::{ErrorCode, Explain},
};

/// One descriptor file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Descriptor {
    /// A description for users.
    #[serde(default)]
    pub description: String,
    /// The interfaces for the guest: `uefi`, `bios`, ….
    pub interface_types: Vec<String>,
    /// How the firmware is passed to QEMU.
    pub mapping: Mapping,
    /// The supported machines.
    pub targets: Vec<Target>,
    /// Capabilities and requirements: `secure-boot`, `enrolled-keys`, `requires-smm`, ….
    pub features: Vec<String>,
}

/// How the firmware is passed to QEMU.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "device", rename_all = "kebab-case")]
pub enum Mapping {
    /// As flash devices.
    #[serde(rename_all = "kebab-case")]
    Flash {
        /// Code and variables: `split` in two devices, `combined` in one, or `stateless` without
        /// variables.
        #[serde(default = "split")]
        mode: String,
        /// The code.
        executable: FlashFile,
        /// The template of a VM's variables.
        nvram_template: Option<FlashFile>,
    },
    /// With `-bios`, without persistent variables.
    Memory {
        /// The code.
        filename: PathBuf,
    },
    /// A way that qvm does not support.
    #[serde(other)]
    Other,
}

/// The mode of descriptors before QEMU 7.0, which do not specify one.
fn split() -> String {
    "split".to_owned()
}

/// The file of a flash device.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct FlashFile {
    /// The path.
    pub filename: PathBuf,
    /// The name of a QEMU block driver.
    pub format: String,
}

/// The machines that a firmware supports.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Target {
    /// The emulator: `x86_64`, ….
    pub architecture: String,
    /// Globs over versioned machine types, such as `pc-q35-*`.
    pub machines: Vec<String>,
}

/// A selected firmware.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelectedFirmware {
    /// The descriptor.
    pub descriptor: PathBuf,
    /// The code: read-only in the first flash device, or the argument of `-bios`.
    pub code: PathBuf,
    /// The format of the code.
    pub code_format: Format,
    /// The template from which the VM's variables are copied once; `None` means that no variable is
    /// persistent.
    pub vars_template: Option<PathBuf>,
    /// The format of the template and of its copy.
    pub vars_format: Format,
    /// Use `-bios` instead of flash.
    pub memory: bool,
    /// The machine requires `smm=on`. With `secure`, the flash of the variables must also be
    /// protected: `-global driver=cfi.pflash01,property=secure,value=on`.
    pub smm: bool,
    /// Secure Boot is supported.
    pub secure: bool,
}

/// Why no firmware was selected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No descriptor matches.
    #[error("no {wanted} for `{machine}` in {searched} ({seen} descriptors read)")]
    NotFound {
        /// The requested firmware.
        wanted: &'static str,
        /// The machine type.
        machine: String,
        /// The searched directories.
        searched: String,
        /// The number of descriptors.
        seen: usize,
    },
}

impl Explain for Error {
    fn own_code(&self) -> Option<ErrorCode> {
        Some(match self {
            Self::NotFound { .. } => ErrorCode::FirmwareMissing,
        })
    }

    fn own_hint(&self) -> Option<String> {
        match self {
            Self::NotFound { .. } => Some(
                "install it (Debian and Ubuntu: `ovmf`; Fedora, RHEL and Arch: `edk2-ovmf`), or \
                 write `firmware = \"bios\"`"
                    .into(),
            ),
        }
    }
}

/// Returns the directories with descriptors, the most specific first. `config_home` is
/// `$XDG_CONFIG_HOME`; `qemu` is the binary with links resolved: a build with its own prefix, as on
/// NixOS, has its own descriptors.
pub fn directories(config_home: Option<&Path>, qemu: &Path) -> Vec<PathBuf> {
    let firmware = |base: &Path| base.join("qemu/firmware");
    let prefix = qemu.parent().and_then(Path::parent).filter(|prefix| prefix.is_absolute());
    let mut directories: Vec<PathBuf> = config_home.map(firmware).into_iter().collect();
    directories.push(firmware(Path::new("/etc")));
    directories.extend(prefix.map(|prefix| firmware(&prefix.join("share"))));
    let shared = firmware(Path::new("/usr/share"));
    if !directories.contains(&shared) {
        directories.push(shared);
    }
    directories
}

impl Descriptor {
    /// Returns the files of the descriptor, all of which must exist.
    pub fn files(&self) -> Vec<&Path> {
        match &self.mapping {
            Mapping::Flash { executable, nvram_template, .. } => {
                let template = nvram_template.as_ref().map(|file| file.filename.as_path());
                std::iter::once(executable.filename.as_path()).chain(template).collect()
            }
            Mapping::Memory { filename } => vec![filename],
            Mapping::Other => Vec::new(),
        }
    }

    fn has(&self, feature: &str) -> bool {
        self.features.iter().any(|has| has == feature)
    }

    fn fits(&self, machine: &str) -> bool {
        self.interface_types.iter().any(|interface| interface == "uefi")
            && self.targets.iter().any(|target| {
                target.architecture == "x86_64"
                    && target
                        .machines
                        .iter()
                        .any(|glob| matches(glob.as_bytes(), machine.as_bytes()))
            })
    }

    /// Returns the firmware of this descriptor if qvm supports it.
    fn chosen(&self, descriptor: &Path) -> Option<SelectedFirmware> {
        let (code, code_format, vars, memory) = match &self.mapping {
            Mapping::Flash { mode, executable, nvram_template } => {
                let vars = match (mode.as_str(), nvram_template) {
                    ("split", Some(template)) => Some((template, format(&template.format)?)),
                    ("stateless", None) => None,
                    // `combined` would require a copy of the code for each VM; no distribution
                    // ships it.
                    _ => return None,
                };
                (&executable.filename, format(&executable.format)?, vars, false)
            }
            Mapping::Memory { filename } => (filename, Format::Raw, None, true),
            Mapping::Other => return None,
        };
        Some(SelectedFirmware {
            descriptor: descriptor.to_owned(),
            code: code.clone(),
            code_format,
            vars_template: vars.map(|(template, _)| template.filename.clone()),
            vars_format: vars.map_or(Format::Raw, |(_, format)| format),
            memory,
            smm: self.has("requires-smm"),
            secure: self.has("secure-boot"),
        })
    }
}

fn format(name: &str) -> Option<Format> {
    [Format::Raw, Format::Qcow2].into_iter().find(|format| format.name() == name)
}

/// Selects the firmware for a machine type; `None` is QEMU's SeaBIOS.
///
/// `descriptors` are in search order: sorted by file name without shadowed ones; `searched` are
/// their directories. Plain UEFI never has enrolled keys, which would enforce Secure Boot. Firmware
/// with persistent variables is preferred, then firmware without Secure Boot, then the search
/// order.
///
/// # Errors
/// No descriptor matches.
pub fn choose(
    descriptors: &[(PathBuf, Descriptor)],
    searched: &[PathBuf],
    firmware: spec::Firmware,
    machine: &str,
) -> Result<Option<SelectedFirmware>, Error> {
    let (secure, wanted) = match firmware {
        spec::Firmware::Bios => return Ok(None),
        spec::Firmware::Uefi => (false, "UEFI firmware"),
        spec::Firmware::UefiSecure => {
            (true, "UEFI firmware with Secure Boot, enrolled keys and SMM")
        }
    };
    let fits = |descriptor: &Descriptor| {
        descriptor.fits(machine)
            && if secure {
                ["secure-boot", "enrolled-keys", "requires-smm"].iter().all(|f| descriptor.has(f))
            } else {
                !descriptor.has("enrolled-keys")
            }
    };
    descriptors
        .iter()
        .filter(|(_, descriptor)| fits(descriptor))
        .filter_map(|(path, descriptor)| descriptor.chosen(path))
        // Enrolled keys are stored in variables.
        .filter(|chosen| !secure || chosen.vars_template.is_some())
        .min_by_key(|chosen| {
            (chosen.vars_template.is_none(), chosen.memory, chosen.secure != secure)
        })
        .map(Some)
        .ok_or_else(|| Error::NotFound {
            wanted,
            machine: machine.to_owned(),
            searched: searched
                .iter()
                .map(|directory| format!("`{}`", directory.display()))
                .collect::<Vec<_>>()
                .join(", "),
            seen: descriptors.len(),
        })
}

/// Matches a glob with `*` and `?`, in time proportional to the product of the lengths.
fn matches(glob: &[u8], text: &[u8]) -> bool {
    let (mut g, mut t) = (0, 0);
    // Where to continue after a mismatch: the last star, and the end of its match so far.
    let mut retry = None;
    while let Some(&byte) = text.get(t) {
        match glob.get(g) {
            Some(b'*') => {
                retry = Some((g, t));
                g += 1;
            }
            Some(&wanted) if wanted == b'?' || wanted == byte => {
                g += 1;
                t += 1;
            }
            _ => {
                let Some((star, eaten)) = retry else { return false };
                retry = Some((star, eaten + 1));
                (g, t) = (star + 1, eaten + 1);
            }
        }
    }
    glob.get(g..).is_some_and(|rest| rest.iter().all(|&b| b == b'*'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flash(mode: &str, code: &str, vars: Option<&str>, features: &[&str]) -> Descriptor {
        let file =
            |name: &str| serde_json::json!({"filename": format!("/fw/{name}"), "format": "raw"});
        let mut mapping =
            serde_json::json!({"device": "flash", "mode": mode, "executable": file(code)});
        if let Some(vars) = vars {
            mapping["nvram-template"] = file(vars);
        }
        descriptor(mapping, features)
    }

    fn descriptor(mapping: serde_json::Value, features: &[&str]) -> Descriptor {
        serde_json::from_value(serde_json::json!({
            "description": "x",
            "interface-types": ["uefi"],
            "mapping": mapping,
            "targets": [{"architecture": "x86_64", "machines": ["pc-i440fx-*", "pc-q35-*"]}],
            "features": features,
            "tags": ["x"],
        }))
        .unwrap()
    }

    const SECURE: [&str; 2] = ["requires-smm", "secure-boot"];
    const ENROLLED: [&str; 3] = ["enrolled-keys", "requires-smm", "secure-boot"];

    fn choice(of: &[Descriptor], firmware: spec::Firmware) -> Option<String> {
        let of: Vec<_> = of.iter().map(|d| (PathBuf::from("/d/x.json"), d.clone())).collect();
        choose(&of, &[], firmware, "pc-q35-10.0")
            .ok()?
            .map(|chosen| chosen.code.file_name().unwrap().to_str().unwrap().to_owned())
    }

    #[test]
    fn bios_needs_no_descriptor() {
        assert_eq!(choose(&[], &[], spec::Firmware::Bios, "pc-q35-10.0"), Ok(None));
    }

    #[test]
    fn plain_uefi_prefers_no_secure_boot() {
        use spec::Firmware::Uefi;
        let enrolled = flash("split", "enrolled", Some("v"), &ENROLLED);
        let secure = flash("split", "secure", Some("v"), &SECURE);
        let plain = flash("split", "plain", Some("v"), &["acpi-s3"]);
        let other = flash("split", "other", Some("v"), &[]);
        let stateless = flash("stateless", "stateless", None, &[]);
        let memory =
            descriptor(serde_json::json!({"device": "memory", "filename": "/fw/memory"}), &[]);
        let all =
            [enrolled.clone(), memory.clone(), stateless.clone(), secure.clone(), plain, other];
        assert_eq!(choice(&all, Uefi).as_deref(), Some("plain"));
        assert_eq!(choice(&all[..4], Uefi).as_deref(), Some("secure"));
        assert_eq!(choice(&all[..3], Uefi).as_deref(), Some("stateless"));
        assert_eq!(choice(&all[..2], Uefi).as_deref(), Some("memory"));
        assert_eq!(choice(&[enrolled], Uefi), None);
    }

    #[test]
    fn secure_boot_requires_keys_smm_and_variables() {
        use spec::Firmware::UefiSecure;
        let without_smm = flash("split", "x", Some("v"), &["enrolled-keys", "secure-boot"]);
        let stateless = flash("stateless", "x", None, &ENROLLED);
        let secure = flash("split", "x", Some("v"), &SECURE);
        assert_eq!(choice(&[without_smm, stateless, secure], UefiSecure), None);
        let enrolled = [("/d/40.json".into(), flash("split", "code", Some("vars"), &ENROLLED))];
        let chosen = choose(&enrolled, &[], UefiSecure, "pc-q35-10.0").unwrap().unwrap();
        assert_eq!(
            chosen,
            SelectedFirmware {
                descriptor: "/d/40.json".into(),
                code: "/fw/code".into(),
                code_format: Format::Raw,
                vars_template: Some("/fw/vars".into()),
                vars_format: Format::Raw,
                memory: false,
                smm: true,
                secure: true,
            }
        );
    }

    #[test]
    fn unsupported_descriptors_are_skipped() {
        use spec::Firmware::Uefi;
        let combined = flash("combined", "x", None, &[]);
        let halved = flash("split", "x", None, &[]);
        let new = descriptor(serde_json::json!({"device": "igvm", "filename": "/x"}), &["new"]);
        let mut vmdk = flash("split", "x", Some("v"), &[]);
        if let Mapping::Flash { executable, .. } = &mut vmdk.mapping {
            executable.format = "vmdk".into();
        }
        let mut arm = flash("split", "x", Some("v"), &[]);
        arm.targets[0].architecture = "aarch64".into();
        let mut i440fx = flash("split", "x", Some("v"), &[]);
        i440fx.targets[0].machines = vec!["pc-i440fx-*".into()];
        let mut bios = flash("split", "x", Some("v"), &[]);
        bios.interface_types = vec!["bios".into()];
        assert_eq!(choice(&[combined, halved, new, vmdk, arm, i440fx, bios], Uefi), None);
    }

    #[test]
    fn error_names_firmware_and_directories() {
        let searched = ["/etc/qemu/firmware".into(), "/usr/share/qemu/firmware".into()];
        let error = choose(&[], &searched, spec::Firmware::UefiSecure, "pc-q35-7.2").unwrap_err();
        assert_eq!(
            error.to_string(),
            "no UEFI firmware with Secure Boot, enrolled keys and SMM for `pc-q35-7.2` in \
             `/etc/qemu/firmware`, `/usr/share/qemu/firmware` (0 descriptors read)"
        );
        assert!(error.hint().unwrap().contains("`ovmf`"));
    }

    #[test]
    fn user_directories_precede_distribution() {
        let of = |home: Option<&str>, qemu: &str| -> Vec<String> {
            directories(home.map(Path::new), Path::new(qemu))
                .iter()
                .map(|directory| directory.display().to_string())
                .collect()
        };
        assert_eq!(
            of(Some("/home/op/.config"), "/usr/bin/qemu-system-x86_64"),
            ["/home/op/.config/qemu/firmware", "/etc/qemu/firmware", "/usr/share/qemu/firmware"]
        );
        assert_eq!(
            of(None, "/nix/store/abc-qemu-10.0.2/bin/qemu-system-x86_64"),
            [
                "/etc/qemu/firmware",
                "/nix/store/abc-qemu-10.0.2/share/qemu/firmware",
                "/usr/share/qemu/firmware"
            ]
        );
    }

    #[test]
    fn globs_match() {
        for (glob, text, expected) in [
            ("pc-q35-*", "pc-q35-10.0", true),
            ("pc-q35-*", "pc-i440fx-10.0", false),
            ("pc-q35-?.2", "pc-q35-7.2", true),
            ("pc-q35-?.2", "pc-q35-10.2", false),
            ("*-7.2", "pc-q35-7.2-7.2", true),
            ("*", "", true),
            ("", "", true),
            ("", "x", false),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("?", "", false),
        ] {
            assert_eq!(matches(glob.as_bytes(), text.as_bytes()), expected, "{glob} {text}");
        }
        let (glob, text) = ("*a".repeat(500), "a".repeat(499));
        assert!(!matches(glob.as_bytes(), text.as_bytes()));
    }
}
