//! What two VMs claim at once.

use super::*;

#[test]
fn two_vms_with_one_address() {
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
    let change = "reboot the one whose VM file has changed";
    for (vms, expected) in [
        // Told by the check of the files.
        (vec![vm("a", &mac), vm("b", &mac)], vec![]),
        (vec![vm("a", address), vm("b", address)], vec![]),
        // Once for each VM, whatever the source.
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
        // What is not running any more claims nothing by how it once was started.
        (
            vec![VmSeen { booted: Some(file("a", address)), ..vm("a", "") }, vm("b", address)],
            vec![],
        ),
    ] {
        let told = told(&well(vms), "addresses");
        assert_eq!(told.len(), expected.len(), "{told:?}");
        for (said, (starts, todo)) in told.iter().zip(expected) {
            assert!(said.starts_with(&starts) && said.contains(todo), "{said}");
        }
    }
}

#[test]
fn two_vms_with_one_user() {
    let kept = |name: &str, user: u32| {
        let mut seen = with_identity(vm(name, ""), name, "pc-q35-10.0", None);
        if let Ok(Some(identity)) = &mut seen.identity {
            identity.uid = Some(user);
        }
        seen
    };
    let runs_as = |seen: VmSeen, user: u32| VmSeen { runs: true, user: Some(user), ..seen };
    for (vms, twice) in [
        (vec![kept("a", 5), kept("b", 6)], false),
        (vec![kept("a", 5), kept("b", 5)], true),
        // It is the same one that runs, and another that has taken what it was.
        (vec![runs_as(kept("a", 5), 5), kept("b", 6)], false),
        (vec![runs_as(kept("a", 6), 5), kept("b", 5)], true),
        (vec![runs_as(vm("a", ""), 5), runs_as(vm("b", ""), 5)], true),
    ] {
        let told: Vec<String> = told(&well(vms), "isolation")
            .into_iter()
            .filter(|said| !said.starts_with("ok "))
            .collect();
        let expected = "error isolation: `a` and `b` have the same user 5: it keeps neither QEMU from the other | \
                        stop one that runs, and start it: whichever starts next is given a user of its own";
        let expected: &[&str] = if twice { &[expected] } else { &[] };
        assert_eq!(told, expected);
    }
}
