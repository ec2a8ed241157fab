//! `qvm image list|pull|rm|prune`: the image cache by hand.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use clap::{ArgGroup, Subcommand};

use crate::{
    cli::table::{Cell, Screen, Table},
    fleet::inventory,
    image::{
        self, Purpose, Tools,
        cache::{self, Listed, Needs, Pruned},
        reference::{local_path, without_password},
    },
    spec::{Checksum, Image, Origin, Source, Vm},
    store::{layout::Layout, running},
    sys::progress::{Cancel, Progress},
    value::{Algorithm, Digest, Explain, Size, VmName},
};

/// The arguments of `qvm image`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List the images of the cache and the VMs that use them
    List {
        /// Print a JSON array of objects
        #[arg(long)]
        json: bool,
    },
    /// Fetch images into the cache: the images of a VM, or the image at a URL
    #[command(group(ArgGroup::new("checksum")))]
    Pull {
        /// The name of a VM, a URL from a VM file, or any URL with a checksum option
        #[arg(value_name = "NAME|URL", required = true)]
        names: Vec<String>,
        /// The expected SHA-256 digest
        #[arg(long, value_name = "HEX", group = "checksum")]
        sha256: Option<String>,
        /// The expected SHA-512 digest
        #[arg(long, value_name = "HEX", group = "checksum")]
        sha512: Option<String>,
        /// The URL of a SHA256SUMS or SHA512SUMS file that lists the image
        #[arg(long, value_name = "URL", group = "checksum")]
        checksums: Option<String>,
        /// Accept the image without a checksum
        #[arg(long, group = "checksum")]
        insecure_no_checksum: bool,
    },
    /// Remove images from the cache; the base image of an overlay is kept
    Rm {
        /// A digest or its first 8 or more digits, a URL, or a file of the cache
        #[arg(value_name = "DIGEST|URL", required = true)]
        names: Vec<String>,
    },
    /// Remove all images that no VM file names and no overlay requires
    Prune {
        /// Only print what would be removed
        #[arg(long)]
        dry_run: bool,
    },
}

/// What the verb works on.
pub struct Within<'a> {
    /// Where everything is.
    pub layout: &'a Layout,
    /// The VM files that could be read.
    pub vms: &'a [Vm],
    /// Those that could not.
    pub invalid: &'a [PathBuf],
    /// What images are made with.
    pub tools: &'a Tools,
    /// Who is told.
    pub progress: &'a mut dyn Progress,
    /// Set when it shall end.
    pub cancel: &'a Cancel,
    /// Standard output.
    pub out: &'a mut dyn Write,
    /// What that is.
    pub screen: Screen,
}

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cache.
    #[error(transparent)]
    Cache(#[from] cache::Error),
    /// Fetching.
    #[error("cannot pull {what}")]
    Pull {
        /// What was asked for.
        what: String,
        /// Why not.
        source: Box<image::Error>,
    },
    /// Neither a VM nor an address with a checksum.
    #[error("`{0}` is neither a VM with an image nor an address that a VM file names")]
    Unknown(String),
    /// A VM file that nobody can tell the needs of.
    #[error("cannot tell which images are needed: `{}` cannot be read", .0.display())]
    Invalid(PathBuf),
    /// A VM may be running with images that no VM file names.
    #[error("the state of the VM `{name}` is unknown: it may need images")]
    UnknownVm {
        /// Its name.
        name: VmName,
        /// What is not known.
        source: running::Unknown,
    },
    /// A digest that is none.
    #[error(transparent)]
    Digest(#[from] crate::value::Refused),
    /// Standard output.
    #[error("cannot write the answer")]
    Out(#[from] io::Error),
}

impl Explain for Error {
    fn wrapped(&self) -> Option<&dyn Explain> {
        match self {
            Self::Cache(error) => Some(error),
            Self::Pull { source, .. } => Some(source.as_ref()),
            _ => None,
        }
    }

    fn own_hint(&self) -> Option<String> {
        match self {
            Self::UnknownVm { name, source } => source.hint_for(name),
            Self::Unknown(_) => Some(
                "for an address of your own say how it is known to be right: --sha256, --sha512, --checksums \
                 or --insecure-no-checksum"
                    .into(),
            ),
            Self::Invalid(_) => Some("`qvm check` says what is wrong with it".into()),
            _ => None,
        }
    }

    fn is_own_host_fault(&self) -> bool {
        matches!(self, Self::UnknownVm { .. })
    }
}

/// Of every VM it is known whether it is running.
fn all_known(layout: &Layout) -> Result<(), Error> {
    match inventory::first_unknown(layout) {
        None => Ok(()),
        Some((name, source)) => Err(Error::UnknownVm { name, source }),
    }
}

/// Does it.
///
/// # Errors
/// As [`Error`]; of several names, those before the one that failed are done.
pub fn image(args: &Args, within: &mut Within<'_>) -> Result<(), Error> {
    let cache = within.layout.images();
    let vm_states = within.layout.vm_states();
    let needs = Needs { vm_states: &vm_states, vms: within.vms };
    match &args.what {
        What::List { json: true } => {
            let json = serde_json::to_string_pretty(&cache::list(&cache, &needs)?);
            writeln!(within.out, "{}", json.map_err(io::Error::from)?)?;
        }
        What::List { json: false } => {
            within.out.write_all(table(&cache::list(&cache, &needs)?, within.screen).as_bytes())?;
        }
        What::Pull { names, sha256, sha512, checksums, insecure_no_checksum } => {
            let digest = |algorithm, hex: &Option<String>| -> Result<_, Error> {
                let digest =
                    hex.as_deref().map(|hex| Digest::parse_prefixed(algorithm, hex)).transpose()?;
                Ok(digest.map(Checksum::Digest))
            };
            let given = digest(Algorithm::Sha256, sha256)?
                .or(digest(Algorithm::Sha512, sha512)?)
                .or_else(|| checksums.clone().map(Checksum::Sums))
                .or_else(|| insecure_no_checksum.then_some(Checksum::None));
            for name in names {
                for image in wanted(name, given.as_ref(), within.vms)? {
                    pull(name, &image, &cache, within)?;
                }
            }
        }
        What::Rm { names } => {
            all_known(within.layout)?;
            for name in names {
                let gone = cache::remove(&cache, &needs, name)?;
                writeln!(within.out, "removed {}", gone.display())?;
            }
        }
        What::Prune { dry_run } => {
            if let Some(invalid) = within.invalid.first() {
                return Err(Error::Invalid(invalid.clone()));
            }
            all_known(within.layout)?;
            let pruned = cache::prune(&cache, &needs, *dry_run)?;
            within.out.write_all(told(&pruned, *dry_run).as_bytes())?;
        }
    }
    Ok(())
}

fn pull(name: &str, image: &Image, cache: &Path, within: &mut Within<'_>) -> Result<(), Error> {
    let cached =
        image::ensure(image, cache, Purpose::Refresh, within.tools, within.progress, within.cancel);
    let cached = cached
        .map_err(|source| Error::Pull { what: without_password(name), source: Box::new(source) })?;
    let how = if cached.found { "is there already" } else { "fetched" };
    let checked = if cached.digest.is_some() { "verified" } else { "not verified" };
    Ok(writeln!(within.out, "{} {how}, {checked}", cached.path.display())?)
}

/// The images that a name of `pull` means.
fn wanted(name: &str, given: Option<&Checksum>, vms: &[Vm]) -> Result<Vec<Image>, Error> {
    let origin = match local_path(name) {
        Some(path) => Some(Origin::Path(path)),
        None if name.starts_with('/') => Some(Origin::Path(name.into())),
        None if name.contains("://") => Some(Origin::Http(name.to_owned())),
        None => None,
    };
    if let (Some(origin), Some(checksum)) = (&origin, given) {
        return Ok(vec![Image { origin: origin.clone(), checksum: checksum.clone() }]);
    }
    let mut images = Vec::new();
    for vm in vms {
        let named = vm.disks.iter().filter_map(|d| match &d.source {
            Source::Image(image) => Some(image.as_ref()),
            _ => None,
        });
        let wanted = named.filter(|image| match &origin {
            Some(origin) => image.origin == *origin,
            None => vm.name.as_str() == name,
        });
        for image in wanted {
            if !images.contains(image) {
                images.push(image.clone());
            }
        }
    }
    if images.is_empty() { Err(Error::Unknown(without_password(name))) } else { Ok(images) }
}

fn table(images: &[Listed], screen: Screen) -> String {
    let mut table = Table::new(["IMAGE", "SIZE", "VIRTUAL", "VERIFIED", "USED BY", "ORIGIN"]);
    for image in images {
        let stem = image.file.file_stem().unwrap_or_default().to_string_lossy();
        let name = match &image.digest {
            Some(digest) => digest.hex()[..12].to_owned(),
            None => stem.chars().take("unverified-path-".len() + 12).collect(),
        };
        // An overlay needs it; a VM file would only fetch it again.
        let mut users: Vec<String> = image.used_by.clone();
        let named = image.named_by.iter().filter(|vm| !image.used_by.contains(vm));
        users.extend(named.map(|vm| format!("({vm})")));
        let row = vec![
            name.into(),
            Cell::from(mib(image.size_bytes)).right(),
            Cell::from(mib(image.virtual_size_bytes)).right(),
            if image.verified { "yes" } else { "no" }.into(),
            if users.is_empty() { "-".to_owned() } else { users.join(",") }.into(),
            image.origin.clone().into(),
        ];
        table.row(row, vec![]);
    }
    table.text(screen)
}

fn mib(bytes: u64) -> String {
    Size::from_mib(bytes.div_ceil(Size::MIB)).map_or_else(|| bytes.to_string(), |s| s.to_string())
}

fn told(pruned: &[Pruned], dry_run: bool) -> String {
    let mut text = String::new();
    for one in pruned {
        let what = match (&one.origin, one.files.first()) {
            (Some(origin), _) => origin.clone(),
            (None, Some(file)) => file.display().to_string(),
            (None, None) => continue,
        };
        let verb = if dry_run { "would remove" } else { "removed" };
        text.push_str(&format!("{verb} {what} ({})\n", mib(one.freed_bytes)));
    }
    if pruned.is_empty() {
        text.push_str("nothing to remove\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::{
        image::{Patience, qemu_img::QemuImg},
        sys::{file, progress::Quiet},
    };

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    /// `qvm image …` in a place of its own.
    fn say(state: &Path, invalid: &[PathBuf], words: &[&str]) -> Result<String, Error> {
        let words = std::iter::once("image").chain(words.iter().copied());
        let args = Cli::try_parse_from(words).unwrap().args;
        let layout = Layout { config: state.into(), state: state.into(), runtime: state.into() };
        let tools = Tools {
            qemu_img: QemuImg::new("qemu-img"),
            patience: Patience::default(),
            now: jiff::Timestamp::UNIX_EPOCH,
        };
        let mut out = Vec::new();
        let mut within = Within {
            layout: &layout,
            vms: &[],
            invalid,
            tools: &tools,
            progress: &mut Quiet,
            cancel: &Cancel::default(),
            out: &mut out,
            screen: Screen::default(),
        };
        image(&args, &mut within)?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn pulled_listed_pruned() {
        let dir = tempfile::tempdir().unwrap();
        let (state, source) = (dir.path().join("state"), dir.path().join("x.raw"));
        std::fs::write(&source, "not much of an image").unwrap();
        let path = source.to_str().unwrap();
        let hex = crate::sys::digest::of_text("not much of an image");
        let empty = "IMAGE  SIZE  VIRTUAL  VERIFIED  USED BY  ORIGIN\n";
        assert_eq!(say(&state, &[], &["list"]).unwrap(), empty);
        assert_eq!(say(&state, &[], &["list", "--json"]).unwrap(), "[]\n");

        let wrong = say(&state, &[], &["pull", path, "--sha256", &"0".repeat(64)]).unwrap_err();
        assert_eq!(wrong.to_string(), format!("cannot pull {path}"));
        let pulled = say(&state, &[], &["pull", path, "--sha256", &hex]).unwrap();
        let file = state.join(format!("images/sha256-{hex}.raw"));
        assert_eq!(pulled, format!("{} fetched, verified\n", file.display()));
        let again = say(&state, &[], &["pull", path, "--sha256", &hex]).unwrap();
        assert!(again.ends_with(" is there already, verified\n"), "{again}");

        let listed = say(&state, &[], &["list"]).unwrap();
        let row = format!("{}    1M       1M  yes       -        {path}", &hex[..12]);
        assert_eq!(listed.lines().nth(1), Some(row.as_str()));
        let json = say(&state, &[], &["list", "--json"]).unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json[0]["digest"], format!("sha256:{hex}"));
        assert_eq!(
            (&json[0]["virtualSizeBytes"], &json[0]["usedBy"]),
            (&20.into(), &serde_json::json!([]))
        );

        // Nobody knows what an invalid VM file needs.
        let broken = [PathBuf::from("/etc/qvm/vms/x.toml")];
        let refused = say(&state, &broken, &["prune"]).unwrap_err();
        assert!(refused.to_string().ends_with("`/etc/qvm/vms/x.toml` cannot be read"));
        let would = say(&state, &[], &["prune", "--dry-run"]).unwrap();
        assert_eq!(would, format!("would remove {path} (1M)\n"));
        assert!(file.exists());
        assert_eq!(say(&state, &[], &["prune"]).unwrap(), format!("removed {path} (1M)\n"));
        assert_eq!(say(&state, &[], &["prune"]).unwrap(), "nothing to remove\n");
        assert!(file::list(&state.join("images")).unwrap().is_empty());
    }

    #[test]
    fn an_address_needs_a_checksum() {
        let dir = tempfile::tempdir().unwrap();
        let refused =
            say(dir.path(), &[], &["pull", "https://u:secret@example.org/x"]).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "`https://example.org/x` is neither a VM with an image nor an address that a VM file names"
        );
        assert!(refused.hint().unwrap().contains("--checksums"));
        let both = ["image", "pull", "x", "--sha256", "a", "--insecure-no-checksum"];
        assert!(Cli::try_parse_from(both).is_err());
    }
}
