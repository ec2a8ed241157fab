//! Memory and disks: what was promised beside what there is.

use super::*;

#[test]
fn memory_of_what_runs_and_of_what_starts() {
    let (up, auto) = ("mem = \"8G\"", "mem = \"10G\"\nautostart = true");
    let runs = |vm: VmSeen| VmSeen { runs: true, booted: vm.written.clone(), ..vm };
    for (vms, expected) in [
        (
            vec![vm("web", up)],
            "ok memory: of 16 GiB, VMs can have 15 GiB; those that run may take 0 MiB, and with `autostart` 0 MiB",
        ),
        (
            vec![runs(vm("web", up))],
            "ok memory: of 16 GiB, VMs can have 15 GiB; those that run may take 8 GiB, and",
        ),
        // Not counted twice.
        (
            vec![runs(vm("db", auto))],
            "ok memory: of 16 GiB, VMs can have 15 GiB; those that run may take 10 GiB, and with `autostart` 10 GiB",
        ),
        (
            vec![runs(vm("web", up)), vm("db", auto)],
            "warning memory: of 16 GiB, VMs can have 15 GiB; those that run may take 8 GiB, and with `autostart` 18.1 GiB: more than \
             there is when the host has started, the last to start will be refused | ",
        ),
        (
            vec![runs(vm("web", up)), runs(vm("db", auto))],
            "warning memory: of 16 GiB, VMs can have 15 GiB; those that run may take 18.1 GiB, and with `autostart` 18.1 GiB: more than there is | ",
        ),
    ] {
        one(&well(vms), "memory", expected);
    }
    // What runs counts as it was started, also without its VM file.
    let mut web = runs(vm("web", up));
    web.written = Some(file("web", "mem = \"1G\""));
    one(
        &well(vec![web.clone()]),
        "memory",
        "ok memory: of 16 GiB, VMs can have 15 GiB; those that run may take 8 GiB",
    );
    web.written = None;
    let mut seen = well(vec![web]);
    one(
        &seen,
        "memory",
        "ok memory: of 16 GiB, VMs can have 15 GiB; those that run may take 8 GiB",
    );
    seen.memory = None;
    assert_eq!(told(&seen, "memory"), Vec::<String>::new());
}

#[test]
fn room_for_disks() {
    const GIB: u64 = 1 << 30;
    let few = "error disk: `/var/lib/qvm` has ";
    for (free, total, virtual_size, allocated, expected) in [
        (500, 1000, 0, 0, vec!["ok disk: "]),
        (
            100,
            1000,
            110,
            10,
            vec![
                "ok disk: disks in `/var/lib/qvm` may grow by 100 GiB to 110 GiB, and 100 GiB is free",
            ],
        ),
        (
            100,
            1000,
            111,
            10,
            vec![
                "warning disk: disks in `/var/lib/qvm` may grow by 101 GiB to 111 GiB, and 100 GiB is free: \
             over-committed, 101 % of what is free is promised | ",
            ],
        ),
        (
            100,
            1000,
            300,
            0,
            vec![
                "warning disk: disks in `/var/lib/qvm` may grow by 300 GiB to 300 GiB, and 100 GiB is free: \
             over-committed, 300 % of what is free is promised | ",
            ],
        ),
        // A qcow2 file can be larger than what the guest sees.
        (100, 1000, 10, 11, vec!["ok disk: disks in `/var/lib/qvm` may grow by 0 MiB to 10 GiB"]),
        // Two percent, and one gibibyte.
        (20, 1000, 0, 0, vec!["ok "]),
        (19, 1000, 0, 0, vec![few]),
        (1, 10, 0, 0, vec!["ok "]),
        (0, 10, 0, 0, vec![few]),
        (0, 10, 5, 0, vec![few, "warning disk: "]),
        (0, 0, 0, 0, vec![few]),
    ] {
        let disk = DiskSeen { virtual_size: virtual_size * GIB, allocated: allocated * GIB };
        let mut seen = well(vec![VmSeen { disks: vec![disk], ..vm("web", "") }]);
        seen.room = Some(Room { at: "/var/lib/qvm".into(), free: free * GIB, total: total * GIB });
        let told = told(&seen, "disk");
        assert_eq!(told.len(), expected.len(), "{told:?}");
        for (said, starts) in told.iter().zip(expected) {
            assert!(said.starts_with(starts), "{said}");
        }
    }
    let huge = DiskSeen { virtual_size: u64::MAX, allocated: 0 };
    let seen = well(vec![VmSeen { disks: vec![huge, huge], ..vm("web", "") }]);
    one(&seen, "disk", "warning disk: ");
    let mut seen = well(vec![]);
    seen.room = Some(Room { at: "/x".into(), free: (GIB * 3) / 2, total: 100 * GIB });
    one(&seen, "disk", "error disk: `/x` has 1.5 GiB left of 100 GiB (2 %) | make room");
    seen.room = None;
    assert_eq!(told(&seen, "disk"), Vec::<String>::new());
}
