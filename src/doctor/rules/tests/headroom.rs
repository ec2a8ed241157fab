//! Whether memory and disk space suffice for the VMs.

use super::*;

#[test]
fn memory_of_running_and_starting_vms() {
    let (up, auto) = ("mem = \"8G\"", "mem = \"10G\"\nautostart = true");
    let runs = |vm: VmSeen| VmSeen { runs: true, booted: vm.written.clone(), ..vm };
    for (vms, expected) in [
        (
            vec![vm("web", up)],
            "ok memory: VMs may use 15 GiB of 16 GiB; running VMs may use 0 MiB, 0 MiB with those \
             of `autostart`",
        ),
        (
            vec![runs(vm("web", up))],
            "ok memory: VMs may use 15 GiB of 16 GiB; running VMs may use 8 GiB, ",
        ),
        // Not counted twice.
        (
            vec![runs(vm("db", auto))],
            "ok memory: VMs may use 15 GiB of 16 GiB; running VMs may use 10 GiB, 10 GiB with \
             those of `autostart`",
        ),
        (
            vec![runs(vm("web", up)), vm("db", auto)],
            "warning memory: VMs may use 15 GiB of 16 GiB; running VMs may use 8 GiB, 18.1 GiB \
             with those of `autostart`: not enough memory after a boot, the last to start will be \
             refused | ",
        ),
        (
            vec![runs(vm("web", up)), runs(vm("db", auto))],
            "warning memory: VMs may use 15 GiB of 16 GiB; running VMs may use 18.1 GiB, 18.1 GiB \
             with those of `autostart`: not enough memory | ",
        ),
    ] {
        one(&healthy(vms), "memory", expected);
    }
    // A running VM counts with the VM file of its start, even if the file is removed.
    let mut web = runs(vm("web", up));
    web.written = Some(file("web", "mem = \"1G\""));
    one(
        &healthy(vec![web.clone()]),
        "memory",
        "ok memory: VMs may use 15 GiB of 16 GiB; running VMs may use 8 GiB, ",
    );
    web.written = None;
    let mut seen = healthy(vec![web]);
    one(&seen, "memory", "ok memory: VMs may use 15 GiB of 16 GiB; running VMs may use 8 GiB, ");
    seen.memory = None;
    assert_eq!(findings(&seen, "memory"), Vec::<String>::new());
}

#[test]
fn disk_space_for_growing_disks() {
    const GIB: u64 = 1 << 30;
    let low = "error disk: `/var/lib/qvm` has ";
    for (free, total, virtual_size, allocated, expected) in [
        (500, 1000, 0, 0, vec!["ok disk: "]),
        (
            100,
            1000,
            110,
            10,
            vec![
                "ok disk: disks in `/var/lib/qvm` may grow by 100 GiB to 110 GiB, and 100 GiB is \
                 free",
            ],
        ),
        (
            100,
            1000,
            111,
            10,
            vec![
                "warning disk: disks in `/var/lib/qvm` may grow by 101 GiB to 111 GiB, and 100 GiB \
             is free: overcommitted by 101 % of the free space | ",
            ],
        ),
        (
            100,
            1000,
            300,
            0,
            vec![
                "warning disk: disks in `/var/lib/qvm` may grow by 300 GiB to 300 GiB, and 100 GiB \
             is free: overcommitted by 300 % of the free space | ",
            ],
        ),
        // A qcow2 file can be larger than its virtual size.
        (100, 1000, 10, 11, vec!["ok disk: disks in `/var/lib/qvm` may grow by 0 MiB to 10 GiB"]),
        // The limits: 2 % and 1 GiB.
        (20, 1000, 0, 0, vec!["ok "]),
        (19, 1000, 0, 0, vec![low]),
        (1, 10, 0, 0, vec!["ok "]),
        (0, 10, 0, 0, vec![low]),
        (0, 10, 5, 0, vec![low, "warning disk: "]),
        (0, 0, 0, 0, vec![low]),
    ] {
        let disk = DiskSeen { virtual_size: virtual_size * GIB, allocated: allocated * GIB };
        let mut seen = healthy(vec![VmSeen { disks: vec![disk], ..vm("web", "") }]);
        seen.disk_space =
            Some(DiskSpace { at: "/var/lib/qvm".into(), free: free * GIB, total: total * GIB });
        let findings = findings(&seen, "disk");
        assert_eq!(findings.len(), expected.len(), "{findings:?}");
        for (finding, starts) in findings.iter().zip(expected) {
            assert!(finding.starts_with(starts), "{finding}");
        }
    }
    let huge = DiskSeen { virtual_size: u64::MAX, allocated: 0 };
    let seen = healthy(vec![VmSeen { disks: vec![huge, huge], ..vm("web", "") }]);
    one(&seen, "disk", "warning disk: ");
    let mut seen = healthy(vec![]);
    seen.disk_space = Some(DiskSpace { at: "/x".into(), free: (GIB * 3) / 2, total: 100 * GIB });
    one(&seen, "disk", "error disk: `/x` has 1.5 GiB of 100 GiB free (2 %) | free space");
    seen.disk_space = None;
    assert_eq!(findings(&seen, "disk"), Vec::<String>::new());
}
