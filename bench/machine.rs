//! What kind of machine this is, as far as figures depend on it.

use std::{fs, process::Command};

fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or_default().to_owned()
}

/// The head of RESULTS.md.
pub(crate) fn described() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |key: &str| {
        let line = cpu.lines().find(|line| line.starts_with(key));
        line.and_then(|line| line.split(": ").nth(1)).unwrap_or("unknown").to_owned()
    };
    let virtual_machine =
        if cpu.contains(" hypervisor") { ", itself a virtual machine" } else { "" };
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let libvirt = match said("virsh", &["--version"]).as_str() {
        "" => "not installed".to_owned(),
        version => version.to_owned(),
    };
    format!(
        "# Figures\n\nWritten by `make bench`: medians, each pair measured alternately in one run. Guests run on TCG.\n\n\
         - {}, {cores} cores{virtual_machine}; Linux {}\n- {}\n- libvirt: {libvirt}\n",
        field("model name"),
        kernel.trim(),
        said("qemu-system-x86_64", &["-version"]),
    )
}
