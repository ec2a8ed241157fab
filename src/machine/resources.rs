//! The resource limits of a VM as values of cgroup control files.

use crate::{spec::Vm, sys::cgroup::Setting};

/// The period of a CPU quota in microseconds, the default of the kernel and of systemd.
const PERIOD: u64 = 100_000;

/// Returns the values of all control files, for hosts without a service manager.
pub fn settings(vm: &Vm) -> Vec<Setting> {
    let setting = |key, file: &'static str, value: Option<String>, default: &str| Setting {
        key,
        controller: file.split_once('.').map_or(file, |(controller, _)| controller),
        file,
        wanted: value.is_some(),
        value: value.unwrap_or_else(|| default.to_owned()),
    };
    let weight = vm.line("cpuWeight").map(|_| vm.cpu_weight.to_string());
    let quota =
        vm.cpu_quota.map(|percent| format!("{} {PERIOD}", u64::from(percent) * PERIOD / 100));
    let memory = vm.memory_max.map(|size| size.bytes().to_string());
    let io = vm.io_weight.map(|weight| format!("default {weight}"));
    vec![
        setting("cpuWeight", "cpu.weight", weight, "100"),
        setting("cpuQuota", "cpu.max", quota, &format!("max {PERIOD}")),
        setting("memoryMax", "memory.max", memory, "max"),
        setting("ioWeight", "io.weight", io, "default 100"),
    ]
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::spec;

    fn vm(text: &str) -> Vm {
        let text = format!("{text}\n[image]\npath = \"/srv/x.qcow2\"\n");
        spec::read(&"web".parse().unwrap(), Path::new("/web.toml"), &text, &mut |_| unreachable!())
            .unwrap()
    }

    #[test]
    fn each_key_has_a_control_file() {
        let all =
            settings(&vm("cpuWeight = 300\ncpuQuota = 150\nmemoryMax = \"2G\"\nioWeight = 50"));
        let lines: Vec<_> = all.iter().map(|s| (s.controller, s.file, s.value.as_str())).collect();
        assert_eq!(
            lines,
            [
                ("cpu", "cpu.weight", "300"),
                ("cpu", "cpu.max", "150000 100000"),
                ("memory", "memory.max", "2147483648"),
                ("io", "io.weight", "default 50"),
            ]
        );
        assert!(all.iter().all(|setting| setting.wanted));
    }

    #[test]
    fn unset_keys_have_kernel_defaults() {
        let all = settings(&vm(""));
        let values: Vec<_> = all.iter().map(|s| s.value.as_str()).collect();
        assert_eq!(values, ["100", "max 100000", "max", "default 100"]);
        assert!(all.iter().all(|setting| !setting.wanted));
    }
}
