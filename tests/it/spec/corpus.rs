//! The checks of the fuzz targets on earlier findings and real inputs (`fuzz/corpus`), with a
//! stable compiler.
#[path = "../../../fuzz/checks/mod.rs"]
mod checks;

use std::{
    collections::BTreeSet,
    fs, panic,
    path::{Path, PathBuf},
    sync::Mutex,
};

/// The panics, including those of threads and tasks that are not joined.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// The maximum number of inputs of a target: every test runs them, and people read them.
const MOST_FILES: usize = 100;
const MOST_BYTES: u64 = 200 << 10;

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn corpus_passes_its_checks() {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |about| {
        PANICS.lock().unwrap().push(about.to_string());
        before(about);
    }));
    let mut broken = vec![];
    for (target, check) in checks::ALL {
        let mut inputs = files(&repository().join("fuzz/corpus").join(target));
        assert!(!inputs.is_empty(), "nothing for {target}");
        if target == "vm_file" {
            inputs.extend(files(&repository().join("examples")));
            inputs.extend(files(&repository().join("tests/bad")));
        }
        let files = inputs.iter().filter(|input| input.is_file());
        let files = files.map(|input| (input.display().to_string(), fs::read(input).unwrap()));
        for (input, bytes) in files.chain([(format!("{target}: nothing"), vec![])]) {
            let held = panic::catch_unwind(|| check(&bytes));
            let panics = std::mem::take(&mut *PANICS.lock().unwrap());
            if held.is_err() || !panics.is_empty() {
                broken.push(format!("{input}: {panics:?}"));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_target_has_a_check_and_a_small_corpus() {
    let checks: BTreeSet<&str> = checks::ALL.iter().map(|(name, _)| *name).collect();
    let names = |dir: &str, end: &str| -> BTreeSet<String> {
        let files = files(&repository().join(dir));
        let name = |file: &PathBuf| file.file_name().unwrap().to_str().unwrap().to_owned();
        files.iter().map(name).map(|name| name.trim_end_matches(end).to_owned()).collect()
    };
    let targets = names("fuzz/fuzz_targets", ".rs");
    assert!(targets.iter().map(String::as_str).eq(checks.iter().copied()), "{targets:?}");
    assert_eq!(targets, names("fuzz/corpus", "/"));
    let manifest = fs::read_to_string(repository().join("fuzz/Cargo.toml")).unwrap();
    for target in &targets {
        assert!(manifest.contains(&format!("name = \"{target}\"")), "{target} is not built");
        let files = files(&repository().join("fuzz/corpus").join(target));
        let bytes: u64 = files.iter().map(|file| file.metadata().unwrap().len()).sum();
        let few = files.len() <= MOST_FILES && bytes <= MOST_BYTES;
        assert!(few, "{target}: {} files, {bytes} bytes", files.len());
    }
}
