//! Any bytes in the files that qvm keeps of a VM, which a bad disk or a crash may have changed: no panic, no memory without a bound, and what
//! is read and written again reads the same.

use std::fs;

use qvm::{
    control::types::End,
    store::{
        identity::Identity,
        identity_store,
        layout::{Layout, VmPaths},
        record::{self, Record},
        saved_header::{PREFIX, Saved},
        saved_state,
    },
    value::Explain,
};

/// The first byte chooses the file; the rest is what is in it.
pub fn check(bytes: &[u8]) {
    let Some((&choice, content)) = bytes.split_first() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let [config, state, runtime] = ["c", "s", "r"].map(|place| dir.path().join(place));
    let paths = Layout { config, state, runtime }.vm(&"web".parse().expect("a name"));
    for dir in [&paths.state, &paths.runtime] {
        fs::create_dir_all(dir).expect("a directory");
    }
    match choice % 4 {
        0 => a_record(&paths, content),
        1 => ends(&paths, content),
        2 => an_identity(&paths, content),
        _ => a_state(&paths, content),
    }
}

fn a_record(paths: &VmPaths, content: &[u8]) {
    fs::write(paths.record(), content).expect("a file");
    let Ok(Some(record)) = Record::read(paths) else { return };
    record.write(paths, "mem = \"1G\"\n").expect("a file");
    assert!(matches!(Record::read(paths), Ok(Some(again)) if again == record));
    Record::remove(paths);
    assert!(matches!(Record::read(paths), Ok(None)));
}

fn ends(paths: &VmPaths, content: &[u8]) {
    fs::write(paths.ends(), content).expect("a file");
    let found = record::ends(paths);
    let Some(newest) = found.first().cloned() else { return };
    let kept = record::keep(paths, newest.clone()).expect("a file");
    assert!(kept.len() <= record::ENDS && kept.first() == Some(&newest), "{kept:?}");
    // What the console said is found by the time of its end, which two may have in a file that is not ours.
    let quiet = |all: Vec<End>| -> Vec<End> {
        all.into_iter().map(|end| End { console: vec![], ..end }).collect()
    };
    assert_eq!(quiet(record::ends(paths)), quiet(kept));
}

fn an_identity(paths: &VmPaths, content: &[u8]) {
    fs::write(paths.identity(), content).expect("a file");
    let identity: Identity = match identity_store::read(paths) {
        Ok(Some(identity)) => identity,
        Ok(None) => panic!("it is there"),
        Err(error) => {
            let failure = qvm::cli::exit::Failure::from_error(&error).hint(error.hint());
            return super::is_tame(&failure.shown(qvm::cli::table::Screen::default()));
        }
    };
    // It becomes a part of QEMU's command line.
    assert_eq!(identity.flaw(), None);
    identity_store::write(paths, &identity).expect("a file");
    assert_eq!(identity_store::read(paths).expect("an identity"), Some(identity));
}

fn a_state(paths: &VmPaths, content: &[u8]) {
    fs::write(paths.saved(), content).expect("a file");
    let (head, mut rest) = match saved_state::open(&paths.saved()) {
        Ok(found) => found.expect("it is there"),
        Err(error) => return super::is_tame(&qvm::value::plain(&qvm::value::chain(&error))),
    };
    let mut memory = Vec::new();
    std::io::Read::read_to_end(&mut rest, &mut memory).expect("a file");
    assert!(content.ends_with(&memory), "QEMU's bytes are others");
    let again = head.head();
    let length = Saved::length(&again[..PREFIX]).expect("a head");
    assert_eq!(length, again.len() - PREFIX);
    assert_eq!(Saved::parse(&again[PREFIX..]), Ok(head));
}
