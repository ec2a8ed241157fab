//! The command line of a supervisor, recognized without clap.
//!
//! clap builds the tree of all verbs first, which takes a tenth of the time that a start needs.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
};

use super::{
    args::{Cli, GENERATOR},
    dirs::Dirs,
    verb,
    verbs::Verb,
};

/// Recognizes `qvm run NAME`, with or without options for the directories. `None` for every other
/// command line: clap parses it, or refuses it.
pub fn recognize_run(arguments: &[OsString]) -> Option<Cli> {
    let (program, words) = arguments.split_first()?;
    if Path::new(program).file_name() == Some(OsStr::new(GENERATOR)) {
        return None;
    }
    let mut words = words.iter().map(|word| word.to_str());
    let mut dirs = Dirs::default();
    let (mut is_run, mut name) = (false, None);
    while let Some(word) = words.next() {
        let word = word?;
        if let Some(option) = word.strip_prefix("--") {
            let (option, value) = match option.split_once('=') {
                Some((option, value)) => (option, value),
                None => (option, words.next()??),
            };
            let dir = match option {
                "config-dir" => &mut dirs.config_dir,
                "state-dir" => &mut dirs.state_dir,
                "runtime-dir" => &mut dirs.runtime_dir,
                _ => return None,
            };
            // clap has other rules for these.
            if dir.is_some() || value.is_empty() || value.starts_with('-') {
                return None;
            }
            *dir = Some(PathBuf::from(value));
        } else if !is_run {
            is_run = word == "run";
            if !is_run {
                return None;
            }
        } else if name.is_none() {
            // A valid name does not start with `-`.
            name = Some(word.parse().ok()?);
        } else {
            return None;
        }
    }
    let verb = Verb::Run(verb::run::Args { name: name? });
    Some(Cli { dirs, verbose: 0, quiet: false, verb })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    fn name_of(cli: &Cli) -> Option<&str> {
        match &cli.verb {
            Verb::Run(args) => Some(args.name.as_str()),
            _ => None,
        }
    }

    #[test]
    fn recognized_lines_equal_clap() {
        for line in [
            "qvm run web",
            "/usr/bin/qvm run web-1",
            "qvm --config-dir /c run web",
            "qvm run --state-dir /s web",
            "qvm run web --runtime-dir=/r",
            "qvm --config-dir=c --state-dir s run web --runtime-dir /r",
            "qvm --config-dir run run run",
            "qvm --config-dir=a=b run web",
        ] {
            let recognized = recognize_run(&words(line)).unwrap();
            let parsed = Cli::try_parse_from(words(line)).unwrap();
            assert_eq!(recognized.dirs, parsed.dirs, "{line}");
            assert_eq!((recognized.verbose, recognized.quiet), (parsed.verbose, parsed.quiet));
            assert_eq!(name_of(&recognized).unwrap(), name_of(&parsed).unwrap(), "{line}");
        }
    }

    #[test]
    fn other_lines_are_left_to_clap() {
        for line in [
            "qvm",
            "qvm run",
            "qvm run web db",
            "qvm run Web",
            "qvm run -- web",
            "qvm run web --",
            "qvm -v run web",
            "qvm run web -q",
            "qvm run --help",
            "qvm --version",
            "qvm run web --config-dir",
            "qvm run --config-dir= web",
            "qvm run --config-dir --state-dir web",
            "qvm run --config-dir /a --config-dir /b web",
            "qvm run --config /a web",
            "qvm start web",
            "qvm runs web",
            "qvm web run",
            "qvm-generator run web",
        ] {
            assert!(recognize_run(&words(line)).is_none(), "{line}");
        }
        let invalid = std::os::unix::ffi::OsStringExt::from_vec(vec![0xff]);
        assert!(recognize_run(&["qvm".into(), "run".into(), invalid]).is_none());
        assert!(recognize_run(&[]).is_none());
    }
}
