//! The NixOS module, evaluated by Nix with a stand-in for nixpkgs (tests/nix/), and with the real
//! one if QVM_NIXPKGS is set.

mod install;
mod nixpkgs;
mod options;
mod units;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Whether a test without `what` must fail instead of being skipped.
fn required(what: &str) -> bool {
    std::env::var("QVM_TEST_REQUIRE").is_ok_and(|all| all.split(',').any(|word| word == what))
}

/// Runs nix-instantiate with a separate store, which is never written; `None` if Nix is not
/// installed.
fn nix(arguments: &[&str]) -> Option<Output> {
    let _timed = crate::lab::timed::Timed::new();
    let own = tempfile::tempdir().unwrap();
    let mut nix = Command::new("nix-instantiate");
    nix.args(arguments).current_dir(root()).stdin(Stdio::null()).env("HOME", own.path());
    for (key, place) in
        [("NIX_STORE_DIR", "store"), ("NIX_STATE_DIR", "state"), ("NIX_LOG_DIR", "log")]
    {
        nix.env(key, own.path().join(place));
    }
    let output = nix.env("NIX_REMOTE", "dummy://").env("NIX_PATH", "").output();
    if output.is_err() {
        assert!(!required("nix"), "nix-instantiate is missing");
        println!("skipped: no nix-instantiate");
    }
    output.ok()
}

/// The value of a file as JSON, or the error message; `None` if Nix is not installed.
fn evaluate(file: &str, arguments: &[&str]) -> Option<Result<Value, String>> {
    let output = nix(&[&["--eval", "--strict", "--json"], arguments, &[file]].concat())?;
    Some(match output.status.success() {
        true => Ok(serde_json::from_slice(&output.stdout).unwrap()),
        false => Err(String::from_utf8(output.stderr).unwrap()),
    })
}

/// A value as a Nix expression.
fn expression(value: &Value) -> String {
    let text = serde_json::to_string(&value.to_string()).unwrap().replace("${", "\\${");
    format!("builtins.fromJSON {text}")
}

/// The output of the module for these VMs, with the stand-in.
fn configure(vms: &Value) -> Option<Result<Value, String>> {
    evaluate("tests/nix/eval.nix", &["--arg", "vms", &expression(vms)])
}

/// Every Nix file of the project.
fn nix_files(directories: &[&str]) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut directories: Vec<PathBuf> = directories.iter().map(|name| root().join(name)).collect();
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "nix") {
                files.push(path);
            }
        }
    }
    files
}

#[test]
fn every_file_is_nix() {
    let mut files = nix_files(&["nix", "tests/nix"]);
    files.push(root().join("flake.nix"));
    assert!(files.len() > 10);
    let own = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(root().join("docs/nixos.md")).unwrap();
    for (nr, block) in text.split("```nix\n").skip(1).enumerate() {
        let file = own.path().join(format!("{nr}.nix"));
        fs::write(&file, block.split("```").next().unwrap()).unwrap();
        files.push(file);
    }
    for file in files {
        let Some(output) = nix(&["--parse", file.to_str().unwrap()]) else { return };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// The names below `prefix` that a text uses, such as `types.str` of `lib.types.str`.
fn names_below(prefix: &str, text: &str) -> Vec<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "_'.".contains(c);
    let mut names = Vec::new();
    for (at, _) in text.match_indices(prefix) {
        if !text[..at].ends_with(|c: char| is_part(c) || c == '/') {
            let rest = &text[at + prefix.len()..];
            let name = &rest[..rest.find(|c| !is_part(c)).unwrap_or(rest.len())];
            names.push(name.trim_end_matches('.').to_owned());
        }
    }
    names
}

/// An evaluation does not reach every branch; this finds a name that neither nixpkgs nor the
/// stand-in has.
#[test]
fn every_library_function_exists() {
    // Not in the stand-in: nix/types.nix has a fallback for the first, and only the NixOS test
    // uses the second.
    let listed = ["types.externalPath", "mkForce"];
    let mut used = Vec::new();
    for file in nix_files(&["nix"]) {
        let text = fs::read_to_string(file).unwrap();
        let code: String = text
            .lines()
            .filter(|line| !line.trim_start().starts_with('#'))
            .collect::<Vec<_>>()
            .join("\n");
        used.extend(names_below("lib.", &code));
        used.extend(names_below("types.", &code).into_iter().map(|name| format!("types.{name}")));
    }
    used.sort();
    used.dedup();
    assert!(used.len() > 30, "{used:?}");
    let missing = |library: &str| {
        let has: Vec<String> =
            used.iter().map(|name| format!("{{ n = \"{name}\"; v = lib ? {name}; }}")).collect();
        let text = format!(
            "let lib = {library}; in map (one: one.n) (builtins.filter (one: !one.v) [ {} ])",
            has.join(" ")
        );
        let output = nix(&["--eval", "--strict", "--json", "--expr", &text])?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Some(serde_json::from_slice::<Vec<String>>(&output.stdout).unwrap())
    };
    let Some(mut names) = missing(&format!("import {}/tests/nix/lib.nix", root().display())) else {
        return;
    };
    names.retain(|name| !listed.contains(&name.as_str()));
    assert_eq!(names, [""; 0], "not in tests/nix/lib.nix");
    if let Some(nixpkgs) = nixpkgs::path() {
        assert_eq!(missing(&format!("import {nixpkgs}/lib")).unwrap(), [""; 0], "not in nixpkgs");
    }
}
