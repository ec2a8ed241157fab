//! Runs qemu-img, always with explicit formats: qemu-img must not probe them.

use std::{
    ffi::{OsStr, OsString},
    io::ErrorKind,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use crate::{
    spec::Format,
    sys::program::{self, Output, Program},
    value::{ErrorCode, Explain, Size, foreign_error::is_no_space},
};

/// The maximum size of stored standard error, in bytes.
const STDERR_LIMIT: usize = 8192;

/// The program qemu-img.
#[derive(Debug, Clone)]
pub struct QemuImg {
    binary: PathBuf,
}

/// Why qemu-img failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program cannot be run.
    #[error(transparent)]
    Program(program::Error),
    /// The program exited with an error.
    #[error("`qemu-img {verb}` failed on `{}`: {stderr}", .path.display())]
    Failed {
        /// `convert`, ….
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// The last line of its error output.
        stderr: String,
    },
    /// The caller canceled the run.
    #[error("canceled")]
    Canceled,
}

impl Error {
    fn of(error: program::Error) -> Self {
        match error {
            program::Error::Canceled { .. } => Self::Canceled,
            error => Self::Program(error),
        }
    }
}

impl Explain for Error {
    fn own_code(&self) -> Option<ErrorCode> {
        Some(match self {
            Self::Program(error) => error.code(),
            Self::Failed { stderr, .. } if is_no_space(stderr) => ErrorCode::NoSpace,
            Self::Failed { .. } => ErrorCode::QemuImgFailed,
            Self::Canceled => ErrorCode::Canceled,
        })
    }

    fn own_hint(&self) -> Option<String> {
        match self {
            Self::Program(program::Error::Run { source, .. })
                if source.kind() == ErrorKind::NotFound =>
            {
                Some("install qemu-img (Debian: qemu-utils, Fedora: qemu-img, NixOS: qemu)".into())
            }
            Self::Failed { stderr, .. } if is_no_space(stderr) => {
                Some("free disk space; `qvm image prune` removes unused images".into())
            }
            _ => None,
        }
    }

    fn is_own_host_fault(&self) -> bool {
        matches!(self, Self::Failed { stderr, .. } if is_no_space(stderr))
    }
}

/// The output of `qemu-img check --output=json`.
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
    /// Uses this binary: a path, or a name to find in `$PATH`.
    pub fn new(binary: impl Into<PathBuf>) -> Self {
        Self { binary: binary.into() }
    }

    /// Creates a disk of `size`, blank or with the backing file `base`. An existing `path` keeps
    /// its mode.
    ///
    /// # Errors
    /// See [`Error`].
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

    /// Converts `from` to another format without locking it: no process may write to it. An
    /// existing `to` keeps its mode.
    ///
    /// # Errors
    /// See [`Error`]; canceled if `goes_on`, called every 100 ms, returns false.
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
            // Out-of-order writes: several requests in flight are faster, and the target is new.
            "-W".as_ref(),
            "--".as_ref(),
            file.as_ref(),
            to.as_os_str(),
        ];
        self.run("convert", from, &args, goes_on)
    }

    /// Creates an overlay of `size` on a file that is not opened. `on` is written to the header as
    /// it is, such as a name in the same directory. An existing `path` keeps its mode.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn create_overlay(
        &self,
        path: &Path,
        size: Size,
        (on, of): (&Path, Format),
    ) -> Result<(), Error> {
        let bytes = size.bytes().to_string();
        let args: [&OsStr; 10] = [
            "-q".as_ref(),
            "-u".as_ref(),
            "-f".as_ref(),
            "qcow2".as_ref(),
            "-b".as_ref(),
            on.as_os_str(),
            "-F".as_ref(),
            of.name().as_ref(),
            path.as_os_str(),
            bytes.as_ref(),
        ];
        self.run("create", path, &args, &mut || true)
    }

    /// Writes the clusters of the first file to the second, which it is an overlay on. The other
    /// files, to which no process may write, are the backing files of the second. The first file is
    /// not changed, and its header is not used to find the others.
    ///
    /// # Errors
    /// See [`Error`]; canceled if `goes_on`, called every 100 ms, returns false. The first file
    /// reads as before then.
    pub fn commit(
        &self,
        chain: &[(&Path, Format)],
        goes_on: &mut dyn FnMut() -> bool,
    ) -> Result<(), Error> {
        let path = chain.first().map_or(Path::new(""), |(path, _)| path);
        let file = chain_name("commit", chain, 2)?;
        let args: [&OsStr; 3] = ["-q".as_ref(), "-d".as_ref(), file.as_ref()];
        self.run("commit", path, &args, goes_on)
    }

    /// Grows a disk. Its backing files, to which no process may write, are opened without a lock.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn resize(
        &self,
        path: &Path,
        format: Format,
        size: Size,
        backing: &[(&Path, Format)],
    ) -> Result<(), Error> {
        let bytes = size.bytes().to_string();
        if backing.is_empty() {
            let file = options("", path, format);
            let args: [&OsStr; 4] =
                ["-q".as_ref(), "--image-opts".as_ref(), file.as_ref(), bytes.as_ref()];
            return self.run("resize", path, &args, &mut || true);
        }
        let chain: Vec<(&Path, Format)> =
            std::iter::once((path, format)).chain(backing.iter().copied()).collect();
        let file = chain_name("resize", &chain, 1)?;
        let args: [&OsStr; 3] = ["-q".as_ref(), file.as_ref(), bytes.as_ref()];
        self.run("resize", path, &args, &mut || true)
    }

    /// Checks that a qcow2 file is consistent: every referenced cluster exists and is referenced
    /// once. Leaked clusters are accepted (exit code 3 of qemu-img(1)).
    ///
    /// # Errors
    /// See [`Error`]; `Failed` with the inconsistency.
    pub fn check(&self, path: &Path, goes_on: &mut dyn FnMut() -> bool) -> Result<(), Error> {
        let args: [&OsStr; 4] = ["-q".as_ref(), "-f".as_ref(), "qcow2".as_ref(), path.as_os_str()];
        let done = self.call("check", &args, goes_on)?;
        if done.status.success() || done.status.code() == Some(3) {
            return Ok(());
        }
        Err(Error::Failed { verb: "check", path: path.to_owned(), stderr: stderr(&done) })
    }

    /// Returns the result of `qemu-img check` for a qcow2 file, without its backing file. Changes
    /// nothing.
    ///
    /// # Errors
    /// As [`Error`]; `Failed` if the file cannot be checked.
    pub fn check_report(
        &self,
        path: &Path,
        goes_on: &mut dyn FnMut() -> bool,
    ) -> Result<CheckReport, Error> {
        let failed =
            |stderr: String| Error::Failed { verb: "check", path: path.to_owned(), stderr };
        let Some(filename) = path.to_str() else {
            return Err(failed("the path is not UTF-8".to_owned()));
        };
        // A backing file named by the header is not opened: the guest may have written the header.
        let file = serde_json::json!({"driver": "qcow2", "backing": null,
            "file": {"driver": "file", "filename": filename}});
        let program = Program::new(&self.binary).args(["check", "--output=json"]);
        let program = program.arg(format!("json:{file}")).output_limit(STDERR_LIMIT);
        let done = program.run_while(goes_on).map_err(Error::of)?;
        // qemu-img(1): 2 is corrupt, 3 is leaked. Other codes mean that the check was not
        // completed.
        match (done.status.code(), serde_json::from_str(&done.stdout)) {
            (Some(0 | 2 | 3), Ok(report)) => Ok(report),
            _ => Err(failed(stderr(&done))),
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
        Err(Error::Failed { verb, path: path.to_owned(), stderr: stderr(&done) })
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

/// Formats a chain of files, the uppermost first, as the name of an image (qemu-img(1), `json:`).
/// No backing file is taken from a header, and only the first `locked` files are locked.
fn chain_name(
    verb: &'static str,
    chain: &[(&Path, Format)],
    locked: usize,
) -> Result<String, Error> {
    let mut below = serde_json::Value::Null;
    for (nr, (path, format)) in chain.iter().enumerate().rev() {
        let Some(filename) = path.to_str() else {
            let stderr = "the path is not UTF-8".to_owned();
            return Err(Error::Failed { verb, path: (*path).to_owned(), stderr });
        };
        let mut file = serde_json::json!({"driver": "file", "filename": filename});
        if nr >= locked {
            file["locking"] = "off".into();
        }
        let mut node = serde_json::json!({"driver": format.name(), "file": file});
        if *format == Format::Qcow2 {
            node["backing"] = below;
        }
        below = node;
    }
    Ok(format!("json:{below}"))
}

/// Formats a file for `--image-opts` (qemu-img(1)), in which commas are doubled.
fn options(node: &str, path: &Path, format: Format) -> OsString {
    let format = format.name();
    let mut escaped =
        format!("{node}driver={format},{node}file.driver=file,{node}file.filename=").into_bytes();
    for byte in path.as_os_str().as_bytes() {
        escaped.push(*byte);
        if *byte == b',' {
            escaped.push(b',');
        }
    }
    OsString::from_vec(escaped)
}

/// Returns the first non-empty line without the program's name.
fn stderr(done: &Output) -> String {
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
    fn long_error_output_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        let flood = script(
            dir.path(),
            "echo 'qemu-img: first' >&2; head -c 1000000 /dev/zero | tr '\\0' x >&2; exit 2",
        );
        let error = flood.check(Path::new("/x"), &mut || true).unwrap_err();
        assert_eq!(error.to_string(), "`qemu-img check` failed on `/x`: first");
    }

    #[test]
    fn chain_names_every_file() {
        let chain = [
            (Path::new("/s/a,b.qcow2"), Format::Qcow2),
            (Path::new("/s/b.qcow2"), Format::Qcow2),
            (Path::new("/i/c.raw"), Format::Raw),
        ];
        let name = chain_name("commit", &chain, 2).unwrap();
        let json: serde_json::Value = name.strip_prefix("json:").unwrap().parse().unwrap();
        assert_eq!(json["file"]["filename"], "/s/a,b.qcow2");
        let lower = &json["backing"];
        assert_eq!(lower["file"], serde_json::json!({"driver": "file", "filename": "/s/b.qcow2"}));
        assert_eq!(lower["backing"]["driver"], "raw");
        assert_eq!(lower["backing"]["file"]["locking"], "off");
        // Without a backing file, none is taken from the header.
        let name = chain_name("commit", &chain[..2], 2).unwrap();
        assert!(name.contains("\"backing\":null"), "{name}");
    }

    #[test]
    fn run_can_be_canceled() {
        let dir = tempfile::tempdir().unwrap();
        let slow = script(dir.path(), "exec sleep 600");
        let mut asked = 0;
        let error = slow.check(Path::new("/x"), &mut || {
            asked += 1;
            asked < 3
        });
        assert!(matches!(error, Err(Error::Canceled)));
    }

    #[test]
    fn missing_binary_has_a_hint() {
        let error = QemuImg::new("/nowhere/qemu-img").check(Path::new("/x"), &mut || true);
        let error = error.unwrap_err();
        assert_eq!(error.to_string(), "cannot run `/nowhere/qemu-img`");
        assert!(error.hint().unwrap().contains("qemu-utils"));
    }
}
