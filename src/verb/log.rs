//! `qvm log`: what the serial console said, of this run and of those before.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use tokio::{io::AsyncReadExt, net::UnixStream};

use crate::{
    exit::{self, Failure},
    host::log_file::LogFile,
    plan::layout::Layout,
    value::VmName,
};

/// What `qvm log` takes.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The VM
    name: VmName,
    /// Go on with what the console says, until the VM is down
    #[arg(short, long)]
    follow: bool,
    /// Only so many of the last lines
    #[arg(short = 'n', long, value_name = "LINES")]
    lines: Option<usize>,
}

/// Prints the log.
///
/// # Errors
/// There is none, or it cannot be read; with `-f`, the VM is not running.
pub async fn run(args: &Args, layout: &Layout) -> Result<(), Failure> {
    let path = layout.vm(&args.name).console_log();
    let cannot = |error: io::Error| {
        let text = format!("cannot read `{}`: {error}", path.display());
        Failure::new(exit::FAILED, text).about(&args.name)
    };
    // Before the log is read: what comes later wakes us.
    let attached = if args.follow { Some(attach(&args.name, layout).await) } else { None };
    let mut log = Log { path: path.clone(), open: None };
    let text = log.read().map_err(cannot)?;
    if log.open.is_none() && attached.is_none() {
        let failure = super::not_running(layout, &args.name);
        return Err(match layout.vm_file(&args.name).symlink_metadata() {
            Ok(_) => Failure::new(exit::NOT_RUNNING, "its console has said nothing yet")
                .about(&args.name),
            Err(_) => failure,
        });
    }
    super::print_bytes(last(&text, args.lines))?;
    let Some(attached) = attached else { return Ok(()) };
    let mut console = attached?;
    let mut bytes = vec![0; 16 << 10];
    // The supervisor writes the log first and then tells its viewers: that there is something is taken from the
    // console, and what it is from the log. So nothing is missed between the two, or said twice.
    while let Ok(1..) = console.read(&mut bytes).await {
        super::print_bytes(&log.read().map_err(cannot)?)?;
    }
    super::print_bytes(&log.read().map_err(cannot)?)
}

async fn attach(name: &VmName, layout: &Layout) -> Result<UnixStream, Failure> {
    let client = super::connect(layout, name).await?;
    client.console(true).await.map_err(|error| super::refused(&error, layout, name))
}

/// The log from its older half on, read on through its renamings.
struct Log {
    path: PathBuf,
    /// The half that has been read so far. While it is open no other file is taken for it.
    open: Option<File>,
}

impl Log {
    /// What has not been read yet.
    fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        loop {
            let Some(file) = &mut self.open else {
                self.open = match open(&LogFile::older(&self.path))? {
                    Some(older) => Some(older),
                    None => open(&self.path)?,
                };
                if self.open.is_none() {
                    return Ok(bytes);
                }
                continue;
            };
            // Asked before the rest is read: once there is a next file, nothing is added to this one.
            let next = after(file, &self.path)?;
            file.read_to_end(&mut bytes)?;
            match next {
                Some(next) => self.open = Some(next),
                None => return Ok(bytes),
            }
        }
    }
}

/// The file that comes after this one, if it was renamed, or if even its successor was.
fn after(file: &File, path: &Path) -> io::Result<Option<File>> {
    let id = |file: &File| file.metadata().map(|meta| (meta.dev(), meta.ino()));
    let Some(newer) = open(path)? else { return Ok(None) };
    if id(&newer)? == id(file)? {
        return Ok(None);
    }
    match open(&LogFile::older(path))? {
        Some(older) if id(&older)? != id(file)? => Ok(Some(older)),
        Some(_) | None => Ok(Some(newer)),
    }
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The last `lines` lines; a last line without its end is one.
fn last(text: &[u8], lines: Option<usize>) -> &[u8] {
    let Some(lines) = lines else { return text };
    if lines == 0 {
        return &[];
    }
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    let mut starts = (0..body.len()).rev().filter(|at| body[*at] == b'\n');
    starts.nth(lines - 1).map_or(text, |at| &text[at + 1..])
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_last_lines() {
        assert_eq!(last(b"a\nb\nc\n", None), b"a\nb\nc\n");
        assert_eq!(last(b"a\nb\nc\n", Some(2)), b"b\nc\n");
        assert_eq!(last(b"a\nb\nc", Some(1)), b"c");
        assert_eq!(last(b"a\n", Some(9)), b"a\n");
        assert_eq!(last(b"a\n", Some(0)), b"");
        assert_eq!(last(b"", Some(3)), b"");
        assert_eq!(last(b"\n\n", Some(1)), b"\n");
    }

    #[test]
    fn older_part_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut log = Log { path: path.clone(), open: None };
        assert_eq!(log.read().unwrap(), b"");
        assert!(log.open.is_none());
        fs::write(&path, "new\n").unwrap();
        fs::write(dir.path().join("console.log.1"), "old\n").unwrap();
        assert_eq!(log.read().unwrap(), b"old\nnew\n");
        assert_eq!(log.read().unwrap(), b"");
    }

    /// Whatever is read in whatever steps, it is what was written; the halves are renamed many times.
    #[test]
    fn nothing_is_missed_or_read_twice() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut writer = LogFile::new(path.clone());
        let mut log = Log { path, open: None };
        let (mut written, mut read) = (vec![], vec![]);
        for nr in 0_usize..400 {
            let line = format!("{nr} {}\n", "x".repeat(nr * 37 % 9000));
            writer.append(line.as_bytes()).unwrap();
            written.extend(line.into_bytes());
            if nr % 7 == 0 || nr % 61 < 20 {
                read.extend(log.read().unwrap());
            }
        }
        read.extend(log.read().unwrap());
        assert!(written.len() > 5 << 18, "{}", written.len());
        assert!(read == written);
    }

    #[test]
    fn of_two_renamings_at_once_the_lost_half_is_lost_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut log = Log { path: path.clone(), open: None };
        fs::write(&path, "1").unwrap();
        assert_eq!(log.read().unwrap(), b"1");
        for text in ["2", "3", "4"] {
            fs::rename(&path, LogFile::older(&path)).unwrap();
            fs::write(&path, text).unwrap();
        }
        assert_eq!(log.read().unwrap(), b"34");
    }
}
