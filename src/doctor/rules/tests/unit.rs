//! Units: their timeouts and drop-ins.

use super::*;

#[test]
fn unit_timeout_covers_the_stop_ladder() {
    for (file, timeout, given) in [
        ("", "2min 30s", None),
        ("", "infinity", None),
        ("", "2min 29.999s", Some("149 s for a stop, but the VM may need 150 s")),
        ("", "1min 30s", Some("90 s for a stop, but the VM may need 150 s")),
        (
            "shutdownTimeoutSec = 600",
            "2min 30s",
            Some("150 s for a stop, but the VM may need 630 s"),
        ),
        ("shutdownTimeoutSec = 600", "10min 30s", None),
        ("shutdownTimeoutSec = 10", "0", Some("0 s for a stop, but the VM may need 40 s")),
    ] {
        let mut seen = healthy(vec![vm("web", file)]);
        seen.units = Some(Ok(vec![unit("web", timeout)]));
        match given {
            None => drop(one(&seen, "units", "ok units: all 1 match their VM files")),
            Some(given) => {
                let starts = format!("error web: its unit allows {given} (`shutdownTimeoutSec`");
                let finding = one(&seen, "web", &starts);
                assert!(
                    finding.ends_with(
                        "| run `systemctl daemon-reload` to generate the unit from the VM file"
                    ),
                    "{finding}"
                );
            }
        }
    }
    let mut seen = healthy(vec![vm("web", "")]);
    let mut short = unit("web", "10s");
    short.drop_ins.push("/etc/systemd/system/qvm@.service.d/short.conf".into());
    seen.units = Some(Ok(vec![short]));
    let finding = one(&seen, "web", "error web: ");
    assert!(
        finding.ends_with(
            "| remove `TimeoutStopSec` from /etc/systemd/system/qvm@.service.d/short.conf"
        ),
        "{finding}"
    );
}

#[test]
fn unit_without_drop_in_or_stale_or_missing() {
    let mut seen = healthy(vec![vm("db", ""), vm("web", "")]);
    let fine = unit("db", "infinity");
    let bare = Unit { drop_ins: vec!["/etc/x.d/override.conf".into()], ..unit("web", "infinity") };
    seen.units = Some(Ok(vec![fine.clone(), bare]));
    one(
        &seen,
        "units",
        "warning units: the unit has no drop-in `10-qvm.conf` of qvm-generator: `web` | ",
    );
    let stale = Unit { stale: true, ..unit("web", "infinity") };
    seen.units = Some(Ok(vec![fine.clone(), stale]));
    one(
        &seen,
        "units",
        "note units: the VM file is newer than the unit: `web` | run `systemctl daemon-reload`",
    );
    let absent = Unit { loaded: false, ..unit("web", "1s") };
    seen.units = Some(Ok(vec![fine, absent]));
    one(
        &seen,
        "units",
        "warning units: qvm@.service is not installed: `web` cannot run as a unit | ",
    );
    assert_eq!(findings(&seen, "web"), Vec::<String>::new());
    seen.units = Some(Err(complaint("no `systemctl`", None)));
    one(&seen, "units", "warning units: no `systemctl`");
    seen.units = None;
    assert_eq!(findings(&seen, "units"), Vec::<String>::new());
    seen.vms.push(vm("x", "autostart = true"));
    one(
        &seen,
        "units",
        "note units: systemd does not manage these VMs: `autostart` of `x` has no effect, and ",
    );
}

#[test]
fn output_of_systemctl_show() {
    let output = "Id=qvm@web.service\nLoadState=loaded\n\
        TimeoutStopUSec=1w 2d 3h 4min 5s 6ms 7us\nNeedDaemonReload=yes\n\
        DropInPaths=/a/10-qvm.conf /b/50-x.conf\n\n\
        TimeoutStopUSec=infinity\nId=qvm@db.service\nLoadState=not-found\n\
        NeedDaemonReload=no\nDropInPaths=\n\n\
        Id=qvm@x.service\nLoadState=loaded\nTimeoutStopUSec=soon\n\nnonsense\n";
    let all = units(output);
    let [web, db] = all.as_slice() else { panic!("{all:?}") };
    let seconds = ((7 + 2) * 24 + 3) * 3600 + 4 * 60 + 5;
    assert_eq!(web.stop_timeout, Some(seconds * 1_000_000 + 6007));
    assert!(web.loaded && web.stale && web.drop_ins == words(&["/a/10-qvm.conf", "/b/50-x.conf"]));
    assert_eq!((db.loaded, db.stale, db.stop_timeout, db.drop_ins.len()), (false, false, None, 0));
    let span = |span: &str| {
        let text = format!("Id=a\nLoadState=loaded\nTimeoutStopUSec={span}\n");
        units(&text).first().map(|unit| unit.stop_timeout)
    };
    for (text, expected) in [
        ("1month", Some(2_629_800_000_000)),
        ("1y", Some(31_557_600_000_000)),
        ("1.5s", Some(1_500_000)),
        ("0", Some(0)),
        ("500ms", Some(500_000)),
    ] {
        assert_eq!(span(text), Some(expected), "{text}");
    }
    for bad in
        ["", "5", "s", "1x", "99999999999999999999s", "9999999999999y", "1.99999999999999999999s"]
    {
        assert_eq!(span(bad), None, "{bad}");
    }
}
