//! Faults of the host end a verb with 75: no descriptors, no space, a lock that is never released.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use qvm::value::ErrorCode;

use crate::lab::{Lab, guest};

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A start without systemd reports why its supervisor ended, even if the log cannot be written.
#[test]
fn start_with_full_directories_is_explained() {
    let Some(image) = guest("boot.qcow2") else { return };
    for full in ["s", "r"] {
        let mut lab = Lab::new();
        lab.vm("web", &image, "");
        let full = lab.path().join(full);
        let Some(mounts) = lab.mounts() else { return };
        mounts.tmpfs(&full, "size=256k");
        mounts.sh(&format!(
            "mkdir -p '{0}/vms/web' && touch '{0}/vms/web/supervisor.log'",
            full.display()
        ));
        lab.mounts.as_ref().unwrap().fill(&full, 0);
        for word in ["", "--no-wait"] {
            let words: Vec<&str> =
                ["start", word, "web"].into_iter().filter(|word| !word.is_empty()).collect();
            let output = lab.qvm(&words);
            if word.is_empty() {
                let refusal = lab.refusal(&output).is(ErrorCode::NoSpace, 75).clone();
                let section = format!("start-with-full-{}", full.file_name().unwrap().display());
                refusal.without_log().golden("cli", &section);
            }
        }
    }
}

/// Runs `qvm` with this limit of descriptors.
fn limited(lab: &Lab, limit: u32, arguments: &[&str]) -> Command {
    let within = lab.command(arguments);
    let mut command = Command::new("prlimit");
    command.arg(format!("--nofile={limit}:{limit}")).arg(within.get_program());
    command.args(within.get_args());
    for (key, value) in within.get_envs() {
        match value {
            Some(value) => command.env(key, value),
            None => command.env_remove(key),
        };
    }
    command.stdin(Stdio::null());
    command
}

/// Every file below a directory, with its size and times.
fn tree(dir: &Path, found: &mut BTreeMap<PathBuf, String>) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let meta = entry.path().symlink_metadata().unwrap();
        if meta.is_dir() {
            tree(&entry.path(), found);
        }
        // The supervisor of a running VM writes its console log and run record.
        let is_idle = !entry.path().components().any(|part| part.as_os_str() == "web");
        let size = if meta.is_file() && is_idle { meta.len() } else { 0 };
        found.insert(entry.path(), format!("{:?} {size}", meta.file_type()));
    }
}

#[test]
fn too_few_descriptors_are_a_host_fault() {
    let Some(image) = guest("boot-deaf.qcow2") else { return };
    let mut lab = Lab::new();
    for name in ["web", "idle"] {
        lab.vm(name, &image, "shutdownTimeoutSec = 3\n");
    }
    lab.run("web");
    lab.wait_state("web", "running");
    let look = || {
        let mut found = BTreeMap::new();
        for place in ["c", "s", "r"] {
            tree(&lab.path().join(place), &mut found);
        }
        found
    };
    // Once with all descriptors, so that the cache of QEMU's properties exists.
    let verbs = [
        "list",
        "list --json",
        "status",
        "status web",
        "status idle",
        "metrics",
        "doctor",
        "diff",
        "diff web",
        "check",
        "plan web",
        "ip web",
        "events",
        "events web",
        "log web",
        "image ls",
        "image prune --dry-run",
        "wait --for running web",
        "stop idle",
        "suspend idle",
        "apply idle",
    ];
    let usual = verbs.map(|verb| {
        let words: Vec<&str> = verb.split(' ').collect();
        (words.clone(), lab.qvm(&words).status.code())
    });
    let before = look();
    let mut wrong = vec![];
    for limit in 4..=24 {
        for (words, usual) in &usual {
            let output = limited(&lab, limit, words).output().unwrap();
            let code = output.status.code();
            let said = said(&output);
            // The dynamic loader needs descriptors before `main`.
            let is_loader = code == Some(127) && said.contains("libraries:");
            let is_right = code == Some(75) || code == *usual || is_loader;
            if !is_right || said.contains("panicked") {
                wrong.push(format!("{limit}: qvm {words:?}: {code:?}, usually {usual:?}: {said}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(look(), before);
    assert_eq!(lab.status("web")["state"], "running");
    lab.ok(&["kill", "web"]);
}

/// The lock of all identities times out after 30 s, for every verb in parallel.
#[test]
fn held_identity_lock_is_a_host_fault() {
    let Some(image) = guest("boot-poweroff.qcow2") else { return };
    let mut lab = Lab::new();
    for name in ["cloned", "renamed", "exported", "reseeded"] {
        let is_seeded = ["renamed", "reseeded"].contains(&name);
        let more = if is_seeded { "[cloudInit]\nuser = \"op\"\n" } else { "" };
        lab.vm(name, &image, "");
        let text = fs::read_to_string(lab.file(name)).unwrap();
        fs::write(lab.file(name), text + more).unwrap();
        let one = lab.run(name);
        assert_eq!(lab.exit_code(one), Some(0), "{}", lab.log(name));
    }
    let archive = lab.path().join("archive");
    let archive = archive.to_str().unwrap();
    lab.ok(&["export", "exported", archive]);
    lab.vm("new", &image, "");
    let lock = fs::File::create(lab.path().join("s/uids.lock")).unwrap();
    fs2::FileExt::lock_exclusive(&lock).unwrap();
    let verbs: [&[&str]; 5] = [
        &["clone", "cloned", "copy"],
        &["rename", "renamed", "www"],
        &["import", archive, "--name", "other", "--new-identity"],
        &["reseed", "reseeded"],
        &["start", "new"],
    ];
    let begun = verbs.map(|words| {
        let mut command = lab.command(words);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        (words, command.spawn().unwrap())
    });
    let ended = begun.map(|(words, child)| (words, child.wait_with_output().unwrap()));
    for (words, output) in ended {
        let refusal = lab.refusal(&output).is(ErrorCode::IdentityLocked, 75).clone();
        let section = format!("{}-with-held-identity-lock", words[0]);
        refusal.without_log().golden("cli", &section);
    }
    for name in ["copy", "www", "other"] {
        assert!(!lab.file(name).exists() && !lab.state(name, "").exists(), "{name}");
    }
}
