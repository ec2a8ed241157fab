//! KVM, cgroups, QEMU, and the problems of single VMs.

use super::*;

#[test]
fn kvm_level_depends_on_accel() {
    let (tcg, auto, demand) = ("accel = \"tcg\"", "accel = \"auto\"", "accel = \"kvm\"");
    for (usable, offered, file, starts, ends) in [
        (Kvm::Missing, true, tcg, "note kvm: /dev/kvm is missing, but", "`modprobe kvm_intel`"),
        (Kvm::Missing, true, auto, "warning kvm: /dev/kvm is missing, but", "modprobe"),
        (Kvm::Missing, false, auto, "warning kvm: /dev/kvm is missing, and", "firmware setup"),
        (Kvm::Missing, false, demand, "error kvm: ", "firmware setup"),
        (Kvm::Denied, true, tcg, "note kvm: this user cannot open /dev/kvm", "the group"),
        (Kvm::Denied, true, auto, "warning kvm: this user cannot open /dev/kvm", "the group"),
        (Kvm::Denied, true, demand, "error kvm: this user cannot open /dev/kvm", "the group"),
        (Kvm::Unproven, true, tcg, "note kvm: /dev/kvm exists without", "find the creator"),
        (Kvm::Unproven, true, auto, "warning kvm: /dev/kvm exists without", "find the creator"),
        (Kvm::Unproven, true, demand, "warning kvm: /dev/kvm exists without", "find the creator"),
    ] {
        let mut seen = healthy(vec![vm("web", file)]);
        let usable = usable.clone();
        seen.kvm = KvmSeen { usable, only_root: true, module: None, nested: false, offered };
        let finding = one(&seen, "kvm", starts);
        let (_, todo) = finding.split_once(" | ").unwrap();
        assert!(todo.contains(ends), "{finding}");
        assert_eq!(finding.contains("`web`"), file == demand, "{finding}");
    }
    let mut seen = healthy(vec![]);
    seen.kvm.nested = true;
    assert!(one(&seen, "kvm", "ok ").ends_with("nested virtualization is on"));
    // Only root can open the device.
    let off = "accel = \"kvm\"\nisolation = \"off\"";
    for (file, bad) in [(auto, true), (demand, true), (tcg, false), (off, false)] {
        let mut seen = healthy(vec![vm("web", file)]);
        seen.kvm.only_root = true;
        let finding = one(&seen, "kvm", if bad { "error kvm: only root can open" } else { "ok" });
        assert!(!bad || finding.contains("`web` cannot start | run `chgrp kvm"), "{finding}");
    }
}

#[test]
fn cgroup_level_depends_on_weights() {
    let (plain, weighed) = (vm("db", ""), vm("web", "cpuWeight = 300\nioWeight = 50"));
    let v1 = || Err(weights::Error::Version1("/sys/fs/cgroup/cpu".into()));
    for (root, hybrid, vms, starts, has) in [
        (v1(), false, vec![plain.clone()], "note cgroup: the cpu controller belongs to", ""),
        (v1(), true, vec![weighed.clone()], "warning cgroup: the cpu", "(the \"hybrid\" layout)"),
        (
            Err(weights::Error::NotMounted),
            false,
            vec![weighed.clone()],
            "warning ",
            "of `web` have no",
        ),
        (
            Err(weights::Error::NotMounted),
            false,
            vec![plain.clone()],
            "note cgroup: cgroup v2 is not",
            "",
        ),
    ] {
        let mut seen = healthy(vms);
        (seen.cgroups.root, seen.cgroups.hybrid) = (root, hybrid);
        let finding = one(&seen, "cgroup", starts);
        assert!(finding.contains(has) && finding.contains(" | "), "{finding}");
        assert_eq!(finding.contains("hybrid"), hybrid, "{finding}");
    }
    let mut seen = healthy(vec![plain, weighed]);
    seen.cgroups.available = words(&["cpu", "memory"]);
    seen.cgroups.enabled = words(&["cpu"]);
    let findings = findings(&seen, "cgroup");
    assert_eq!(
        findings[0],
        "ok cgroup: version 2 at `/sys/fs/cgroup`; controllers enabled for \
         `/sys/fs/cgroup/qvm.slice`: cpu; enabled when a VM file requires them: memory"
    );
    let missing = "warning cgroup: there is no controller `io`: weights and limits of `web` \
                   have no effect | ";
    assert!(findings[1].starts_with(missing) && findings.len() == 2, "{findings:?}");
    seen.cgroups.available = words(&["cpu", "io"]);
    assert!(
        super::tests::findings(&seen, "cgroup")[1]
            .starts_with("note cgroup: there is no controller `memory` | ")
    );
}

#[test]
fn unusable_qemu_has_a_hint() {
    let mut seen = healthy(vec![]);
    seen.qemu = Err(complaint("it is QEMU 6.2.0,\nand qvm needs 7.2.0", Some("another")));
    seen.qemu_img = false;
    assert_eq!(
        findings(&seen, "qemu"),
        ["error qemu: it is QEMU 6.2.0, and qvm needs 7.2.0 | another"]
    );
    one(&seen, "qemu-img", "error qemu-img: not found");
}

#[test]
fn known_faults_by_qemu_version() {
    let sata = "[disk.data]\nsize = \"1G\"\nbus = \"sata\"";
    for (version, cves) in [
        ((7, 2, 0), "5088 3446"),
        ((7, 2, 6), "5088 3446"),
        ((7, 2, 7), "3446"),
        ((7, 2, 11), ""),
        ((7, 2, 22), ""),
        ((8, 0, 5), "5088 3446"),
        ((8, 1, 2), "5088 3446"),
        ((8, 1, 3), "3446"),
        ((8, 2, 0), "3446"),
        ((8, 2, 2), "3446"),
        ((8, 2, 3), ""),
        ((9, 0, 0), ""),
        ((10, 0, 2), ""),
    ] {
        let mut seen = healthy(vec![vm("web", ""), vm("win", sata)]);
        seen.qemu = qemu(version.0, version.1, version.2);
        let findings = findings(&seen, "qemu");
        let expected: Vec<&str> = cves.split_whitespace().collect();
        assert_eq!(findings.len(), 1 + expected.len(), "{version:?}: {findings:?}");
        for (finding, cve) in findings.iter().skip(1).zip(expected) {
            assert!(
                finding.starts_with("warning qemu: QEMU ") && finding.contains(cve),
                "{finding}"
            );
            let about = if cve == "5088" { "affects `win` |" } else { "affects `web` and `win` |" };
            assert!(finding.contains(about), "{finding}");
        }
    }
    let mut seen = healthy(vec![]);
    seen.qemu = qemu(7, 2, 0);
    assert_eq!(findings(&seen, "qemu").len(), 1, "no VM is affected");
}

#[test]
fn removed_and_deprecated_machine_types() {
    for (machine, starts) in [
        ("pc-q35-10.0", None),
        (
            "pc-q35-6.2",
            Some("note web: a later QEMU will not support its machine type `pc-q35-6.2` | "),
        ),
        ("pc-q35-2.4", Some("error web: QEMU 10.0.2 has removed its machine type `pc-q35-2.4` | ")),
        (
            "pc-q35-11.0",
            Some("error web: created with a later QEMU: QEMU 10.0.2 does not support "),
        ),
        ("pc-q35-rhel9.4.0", Some("error web: QEMU 10.0.2 has removed its machine type ")),
    ] {
        let mut seen = healthy(vec![with_identity(vm("web", ""), "u", machine, None)]);
        match starts {
            Some(starts) => {
                assert!(one(&seen, "web", starts).contains("replace it by `pc-q35-10.0` in"));
            }
            None => assert_eq!(findings(&seen, "web"), Vec::<String>::new()),
        }
        // Without a list of machine types there are no findings.
        if let Ok(qemu) = &mut seen.qemu {
            qemu.machines.clear();
        }
        assert_eq!(findings(&seen, "web"), Vec::<String>::new());
    }
}

#[test]
fn problems_of_single_vms() {
    let identity = Err(complaint("cannot read `identity.toml`", Some("from a backup")));
    let firmware = Err(complaint("no UEFI firmware", Some("install it")));
    let mut seen = healthy(vec![VmSeen { identity, firmware, ..vm("web", "") }]);
    assert_eq!(
        findings(&seen, "web"),
        [
            "error web: cannot read `identity.toml` | from a backup",
            "error web: no UEFI firmware | install it"
        ]
    );
    let mut problem = Problem::of_file(Path::new("/vms/db.toml"), "it is no number", None);
    (problem.line, problem.key) = (Some(3), Some("vcpu".into()));
    seen.problems = vec![
        problem,
        Problem::of_file(Path::new("/vms/X\n.toml"), "bad name", Some("rename it".into())),
    ];
    assert_eq!(findings(&seen, "db"), ["error db: vcpu: it is no number (/vms/db.toml:3)"]);
    assert_eq!(findings(&seen, "X "), ["error X : bad name (/vms/X .toml) | rename it"]);
    assert_eq!(findings(&seen, "VM files"), Vec::<String>::new());
}
