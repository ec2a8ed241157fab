//! Every broken VM file is refused with exactly the message that stands beside it.
//! `QVM_BLESS=1 cargo test --test check` writes the messages anew; read the difference before committing it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use qvm::spec;

fn bad() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bad")
}

/// The files in a directory with this suffix, by name.
fn files(dir: &Path, suffix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        entries.filter(|file| file.to_string_lossy().ends_with(suffix)).collect();
    files.sort();
    files
}

/// What differs between two texts, line by line.
fn difference(want: &str, got: &str) -> String {
    let (mut want, mut got) = (want.lines(), got.lines());
    let mut out = String::new();
    loop {
        match (want.next(), got.next()) {
            (None, None) => return out,
            (want, got) if want == got => {}
            (want, got) => {
                out.extend(want.map(|line| format!("-{line}\n")));
                out.extend(got.map(|line| format!("+{line}\n")));
            }
        }
    }
}

#[test]
fn every_bad_file_has_exactly_its_message() {
    let files = files(&bad(), ".toml");
    assert!(files.len() >= 45, "only {} files in tests/bad", files.len());
    let mut wrong = String::new();
    for file in files {
        let Err(invalid) = spec::load(&file) else {
            wrong.push_str(&format!("{}: was taken\n", file.display()));
            continue;
        };
        let here = format!("{}/", bad().display());
        let got = format!("{invalid}\n").replace(&here, "");
        let beside = file.with_extension("stderr");
        if std::env::var_os("QVM_BLESS").is_some() {
            fs::write(&beside, &got).unwrap();
        }
        let want = fs::read_to_string(&beside).unwrap_or_default();
        if want != got {
            wrong.push_str(&format!("{}:\n{}", beside.display(), difference(&want, &got)));
        }
    }
    assert!(wrong.is_empty(), "QVM_BLESS=1 writes these messages anew:\n{wrong}");
}
