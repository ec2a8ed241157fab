//! `qvm log`: what the serial console said, of this run and of those before.

use std::{fs, io, path::Path};

use tokio::io::AsyncReadExt;

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
    let log = layout.vm(&args.name).console_log();
    let text = read(&log).map_err(|error| {
        let text = format!("cannot read `{}`: {error}", log.display());
        Failure::new(exit::FAILED, text).about(&args.name)
    })?;
    if text.is_none() && !args.follow {
        let failure = super::not_running(layout, &args.name);
        return Err(match layout.vm_file(&args.name).symlink_metadata() {
            Ok(_) => Failure::new(exit::NOT_RUNNING, "its console has said nothing yet")
                .about(&args.name),
            Err(_) => failure,
        });
    }
    let text = text.unwrap_or_default();
    super::print_bytes(last(&text, args.lines))?;
    if !args.follow {
        return Ok(());
    }
    let client = super::connect(layout, &args.name).await?;
    let attached = client.console(true).await;
    let mut console = attached.map_err(|error| super::refused(&error, layout, &args.name))?;
    let mut bytes = vec![0; 16 << 10];
    while let Ok(n @ 1..) = console.read(&mut bytes).await {
        super::print_bytes(&bytes[..n])?;
    }
    Ok(())
}

/// The older part and the newer; `None` where there is neither.
fn read(log: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut text = None;
    for part in [LogFile::older(log), log.to_owned()] {
        match fs::read(part) {
            Ok(bytes) => text.get_or_insert_with(Vec::new).extend(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(text)
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
        let log = dir.path().join("console.log");
        assert_eq!(read(&log).unwrap(), None);
        fs::write(&log, "new\n").unwrap();
        fs::write(dir.path().join("console.log.1"), "old\n").unwrap();
        assert_eq!(read(&log).unwrap().unwrap(), b"old\nnew\n");
    }
}
