//! VM files on disk: found, read within bounds, and handed to the reader.

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
/// What a VM file's name ends in.
const SUFFIX: &str = ".toml";

/// Reads a VM file. A symbolic link is followed, but relative paths are resolved against the directory that
/// `file` names, so `file` should be absolute where the paths in the [`Vm`] have to be.
///
/// # Errors
/// Every problem of the file; or why it could not be read.
pub fn load(file: &Path) -> Result<Vm, Invalid> {
    load_with_text(file).map(|(vm, _)| vm)
}

/// Reads a VM file as [`load`] does, and gives its text as well.
///
/// # Errors
/// As of [`load`].
pub fn load_with_text(file: &Path) -> Result<(Vm, String), Invalid> {
    load_by(file, &mut user_data).map_err(|(invalid, _)| invalid)
}

/// Reads `copy` as if it stood in the place of the VM file `file`, whose name and place then count.
///
/// # Errors
/// As of [`load`].
pub fn load_in_place(copy: &Path, file: &Path) -> Result<Vm, Invalid> {
    load_from(copy, file, &mut user_data).map(|(vm, _)| vm).map_err(|(invalid, _)| invalid)
}

/// Reads a VM file but not its user-data, which may be on a file system that is not mounted yet, or on another machine: a stand-in is taken for it. An invalid
/// file gives its text as well, as far as it is text.
///
/// # Errors
/// As of [`load`], but for the user-data.
pub fn load_early(file: &Path) -> Result<Vm, (Invalid, String)> {
    let stand_in = |_: &Path| Ok(b"#cloud-config\n".to_vec());
    load_by(file, &mut { stand_in }).map(|(vm, _)| vm)
}

fn load_by(file: &Path, user_data: &mut ReadFile<'_>) -> Result<(Vm, String), (Invalid, String)> {
    load_from(file, file, user_data)
}

/// Reads the bytes of `from` as those of `file`.
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
            // The text is looked at all the same: all problems are told at once.
            if let Ok(stand_in) = "x".parse() {
                let read = parse::read(&stand_in, file, &text, user_data);
                problems.extend(read.err().into_iter().flatten());
            }
            Err((Invalid(problems), text))
        }
    }
}

/// Reads every VM file in a directory, by name. A directory that is not there holds none.
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

/// The VM files in a directory, by name: those that end in `.toml` and do not begin with a dot.
/// A directory that is not there holds none.
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

/// The VM's name: that of its file without `.toml`.
///
/// # Errors
/// A problem of the file as a whole.
pub fn name_of(file: &Path) -> Result<VmName, Invalid> {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let Some(stem) = name.strip_suffix(SUFFIX) else {
        let message = format!("a VM file's name ends in `{SUFFIX}`");
        return Err(Problem::of_file(file, message, None).into());
    };
    stem.parse().map_err(|refused| {
        let hint = "rename the file: a VM is called what its file is called";
        Problem::of_file(file, format!("{refused}"), Some(hint.into())).into()
    })
}

fn is_vm_file(file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    name.ends_with(SUFFIX) && !name.starts_with('.')
}

/// The bytes of a VM file, or what is wrong with them, as a problem of the file `of`.
pub(super) fn bytes(file: &Path, of: &Path) -> Result<Vec<u8>, Invalid> {
    let meta = fs::metadata(file).map_err(|error| match fs::read_link(file) {
        Ok(target) => {
            let target = one_line(&target.to_string_lossy());
            let doing = format!("cannot follow the symbolic link to `{target}`");
            Problem::unreadable(of, &doing, &error)
        }
        Err(_) => Problem::unreadable(of, "cannot read it", &error),
    })?;
    let too_large = || {
        let hint = "a VM file has a few lines; is this the right file?";
        Problem::of_file(of, "it has more than 1 MiB", Some(hint.to_owned()))
    };
    if let Some(what) = not_a_file(&meta) {
        return Err(Problem::of_file(of, format!("it is {what}, not a file"), None).into());
    }
    if meta.len() > MAX {
        return Err(too_large().into());
    }
    let bytes = read_at_most(file, MAX)
        .map_err(|error| Problem::unreadable(of, "cannot read it", &error))?;
    if bytes.len() as u64 > MAX { Err(too_large().into()) } else { Ok(bytes) }
}

/// The bytes of a file that a VM file names, but one more than allowed at most.
fn user_data(file: &Path) -> io::Result<Vec<u8>> {
    // Before it is opened: to open a pipe would wait for its other end.
    if let Some(what) = not_a_file(&fs::metadata(file)?) {
        return Err(io::Error::other(format!("it is {what}, not a file")));
    }
    read_at_most(file, UserData::MAX as u64)
}

/// What a path is, if it is no regular file.
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

/// Where a file stops being UTF-8.
pub(super) fn not_text(file: &Path, error: &std::string::FromUtf8Error) -> Problem {
    let bytes = error.as_bytes();
    let (good, bad) = bytes.split_at(error.utf8_error().valid_up_to());
    let text = String::from_utf8_lossy(good);
    let message = match bad.first() {
        Some(byte) => format!("it is not UTF-8 text: there is a byte {byte:#04x}"),
        None => "it is not UTF-8 text".to_owned(),
    };
    let hint = Some("TOML files are UTF-8; `iconv -f latin1 -t utf8` turns the most common other encoding into it".into());
    let line = good.iter().filter(|b| **b == b'\n').count() + 1;
    let column = text.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    Problem { line: Some(line), column: Some(column), ..Problem::of_file(file, message, hint) }
}
