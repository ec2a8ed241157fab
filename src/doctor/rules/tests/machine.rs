//! KVM, cgroups, QEMU, and what is wrong with one VM.

use super::*;

#[test]
fn kvm_is_as_bad_as_the_vms_need_it() {
    let (tcg, auto, demand) = ("accel = \"tcg\"", "accel = \"auto\"", "accel = \"kvm\"");
    for (usable, offered, file, starts, ends) in [
        (Kvm::Missing, true, tcg, "note kvm: there is no /dev/kvm, though", "`modprobe kvm_intel`"),
        (Kvm::Missing, true, auto, "warning kvm: there is no /dev/kvm, though", "modprobe"),
        (Kvm::Missing, false, auto, "warning kvm: there is no /dev/kvm, and", "firmware setup"),
        (Kvm::Missing, false, demand, "error kvm: ", "firmware setup"),
        (Kvm::Denied, true, tcg, "note kvm: /dev/kvm may not be opened", "the group"),
        (Kvm::Denied, true, auto, "warning kvm: /dev/kvm may not be opened", "the group"),
        (Kvm::Denied, true, demand, "error kvm: /dev/kvm may not be opened", "the group"),
        (Kvm::Unproven, true, tcg, "note kvm: /dev/kvm is there without", "TCG is meant"),
        (Kvm::Unproven, true, auto, "warning kvm: /dev/kvm is there without", "TCG is meant"),
        (Kvm::Unproven, true, demand, "warning kvm: /dev/kvm is there without", "TCG is meant"),
    ] {
        let mut seen = well(vec![vm("web", file)]);
        let usable = usable.clone();
        seen.kvm = KvmSeen { usable, roots_alone: true, module: None, nested: false, offered };
        let said = one(&seen, "kvm", starts);
        let (_, todo) = said.split_once(" | ").unwrap();
        assert!(todo.contains(ends), "{said}");
        assert_eq!(said.contains("`web`"), file == demand, "{said}");
    }
    let mut seen = well(vec![]);
    seen.kvm.nested = true;
    assert!(one(&seen, "kvm", "ok ").ends_with("guests may be hypervisors themselves"));
    // Whom root alone may open it to.
    let off = "accel = \"kvm\"\nisolation = \"off\"";
    for (file, bad) in [(auto, true), (demand, true), (tcg, false), (off, false)] {
        let mut seen = well(vec![vm("web", file)]);
        seen.kvm.roots_alone = true;
        let said =
            one(&seen, "kvm", if bad { "error kvm: /dev/kvm is open to root" } else { "ok" });
        assert!(!bad || said.contains("`web` will not start | `chgrp kvm"), "{said}");
    }
}

#[test]
fn cgroups_matter_to_vms_that_have_weights() {
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
        let mut seen = well(vms);
        (seen.cgroups.root, seen.cgroups.hybrid) = (root, hybrid);
        let said = one(&seen, "cgroup", starts);
        assert!(said.contains(has) && said.contains(" | "), "{said}");
        assert_eq!(said.contains("hybrid"), hybrid, "{said}");
    }
    let mut seen = well(vec![plain, weighed]);
    seen.cgroups.available = words(&["cpu", "memory"]);
    seen.cgroups.enabled = words(&["cpu"]);
    let told = told(&seen, "cgroup");
    assert_eq!(
        told[0],
        "ok cgroup: version 2 at `/sys/fs/cgroup`; controllers enabled for `/sys/fs/cgroup/qvm.slice`: cpu; to be had when a \
         VM file asks for them: memory"
    );
    let missing = "warning cgroup: there is no controller `io`: weights and limits of `web` have no effect | ";
    assert!(told[1].starts_with(missing) && told.len() == 2, "{told:?}");
    seen.cgroups.available = words(&["cpu", "io"]);
    assert!(
        super::tests::told(&seen, "cgroup")[1]
            .starts_with("note cgroup: there is no controller `memory` | ")
    );
}

#[test]
fn a_qemu_that_cannot_be_used_is_told_with_its_way_out() {
    let mut seen = well(vec![]);
    seen.qemu = Err(complaint("it is QEMU 6.2.0,\nand qvm needs 7.2.0", Some("another")));
    seen.qemu_img = false;
    assert_eq!(
        told(&seen, "qemu"),
        ["error qemu: it is QEMU 6.2.0, and qvm needs 7.2.0 | another"]
    );
    one(&seen, "qemu-img", "error qemu-img: there is none");
}

#[test]
fn known_faults_are_told_of_the_versions_that_have_them() {
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
        let mut seen = well(vec![vm("web", ""), vm("win", sata)]);
        seen.qemu = qemu(version.0, version.1, version.2);
        let told = told(&seen, "qemu");
        let expected: Vec<&str> = cves.split_whitespace().collect();
        assert_eq!(told.len(), 1 + expected.len(), "{version:?}: {told:?}");
        for (said, cve) in told.iter().skip(1).zip(expected) {
            assert!(said.starts_with("warning qemu: QEMU ") && said.contains(cve), "{said}");
            let about = if cve == "5088" { "is about `win` |" } else { "about `web` and `win` |" };
            assert!(said.contains(about), "{said}");
        }
    }
    let mut seen = well(vec![]);
    seen.qemu = qemu(7, 2, 0);
    assert_eq!(told(&seen, "qemu").len(), 1, "nobody meets it");
}

#[test]
fn a_machine_type_that_is_gone_or_going() {
    for (machine, starts) in [
        ("pc-q35-10.0", None),
        (
            "pc-q35-6.2",
            Some("note web: its machine type `pc-q35-6.2` will not be in a later QEMU | "),
        ),
        (
            "pc-q35-2.4",
            Some("error web: QEMU 10.0.2 does not have its machine type `pc-q35-2.4` any more | "),
        ),
        (
            "pc-q35-11.0",
            Some("error web: it was made with a later QEMU: QEMU 10.0.2 does not know "),
        ),
        ("pc-q35-rhel9.4.0", Some("error web: QEMU 10.0.2 does not have its machine type ")),
    ] {
        let mut seen = well(vec![with_identity(vm("web", ""), "u", machine, None)]);
        match starts {
            Some(starts) => {
                assert!(one(&seen, "web", starts).contains("write `pc-q35-10.0` for it into"));
            }
            None => assert_eq!(told(&seen, "web"), Vec::<String>::new()),
        }
        // Where QEMU did not tell, nothing is known.
        if let Ok(qemu) = &mut seen.qemu {
            qemu.machines.clear();
        }
        assert_eq!(told(&seen, "web"), Vec::<String>::new());
    }
}

#[test]
fn what_is_wrong_with_one_vm_is_told_of_it() {
    let identity = Err(complaint("cannot read `identity.toml`", Some("from a backup")));
    let firmware = Err(complaint("no UEFI firmware", Some("install it")));
    let mut seen = well(vec![VmSeen { identity, firmware, ..vm("web", "") }]);
    assert_eq!(
        told(&seen, "web"),
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
    assert_eq!(told(&seen, "db"), ["error db: vcpu: it is no number (/vms/db.toml:3)"]);
    assert_eq!(told(&seen, "X "), ["error X : bad name (/vms/X .toml) | rename it"]);
    assert_eq!(told(&seen, "VM files"), Vec::<String>::new());
}
