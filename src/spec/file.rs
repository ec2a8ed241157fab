//! Finds and reads VM files, within a size limit.

use std::{
    fs::{self, File, Metadata},
    io::{self, Read},
    path::{Path, PathBuf},
};

use super::{
    machine::Vm,
    parse,
    problem::{Invalid, Problem, one_line},
    user_data::{ReadFile, UserData},
};
use crate::value::VmName;

/// The largest VM file, in bytes.
const MAX: u64 = 1 << 20;
/// The suffix of VM files.
const SUFFIX: &str = ".toml";

/// Reads a VM file. A symbolic link is followed, but relative paths are resolved against the
/// directory of `file`. Use an absolute `file` to get absolute paths in the [`Vm`].
///
/// # Errors
/// Every problem of the file, or why it cannot be read.
pub fn load(file: &Path) -> Result<Vm, Invalid> {
    load_with_text(file).map(|(vm, _)| vm)
}

/// Reads a VM file like [`load`], and also returns its text.
///
/// # Errors
/// As for [`load`].
pub fn load_with_text(file: &Path) -> Result<(Vm, String), Invalid> {
    load_by(file, &mut user_data).map_err(|(invalid, _)| invalid)
}

/// Reads `copy` with the name and the directory of the VM file `file`.
///
/// # Errors
/// As for [`load`].
pub fn load_in_place(copy: &Path, file: &Path) -> Result<Vm, Invalid> {
    load_from(copy, file, &mut user_data).map(|(vm, _)| vm).map_err(|(invalid, _)| invalid)
}

/// Reads a VM file without its user-data, which may be on a file system that is not mounted yet or
/// on another machine; a placeholder replaces it. For an invalid file, its text is also returned as
/// far as it is UTF-8.
///
/// # Errors
/// As for [`load`], except errors of the user-data.
pub fn load_early(file: &Path) -> Result<Vm, (Invalid, String)> {
    let stand_in = |_: &Path| Ok(b"#cloud-config\n".to_vec());
    load_by(file, &mut { stand_in }).map(|(vm, _)| vm)
}

fn load_by(file: &Path, user_data: &mut ReadFile<'_>) -> Result<(Vm, String), (Invalid, String)> {
    load_from(file, file, user_data)
}

/// Parses the bytes of `from` as those of `file`.
fn load_from(
    from: &Path,
    file: &Path,
    user_data: &mut ReadFile<'_>,
) -> Result<(Vm, String), (Invalid, String)> {
    let name = name_of(file);
    let bytes = bytes(from, file).map_err(|invalid| (invalid, String::new()))?;
    let text = match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
            return Err((not_text(file, &error).into(), text));
        }
    };
    match name {
        Ok(name) => match parse::read(&name, file, &text, user_data) {
            Ok(vm) => Ok((vm, text)),
            Err(problems) => Err((Invalid(problems), text)),
        },
        Err(Invalid(mut problems)) => {
            // The text is parsed anyway to report all problems at once.
            if let Ok(placeholder) = "x".parse() {
                let read = parse::read(&placeholder, file, &text, user_data);
                problems.extend(read.err().into_iter().flatten());
            }
            Err((Invalid(problems), text))
        }
    }
}

/// Reads all VM files of a directory, sorted by name; none if the directory does not exist.
pub fn load_all(dir: &Path) -> Vec<(PathBuf, Result<Vm, Invalid>)> {
    let files = match files_in(dir) {
        Ok(files) => files,
        Err(invalid) => return vec![(dir.to_owned(), Err(invalid))],
    };
    let load = |file: PathBuf| {
        let vm = load(&file);
        (file, vm)
    };
    files.into_iter().map(load).collect()
}

/// Returns the VM files of a directory, sorted by name: names that end in `.toml` and do not begin
/// with a dot. None if the directory does not exist.
///
/// # Errors
/// The directory cannot be listed.
pub fn files_in(dir: &Path) -> Result<Vec<PathBuf>, Invalid> {
    let entries = fs::read_dir(dir).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let mut files: Vec<PathBuf> = match entries {
        Ok(entries) => entries.iter().map(fs::DirEntry::path).filter(|f| is_vm_file(f)).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            return Err(Problem::unreadable(dir, "cannot list the directory", &error).into());
        }
    };
    files.sort();
    Ok(files)
}

/// Returns the VM name: the file name without `.toml`.
///
/// # Errors
/// The file name is not valid.
pub fn name_of(file: &Path) -> Result<VmName, Invalid> {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let Some(stem) = name.strip_suffix(SUFFIX) else {
        let message = format!("the name of a VM file must end in `{SUFFIX}`");
        return Err(Problem::of_file(file, message, None).into());
    };
    stem.parse().map_err(|refused| {
        let hint = "rename the file; the VM name is the file name without the suffix";
        Problem::of_file(file, format!("{refused}"), Some(hint.into())).into()
    })
}

fn is_vm_file(file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    name.ends_with(SUFFIX) && !name.starts_with('.')
}

/// Reads the bytes of a VM file; problems are reported for the file `of`.
pub(super) fn bytes(file: &Path, of: &Path) -> Result<Vec<u8>, Invalid> {
    let meta = fs::metadata(file).map_err(|error| match fs::read_link(file) {
        Ok(target) => {
            let target = one_line(&target.to_string_lossy());
            let doing = format!("cannot follow the symbolic link to `{target}`");
            Problem::unreadable(of, &doing, &error)
        }
        Err(_) => Problem::unreadable(of, "cannot read the file", &error),
    })?;
    let too_large = || {
        let hint = "a VM file has only a few lines; check whether this is the right file";
        Problem::of_file(of, "the file is larger than 1 MiB", Some(hint.to_owned()))
    };
    if let Some(what) = not_a_file(&meta) {
        return Err(Problem::of_file(
            of,
            format!(
                "this is {what}, not a regular \
            file"
            ),
            None,
        )
        .into());
    }
    if meta.len() > MAX {
        return Err(too_large().into());
    }
    let bytes = read_at_most(file, MAX)
        .map_err(|error| Problem::unreadable(of, "cannot read the file", &error))?;
    if bytes.len() as u64 > MAX { Err(too_large().into()) } else { Ok(bytes) }
}

/// Reads a file that a VM file names, up to one byte more than allowed.
fn user_data(file: &Path) -> io::Result<Vec<u8>> {
    // Checked before opening: opening a pipe waits for its other end.
    if let Some(what) = not_a_file(&fs::metadata(file)?) {
        return Err(io::Error::other(format!("this is {what}, not a regular file")));
    }
    read_at_most(file, UserData::MAX as u64)
}

/// Returns the file type if it is not a regular file.
fn not_a_file(meta: &Metadata) -> Option<&'static str> {
    match meta {
        meta if meta.is_file() => None,
        meta if meta.is_dir() => Some("a directory"),
        _ => Some("a device, a pipe or a socket"),
    }
}

fn read_at_most(file: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(file)?.take(most + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reports the position of the first byte that is not UTF-8.
pub(super) fn not_text(file: &Path, error: &std::string::FromUtf8Error) -> Problem {
    let bytes = error.as_bytes();
    let (good, bad) = bytes.split_at(error.utf8_error().valid_up_to());
    let text = String::from_utf8_lossy(good);
    let message = match bad.first() {
        Some(byte) => format!("the file is not UTF-8 text: it contains the byte {byte:#04x}"),
        None => "the file is not UTF-8 text".to_owned(),
    };
    let hint = Some(
        "TOML files are UTF-8; `iconv -f latin1 -t utf8` converts the most common \
        other encoding"
            .into(),
    );
    let line = good.iter().filter(|b| **b == b'\n').count() + 1;
    let column = text.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    Problem { line: Some(line), column: Some(column), ..Problem::of_file(file, message, hint) }
}
