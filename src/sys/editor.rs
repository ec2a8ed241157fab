//! Runs the operator's editor on the terminal.

use std::{
    ffi::OsStr,
    io,
    path::Path,
    process::{Command, ExitStatus},
};

/// Opens `file` in `editor` and waits for its exit. A shell interprets `editor`, so it may contain
/// options, as in `$EDITOR`.
///
/// # Errors
/// The shell cannot be started.
pub fn edit(editor: &OsStr, file: &Path) -> io::Result<ExitStatus> {
    let mut command = editor.to_owned();
    command.push(" \"$1\"");
    Command::new("sh").arg("-c").arg(command).arg("sh").arg(file).status()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn editor_options_and_file_are_separate() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a b.toml");
        std::fs::write(&file, "x = 1\n").unwrap();
        assert!(edit("sed -i -e 's/1/2/'".as_ref(), &file).unwrap().success());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "x = 2\n");
        assert_eq!(edit("exit 3;".as_ref(), &file).unwrap().code(), Some(3));
        assert_eq!(edit("no-such-editor 2>&-".as_ref(), &file).unwrap().code(), Some(127));
    }
}
