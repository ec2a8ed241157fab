//! `qvm new`: writes the VM file of a new VM based on a known image.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    cli::{
        exit::{self, Failure},
        table::{Cell, Screen, Table},
    },
    spec::{
        self, Invalid, Link, Vm, check,
        known::{self, Known},
        vm_file::{self, Network, New},
    },
    store::layout::Layout,
    sys::file,
    value::{ErrorCode, IfName, Size, VmName, shown},
};

/// The arguments of `qvm new`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The name of the VM and of the VM file
    #[arg(required_unless_present = "list")]
    name: Option<VmName>,
    /// The image of the first disk; `--list` prints all images
    #[arg(long, value_name = "KEY", default_value = known::DEFAULT)]
    image: String,
    /// The bridge of the host to connect to [default: user-mode network, which requires no
    /// privileges]
    #[arg(long, value_name = "BRIDGE")]
    bridge: Option<IfName>,
    /// The memory [default: 2G, or the minimum of the image]
    #[arg(long, value_name = "SIZE")]
    mem: Option<Size>,
    /// The number of vCPUs
    #[arg(
        long,
        value_name = "COUNT",
        default_value_t = 2,
        value_parser = clap::value_parser!(u8).range(1..)
    )]
    vcpu: u8,
    /// The size of the disk in GiB [default: 20, or the minimum of the image]
    #[arg(long, value_name = "GIB", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    disk: Option<u32>,
    /// The account with sudo [default: the account of the image]
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// A file with public ssh keys that may log in [default: the first of ~/.ssh/id_*.pub]
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    ssh_key: Option<PathBuf>,
    /// List the known images
    #[arg(long, conflicts_with_all = ["name", "bridge", "mem", "disk", "user", "ssh_key"])]
    list: bool,
    /// Print the images as a JSON array of objects
    #[arg(long, requires = "list")]
    json: bool,
}

/// The public keys of ssh-keygen(1), the preferred ones first.
const KEYS: [&str; 5] =
    ["id_ed25519.pub", "id_ed25519_sk.pub", "id_ecdsa.pub", "id_ecdsa_sk.pub", "id_rsa.pub"];
/// The mode of a VM file, which may contain the hash of a password.
const MODE: u32 = 0o640;

/// Writes the VM file of a new VM. `home` is the caller's home directory, for a public key.
///
/// # Errors
/// The VM file exists, the image is unknown, a key cannot be read, or an option is invalid.
pub fn run(
    args: &Args,
    layout: &Layout,
    home: Option<&Path>,
    screen: Screen,
) -> Result<(), Failure> {
    let Some(name) = args.name.as_ref().filter(|_| !args.list) else {
        return list(args.json, screen);
    };
    let path = layout.vm_file(name);
    if path.symlink_metadata().is_ok() {
        return Err(exists(name, &path));
    }
    let image = image(args)?;
    let keys = keys(args, image, home)?;
    let beside: Vec<Vm> =
        spec::load_all(&layout.vm_files()).into_iter().filter_map(|(_, vm)| vm.ok()).collect();
    let network = match &args.bridge {
        Some(bridge) => Network::Bridge(bridge, tap(name, &beside)),
        None => Network::User(port(image.port, &beside)),
    };
    let new = New {
        name,
        image,
        made_at: &layout.state.join(format!("{}.qcow2", image.key)),
        mem: args.mem.unwrap_or(MEM.max(image.mem_min)),
        vcpu: args.vcpu,
        disk_g: args.disk.unwrap_or(DISK_G.max(image.disk_min_g)),
        network,
        user: args.user.as_deref(),
        keys: &keys,
    };
    let text = vm_file::text(&new);
    let vm = readable(name, &path, &text, &beside)?;
    let cannot = |error: file::Error| Failure::described(&error).about(name);
    file::make_dir(&layout.vm_files()).map_err(cannot)?;
    file::write_new(&path, text.as_bytes(), MODE).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => exists(name, &path),
        _ => cannot(error),
    })?;
    super::print(&summary(&new, &vm, &path, layout))
}

/// The default memory: enough for a small server of any of these distributions.
const MEM: Size = Size::from_bytes(2 << 30);
/// The default disk size in GiB; disks are sparse.
const DISK_G: u32 = 20;

fn exists(name: &VmName, path: &Path) -> Failure {
    let failure = Failure::new(ErrorCode::VmExists, format!("`{}` already exists", path.display()));
    failure.about(name).hint(format!("`qvm edit {name}` changes it"))
}

/// Returns the image, after a check that the other options are valid for it.
fn image(args: &Args) -> Result<&'static Known, Failure> {
    let usage = |text: String| Failure::new(ErrorCode::Usage, text);
    let image = known::named(&args.image).ok_or_else(|| {
        let hint = match known::nearest(&args.image) {
            Some(near) => format!("did you mean `{near}`? `qvm new --list` shows all"),
            None => "`qvm new --list` shows all".to_owned(),
        };
        usage(format!("unknown image `{}`", shown(&args.image))).hint(hint)
    })?;
    if let Some(mem) = args.mem.filter(|mem| *mem < image.mem_min) {
        let least = image.mem_min;
        return Err(usage(format!("{mem} of memory is not enough for {}", image.title))
            .hint(format!("it requires at least {least}")));
    }
    if let Some(disk) = args.disk.filter(|disk| *disk < image.disk_min_g) {
        let least = image.disk_min_g;
        return Err(usage(format!("a disk of {disk} GiB is too small for {}", image.title))
            .hint(format!("it requires at least {least} GiB")));
    }
    let asked = [("--user", args.user.is_some()), ("--ssh-key", args.ssh_key.is_some())];
    match asked.iter().find(|(_, asked)| *asked && !image.cloud_init) {
        Some((option, _)) => Err(usage(format!(
            "`{option}` requires cloud-init, which {} does not have",
            image.title
        ))),
        None => Ok(image),
    }
}

/// Returns the public keys of `--ssh-key`, else the caller's own; empty if there are none.
fn keys(args: &Args, image: &Known, home: Option<&Path>) -> Result<Vec<String>, Failure> {
    let read = |path: &Path| -> Result<Vec<String>, Failure> {
        let text = fs::read_to_string(path).map_err(|error| {
            Failure::from_io(&format!("cannot read `{}`", path.display()), &error)
        })?;
        if text.contains("PRIVATE KEY") {
            let text = format!("`{}` is a private key", path.display());
            let hint = format!("use the public key: `{}.pub`", path.display());
            return Err(Failure::new(ErrorCode::Usage, text).hint(hint));
        }
        let lines = text.lines().map(str::trim);
        let keys = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        Ok(keys.map(str::to_owned).collect())
    };
    if let Some(path) = &args.ssh_key {
        let keys = read(path)?;
        if keys.is_empty() {
            let text = format!("`{}` contains no public key", path.display());
            return Err(Failure::new(ErrorCode::NoPublicKey, text));
        }
        return Ok(keys);
    }
    let own = home.filter(|_| image.cloud_init).map(|home| home.join(".ssh"));
    let own = own.and_then(|dir| KEYS.iter().map(|key| dir.join(key)).find(|key| key.is_file()));
    own.map_or(Ok(Vec::new()), |key| read(&key))
}

/// Returns a host port that no other VM file forwards: from 2222 for ssh, else from the guest's
/// port.
fn port(guest: u16, beside: &[Vm]) -> u16 {
    let first = if guest < 1024 { 2200 + guest } else { guest };
    let taken = |port: &u16| {
        beside.iter().flat_map(|vm| &vm.nics).any(|nic| match &nic.link {
            Link::User { forward } => forward.iter().any(|one| one.host.port() == *port),
            Link::Bridge { .. } => false,
        })
    };
    (first..u16::MAX).find(|port| !taken(port)).unwrap_or(first)
}

/// Returns a tap name if `qvm-NAME` is too long for an interface.
fn tap(name: &VmName, beside: &[Vm]) -> Option<IfName> {
    let usual = format!("qvm-{name}");
    if usual.len() <= IfName::MAX {
        return None;
    }
    let taken = |tap: &IfName| {
        beside.iter().flat_map(|vm| &vm.nics).any(|nic| match &nic.link {
            Link::Bridge { tap: theirs, .. } => theirs == tap,
            Link::User { .. } => false,
        })
    };
    let cut = |nr: u32| {
        let nr = if nr == 0 { String::new() } else { format!("-{nr}") };
        let (head, _) = usual.split_at(IfName::MAX - nr.len());
        format!("{}{nr}", head.trim_end_matches('-')).parse::<IfName>().ok()
    };
    (0..1000).filter_map(cut).find(|tap| !taken(tap))
}

/// Parses the text as a VM file, together with the other VM files.
fn readable(name: &VmName, path: &Path, text: &str, beside: &[Vm]) -> Result<Vm, Failure> {
    let none = io::ErrorKind::NotFound;
    let vm = spec::read(name, path, text, &mut |_| Err(none.into())).map_err(|problems| {
        let failure = Failure::invalid(&Invalid(problems));
        failure.exit(exit::USAGE).error_code(ErrorCode::Usage)
    })?;
    let all: Vec<&Vm> = beside.iter().chain([&vm]).collect();
    // `qvm check` reports problems of the others.
    let mut problems = check::across(&all, &[]);
    problems.retain(|problem| problem.file == path);
    match problems.is_empty() {
        true => Ok(vm),
        false => Err(Failure::invalid(&Invalid(problems)).exit(exit::FAILED)),
    }
}

fn summary(new: &New<'_>, vm: &Vm, path: &Path, layout: &Layout) -> String {
    let (name, mut out) = (new.name, String::new());
    out.push_str(&format!("{name}: wrote {}\n", path.display()));
    let state = layout.vm(name).state;
    if file::list(&state).is_ok_and(|files| !files.is_empty()) {
        out.push_str(&format!(
            "note: a VM of this name left a disk in `{}`, which is used; \
                         `qvm rm {name} --disks` deletes it\n",
            state.display()
        ));
    }
    if new.image.url.is_none() {
        let place = new.made_at.display();
        out.push_str(&format!("note: build the image and copy it to `{place}`\n"));
    }
    if vm.cloud_init.as_ref().is_some_and(|cloud_init| cloud_init.ssh_authorized_keys.is_empty()) {
        let keys = "no login is possible yet: `sshAuthorizedKeys` has no key";
        out.push_str(&format!("note: {keys}; `ssh-keygen` creates one\n"));
    }
    out.push_str(&format!("next: `qvm edit {name}` to change it, `qvm start {name}` to boot\n"));
    out
}

fn list(json: bool, screen: Screen) -> Result<(), Failure> {
    if json {
        let text =
            serde_json::to_string_pretty(known::all()).map_err(|e| Failure::from_error(&e))?;
        return super::print(&format!("{text}\n"));
    }
    let head = ["KEY", "IMAGE", "USER", "MEM", "DISK", "FIRMWARE", "CLOUD-INIT"];
    let mut table = Table::new(head);
    for image in known::all() {
        let row = vec![
            image.key.clone().into(),
            image.title.clone().into(),
            image.user.clone().unwrap_or_else(|| "-".to_owned()).into(),
            Cell::from(image.mem_min.to_string()).right(),
            Cell::from(format!("{}G", image.disk_min_g)).right(),
            image.firmware.word().into(),
            if image.cloud_init { "yes" } else { "no" }.into(),
        ];
        table.row(row, vec![]);
    }
    super::print(&table.text(screen))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(name: &str, text: &str) -> Vm {
        let file = PathBuf::from(format!("/{name}.toml"));
        spec::read(&name.parse().unwrap(), &file, text, &mut |_| Ok(vec![])).unwrap()
    }

    #[test]
    fn port_is_unused() {
        let others = [
            vm("a", "forward = [\"2222:22\", \"8080:80\"]\n"),
            vm("b", "forward = [\"0.0.0.0:2223:22\"]\n"),
            vm("c", "bridge = \"br0\"\n"),
        ];
        assert_eq!(port(22, &[]), 2222);
        assert_eq!(port(22, &others), 2224);
        assert_eq!(port(8123, &others), 8123);
        assert_eq!(port(8080, &others), 8081);
    }

    #[test]
    fn tap_name_is_short_and_unused() {
        let name = |text: &str| text.parse::<VmName>().unwrap();
        assert_eq!(tap(&name("eleven-char"), &[]), None);
        let long = tap(&name("twelve-chars"), &[]).unwrap();
        assert_eq!(long.as_str(), "qvm-twelve-char");
        let other = vm("twelve-chart", "bridge = \"br0\"\n[nic.net]\ntap = \"qvm-twelve-char\"\n");
        assert_eq!(tap(&name("twelve-chars"), &[other]).unwrap().as_str(), "qvm-twelve-ch-1");
        assert_eq!(tap(&name("ten-letter-s"), &[]).unwrap().as_str(), "qvm-ten-letter");
    }
}
