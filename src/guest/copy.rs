//! Copies a file into a guest or out of it, atomically by a temporary file and a rename.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
};

use tokio::sync::mpsc;

use super::agent::{Guest, input_error, unread};
use super::error::Error;
use crate::{
    control::client,
    sys::{
        file::{self, Temporary},
        progress::{At, Doing, Progress},
        terminal::{Input, Output, input_of},
    },
};

/// The path in messages for standard input.
const STDIN: &str = "/dev/stdin";
/// Prints `directory`, or the mode and the size of a file in the guest.
const LOOK: &str = r#"if [ -d "$0" ]; then echo directory; else stat -L -c '%a %s' "$0"; fi"#;
/// Creates the temporary file; prints its name and the target.
const BEGIN: &str = r#"t=$0
if [ -d "$t" ]; then t=${t%/}/$1; fi
if [ -L "$t" ]; then t=$(readlink -f "$t") || exit; fi
if [ -d "$t" ]; then echo "\`$t\` is a directory" >&2; exit 1; fi
if [ -e "$t" ] && [ ! -f "$t" ]; then echo "\`$t\` is not a regular file" >&2; exit 1; fi
d=${t%/*}
if [ ! -d "$d/" ]; then echo "there is no directory \`$d\`" >&2; exit 1; fi
f=$(mktemp "$d/.qvm-XXXXXX") || exit
printf '%s\0%s\0' "$f" "$t""#;
/// Sets the mode and renames the file. The default mode is that of the replaced file.
const COMMIT: &str = r#"m=$2
[ -n "$m" ] || m=$(stat -c %a "$1" 2>/dev/null) || m=644
chmod "$m" "$0"
sync "$0" 2>/dev/null
mv -f "$0" "$1""#;
/// The mode of a file if it is unknown.
const MODE: u32 = 0o644;

/// The host side of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Local {
    /// Standard input, or standard output.
    Stream,
    /// A file, or as target a directory.
    File(PathBuf),
}

/// Copies the file `from` of the guest; returns its size in bytes.
///
/// # Errors
/// The file does not exist or is a directory, or the target cannot be written. The target is
/// unchanged then.
pub async fn copy_out(
    guest: &mut Guest,
    from: &str,
    to: &Local,
    progress: &mut dyn Progress,
) -> Result<u64, Error> {
    let (mode, total) = look(guest, from).await?;
    let handle = guest.open(from, "r").await?;
    let copied = async {
        let mut target = Target::begin(from, to)?;
        let mut done = 0;
        loop {
            guest.check()?;
            let (bytes, eof) = guest.read(handle).await?;
            done += bytes.len() as u64;
            target.write(guest, bytes).await?;
            progress.at(&At { doing: Doing::Copying, what: from, done, total });
            if eof {
                target.commit(guest, mode.unwrap_or(MODE)).await?;
                return Ok(done);
            }
        }
    };
    let copied = copied.await;
    guest.end(async |guest| drop(guest.close(handle).await)).await;
    copied
}

async fn look(guest: &mut Guest, path: &str) -> Result<(Option<u32>, Option<u64>), Error> {
    let looked = match guest.run(&["sh", "-c", LOOK, path]).await {
        // A guest without a shell reports neither.
        Err(Error::Client(client::Error::Guest { .. })) => return Ok((None, None)),
        looked => looked?,
    };
    let output = String::from_utf8_lossy(&looked.out).into_owned();
    if output.trim() == "directory" {
        let hint = format!("`qvm exec NAME -- tar -C {path} -c . | tar -x` copies its content");
        return Err(Error::Directory(path.to_owned(), hint));
    }
    let (mode, size) = output.trim().split_once(' ').unwrap_or_default();
    Ok((u32::from_str_radix(mode, 8).ok().map(|mode| mode & 0o777), size.parse().ok()))
}

/// The target of a copy on the host.
enum Target {
    Stream(Output),
    /// The target is an existing special file, which is not replaced.
    Special(File, PathBuf),
    File(Temporary, PathBuf),
}

impl Target {
    fn begin(from: &str, to: &Local) -> Result<Self, Error> {
        let Local::File(to) = to else { return Ok(Self::Stream(Output::stdout())) };
        let name = from.rsplit('/').next().unwrap_or_default();
        let to = if to.is_dir() { to.join(name) } else { to.clone() };
        // Symbolic links are followed, as in cp(1).
        let to = fs::canonicalize(&to).unwrap_or(to);
        if let Ok(there) = fs::metadata(&to)
            && !there.is_file()
        {
            let opened = File::options().write(true).open(&to);
            return Ok(Self::Special(opened.map_err(file::Error::on("open", &to))?, to));
        }
        file::remove_abandoned_beside(&to);
        Ok(Self::File(Temporary::for_target(&to)?, to))
    }

    async fn write(&mut self, guest: &mut Guest, bytes: Vec<u8>) -> Result<(), Error> {
        match self {
            Self::Stream(out) => guest.wait_for(out.write(bytes)).await?.map_err(unread),
            Self::Special(file, path) => {
                Ok(file.write_all(&bytes).map_err(file::Error::on("write", path))?)
            }
            Self::File(file, path) => Ok(file.fill(path, &bytes)?),
        }
    }

    async fn commit(self, guest: &mut Guest, mode: u32) -> Result<(), Error> {
        match self {
            Self::Stream(out) => guest.wait_for(out.finish()).await?.map_err(unread),
            Self::Special(..) => Ok(()),
            Self::File(file, path) => Ok(file.replace(&path, mode)?),
        }
    }
}

/// Copies to the file or directory `to` of the guest; returns the number of bytes.
///
/// # Errors
/// The source cannot be read or is a directory; the guest has no space, directory or shell. The
/// target is unchanged then.
pub async fn copy_in(
    guest: &mut Guest,
    from: &Local,
    to: &str,
    progress: &mut dyn Progress,
) -> Result<u64, Error> {
    let mut source = Source::open(from, to)?;
    let begun = guest.need("create the file", &["sh", "-c", BEGIN, to, &source.name]).await?;
    let names = String::from_utf8_lossy(&begun).into_owned();
    let mut names = names.split('\0');
    let (Some(temporary), Some(target)) = (names.next(), names.next()) else {
        return Err(Error::Answer("guest-exec-status"));
    };
    let mut open = None;
    let copied = async {
        let handle = guest.open(temporary, "w").await?;
        open = Some(handle);
        let mut done = 0;
        loop {
            guest.check()?;
            let bytes = source.next(guest).await?;
            if bytes.is_empty() {
                break;
            }
            guest.write(handle, &bytes).await?;
            done += bytes.len() as u64;
            progress.at(&At { doing: Doing::Copying, what: to, done, total: source.total });
        }
        // Closing writes buffered data, which may fail without space.
        open = None;
        guest.close(handle).await?;
        guest.check()?;
        let mode = source.mode.map(|mode| format!("{mode:o}")).unwrap_or_default();
        guest.need("rename the file", &["sh", "-c", COMMIT, temporary, target, &mode]).await?;
        Ok(done)
    };
    let copied = copied.await;
    if copied.is_err() {
        guest
            .end(async |guest| {
                if let Some(handle) = open {
                    let _ = guest.close(handle).await;
                }
                let _ = guest.run(&["rm", "-f", temporary]).await;
            })
            .await;
    }
    copied
}

/// The source of a copy into a guest.
struct Source {
    bytes: mpsc::Receiver<Input>,
    name: String,
    mode: Option<u32>,
    total: Option<u64>,
    path: PathBuf,
}

impl Source {
    fn open(from: &Local, to: &str) -> Result<Self, Error> {
        let Local::File(path) = from else {
            let bytes = input_of(std::io::stdin());
            let path = STDIN.into();
            return Ok(Self { bytes, name: String::new(), mode: None, total: None, path });
        };
        let there = fs::metadata(path).map_err(file::Error::on("read", path))?;
        if there.is_dir() {
            let path = path.display().to_string();
            let hint = format!(
                "`tar -C {path} -c . | qvm exec NAME -- tar -C {to} -x` copies its content"
            );
            return Err(Error::Directory(path, hint));
        }
        let file = File::open(path).map_err(file::Error::on("open", path))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self {
            bytes: input_of(file),
            name,
            mode: there.is_file().then(|| there.permissions().mode() & 0o777),
            total: there.is_file().then_some(there.len()),
            path: path.clone(),
        })
    }

    /// Returns the bytes for one call; empty at the end.
    async fn next(&mut self, guest: &mut Guest) -> Result<Vec<u8>, Error> {
        let unread = |error| file::Error::on("read", &self.path)(error).into();
        let is_stdin = self.path.as_os_str() == STDIN;
        super::agent::next(guest, &mut self.bytes)
            .await?
            .map_err(|error| if is_stdin { input_error(error, unread) } else { unread(error) })
    }
}
