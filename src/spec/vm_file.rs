//! The text of a new VM file: what was asked for as keys, what most will want some day as comments beside them.

use std::{fmt::Write as _, path::Path};

use super::known::{Boots, Known};
use crate::value::{IfName, Size, VmName};

/// What a new VM is to be.
#[derive(Debug, Clone)]
pub struct New<'a> {
    /// Its name.
    pub name: &'a VmName,
    /// What its disk is made from.
    pub image: &'a Known,
    /// Where that image is, if nobody publishes it.
    pub made_at: &'a Path,
    /// Memory.
    pub mem: Size,
    /// Virtual CPUs.
    pub vcpu: u8,
    /// The first disk, in GiB.
    pub disk_g: u32,
    /// How it is connected.
    pub network: Network<'a>,
    /// The account to make; without it the image's own.
    pub user: Option<&'a str>,
    /// Lines of authorized_keys(5).
    pub keys: &'a [String],
}

/// How a new VM is connected.
#[derive(Debug, Clone)]
pub enum Network<'a> {
    /// QEMU's own network, with this port of the host leading to the guest's.
    User(u16),
    /// A tap on a bridge; called so, where its usual name would be too long for an interface.
    Bridge(&'a IfName, Option<IfName>),
}

/// Where the comment beside a key begins.
const COMMENT: usize = 36;

/// The whole file.
pub fn text(new: &New<'_>) -> String {
    let mut out = Text(String::new());
    head(&mut out, new);
    machine(&mut out, new);
    network(&mut out, new);
    disk(&mut out, new);
    if new.image.cloud_init {
        cloud_init(&mut out, new);
    }
    out.blank();
    out.say("Another disk, made blank at the next start or by `qvm apply`:");
    out.line("#[disk.data]");
    out.beside("#size = \"100G\"", "it only ever grows");
    out.blank();
    out.say("A screen, for what the serial console does not show:");
    out.line("#[display]");
    out.beside("#vnc = \"unix\"", "`qvm vnc` tells where it is");
    out.0
}

struct Text(String);

impl Text {
    fn line(&mut self, text: &str) {
        self.0.push_str(text);
        self.0.push('\n');
    }

    fn blank(&mut self) {
        self.line("");
    }

    fn say(&mut self, text: &str) {
        self.line(&format!("# {text}"));
    }

    fn beside(&mut self, key: &str, comment: &str) {
        self.line(&format!("{key:COMMENT$}# {comment}"));
    }
}

/// A string as TOML has it.
fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

fn head(out: &mut Text, new: &New<'_>) {
    let name = new.name;
    out.say(&format!("The VM `{name}`: {}, as `qvm new` wrote it.", new.image.title));
    out.say(
        "A `#` turns the rest of its line off: take it away in front of a key to use that key.",
    );
    out.say("`man qvm.toml` tells all there are.");
    out.line("#");
    out.say(&format!("  qvm edit {name}     changes this file, and checks it before it counts"));
    out.say(&format!("  qvm start {name}    makes the disk and boots"));
    out.say(&format!("  qvm apply {name}    takes up changes while it runs, as far as that goes"));
    out.blank();
    out.beside("#description = \"what it is for\"", "shown by `qvm status` and systemctl");
    out.beside("#autostart   = true", "start it with the host");
}

fn machine(out: &mut Text, new: &New<'_>) {
    out.blank();
    out.say("The machine.");
    out.beside(&format!("vcpu = {}", new.vcpu), "virtual CPUs");
    out.beside(&format!("mem  = \"{}\"", new.mem), "memory: a whole number and M or G");
    match new.image.firmware {
        Boots::Bios => {}
        Boots::Uefi => out.beside("firmware = \"uefi\"", "this image boots by nothing else"),
    }
    out.beside("#accel = \"kvm\"", "never run without KVM, which is many times slower");
    out.beside("#cpuWeight = 200", "twice its share of the CPUs when they are short (100)");
    out.beside("#memoryMax = \"64G\"", "what QEMU may take in all: leave it some beside `mem`");
    out.beside(
        "#shutdownTimeoutSec = 300",
        "seconds for a clean shutdown; then it is forced (120)",
    );
    if new.image.cloud_init {
        out.beside(
            "#ready = \"cloud-init\"",
            "`qvm start` returns when the first boot's work is done",
        );
    }
}

fn network(out: &mut Text, new: &New<'_>) {
    out.blank();
    let guest = new.image.port;
    match &new.network {
        Network::User(port) => {
            out.say("The network is QEMU's own, which needs no privileges: the guest reaches out, and the");
            out.say("host reaches the guest by forwarded ports, \"HOSTPORT:GUESTPORT\".");
            let user = new.user.or(new.image.user.as_deref());
            let how = match user {
                Some(user) if guest == 22 => format!("ssh -p {port} {user}@localhost"),
                _ => format!("http://localhost:{port}"),
            };
            out.beside(&format!("forward = [\"{port}:{guest}\"]"), &how);
            out.say(
                "Or an address of its own on a bridge of the host, as root, instead of `forward`:",
            );
            out.line("#bridge = \"br0\"");
        }
        Network::Bridge(bridge, _) => {
            out.say("The network: a tap on this bridge of the host.");
            out.line(&format!("bridge = {}", quoted(bridge.as_str())));
        }
    }
    if new.image.cloud_init {
        out.say("On a bridge its address comes by DHCP, unless all of these say another:");
        out.line("#ip      = \"192.168.1.10/24\"");
        out.line("#gateway = \"192.168.1.1\"");
        out.line("#dns     = [\"192.168.1.1\"]");
    }
}

fn disk(out: &mut Text, new: &New<'_>) {
    out.blank();
    out.say(
        "The first disk is made from the image, once. A larger number grows it later; it never",
    );
    out.say("shrinks.");
    out.beside(&format!("diskSizeG = {}", new.disk_g), "GiB");
    if let Network::Bridge(_, Some(tap)) = &new.network {
        out.blank();
        out.line("[nic.net]");
        let why = format!("`qvm-{}` is too long for an interface", new.name);
        out.beside(&format!("tap = {}", quoted(tap.as_str())), &why);
    }
    out.blank();
    out.line("[image]");
    for line in new.image.made.iter().chain(&new.image.note) {
        out.say(line);
    }
    let Some(url) = &new.image.url else {
        out.line(&format!("path = {}", quoted(&new.made_at.to_string_lossy())));
        return;
    };
    out.say("Downloaded once for all VMs, and taken only if the checksum is right.");
    out.line(&format!("url       = {}", quoted(url)));
    if let Some(sums) = &new.image.checksums {
        out.line(&format!("checksums = {}", quoted(sums)));
    }
    if let Some(sha256) = &new.image.sha256 {
        out.say(
            "Its publisher has no list of checksums: for another version fill in the one that is",
        );
        out.say("shown beside it on the page of that release.");
        out.line(&format!("sha256    = {}", quoted(sha256)));
    }
    out.beside("#clone = \"overlay\"", "the disk holds only what differs from the image");
}

fn cloud_init(out: &mut Text, new: &New<'_>) {
    out.blank();
    out.line("[cloudInit]");
    out.say("What the guest is told at its first boot; `qvm reseed` has it told again.");
    let own = new.image.user.as_deref().unwrap_or("the image's own");
    let (user, which) = match new.user {
        Some(user) => (user, format!("an account with sudo, instead of `{own}`")),
        None => (own, "the image's own account, with sudo".to_owned()),
    };
    out.beside(&format!("user = {}", quoted(user)), &which);
    if new.keys.is_empty() {
        out.say("Who may log in by ssh: the lines of their `.pub` files. Without any, nobody can.");
        out.line("#sshAuthorizedKeys = [\"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI… you@host\"]");
    } else {
        out.line("sshAuthorizedKeys = [");
        for key in new.keys {
            let _ = writeln!(out.0, "    {},", quoted(key));
        }
        out.line("]");
    }
    out.beside("#hostname = \"web.example.org\"", "the VM's name, where it is not said");
    out.say("A password for the console; `openssl passwd -6` prints what goes here:");
    out.line("#passwordHash = \"$6$SALT$HASH\"");
    out.say("A file beside this one takes the place of user, keys and password:");
    let _ = writeln!(out.0, "#userData = \"{}.user-data.yaml\"", new.name);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{self, Reach, known};

    fn problems(name: &VmName, text: &str) -> Vec<String> {
        let file = Path::new("/etc/qvm/vms").join(format!("{name}.toml"));
        let mut user_data = |_: &Path| Ok(b"#cloud-config\n".to_vec());
        let read = spec::read(name, &file, text, &mut user_data);
        read.err().into_iter().flatten().map(|problem| problem.to_string()).collect()
    }

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ5rJ3mUq0kT7m5S4m8xv0bq2vY1n6c3Zp9wQe7dR8sT o\"p@desk";

    /// `text` of every image, network, name, account and set of keys.
    fn every(check: impl Fn(&New<'_>, &str)) {
        let (short, long): (VmName, VmName) =
            ("web".parse().unwrap(), "a-name-that-is-long".parse().unwrap());
        let (bridge, tap): (IfName, IfName) = ("br0".parse().unwrap(), "tap0".parse().unwrap());
        for image in known::all() {
            for network in [
                Network::User(2222),
                Network::Bridge(&bridge, None),
                Network::Bridge(&bridge, Some(tap.clone())),
            ] {
                let name =
                    if matches!(network, Network::Bridge(_, Some(_))) { &long } else { &short };
                for keys in [&[][..], &[KEY.to_owned()], &[KEY.to_owned(), KEY.to_owned()]] {
                    for user in [None, Some("op")] {
                        let new = New {
                            name,
                            image,
                            made_at: Path::new("/var/lib/qvm/a \"b\".qcow2"),
                            mem: Size::from_gib(2).unwrap(),
                            vcpu: 2,
                            disk_g: 30,
                            network: network.clone(),
                            user,
                            keys,
                        };
                        check(&new, &text(&new));
                    }
                }
            }
        }
    }

    #[test]
    fn every_image_and_option_makes_a_file_that_the_reader_takes_and_means_what_was_asked() {
        every(|new, text| {
            assert_eq!(problems(new.name, text), [""; 0], "{}\n{text}", new.image.key);
            let file = Path::new("/x.toml");
            let vm = spec::read(new.name, file, text, &mut |_| Ok(Vec::new())).unwrap();
            assert_eq!((vm.vcpu, vm.mem), (2, new.mem));
            assert_eq!(vm.disks[0].size, Size::from_gib(30));
            assert_eq!(vm.cloud_init.is_some(), new.image.cloud_init);
            if let Some(told) = &vm.cloud_init {
                assert_eq!(told.user.as_deref(), new.user.or(new.image.user.as_deref()));
                assert_eq!(told.ssh_authorized_keys, new.keys);
            }
            if let Network::User(port) = new.network {
                let reached = vm.reach(new.image.port);
                assert!(matches!(reached, Some(Reach::Forwarded(at)) if at.port() == port));
            }
        });
    }

    #[test]
    fn every_comment_that_is_a_key_can_be_used_as_it_stands() {
        every(|new, text| {
            let lines: Vec<&str> = text.lines().collect();
            let is_off = |line: &str| {
                let key = line.strip_prefix('#').unwrap_or(" ");
                key.starts_with('[') || key.starts_with(|c: char| c.is_ascii_alphabetic())
            };
            let off: Vec<usize> = (0..lines.len()).filter(|at| is_off(lines[*at])).collect();
            assert!(off.len() >= 8, "{text}");
            for at in off {
                let key = lines[at];
                // What belongs to it, or makes way for it, as the words beside them say.
                let with: &[&str] = match key {
                    "#gateway = \"192.168.1.1\"" => &["#ip "],
                    "#[disk.data]" => &["#size"],
                    _ if key.starts_with("#size") => &["#[disk.data]"],
                    _ if key.starts_with("#vnc") => &["#[display]"],
                    _ => &[],
                };
                let without: &[&str] = match key {
                    "#bridge = \"br0\"" => &["forward"],
                    _ if key.starts_with("#userData") => &["user ", "sshAuth", "    '", "]"],
                    _ => &[],
                };
                let mut used = String::new();
                for (nr, line) in lines.iter().enumerate() {
                    let on = nr == at || with.iter().any(|prefix| line.starts_with(prefix));
                    if without.iter().any(|prefix| line.starts_with(prefix)) {
                        continue;
                    }
                    used += if on { &line[1..] } else { line };
                    used += "\n";
                }
                // The one that cannot be guessed.
                let used = used
                    .replace("AAAAI… you@host", "AAAAIJ5rJ3mUq0kT7m5S4m8xv0bq2vY1n6c3Zp9wQe7dR8sT");
                assert_eq!(problems(new.name, &used), [""; 0], "{key}\n{used}");
            }
        });
    }

    #[test]
    fn it_can_be_read_on_a_terminal() {
        every(|_, text| {
            let long = |line: &&str| {
                let bare = line.split('"').step_by(2).map(|part| part.chars().count());
                bare.sum::<usize>() > 100 || line.ends_with(' ')
            };
            assert_eq!(text.lines().filter(long).collect::<Vec<_>>(), [""; 0]);
        });
    }
}
