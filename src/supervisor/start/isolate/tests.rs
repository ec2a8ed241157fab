//! The sandbox that a VM file asks for, and the files that QEMU gets.

use std::{fs, io::Write, os::fd::AsFd};

use super::*;
use crate::{
    supervisor::{
        start::prepare,
        tests::{Host, prepared_vm, qemu_program},
    },
    sys::progress::Cancel,
};

/// Prepares a VM on a host without KVM.
fn prepared(host: &Host, text: &str) -> (Settings, Prepared) {
    let mut settings = host.ctx.settings().clone();
    settings.qemu = Some(qemu_program(host.dir.path(), "").into());
    let vm = prepared_vm(host.dir.path(), text);
    let prepared = prepare::prepare(&settings, vm, &Cancel::default(), &|_| ()).unwrap();
    (settings, prepared)
}

fn plan(text: &str) -> Result<Plan, Error> {
    let host = Host::new();
    let (settings, prepared) = prepared(&host, text);
    Plan::of(&settings, &prepared, false)
}

fn layers(missing: &[Missing]) -> Vec<&'static str> {
    missing.iter().map(|one| one.layer.word()).collect()
}

fn handed(path: &Path, write: bool) -> PassedFile {
    let access = Access { write, direct: false };
    PassedFile { set: 40, path: path.to_owned(), access, node: "node-data".into() }
}

#[test]
fn isolation_can_be_off() {
    let plan = plan("isolation = \"off\"\n").unwrap();
    assert!(plan.cell.is_none() && plan.missing.is_empty());
    assert!(!plan.sandbox());
    assert_eq!(plan.uid(), None);
}

#[test]
fn user_network_keeps_qemu_in_the_hosts() {
    let plan = plan("[nic.net]\n").unwrap();
    // A user's supervisor cannot give QEMU another user.
    assert_eq!(layers(&plan.missing), ["network", "uid"]);
    assert!(plan.missing[0].why.contains("`net`"), "{:?}", plan.missing);
    let cell = plan.cell.as_ref().unwrap();
    assert!(!cell.network && cell.domain.as_ref().unwrap().tcp);
    assert!(cell.capabilities && cell.no_new_privileges && cell.filter && !cell.strict);
    assert!(plan.sandbox());
}

#[test]
fn bridged_vm_has_an_empty_network() {
    let host = Host::new();
    let (settings, prepared) = prepared(&host, "[nic.net]\nbridge = \"br0\"\n");
    let plan = Plan::of(&settings, &prepared, false).unwrap();
    assert_eq!(layers(&plan.missing), ["uid"]);
    let cell = plan.cell.unwrap();
    assert!(cell.network && !cell.domain.unwrap().tcp);
    // In the unit's own empty network it has one already.
    let plan = Plan::of(&settings, &prepared, true).unwrap();
    assert!(!plan.cell.unwrap().network);
}

#[test]
fn strict_isolation_refuses_what_is_missing() {
    let error = plan("isolation = \"strict\"\n[nic.net]\nbridge = \"br0\"\n").err().unwrap();
    let Error::Strict { at, lacks } = &error else { panic!("{error:?}") };
    assert!(at.contains("web.toml:"), "{at}");
    assert!(lacks.starts_with("no uid: "), "{lacks}");
}

#[test]
fn qemu_without_seccomp_gets_no_option() {
    let host = Host::new();
    let (settings, mut prepared) = prepared(&host, "[nic.net]\nbridge = \"br0\"\n");
    prepared.facts.qemu.sandbox = false;
    let plan = Plan::of(&settings, &prepared, false).unwrap();
    assert_eq!(layers(&plan.missing), ["uid", "seccomp"]);
    assert!(!plan.sandbox());
}

#[test]
fn kvm_is_opened_by_qemu() {
    let host = Host::new();
    let (settings, mut prepared) = prepared(&host, "");
    assert_eq!(Plan::of(&settings, &prepared, false).unwrap().cell.unwrap().device, None);
    prepared.accel = Accelerator::Kvm;
    let device = Plan::of(&settings, &prepared, false).unwrap().cell.unwrap().device;
    assert_eq!(device, Some(settings.root.join("dev/kvm")));
}

#[test]
fn user_is_that_of_the_identity_on_a_system() {
    let host = Host::new();
    let (mut settings, mut prepared) = prepared(&host, "");
    prepared.identity.uid = Some(64_999);
    assert_eq!(Plan::of(&settings, &prepared, false).unwrap().uid(), None);
    settings.scope = Scope::System;
    assert_eq!(Plan::of(&settings, &prepared, false).unwrap().uid(), Some(64_999));
}

#[test]
fn script_around_qemu_may_execute_programs() {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("qemu");
    let may_execute = |cell: Cell, path: &Path| {
        let open_to = cell.domain.unwrap().open_to;
        open_to.iter().any(|(open, right)| open == path && *right == Right::Execute)
    };
    fs::write(&script, "#!/bin/sh\n").unwrap();
    let bin = Path::new("/usr/bin");
    assert!(may_execute(cell(&script, None, None, None), bin));
    assert!(may_execute(cell(&script, None, None, None), &dir.path().canonicalize().unwrap()));
    fs::write(&script, "\x7fELF").unwrap();
    assert!(!may_execute(cell(&script, None, None, None), bin));
}

#[test]
fn files_are_opened_as_qemu_compares_them() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("data.raw");
    fs::write(&file, "x").unwrap();
    for write in [false, true] {
        let mut opened = open(&[handed(&file, write)]).unwrap();
        let (fd, set) = opened.remove(0);
        assert_eq!(set, 40);
        let flags = rustix::fs::fcntl_getfl(fd.as_fd()).unwrap();
        assert_eq!(flags.contains(OFlags::RDWR), write);
        assert_eq!(fs::File::from(fd).write_all(b"y").is_ok(), write);
    }
    let missing = dir.path().join("missing.raw");
    let error = open(&[handed(&file, false), handed(&missing, false)]).unwrap_err();
    assert!(matches!(&error, Error::Open { path, .. } if *path == missing), "{error:?}");
}

#[test]
fn qemus_user_owns_what_it_writes() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    fs::create_dir(&state).unwrap();
    let [own, read_only] = ["own", "read-only"].map(|name| state.join(name));
    let foreign = dir.path().join("foreign");
    for file in [&own, &read_only, &foreign] {
        fs::write(file, "").unwrap();
    }
    let files = [handed(&own, true), handed(&read_only, false), handed(&foreign, true)];
    let owners = || [&own, &read_only, &foreign].map(|file| fs::metadata(file).unwrap().uid());
    give_to_user(&files, &state, None);
    assert_eq!(owners(), [0, 0, 0]);
    give_to_user(&files, &state, Some(64_999));
    assert_eq!(owners(), [64_999, 0, 0]);
}

#[test]
fn program_outside_a_cell_is_started() {
    let plan = plan("isolation = \"off\"\n").unwrap();
    let mut known = None;
    let tell = |pid| -> Result<(), Error> {
        known = Some(pid);
        Ok(())
    };
    let (pid, isolation) = plan.spawn(Path::new("true"), &[], vec![], tell).unwrap();
    assert_eq!(known, Some(pid));
    assert!(spawn::wait(pid));
    assert_eq!(isolation.uid, None);
}

#[test]
fn program_in_a_cell_reports_its_layers() {
    let plan = plan("[nic.net]\n").unwrap();
    let tell = |_| -> Result<(), Error> { Ok(()) };
    let (pid, isolation) = plan.spawn(Path::new("/bin/true"), &[], vec![], tell).unwrap();
    spawn::wait(pid);
    let missing: Vec<&str> = isolation.missing.iter().map(|one| one.layer.word()).collect();
    assert!(missing.starts_with(&["network", "uid"]), "{missing:?}");
}

#[test]
fn program_that_cannot_be_executed_is_named() {
    let plan = plan("isolation = \"off\"\n").unwrap();
    let tell = |_| -> Result<(), Error> { Ok(()) };
    let error = plan.spawn(Path::new("/nowhere/qemu"), &[], vec![], tell).unwrap_err();
    assert!(error.to_string().contains("/nowhere/qemu"), "{error}");
}

#[test]
fn file_without_o_direct_has_a_hint() {
    let access = Access { write: false, direct: true };
    let (path, node) = (PathBuf::from("/proc/version"), "node-root".to_owned());
    let error = open(&[PassedFile { set: 40, path, access, node }]).unwrap_err();
    assert!(error.hint().unwrap().contains("\"writeback\""), "{error:?}");
}
