//! qemu-img: the four things that it is needed for, each with the format said, never guessed by it.

use std::{
    ffi::{OsStr, OsString},
    io::ErrorKind,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use crate::{
    spec::Format,
    sys::program::{self, Output, Program},
    value::{Explain, Size},
};

/// How much of standard error is kept, in bytes.
const STDERR_LIMIT: usize = 8192;

/// Where it is.
#[derive(Debug, Clone)]
pub struct QemuImg {
    binary: PathBuf,
}

/// Why it did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be run.
    #[error(transparent)]
    Program(program::Error),
    /// It failed.
    #[error("`qemu-img {verb}` failed on `{}`: {said}", .path.display())]
    Failed {
        /// `convert`, ….
        verb: &'static str,
        /// The file it worked on.
        path: PathBuf,
        /// What it said.
        said: String,
    },
    /// The caller said so.
    #[error("it was called off")]
    CalledOff,
}

impl Error {
    fn of(error: program::Error) -> Self {
        match error {
            program::Error::Canceled { .. } => Self::CalledOff,
            error => Self::Program(error),
        }
    }
}

impl Explain for Error {
    fn own_hint(&self) -> Option<String> {
        match self {
            Self::Program(program::Error::Run { source, .. })
                if source.kind() == ErrorKind::NotFound =>
            {
                Some("install qemu-img (Debian: qemu-utils, Fedora: qemu-img, NixOS: qemu)".into())
            }
            Self::Failed { said, .. } if said.contains("No space left") => {
                Some("make room; `qvm image prune` removes images that no VM needs".into())
            }
            _ => None,
        }
    }

    fn is_own_host_fault(&self) -> bool {
        matches!(self, Self::Failed { said, .. } if said.contains("No space left"))
    }
}

/// What `qemu-img check --output=json` says of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct CheckReport {
    /// The number of clusters whose content or place is wrong.
    pub corruptions: u64,
    /// The number of clusters that are allocated and not used.
    pub leaks: u64,
    /// The number of errors that kept a part of the file from being checked.
    pub check_errors: u64,
}

impl QemuImg {
    /// This binary: a path, or a name to be looked up in `$PATH`.
    pub fn new(binary: impl Into<PathBuf>) -> Self {
        Self { binary: binary.into() }
    }

    /// A new disk of `size`, empty, or on top of `base`. `path` keeps the mode it has, if it is there.
    ///
    /// # Errors
    /// As [`Error`].
    pub fn create(
        &self,
        path: &Path,
        format: Format,
        size: Size,
        base: Option<(&Path, Format)>,
    ) -> Result<(), Error> {
        let bytes = size.bytes().to_string();
        let mut args: Vec<&OsStr> = vec!["-q".as_ref(), "-f".as_ref(), format.name().as_ref()];
        if let Some((base, of)) = base {
            args.extend(["-b".as_ref(), base.as_os_str(), "-F".as_ref(), of.name().as_ref()]);
        }
        args.extend([path.as_os_str(), bytes.as_ref()]);
        self.run("create", path, &args, &mut || true)
    }

    /// The content of `from` in another format, without a lock on it: nobody may be writing to it. `to` keeps the mode it has, if it is there.
    ///
    /// # Errors
    /// As [`Error`]; `goes_on` is asked every 100 ms and calls it off.
    pub fn convert(
        &self,
        (from, of): (&Path, Format),
        (to, into): (&Path, Format),
        goes_on: &mut dyn FnMut() -> bool,
    ) -> Result<(), Error> {
        let mut file = options("", from, of);
        file.push(",file.locking=off");
        let args: [&OsStr; 7] = [
            "--image-opts".as_ref(),
            "-O".as_ref(),
            into.name().as_ref(),
            // Out-of-order writes: the target is new, and several requests in flight are faster.
            "-W".as_ref(),
            "--".as_ref(),
            file.as_ref(),
            to.as_os_str(),
        ];
        self.run("convert", from, &args, goes_on)
    }

    /// Makes the disk larger. What it stands on, which nobody may be writing to, is opened without a lock.
    ///
    /// # Errors
    /// As [`Error`].
    pub fn resize(
        &self,
        path: &Path,
        format: Format,
        size: Size,
        base: Option<(&Path, Format)>,
    ) -> Result<(), Error> {
        let bytes = size.bytes().to_string();
        let mut file = options("", path, format);
        if let Some((base, of)) = base {
            file.push(",");
            file.push(options("backing.", base, of));
            file.push(",backing.file.locking=off");
        }
        let args: [&OsStr; 4] =
            ["-q".as_ref(), "--image-opts".as_ref(), file.as_ref(), bytes.as_ref()];
        self.run("resize", path, &args, &mut || true)
    }

    /// Whether a qcow2 file is consistent: every cluster that its tables name is there, and none is named twice.
    /// Leaked clusters are none of our business (exit code 3 of qemu-img(1)).
    ///
    /// # Errors
    /// As [`Error`]; `Failed` with what is wrong.
    pub fn check(&self, path: &Path, goes_on: &mut dyn FnMut() -> bool) -> Result<(), Error> {
        let args: [&OsStr; 4] = ["-q".as_ref(), "-f".as_ref(), "qcow2".as_ref(), path.as_os_str()];
        let done = self.call("check", &args, goes_on)?;
        if done.status.success() || done.status.code() == Some(3) {
            return Ok(());
        }
        Err(Error::Failed { verb: "check", path: path.to_owned(), said: said(&done) })
    }

    /// Returns what `qemu-img check` says of a qcow2 file, without its backing file and without
    /// changing anything.
    ///
    /// # Errors
    /// As [`Error`]; `Failed` if the file cannot be checked.
    pub fn check_report(
        &self,
        path: &Path,
        goes_on: &mut dyn FnMut() -> bool,
    ) -> Result<CheckReport, Error> {
        let failed = |said: String| Error::Failed { verb: "check", path: path.to_owned(), said };
        let Some(filename) = path.to_str() else {
            return Err(failed("the path is not UTF-8".to_owned()));
        };
        // A backing file named by the header is not opened: the guest may have written the header.
        let file = serde_json::json!({"driver": "qcow2", "backing": null,
            "file": {"driver": "file", "filename": filename}});
        let program = Program::new(&self.binary).args(["check", "--output=json"]);
        let program = program.arg(format!("json:{file}")).output_limit(STDERR_LIMIT);
        let done = program.run_while(goes_on).map_err(Error::of)?;
        // qemu-img(1): 2 is corrupt, 3 is leaked. Other codes mean that the check was not completed.
        match (done.status.code(), serde_json::from_str(&done.stdout)) {
            (Some(0 | 2 | 3), Ok(report)) => Ok(report),
            _ => Err(failed(said(&done))),
        }
    }

    fn run(
        &self,
        verb: &'static str,
        path: &Path,
        args: &[&OsStr],
        goes_on: &mut dyn FnMut() -> bool,
    ) -> Result<(), Error> {
        let done = self.call(verb, args, goes_on)?;
        if done.status.success() {
            return Ok(());
        }
        Err(Error::Failed { verb, path: path.to_owned(), said: said(&done) })
    }

    fn call(
        &self,
        verb: &str,
        args: &[&OsStr],
        goes_on: &mut dyn FnMut() -> bool,
    ) -> Result<Output, Error> {
        let program = Program::new(&self.binary).arg(verb).args(args);
        program.discard_stdout().output_limit(STDERR_LIMIT).run_while(goes_on).map_err(Error::of)
    }
}

/// A file as `--image-opts` takes it (qemu-img(1)), where commas are written twice.
fn options(node: &str, path: &Path, format: Format) -> OsString {
    let format = format.name();
    let mut told =
        format!("{node}driver={format},{node}file.driver=file,{node}file.filename=").into_bytes();
    for byte in path.as_os_str().as_bytes() {
        told.push(*byte);
        if *byte == b',' {
            told.push(b',');
        }
    }
    OsString::from_vec(told)
}

/// The first line that says something, without the program's name.
fn said(done: &Output) -> String {
    let line = done.stderr.lines().map(str::trim).find(|l| !l.is_empty());
    match line {
        Some(line) => line.trim_start_matches("qemu-img: ").to_owned(),
        None => done.status.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn script(dir: &Path, body: &str) -> QemuImg {
        let path = dir.join("qemu-img");
        std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        QemuImg::new(path)
    }

    #[test]
    fn a_flood_of_complaints_does_not_block_it() {
        let dir = tempfile::tempdir().unwrap();
        let flood = script(
            dir.path(),
            "echo 'qemu-img: first' >&2; head -c 1000000 /dev/zero | tr '\\0' x >&2; exit 2",
        );
        let error = flood.check(Path::new("/x"), &mut || true).unwrap_err();
        assert_eq!(error.to_string(), "`qemu-img check` failed on `/x`: first");
    }

    #[test]
    fn it_can_be_called_off() {
        let dir = tempfile::tempdir().unwrap();
        let slow = script(dir.path(), "exec sleep 600");
        let mut asked = 0;
        let error = slow.check(Path::new("/x"), &mut || {
            asked += 1;
            asked < 3
        });
        assert!(matches!(error, Err(Error::CalledOff)));
    }

    #[test]
    fn a_missing_binary_has_a_way_out() {
        let error = QemuImg::new("/nowhere/qemu-img").check(Path::new("/x"), &mut || true);
        let error = error.unwrap_err();
        assert_eq!(error.to_string(), "cannot run `/nowhere/qemu-img`");
        assert!(error.hint().unwrap().contains("qemu-utils"));
    }
}
