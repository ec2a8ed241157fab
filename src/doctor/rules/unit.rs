//! Units: whether they match the VM files and allow enough time for a clean shutdown.

use super::{
    code::FindingCode,
    finding::{Finding, Level, names},
    seen::{Seen, Unit},
};
use crate::{
    spec::Vm,
    systemd::unit::{DROP_IN, STOP_SLACK, unit_name},
    value::VmName,
};

/// Parses the output of `systemctl show --property=` with [`Unit::PROPERTIES`]. Skips invalid
/// units.
pub fn units(output: &str) -> Vec<Unit> {
    output.split("\n\n").filter_map(unit).collect()
}

fn unit(properties: &str) -> Option<Unit> {
    let property =
        |name: &str| properties.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    let stop_timeout = match property("TimeoutStopUSec")? {
        "infinity" => None,
        span => Some(microseconds(span)?),
    };
    Some(Unit {
        id: property("Id")?.to_owned(),
        loaded: property("LoadState")? == "loaded",
        stop_timeout,
        drop_ins: property("DropInPaths")
            .unwrap_or_default()
            .split_whitespace()
            .map(str::to_owned)
            .collect(),
        stale: property("NeedDaemonReload") == Some("yes"),
    })
}

/// Parses a time span of systemd in microseconds, such as `2min 30s` (systemd.time(7)).
fn microseconds(span: &str) -> Option<u64> {
    let second = 1_000_000;
    let part = |part: &str| -> Option<u64> {
        let digits = part.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(part.len());
        let (number, unit) = part.split_at(digits);
        let unit = match unit {
            "us" => 1,
            "ms" => 1000,
            "s" => second,
            "min" => 60 * second,
            "h" => 3600 * second,
            "d" => 86_400 * second,
            "w" => 7 * 86_400 * second,
            // systemd uses 30.44 and 365.25 days.
            "month" => 2_629_800 * second,
            "y" => 31_557_600 * second,
            // A bare 0.
            "" => return (number == "0").then_some(0),
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let whole = whole.parse::<u64>().ok()?.checked_mul(unit)?;
        let fraction = match fraction {
            "" => 0,
            digits => {
                let scale = 10_u64.checked_pow(u32::try_from(digits.len()).ok()?)?;
                digits.parse::<u64>().ok()?.checked_mul(unit)? / scale
            }
        };
        whole.checked_add(fraction)
    };
    let mut parts = span.split_whitespace().peekable();
    parts.peek()?;
    parts.try_fold(0_u64, |sum, one| sum.checked_add(part(one)?))
}

pub(crate) fn examine(seen: &Seen) -> Vec<Finding> {
    let units = match &seen.units {
        None => return without(seen),
        Some(Err(complaint)) => {
            return vec![Finding::complaint(
                FindingCode::UnitsUnread,
                Level::Warning,
                "units",
                complaint,
            )];
        }
        Some(Ok(units)) => units,
    };
    let mut findings = Vec::new();
    let of = |vm: &Vm| units.iter().find(|unit| unit.id == unit_name(&vm.name));
    let pairs = || seen.written().filter_map(|vm| Some((vm, of(vm)?)));
    let absent: Vec<&VmName> =
        pairs().filter(|(_, unit)| !unit.loaded).map(|(vm, _)| &vm.name).collect();
    if !absent.is_empty() {
        let found =
            format!("qvm@.service is not installed: {} cannot run as a unit", names(absent));
        findings.push(
            Finding::warning(FindingCode::UnitNotInstalled, "units", found).todo(
                "install the package or the units of qvm, then run `systemctl daemon-reload`",
            ),
        );
    }
    let loaded: Vec<(&Vm, &Unit)> = pairs().filter(|(_, unit)| unit.loaded).collect();
    let no_drop_in =
        |unit: &Unit| !unit.drop_ins.iter().any(|path| path.rsplit('/').next() == Some(DROP_IN));
    let without_drop_in: Vec<&VmName> =
        loaded.iter().filter(|(_, unit)| no_drop_in(unit)).map(|(vm, _)| &vm.name).collect();
    if !without_drop_in.is_empty() {
        let found = format!(
            "the unit has no drop-in `{DROP_IN}` of qvm-generator: {}",
            names(without_drop_in)
        );
        let todo = "run `systemctl daemon-reload`; if that does not help, check that \
                    qvm-generator is in /usr/lib/systemd/system-generators";
        findings.push(Finding::warning(FindingCode::UnitWithoutDropIn, "units", found).todo(todo));
    }
    let stale: Vec<&VmName> = loaded
        .iter()
        .filter(|(_, unit)| unit.stale && !no_drop_in(unit))
        .map(|(vm, _)| &vm.name)
        .collect();
    if !stale.is_empty() {
        let found = format!("the VM file is newer than the unit: {}", names(stale));
        findings.push(
            Finding::note(FindingCode::UnitStale, "units", found)
                .todo("run `systemctl daemon-reload`"),
        );
    }
    findings.extend(loaded.iter().filter_map(|(vm, unit)| too_short(vm, unit)));
    if findings.is_empty() {
        findings.push(Finding::ok(
            FindingCode::Units,
            "units",
            match loaded.len() {
                0 => "no VM has a unit".to_owned(),
                count => {
                    format!("all {count} match their VM files and allow enough time for a shutdown")
                }
            },
        ));
    }
    findings
}

/// Reports that no service manager starts these VMs.
fn without(seen: &Seen) -> Vec<Finding> {
    let starting: Vec<&VmName> =
        seen.written().filter(|vm| vm.autostart).map(|vm| &vm.name).collect();
    if starting.is_empty() {
        return Vec::new();
    }
    let found = format!(
        "systemd does not manage these VMs: `autostart` of {} has no effect, and a shutdown of the \
         host ends guests without a clean shutdown",
        names(starting)
    );
    vec![
        Finding::note(FindingCode::NoSystemd, "units", found)
            .todo("start and stop them manually: docs/operations.md, \"Reboot the host\""),
    ]
}

/// Checks that a unit is not killed before the end of the stop ladder.
fn too_short(vm: &Vm, unit: &Unit) -> Option<Finding> {
    let wanted = u64::from(vm.shutdown_timeout.get()) + u64::from(STOP_SLACK);
    let given = unit.stop_timeout? / 1_000_000;
    if given >= wanted {
        return None;
    }
    let found = format!(
        "its unit allows {given} s for a stop, but the VM may need {wanted} s \
         (`shutdownTimeoutSec` and {STOP_SLACK} s): the guest can be killed while it shuts down"
    );
    let after = unit.drop_ins.iter().filter(|path| path.rsplit('/').next() != Some(DROP_IN));
    let others: Vec<&str> = after.map(String::as_str).collect();
    let todo = match others.as_slice() {
        [] => "run `systemctl daemon-reload` to generate the unit from the VM file".to_owned(),
        others => format!("remove `TimeoutStopSec` from {}", others.join(", ")),
    };
    Some(Finding::error(FindingCode::UnitTimeout, vm.name.as_str(), found).todo(todo))
}
