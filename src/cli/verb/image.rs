//! `qvm image list|pull|rm|prune`: manages the image cache.

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
    spec::{Checksum, Image, Invalid, Origin, Source, Vm},
    store::{layout::Layout, running},
    sys::progress::{Cancel, Progress},
    value::{Algorithm, Digest, ErrorCode, Explain, Size, VmName},
};

/// The arguments of `qvm image`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: ImageVerb,
}

#[derive(Debug, Subcommand)]
enum ImageVerb {
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

/// The context of the verb.
pub struct Context<'a> {
    /// The directories.
    pub layout: &'a Layout,
    /// The valid VM files.
    pub vms: &'a [Vm],
    /// The invalid VM files, or the directory that cannot be listed, with the problems.
    pub invalid: &'a [(PathBuf, Invalid)],
    /// The image tools.
    pub tools: &'a Tools,
    /// The progress display.
    pub progress: &'a mut dyn Progress,
    /// Set to cancel the work.
    pub cancel: &'a Cancel,
    /// The output.
    pub out: &'a mut dyn Write,
    /// The properties of the output.
    pub screen: Screen,
}

/// Why the verb failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] cache::Error),
    /// A download failed.
    #[error("cannot pull {what}")]
    Pull {
        /// The requested name or URL.
        what: String,
        /// The cause.
        source: Box<image::Error>,
    },
    /// Neither a VM nor a URL with a checksum.
    #[error("`{0}` is neither a VM with an image nor a URL in a VM file")]
    Unknown(String),
    /// A VM file that cannot be read, so that its images are unknown.
    #[error("cannot determine which images are in use: cannot read `{}`", .file.display())]
    Invalid {
        /// The file, or the directory of all VM files.
        file: PathBuf,
        /// Whether the host is at fault, and not the file.
        is_host_fault: bool,
    },
    /// A VM of unknown state may be running with images that no VM file names.
    #[error("the state of the VM `{name}` is unknown: it may use images")]
    UnknownVm {
        /// The name of the VM.
        name: VmName,
        /// Why the state is unknown.
        source: running::Unknown,
    },
    /// An invalid digest.
    #[error(transparent)]
    Digest(#[from] crate::value::Refused),
    /// Standard output cannot be written.
    #[error("cannot write to standard output")]
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

    fn own_code(&self) -> Option<ErrorCode> {
        Some(match self {
            Self::Unknown(..) | Self::Digest(..) => ErrorCode::ImageUnknown,
            Self::Invalid { is_host_fault: true, .. } => ErrorCode::FileUnread,
            Self::Invalid { .. } => ErrorCode::InvalidFile,
            Self::UnknownVm { .. } => ErrorCode::StateUnknown,
            Self::Out(..) => ErrorCode::OutputFailed,
            Self::Cache(..) | Self::Pull { .. } => return None,
        })
    }

    fn own_hint(&self) -> Option<String> {
        match self {
            Self::UnknownVm { name, source } => source.hint_for(name),
            Self::Unknown(_) => Some(
                "give the checksum of the image: --sha256, --sha512, --checksums or \
                --insecure-no-checksum"
                    .into(),
            ),
            Self::Invalid { .. } => Some("`qvm check` shows the problem".into()),
            _ => None,
        }
    }

    fn is_own_host_fault(&self) -> bool {
        matches!(self, Self::UnknownVm { .. } | Self::Invalid { is_host_fault: true, .. })
    }
}

/// Checks that the state of every VM is known.
fn all_known(layout: &Layout) -> Result<(), Error> {
    match inventory::first_unknown(layout) {
        None => Ok(()),
        Some((name, source)) => Err(Error::UnknownVm { name, source }),
    }
}

/// Runs the verb.
///
/// # Errors
/// See [`Error`]. Of several names, those before the failed one are done.
pub fn image(args: &Args, context: &mut Context<'_>) -> Result<(), Error> {
    let cache = context.layout.images();
    let vm_states = context.layout.vm_states();
    let needs = Needs { vm_states: &vm_states, vms: context.vms };
    match &args.verb {
        ImageVerb::List { json: true } => {
            let json = serde_json::to_string_pretty(&cache::list(&cache, &needs)?);
            writeln!(context.out, "{}", json.map_err(io::Error::from)?)?;
        }
        ImageVerb::List { json: false } => {
            context
                .out
                .write_all(table(&cache::list(&cache, &needs)?, context.screen).as_bytes())?;
        }
        ImageVerb::Pull { names, sha256, sha512, checksums, insecure_no_checksum } => {
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
                for image in wanted(name, given.as_ref(), context.vms)? {
                    pull(name, &image, &cache, context)?;
                }
            }
        }
        ImageVerb::Rm { names } => {
            all_known(context.layout)?;
            for name in names {
                let gone = cache::remove(&cache, &needs, name)?;
                writeln!(context.out, "removed {}", gone.display())?;
            }
        }
        ImageVerb::Prune { dry_run } => {
            if let Some((file, problems)) = context.invalid.first() {
                let (file, is_host_fault) = (file.clone(), problems.is_host_fault());
                return Err(Error::Invalid { file, is_host_fault });
            }
            all_known(context.layout)?;
            let pruned = cache::prune(&cache, &needs, *dry_run)?;
            context.out.write_all(pruned_text(&pruned, *dry_run).as_bytes())?;
        }
    }
    Ok(())
}

fn pull(name: &str, image: &Image, cache: &Path, context: &mut Context<'_>) -> Result<(), Error> {
    let cached = image::ensure(
        image,
        cache,
        Purpose::Refresh,
        context.tools,
        context.progress,
        context.cancel,
    );
    let cached = cached
        .map_err(|source| Error::Pull { what: without_password(name), source: Box::new(source) })?;
    let how = if cached.found { "is already in the cache" } else { "fetched" };
    let checked = if cached.digest.is_some() { "verified" } else { "not verified" };
    Ok(writeln!(context.out, "{} {how}, {checked}", cached.path.display())?)
}

/// Returns the images that an argument of `pull` names.
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
        // An overlay requires it; for a VM file it could be downloaded again.
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

fn pruned_text(pruned: &[Pruned], dry_run: bool) -> String {
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
        spec,
        sys::{file, progress::Quiet},
    };

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    /// Runs `qvm image …` in a temporary directory.
    fn say(state: &Path, invalid: &[(PathBuf, Invalid)], words: &[&str]) -> Result<String, Error> {
        let words = std::iter::once("image").chain(words.iter().copied());
        let args = Cli::try_parse_from(words).unwrap().args;
        let layout = Layout { config: state.into(), state: state.into(), runtime: state.into() };
        let tools = Tools {
            qemu_img: QemuImg::new("qemu-img"),
            patience: Patience::default(),
            now: jiff::Timestamp::UNIX_EPOCH,
        };
        let mut out = Vec::new();
        let mut context = Context {
            layout: &layout,
            vms: &[],
            invalid,
            tools: &tools,
            progress: &mut Quiet,
            cancel: &Cancel::default(),
            out: &mut out,
            screen: Screen::default(),
        };
        image(&args, &mut context)?;
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
        assert!(again.ends_with(" is already in the cache, verified\n"), "{again}");

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

        // The images of an invalid VM file are unknown.
        let invalid = state.join("invalid.toml");
        std::fs::write(&invalid, "what = 1\n").unwrap();
        let cannot_read = format!("cannot read `{}`", invalid.display());
        let problems = spec::load(&invalid).unwrap_err();
        let refused = say(&state, &[(invalid, problems)], &["prune"]).unwrap_err();
        assert!(refused.to_string().ends_with(&cannot_read), "{refused}");
        assert!(!refused.is_host_fault());
        let would = say(&state, &[], &["prune", "--dry-run"]).unwrap();
        assert_eq!(would, format!("would remove {path} (1M)\n"));
        assert!(file.exists());
        assert_eq!(say(&state, &[], &["prune"]).unwrap(), format!("removed {path} (1M)\n"));
        assert_eq!(say(&state, &[], &["prune"]).unwrap(), "nothing to remove\n");
        assert!(file::list(&state.join("images")).unwrap().is_empty());
    }

    #[test]
    fn url_requires_checksum() {
        let dir = tempfile::tempdir().unwrap();
        let refused =
            say(dir.path(), &[], &["pull", "https://u:secret@example.org/x"]).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "`https://example.org/x` is neither a VM with an image nor a URL in a VM file"
        );
        assert!(refused.hint().unwrap().contains("--checksums"));
        let both = ["image", "pull", "x", "--sha256", "a", "--insecure-no-checksum"];
        assert!(Cli::try_parse_from(both).is_err());
    }
}
