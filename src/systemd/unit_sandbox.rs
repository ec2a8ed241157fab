//! The sandbox settings of a VM's systemd unit: qvm@.service permits what every VM requires, and
//! the drop-in adds what this VM requires.
//!
//! Sources: systemd.exec(5) and systemd.resource-control(5).

use std::path::{Component, Path, PathBuf};

use crate::{
    spec::{Accel, Checksum, Disk, Image, Link, Origin, Ready, Source, Vm},
    value::VncAddress,
};

/// Ports below this one require root, unless the host is configured otherwise (ip(7),
/// ip_unprivileged_port_start).
const FIRST_FREE_PORT: u16 = 1024;
/// The directories of `ProtectHome=` and `PrivateTmp=`.
const HOMES: [&str; 3] = ["/home", "/root", "/run/user"];
const TEMPORARY: [&str; 2] = ["/tmp", "/var/tmp"];

const HOME: (&str, &str) = ("ProtectHome", "read-only");
const TMP: (&str, &str) = ("PrivateTmp", "no");
const IP: (&str, &str) = ("RestrictAddressFamilies", "AF_INET AF_INET6");
const HOST_NETWORK: (&str, &str) = ("PrivateNetwork", "no");
/// QEMU then gets an empty network namespace if it does not use the host's network.
const NAMESPACES: (&str, &str) = ("RestrictNamespaces", "user net");
const LOW_PORTS: (&str, &str) = ("CapabilityBoundingSet", "CAP_NET_BIND_SERVICE");
const TRANSLATOR: (&str, &str) = ("MemoryDenyWriteExecute", "no");

/// Returns the settings of a VM.
pub(crate) fn of(vm: &Vm) -> Vec<(&'static str, String)> {
    let named: Vec<&Path> = named(vm);
    let below = |roots: &[&str]| named.iter().any(|path| roots.iter().any(|r| path.starts_with(r)));
    let ip = uses_ip(vm);
    let opened = [
        (below(&HOMES), HOME),
        (below(&TEMPORARY), TMP),
        (ip, IP),
        (ip, HOST_NETWORK),
        (ip, NAMESPACES),
        (low_ports(vm), LOW_PORTS),
        // TCG executes code that it has written, so W^X is possible only with KVM.
        (vm.accel != Accel::Kvm, TRANSLATOR),
    ];
    let mut settings: Vec<_> = opened
        .into_iter()
        .filter(|(open, _)| *open)
        .map(|(_, (key, value))| (key, value.to_owned()))
        .collect();
    settings.extend(writable(vm).into_iter().map(|path| ("ReadWritePaths", path)));
    settings.extend(devices(vm).into_iter().map(|device| ("DeviceAllow", device)));
    settings
}

/// Returns the settings of a VM without a valid VM file: a guest of an earlier file may require any
/// of them.
pub(crate) fn of_unknown() -> Vec<(&'static str, String)> {
    [HOME, TMP, IP, HOST_NETWORK, NAMESPACES, LOW_PORTS, TRANSLATOR]
        .map(|(key, value)| (key, value.to_owned()))
        .into()
}

/// Returns every file that the VM file refers to.
fn named(vm: &Vm) -> Vec<&Path> {
    let user_data = vm.cloud_init.as_ref().and_then(|cloud_init| cloud_init.user_data.as_ref());
    let password = vm.display.as_ref().and_then(|display| display.password_file.as_deref());
    let others = user_data.map(|data| data.path.as_path()).into_iter().chain(password);
    vm.disks.iter().flat_map(of_disk).chain(others).collect()
}

fn of_disk(disk: &Disk) -> Vec<&Path> {
    match &disk.source {
        Source::File(path) => vec![path.as_path()],
        Source::Image(image) => of_image(image),
        Source::Device(_) | Source::Blank | Source::Existing => vec![],
    }
}

fn of_image(image: &Image) -> Vec<&Path> {
    let image_file = match &image.origin {
        Origin::Path(path) => Some(path.as_path()),
        Origin::Http(_) => None,
    };
    let sums = match &image.checksum {
        Checksum::Sums(address) => address.strip_prefix("file://").map(Path::new),
        Checksum::Digest(_) | Checksum::None => None,
    };
    image_file.into_iter().chain(sums).collect()
}

/// Whether the supervisor or QEMU opens an IP socket: for the user-mode network, an image download,
/// the readiness port, or a VNC port. Bridges require none.
fn uses_ip(vm: &Vm) -> bool {
    let fetched = |disk: &Disk| match &disk.source {
        Source::Image(image) => {
            let sums = match &image.checksum {
                Checksum::Sums(address) => !address.starts_with("file://"),
                Checksum::Digest(_) | Checksum::None => false,
            };
            sums || matches!(image.origin, Origin::Http(_))
        }
        Source::File(_) | Source::Device(_) | Source::Blank | Source::Existing => false,
    };
    vm.nics.iter().any(|nic| matches!(nic.link, Link::User { .. }))
        || vm.disks.iter().any(fetched)
        || matches!(vm.ready, Ready::Tcp(_))
        || vm.display.as_ref().is_some_and(|it| matches!(it.vnc, Some(VncAddress::Tcp(_))))
}

fn low_ports(vm: &Vm) -> bool {
    vm.nics.iter().any(|nic| match &nic.link {
        Link::User { forward } => forward.iter().any(|it| it.host.port() < FIRST_FREE_PORT),
        Link::Bridge { .. } => false,
    })
}

/// Returns the directories of the operator's disks. Not the files: a file that is replaced must be
/// visible to the next QEMU of the same unit.
fn writable(vm: &Vm) -> Vec<String> {
    let disks = vm.disks.iter().filter(|disk| !disk.read_only);
    let directories = disks.filter_map(|disk| match &disk.source {
        Source::File(path) if !path.starts_with("/dev") => {
            // For a file in `/` only the file itself: everything would be writable otherwise.
            let directory = path.parent().filter(|directory| directory.parent().is_some());
            word(directory.unwrap_or(path))
        }
        Source::File(_)
        | Source::Device(_)
        | Source::Image(_)
        | Source::Blank
        | Source::Existing => None,
    });
    let mut directories: Vec<String> = directories.collect();
    directories.sort();
    directories.dedup();
    directories
}

/// Returns the operator's block devices, each with its access mode.
fn devices(vm: &Vm) -> Vec<String> {
    let devices = vm.disks.iter().filter_map(|disk| match &disk.source {
        Source::File(path) | Source::Device(path) => {
            let access = if disk.read_only { "r" } else { "rw" };
            let plain = path.components().all(|part| part != Component::ParentDir);
            match path.strip_prefix("/dev").ok().and_then(|_| device_word(path)) {
                Some(device) if plain => Some(format!("{device} {access}")),
                // systemd accepts only paths in /dev here; another path may be a symbolic link to
                // one.
                _ if matches!(disk.source, Source::Device(_)) => Some(format!("block-* {access}")),
                _ => None,
            }
        }
        Source::Image(_) | Source::Blank | Source::Existing => None,
    });
    let mut devices: Vec<String> = devices.collect();
    devices.sort();
    devices.dedup();
    devices
}

/// Formats a path for `ReadWritePaths=`, where it may be missing. There are no escapes there: a
/// path that cannot be written is replaced by its prefix before the invalid part, as is one with
/// `..`.
fn word(path: &Path) -> Option<String> {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part.as_os_str().to_str() {
            _ if part == Component::ParentDir => drop(plain.pop()),
            Some(text) if !text.contains(|c: char| c.is_control() || c == '"') => plain.push(text),
            _ => break,
        }
    }
    let text = plain.to_str().filter(|text| text.starts_with('/') && *text != "/")?;
    Some(format!("\"-{}\"", text.replace('%', "%%")))
}

/// Formats a path for `DeviceAllow=`. Paths of udev require no escapes.
fn device_word(path: &Path) -> Option<String> {
    let odd = |c: char| c.is_control() || matches!(c, '"' | '\\');
    let text = path.to_str().filter(|text| !text.contains(odd))?;
    Some(format!("\"{}\"", text.replace('%', "%%")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec;

    fn settings(text: &str) -> String {
        let data = |_: &Path| Ok(b"#cloud-config\n".to_vec());
        let file = Path::new("/etc/qvm/vms/web.toml");
        let vm = spec::read(&"web".parse().unwrap(), file, text, &mut { data }).unwrap();
        of(&vm).into_iter().map(|(key, value)| format!("{key}={value}\n")).collect()
    }

    /// On a bridge, with KVM, and with a disk that qvm created.
    const CLOSED: &str = "accel = 'kvm'\nbridge = 'br0'\n";

    #[test]
    fn vm_without_needs_relaxes_nothing() {
        assert_eq!(settings(CLOSED), "");
        assert_eq!(settings(&format!("{CLOSED}[image]\npath = '/srv/x.qcow2'\n")), "");
        assert_eq!(
            settings(&format!("{CLOSED}[disk.a]\npath = '/srv/a.qcow2'\nreadOnly = true\n")),
            ""
        );
    }

    #[test]
    fn each_need_relaxes_its_settings() {
        const NETWORK: &str = "RestrictAddressFamilies=AF_INET AF_INET6\nPrivateNetwork=no\n\
                               RestrictNamespaces=user net\n";
        let url = "url = 'https://example.org/x.qcow2'\n";
        for (text, opened) in [
            (format!("{CLOSED}[image]\npath = '/home/op/x.qcow2'\n"), "ProtectHome=read-only\n"),
            (
                format!("{CLOSED}[cloudInit]\nuserData = '/root/web.yaml'\n"),
                "ProtectHome=read-only\n",
            ),
            (format!("{CLOSED}[image]\npath = '/var/tmp/x.qcow2'\n"), "PrivateTmp=no\n"),
            (format!("{CLOSED}ready = 'tcp:22'\nip = '192.0.2.2/24'\n"), NETWORK),
            (format!("{CLOSED}[image]\n{url}insecureNoChecksum = true\n"), NETWORK),
            (
                format!(
                    "{CLOSED}[display]\nvnc = '127.0.0.1:5901'\npasswordFile = '/etc/qvm/vnc'\n"
                ),
                NETWORK,
            ),
            ("accel = 'kvm'\n".into(), NETWORK),
            (
                "accel = 'kvm'\nforward = ['80:80']\n".into(),
                "RestrictAddressFamilies=AF_INET AF_INET6\nPrivateNetwork=no\n\
                 RestrictNamespaces=user net\nCapabilityBoundingSet=CAP_NET_BIND_SERVICE\n",
            ),
            ("bridge = 'br0'\n".into(), "MemoryDenyWriteExecute=no\n"),
            (
                format!(
                    "{CLOSED}[disk.a]\npath = '/srv/d/a.qcow2'\n[disk.b]\npath = '/srv/d/b.qcow2'\n"
                ),
                "ReadWritePaths=\"-/srv/d\"\n",
            ),
            (format!("{CLOSED}[disk.a]\npath = '/a.qcow2'\n"), "ReadWritePaths=\"-/a.qcow2\"\n"),
            (format!("{CLOSED}[disk.a]\ndevice = '/dev/vg/a'\n"), "DeviceAllow=\"/dev/vg/a\" rw\n"),
            (
                format!("{CLOSED}[disk.a]\ndevice = '/dev/vg/a'\nreadOnly = true\n"),
                "DeviceAllow=\"/dev/vg/a\" r\n",
            ),
            (format!("{CLOSED}[disk.a]\ndevice = '/srv/a'\n"), "DeviceAllow=block-* rw\n"),
        ] {
            assert_eq!(settings(&text), opened, "{text}");
        }
    }

    #[test]
    fn local_checksum_file_needs_no_network() {
        let sums = |sums: &str| {
            settings(&format!("{CLOSED}[image]\npath = '/srv/x.qcow2'\nchecksums = '{sums}'\n"))
        };
        assert_eq!(sums("file:///home/op/SHA256SUMS"), "ProtectHome=read-only\n");
        assert!(sums("https://example.org/SHA256SUMS").starts_with("RestrictAddressFamilies="));
    }

    #[test]
    fn paths_that_no_line_can_hold() {
        for (path, written) in [
            ("/srv/50% x\\", Some("\"-/srv/50%% x\\\"")),
            ("/srv/a\"b/c", Some("\"-/srv\"")),
            ("/srv/a\nb/c", Some("\"-/srv\"")),
            ("/srv/../opt", Some("\"-/opt\"")),
            ("/\"", None),
        ] {
            assert_eq!(word(Path::new(path)).as_deref(), written, "{path}");
        }
        assert_eq!(device_word(Path::new("/dev/a\"")), None);
    }
}
