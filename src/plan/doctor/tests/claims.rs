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
        // Once for each, whoever says so.
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
