//! Runs the same guest with libvirt, if installed and running: as transient domains, by `virsh`.
//!
//! The daemon of the host is used if it answers. Else, for root, one is started that no service
//! manager needs to know: in separate mount and network namespaces, with all of its files below
//! the place of the measurement.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{
    figure::{Outcome, Sample},
    machine,
    place::{Owned, Place, timed},
};

/// How long the daemon may take to answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(30);

/// What runs in the namespaces of the daemon; its argument is the directory for its files. The
/// daemon looks its default user up before it reads its configuration.
const DAEMON: &str = r#"
set -e
mount --make-rprivate /
for dir in /run /var/lib /var/cache /var/log; do mount -t tmpfs tmpfs "$dir"; done
mkdir -p "$1/etc" /run/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt /etc/libvirt
mount --bind "$1/etc" /etc/libvirt
cp /etc/passwd /etc/group "$1"
echo "libvirt-qemu:x:64055:64055::/nonexistent:/usr/sbin/nologin" >>"$1/passwd"
printf 'libvirt-qemu:x:64055:\nkvm:x:64056:\n' >>"$1/group"
for file in passwd group; do mount --bind "$1/$file" "/etc/$file"; done
cat >/etc/libvirt/qemu.conf <<'END'
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = [ ]
stdio_handler = "file"
remember_owner = 0
namespaces = [ ]
END
printf 'unix_sock_dir = "%s"\nauth_unix_rw = "none"\n' "$1" >/etc/libvirt/libvirtd.conf
exec libvirtd --config /etc/libvirt/libvirtd.conf
"#;

/// Domains that are destroyed when this is dropped.
pub(crate) struct Libvirt {
    files: Vec<PathBuf>,
    uri: Option<String>,
    // Ends after the domains.
    _daemon: Option<Owned>,
}

impl Libvirt {
    /// Creates files for so many domains, which are not started yet; `None` where there is no
    /// libvirt, or no daemon that answers.
    pub(crate) fn new(place: &Place, count: usize) -> Outcome<Option<Self>> {
        if !machine::has("virsh") {
            return Ok(None);
        }
        let (mut uri, mut daemon) = (None, None);
        if !answers(None) {
            let Some((socket, started)) = start_daemon(place)? else { return Ok(None) };
            uri = Some(format!("qemu+unix:///system?socket={}", socket.display()));
            daemon = Some(started);
            let begun = Instant::now();
            while !answers(uri.as_deref()) {
                if begun.elapsed() > ANSWERS_WITHIN {
                    eprintln!("libvirt: libvirtd was started and does not answer");
                    return Ok(None);
                }
                thread::sleep(Duration::from_millis(100));
            }
        }
        let mut files = Vec::new();
        for nr in 0..count {
            let disk = place.path().join(format!("libvirt{nr}.qcow2"));
            fs::copy(place.guest("boot.qcow2")?, &disk)?;
            let file = place.path().join(format!("qvm-bench-{nr}.xml"));
            let xml = format!(
                "<domain type='qemu'><name>qvm-bench-{nr}</name><memory \
                 unit='MiB'>32</memory><vcpu>1</vcpu> <os><type arch='x86_64' \
                 machine='q35'>hvm</type></os><features><acpi/></features><devices> <disk \
                 type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{}'/> \
                 <target dev='vda' bus='virtio'/></disk><serial type='pty'/></devices></domain>",
                disk.display()
            );
            fs::write(&file, xml)?;
            files.push(file);
        }
        Ok(Some(Self { files, uri, _daemon: daemon }))
    }

    fn virsh(&self, words: &[&str]) -> Command {
        virsh(self.uri.as_deref(), words)
    }

    /// Starts a domain; returns the time until it runs.
    pub(crate) fn start(&self, nr: usize) -> Outcome<Duration> {
        let file = self.files.get(nr).ok_or("no such domain")?;
        timed(self.virsh(&["create"]).arg(file))
    }

    /// Destroys a domain; returns the time until QEMU has exited.
    pub(crate) fn destroy(&self, nr: usize) -> Outcome<Duration> {
        timed(&mut self.virsh(&["destroy", &format!("qvm-bench-{nr}")]))
    }

    /// Measures a query.
    pub(crate) fn asked(&self, words: &[&str], times: usize) -> Outcome<Sample> {
        let mut sample = Sample::default();
        for _ in 0..times {
            sample.push(timed(&mut self.virsh(words))?);
        }
        Ok(sample)
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        for nr in 0..self.files.len() {
            let _ = self.destroy(nr);
        }
    }
}

/// Whether the daemon answers.
fn answers(uri: Option<&str>) -> bool {
    timed(&mut virsh(uri, &["version"])).is_ok()
}

/// Starts a daemon and returns the path of its socket; `None` where that cannot work.
fn start_daemon(place: &Place) -> Outcome<Option<(PathBuf, Owned)>> {
    let is_root = rustix::process::geteuid().is_root();
    if !(is_root && machine::has("libvirtd") && machine::has("unshare")) {
        return Ok(None);
    }
    let dir = place.path().join("libvirt");
    fs::create_dir_all(&dir)?;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--net", "sh", "-c", DAEMON, "sh"]).arg(&dir);
    let log = fs::File::create(dir.join("log"))?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    Ok(Some((socket(&dir), Owned(command.spawn()?))))
}

fn socket(dir: &Path) -> PathBuf {
    dir.join("libvirt-sock")
}

fn virsh(uri: Option<&str>, words: &[&str]) -> Command {
    let mut command = Command::new("virsh");
    if let Some(uri) = uri {
        command.args(["-c", uri]);
    }
    command.arg("-q").args(words);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}
