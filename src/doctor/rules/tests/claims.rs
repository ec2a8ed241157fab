//! Addresses, UUIDs and UIDs of two VMs that conflict.

use super::*;

#[test]
fn two_vms_with_the_same_address() {
    const MAC: &str = "52:54:00:00:00:01";
    let address = "ip = \"192.168.97.15/24\"\n[cloudInit]";
    let mac = format!("mac = \"{MAC}\"");
    let runs = |vm: VmSeen, booted: &str| VmSeen {
        runs: true,
        booted: Some(file(vm.name.as_str(), booted)),
        ..vm
    };
    let kept = |name: &str, uuid: &str| with_identity(vm(name, ""), uuid, "pc-q35-10.0", Some(MAC));
    let copy = "if one is a copy of the other, stop it and remove its identity.toml";
    let change = "reboot the VM whose file has changed";
    for (vms, expected) in [
        // Reported by `qvm check`.
        (vec![vm("a", &mac), vm("b", &mac)], vec![]),
        (vec![vm("a", address), vm("b", address)], vec![]),
        // Two claims of the same VM do not conflict.
        (vec![runs(vm("a", &mac), &mac), vm("b", "")], vec![]),
        (
            vec![runs(vm("a", ""), address), vm("b", address)],
            vec![(
                "error addresses: `a` and `b` have the same address `192.168.97.15` | ".to_owned(),
                change,
            )],
        ),
        (
            vec![runs(vm("a", ""), &mac), runs(vm("b", ""), &mac)],
            vec![(
                format!("error addresses: `a` and `b` have the same MAC address `{MAC}` | "),
                change,
            )],
        ),
        (
            vec![kept("a", "1"), vm("b", &mac)],
            vec![(
                format!("error addresses: `a` and `b` have the same MAC address `{MAC}` | "),
                copy,
            )],
        ),
        (
            vec![kept("a", "1"), kept("b", "1")],
            vec![
                (
                    format!("error addresses: `a` and `b` have the same MAC address `{MAC}` | "),
                    copy,
                ),
                ("warning addresses: `a` and `b` have the same UUID `1` | ".to_owned(), copy),
            ],
        ),
        (vec![kept("a", "1"), with_identity(vm("b", ""), "2", "pc-q35-10.0", None)], vec![]),
        // A stopped VM has no claims from the VM file of its last start.
        (
            vec![VmSeen { booted: Some(file("a", address)), ..vm("a", "") }, vm("b", address)],
            vec![],
        ),
    ] {
        let findings = findings(&healthy(vms), "addresses");
        assert_eq!(findings.len(), expected.len(), "{findings:?}");
        for (finding, (starts, todo)) in findings.iter().zip(expected) {
            assert!(finding.starts_with(&starts) && finding.contains(todo), "{finding}");
        }
    }
}

#[test]
fn two_vms_with_the_same_uid() {
    let kept = |name: &str, user: u32| {
        let mut seen = with_identity(vm(name, ""), name, "pc-q35-10.0", None);
        if let Ok(Some(identity)) = &mut seen.identity {
            identity.uid = Some(user);
        }
        seen
    };
    let runs_as = |seen: VmSeen, user: u32| VmSeen { runs: true, user: Some(user), ..seen };
    for (vms, conflict) in [
        (vec![kept("a", 5), kept("b", 6)], false),
        (vec![kept("a", 5), kept("b", 5)], true),
        // A UID of a running QEMU may be assigned to another VM.
        (vec![runs_as(kept("a", 5), 5), kept("b", 6)], false),
        (vec![runs_as(kept("a", 6), 5), kept("b", 5)], true),
        (vec![runs_as(vm("a", ""), 5), runs_as(vm("b", ""), 5)], true),
    ] {
        let findings: Vec<String> = findings(&healthy(vms), "isolation")
            .into_iter()
            .filter(|finding| !finding.starts_with("ok "))
            .collect();
        let expected = "error isolation: `a` and `b` have the same UID 5: their QEMU processes are \
                        not isolated | stop and start one of them: it gets another UID";
        let expected: &[&str] = if conflict { &[expected] } else { &[] };
        assert_eq!(findings, expected);
    }
}
