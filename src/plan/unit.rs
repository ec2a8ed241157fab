//! What a VM file says to systemd: the drop-in of its unit, `qvm@NAME.service.d/10-qvm.conf`.

use std::{fmt::Write, path::Path, time::Duration};

use crate::{
    spec::{Origin, Source, Vm},
    value::VmName,
};

/// How much longer than `shutdownTimeoutSec` systemd waits before it kills the supervisor: QEMU's flush of its disks, and some.
pub const STOP_MARGIN: Duration = Duration::from_secs(30);

/// The unit of a VM.
pub fn name(vm: &VmName) -> String {
    format!("qvm@{vm}.service")
}

/// The drop-in's text. An operator's own drop-ins and `systemctl set-property` come later in the order of names, and win.
pub fn drop_in(vm: &Vm) -> String {
    let mut text = String::from("# Made by qvm-generator from the VM file: edit that.\n[Unit]\n");
    let mut line = |key: &str, value: &str| {
        // Into a String it cannot fail.
        let _ = writeln!(text, "{key}={value}");
    };
    if let Some(path) = vm.file.to_str() {
        line("SourcePath", &specifiers(path));
    }
    let described = vm.description.as_deref().map(|d| format!(": {}", specifiers(d)));
    // The name's parenthesis is last, so that a backslash cannot be: it would join the next line to this one.
    line("Description", &format!("Virtual machine{} ({})", described.unwrap_or_default(), vm.name));
    for other in &vm.after {
        // Order only, both ways: a VM that is not started with this one is none of its business.
        line("After", &name(other));
    }
    for path in files(vm) {
        line("RequiresMountsFor", &quoted(path));
    }
    line("[Service]\nCPUWeight", &vm.cpu_weight.to_string());
    let limits = [
        ("CPUQuota", vm.cpu_quota.map(|percent| format!("{percent}%"))),
        ("MemoryMax", vm.memory_max.map(|size| size.bytes().to_string())),
        ("IOWeight", vm.io_weight.map(|weight| weight.to_string())),
        ("OOMScoreAdjust", vm.oom_score_adjust.map(|adjust| adjust.to_string())),
    ];
    for (key, value) in limits {
        if let Some(value) = value {
            line(key, &value);
        }
    }
    let stop = vm.shutdown_timeout.duration() + STOP_MARGIN;
    line("TimeoutStopSec", &stop.as_secs().to_string());
    text
}

/// What must be mounted before the VM can start.
fn files(vm: &Vm) -> impl Iterator<Item = &Path> {
    vm.disks.iter().filter_map(|disk| match &disk.source {
        Source::File(path) => Some(path.as_path()),
        Source::Image(image) => match &image.origin {
            Origin::Path(path) => Some(path.as_path()),
            Origin::Http(_) => None,
        },
        Source::Blank | Source::Existing | Source::Device(_) => None,
    })
}

/// A path as one word of a list (systemd.syntax(7), "Quoting").
fn quoted(path: &Path) -> String {
    let mut word = String::from('"');
    for c in specifiers(&path.to_string_lossy()).chars() {
        if matches!(c, '"' | '\\') {
            word.push('\\');
        }
        word.push(c);
    }
    word.push('"');
    word
}

/// `%` begins a specifier (systemd.unit(5)); a line break would begin another setting.
fn specifiers(text: &str) -> String {
    text.replace('%', "%%").replace(|c: char| c.is_control(), " ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::spec;

    fn vm(text: &str) -> Vm {
        let file = Path::new("/etc/qvm/vms/web.toml");
        spec::read(&"web".parse().unwrap(), file, text, &mut |_| unreachable!()).unwrap()
    }

    #[test]
    fn everything_that_a_vm_file_says_to_systemd() {
        let text = "description = 'the 50% \"web\" server\\'\nautostart = true\nafter = [\"db\", \"cache\"]\n\
                    cpuWeight = 300\nshutdownTimeoutSec = 60\ncpuQuota = 150\nmemoryMax = '2G'\nioWeight = 50\noomScoreAdjust = -500\n[image]\npath = '/srv/my images/a%b.qcow2'\n\
                    [disk.data]\npath = '/mnt/data/\"x\\y.raw'\n[disk.whole]\ndevice = '/dev/vg0/whole'\n";
        assert_eq!(
            drop_in(&vm(text)),
            r#"# Made by qvm-generator from the VM file: edit that.
[Unit]
SourcePath=/etc/qvm/vms/web.toml
Description=Virtual machine: the 50%% "web" server\ (web)
After=qvm@db.service
After=qvm@cache.service
RequiresMountsFor="/srv/my images/a%%b.qcow2"
RequiresMountsFor="/mnt/data/\"x\\y.raw"
[Service]
CPUWeight=300
CPUQuota=150%
MemoryMax=2147483648
IOWeight=50
OOMScoreAdjust=-500
TimeoutStopSec=90
"#
        );
    }

    #[test]
    fn the_least() {
        assert_eq!(
            drop_in(&vm("vcpu = 1\n")),
            "# Made by qvm-generator from the VM file: edit that.\n[Unit]\nSourcePath=/etc/qvm/vms/web.toml\n\
             Description=Virtual machine (web)\n[Service]\nCPUWeight=100\nTimeoutStopSec=150\n"
        );
    }

    proptest! {
        /// Whatever the texts are, a line is a setting, and no line runs on into the next.
        #[test]
        fn a_line_a_setting(description in "\\PC{0,40}", file in "\\PC{1,40}") {
            let mut vm = vm("vcpu = 1\n[disk.data]\npath = '/x.raw'\n");
            vm.description = Some(description);
            vm.disks[1].source = Source::File(Path::new("/srv").join(file.replace('/', "_")));
            let text = drop_in(&vm);
            prop_assert_eq!(text.lines().count(), 8);
            for line in text.lines() {
                prop_assert!(!line.ends_with('\\'), "{line}");
                let odd = line.replace("%%", "");
                prop_assert!(!odd.contains('%'), "{line}");
            }
        }
    }
}
