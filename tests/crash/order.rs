//! The order of writes that a power failure must not change: a file is synced before its rename,
//! and the rename afterward.

use std::path::Path;

use super::trace::Call;

/// By prefix or suffix: these files must be complete or unchanged after a power failure.
const LASTING: [&str; 7] = [
    "identity.toml",
    ".origin.json",
    ".qcow2",
    ".raw",
    "saved.state",
    "efivars.fd",
    "snapshots.toml",
];
/// The same holds for all files in this directory: the records of snapshots.
const RECORDS: &str = "/snapshots/";
/// The beginning of the image cache's origin file.
const NOTES: [&str; 3] = ["sha256-", "sha512-", "unverified-"];
/// These files may be lost at a power failure: they belong to the boot, are created again, or only
/// record the past.
const PASSING: [&str; 8] = [
    "record.json",
    "booted.toml",
    "reloaded.toml",
    "ends.json",
    "last-words.json",
    "qemu.json",
    "seed.iso",
    "console.log.times",
];

/// The directory of memory reservations, which belong to the boot too.
const RESERVED: &str = "/.memory/";

fn name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Returns the problems of the order of these calls.
pub(crate) fn wrong(calls: &[Call]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (at, call) in calls.iter().enumerate() {
        if !call.name.starts_with("rename") && !call.name.starts_with("link") {
            continue;
        }
        let [from, to] = &call.files[..] else { continue };
        // The content of a directory that is removed as a whole does not matter.
        let goes = name(to).starts_with(".qvm-");
        let lasts = LASTING.iter().any(|end| to.ends_with(end))
            || to.contains(RECORDS)
            || NOTES.iter().any(|begin| name(to).starts_with(begin));
        if !lasts && !goes {
            if !PASSING.contains(&name(to)) && !to.contains(RESERVED) {
                wrong.push(format!("{call}: neither a durable nor a temporary file"));
            }
            continue;
        }
        let touches = |call: &Call| {
            let changes = !["fsync", "fdatasync", "flock"].contains(&call.name);
            changes && call.files.iter().any(|file| file == from)
        };
        let written = calls[..at].iter().rposition(touches);
        let synced =
            calls[..at].iter().rposition(|c| c.name == "fsync" && c.files == [from.clone()]);
        // The mode may be set in between: only the content must be synced.
        let written = written.filter(|at| !calls[*at].name.contains("chmod"));
        if !goes && (synced.is_none() || synced < written) {
            wrong.push(format!("{call}: not synced before"));
        }
        let dir = Path::new(to).parent().unwrap().to_string_lossy().into_owned();
        let named = calls[at..].iter().any(|c| c.name == "fsync" && c.files == [dir.clone()]);
        if !named {
            wrong.push(format!("{call}: its directory is not synced after"));
        }
    }
    wrong
}

#[test]
fn wrong_write_order_is_detected() {
    let call =
        |name, files: &[&str]| Call { name, files: files.iter().map(|f| (*f).into()).collect() };
    let (from, to) = ("/s/.qvm-identity.toml", "/s/identity.toml");
    let write = call("write", &[from]);
    let sync = call("fsync", &[from]);
    let rename = call("rename", &[from, to]);
    let dir = call("fsync", &["/s"]);
    let all = |calls: &[&Call]| wrong(&calls.iter().map(|c| (*c).clone()).collect::<Vec<_>>());
    assert!(all(&[&write, &sync, &rename, &dir]).is_empty());
    assert_eq!(all(&[&sync, &write, &rename, &dir]).len(), 1);
    assert_eq!(all(&[&write, &rename, &sync, &dir]).len(), 1);
    assert_eq!(all(&[&write, &sync, &dir, &rename]).len(), 1);
    assert_eq!(all(&[&call("rename", &["/s/x", "/s/y"])]).len(), 1);
}
