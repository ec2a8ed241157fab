//! The drop-in of a VM's systemd unit, `qvm@NAME.service.d/10-qvm.conf`, from its VM file.
//!
//! Settings of `systemctl set-property` (50-…) and of an operator's drop-ins take precedence over
//! the prefix 10: systemd reads drop-ins in the order of their names.

use std::path::{Component, Path, PathBuf};

use super::unit_sandbox;
use crate::{
    spec::{Link, Origin, Source, Vm},
    value::VmName,
};

/// The first line of the drop-in.
const HEADER: &str =
    "# Generated from the VM file by qvm-generator at each daemon-reload. Do not edit.";
/// The file name of the drop-in.
pub const DROP_IN: &str = "10-qvm.conf";
/// The template unit of all VMs.
pub const TEMPLATE: &str = "qvm@.service";
/// The target that wants the VMs with `autostart = true`.
pub const TARGET: &str = "qvm.target";
/// How long a start may take without progress, in seconds; the same as in qvm@.service.
const START: u32 = 120;
/// The time of the last rungs of the stop ladder after `shutdownTimeoutSec`, in seconds; the same
/// as in qvm@.service.
pub const STOP_SLACK: u32 = 30;

/// The service manager of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The system manager.
    System,
    /// A user manager: `systemctl --user`.
    User,
}

/// Returns the name of a VM's unit.
pub fn unit_name(vm: &VmName) -> String {
    format!("qvm@{vm}.service")
}

/// Returns the drop-in of a VM. Each setting is one line, even with control characters in the VM
/// file.
pub fn drop_in(vm: &Vm, scope: Scope) -> String {
    let mut unit = vec![("Description", description(vm))];
    if needs_network(vm) {
        // A bridge may appear late, and an image may have to be downloaded; other VMs do not wait
        // for a network.
        unit.push(("Wants", "network-online.target".into()));
        unit.push(("After", "network-online.target".into()));
    }
    // Ordering only (`After=`): a VM starts by its own `autostart` or manually, never because of
    // another VM, and a failed VM does not fail others. VMs stop in the reverse order.
    unit.extend(vm.after.iter().map(|other| ("After", unit_name(other))));
    unit.extend(mounts(vm).into_iter().map(|path| ("RequiresMountsFor", path)));
    let stop = vm.shutdown_timeout.get().saturating_add(STOP_SLACK);
    let mut service =
        vec![("TimeoutStartSec", START.to_string()), ("TimeoutStopSec", stop.to_string())];
    service.extend(resources(vm));
    service.extend(opened(scope, || unit_sandbox::of(vm)));
    head(&vm.file) + &lines(unit) + "\n[Service]\n" + &lines(service)
}

fn lines(settings: Vec<(&str, String)>) -> String {
    settings.into_iter().map(|(key, value)| format!("{key}={value}\n")).collect()
}

/// Returns the drop-in of a VM with an invalid VM file: it contains the path to watch for changes,
/// and no restrictions for a supervisor that adopts a guest of an earlier file.
pub fn drop_in_of_invalid(file: &Path, scope: Scope) -> String {
    head(file) + "\n[Service]\n" + &lines(opened(scope, unit_sandbox::of_unknown))
}

/// User units have no privileges to restrict: a user's qvm@.service is the same for every VM.
fn opened(
    scope: Scope,
    settings: impl FnOnce() -> Vec<(&'static str, String)>,
) -> Vec<(&'static str, String)> {
    match scope {
        Scope::System => settings(),
        Scope::User => vec![],
    }
}

/// Whether the text of an invalid VM file contains `autostart`: then its unit is started and fails
/// with the message of `qvm check`. Only text before the first table counts.
pub fn wants_autostart(text: &str) -> bool {
    let top = text.lines().map(str::trim).take_while(|line| !line.starts_with('['));
    let value = |line: &str| {
        Some(line.strip_prefix("autostart")?.trim_start().strip_prefix('=')?.trim().to_owned())
    };
    top.filter_map(value).any(|value| value.split('#').next().map(str::trim) == Some("true"))
}

/// Returns the resource settings of the VM (systemd.resource-control(5)). All keys that become such
/// a setting are here; `oomScoreAdjust` is not one, because it applies to QEMU only.
fn resources(vm: &Vm) -> Vec<(&'static str, String)> {
    let settings = [
        ("CPUWeight", Some(vm.cpu_weight.to_string())),
        ("CPUQuota", vm.cpu_quota.map(|percent| format!("{percent}%"))),
        ("MemoryMax", vm.memory_max.map(|size| size.bytes().to_string())),
        ("IOWeight", vm.io_weight.map(|weight| weight.to_string())),
    ];
    settings.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
}

fn head(file: &Path) -> String {
    let mut text = format!("{HEADER}\n[Unit]\n");
    // systemd compares this file's time (NeedDaemonReload=). The value extends to the end of the
    // line without quotes, so a path that cannot be written that way is left out.
    let plain =
        file.to_str().filter(|path| path.starts_with('/') && !path.contains(char::is_control));
    if let Some(path) = plain.filter(|path| !path.ends_with([' ', '\\'])) {
        text.push_str(&format!("SourcePath={}\n", specifiers(path)));
    }
    text
}

/// The name comes last, because a description may end in a backslash, which continues the line.
fn description(vm: &Vm) -> String {
    match vm.description.as_deref().map(one_line) {
        Some(text) if !text.is_empty() => {
            format!("{} (virtual machine {})", specifiers(&text), vm.name)
        }
        _ => format!("Virtual machine {}", vm.name),
    }
}

fn one_line(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    text.trim().to_owned()
}

/// `%` begins a specifier (systemd.unit(5)).
fn specifiers(text: &str) -> String {
    text.replace('%', "%%")
}

fn needs_network(vm: &Vm) -> bool {
    let fetched = |source: &Source| match source {
        Source::Image(image) => matches!(image.origin, Origin::Http(_)),
        _ => false,
    };
    vm.nics.iter().any(|nic| matches!(nic.link, Link::Bridge { .. }))
        || vm.disks.iter().any(|disk| fetched(&disk.source))
}

/// Returns the paths whose file systems must be mounted: the operator's disks and the user-data.
/// Not the image: a disk that was created from it no longer requires it, and must start without the
/// image server's mount.
fn mounts(vm: &Vm) -> Vec<String> {
    let disks = vm.disks.iter().filter_map(|disk| match &disk.source {
        Source::File(path) => Some(path),
        // udev creates these, and they exist before any unit.
        Source::Device(path) if path.starts_with("/dev") => None,
        Source::Device(path) => Some(path),
        Source::Image(_) | Source::Blank | Source::Existing => None,
    });
    let user_data = vm.cloud_init.as_ref().and_then(|cloud_init| cloud_init.user_data.as_ref());
    let mut paths: Vec<String> =
        disks.chain(user_data.map(|data| &data.path)).filter_map(|path| quoted(path)).collect();
    paths.sort();
    paths.dedup();
    paths
}

/// Quotes a path: systemd supports only the escapes `\"` and `\\` here, so a path with control
/// characters or without UTF-8 is replaced by its prefix before them, as is one with `..`.
fn quoted(path: &Path) -> Option<String> {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part.as_os_str().to_str() {
            _ if part == Component::ParentDir => drop(plain.pop()),
            Some(text) if !text.contains(char::is_control) => plain.push(text),
            _ => break,
        }
    }
    let text = plain.to_str().filter(|text| text.starts_with('/') && *text != "/")?;
    Some(format!("\"{}\"", specifiers(text).replace('\\', "\\\\").replace('"', "\\\"")))
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

    use proptest::prelude::*;

    use super::*;
    use crate::spec;

    fn vm(text: &str) -> Vm {
        let data = |_: &Path| Ok(b"#cloud-config\n".to_vec());
        spec::read(&"web".parse().unwrap(), Path::new("/etc/qvm/vms/web.toml"), text, &mut { data })
            .unwrap()
    }

    #[test]
    fn drop_in_of_a_small_vm_file() {
        let expected = "# Generated from the VM file by qvm-generator at each daemon-reload. \
            Do not edit.\n\
            [Unit]\n\
            SourcePath=/etc/qvm/vms/web.toml\n\
            Description=Virtual machine web\n\
            \n\
            [Service]\n\
            TimeoutStartSec=120\n\
            TimeoutStopSec=150\n\
            CPUWeight=100\n\
            RestrictAddressFamilies=AF_INET AF_INET6\n\
            PrivateNetwork=no\n\
            RestrictNamespaces=user net\n\
            MemoryDenyWriteExecute=no\n";
        assert_eq!(drop_in(&vm("vcpu = 1\n"), Scope::System), expected);
    }

    #[test]
    fn user_unit_has_no_sandbox_settings() {
        let expected = "\n[Service]\nTimeoutStartSec=120\nTimeoutStopSec=150\nCPUWeight=100\n";
        let text = "forward = ['80:80']\n[disk.a]\npath = '/home/op/a.qcow2'\n";
        assert!(drop_in(&vm(text), Scope::User).ends_with(expected));
        let invalid = drop_in_of_invalid(Path::new("/web.toml"), Scope::User);
        assert!(invalid.ends_with("\n[Service]\n"));
    }

    #[test]
    fn drop_in_of_a_large_vm_file() {
        let text = "description = '100% of it: \"a\" \\'\nafter = ['db', 'nas-1']\nbridge = 'br0'\n\
            cpuWeight = 300\nshutdownTimeoutSec = 7\n\
            [disk.a]\npath = '/srv/50% \"x\" \\y/a.qcow2'\n\
            [disk.b]\ndevice = '/dev/vg/b'\n\
            [image]\npath = '/mnt/images/x.qcow2'\n[cloudInit]\nuserData = '../web.yaml'\n";
        let expected = "# Generated from the VM file by qvm-generator at each daemon-reload. \
            Do not edit.\n\
            [Unit]\n\
            SourcePath=/etc/qvm/vms/web.toml\n\
            Description=100%% of it: \"a\" \\ (virtual machine web)\n\
            Wants=network-online.target\n\
            After=network-online.target\n\
            After=qvm@db.service\n\
            After=qvm@nas-1.service\n\
            RequiresMountsFor=\"/etc/qvm/web.yaml\"\n\
            RequiresMountsFor=\"/srv/50%% \\\"x\\\" \\\\y/a.qcow2\"\n\
            \n\
            [Service]\n\
            TimeoutStartSec=120\n\
            TimeoutStopSec=37\n\
            CPUWeight=300\n\
            MemoryDenyWriteExecute=no\n\
            ReadWritePaths=\"-/srv\"\n\
            DeviceAllow=\"/dev/vg/b\" rw\n";
        assert_eq!(drop_in(&vm(text), Scope::System), expected);
    }

    #[test]
    fn network_is_wanted_for_bridges_and_downloads() {
        let network = |text| drop_in(&vm(text), Scope::System).contains("network-online");
        assert!(!network("[image]\npath = '/x.qcow2'\n"));
        assert!(network(
            "[image]\nurl = 'https://example.org/x.qcow2'\ninsecureNoChecksum = true\n"
        ));
        assert!(network("[nic.lan]\nbridge = 'br1'\n"));
    }

    #[test]
    fn paths_that_a_unit_cannot_contain() {
        let bytes = |bytes: &[u8]| quoted(Path::new(OsStr::from_bytes(bytes)));
        assert_eq!(bytes(b"/srv/\xff/a").as_deref(), Some("\"/srv\""));
        assert_eq!(bytes(b"/srv/a\nb/c").as_deref(), Some("\"/srv\""));
        assert_eq!(bytes(b"/a\nb"), None);
        assert_eq!(bytes(b"relative"), None);
        for file in ["/etc/a\nb/web.toml", "relative.toml", "/etc/web\\"] {
            assert!(!head(Path::new(file)).contains("SourcePath"), "{file}");
        }
        assert!(
            !drop_in_of_invalid(Path::new(OsStr::from_bytes(b"/\xff/web.toml")), Scope::System)
                .contains("SourcePath")
        );
        assert!(
            drop_in_of_invalid(Path::new("/a%b/web.toml"), Scope::System)
                .contains("\nSourcePath=/a%%b/web.toml\n")
        );
    }

    #[test]
    fn autostart_of_a_broken_file() {
        for (text, wanted) in [
            ("autostart = true\nvcpu = ", true),
            ("  autostart=true # at night\nvcpu = ", true),
            ("autostart = false\n", false),
            ("# autostart = true\n", false),
            ("autostarts = true\n", false),
            ("[image]\nautostart = true\n", false),
        ] {
            assert_eq!(wants_autostart(text), wanted, "{text}");
        }
    }

    proptest! {
        #[test]
        fn one_setting_a_line(
            description in any::<String>(),
            parts in prop::collection::vec(any::<Vec<u8>>(), 1..4)
        ) {
            let mut vm = vm("vcpu = 1\n");
            vm.description = Some(description);
            let parts: PathBuf = parts.iter().map(|part| OsStr::from_bytes(part)).collect();
            let path = Path::new("/srv").join(parts);
            vm.file = path.with_extension("toml");
            vm.disks[0].source = Source::File(path);
            let text = drop_in(&vm, Scope::System);
            let known = [
                "",
                "[Service]",
                "SourcePath=",
                "Description=",
                "RequiresMountsFor=",
                "TimeoutStartSec=",
                "TimeoutStopSec=",
                "CPUWeight=",
                "RestrictAddressFamilies=",
                "PrivateNetwork=",
                "RestrictNamespaces=",
                "MemoryDenyWriteExecute=",
                "ReadWritePaths=",
            ];
            for line in text.split(['\n', '\r', '\0']).skip(2) {
                let key = line.split_inclusive('=').next().unwrap_or_default();
                prop_assert!(known.contains(&key), "{line:?}");
                prop_assert!(!line.ends_with('\\'), "{line:?}");
                prop_assert!(!line.replace("%%", "").contains('%'), "{line:?}");
            }
            let descriptions = text.lines().filter(|line| line.starts_with("Description="));
            prop_assert_eq!(descriptions.count(), 1);
        }
    }
}
