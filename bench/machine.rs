//! What kind of machine the figures are from.

use std::{fs, path::Path, process::Command, thread};

/// A list in Markdown.
pub(crate) fn kind() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |key: &str| {
        let line = cpu.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let virtual_machine =
        field("flags").is_some_and(|flags| flags.split(' ').any(|f| f == "hypervisor"));
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = memory.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok());
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = thread::available_parallelism().map_or(0, usize::from);
    format!(
        "- processor: {}, {cores} cores{}\n- memory: {} GiB\n- kernel: Linux {}\n- QEMU: {}, accelerator TCG\n\
         - libvirt: {}\n",
        field("model name").unwrap_or_else(|| "unknown".into()),
        if virtual_machine { ", a virtual machine" } else { "" },
        kib.unwrap_or_default() >> 20,
        // The rest is the distributor's.
        kernel.split('-').next().unwrap_or_default().trim(),
        first_line("qemu-system-x86_64", "--version"),
        match has("virsh") {
            false => "not installed".into(),
            true => first_line("virsh", "--version"),
        },
    )
}

/// Whether a program is in `PATH`.
pub(crate) fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .any(|dir: std::path::PathBuf| Path::new(&dir).join(program).is_file())
}

fn first_line(program: &str, option: &str) -> String {
    let output = Command::new(program).arg(option).output().map(|o| o.stdout).unwrap_or_default();
    let text = String::from_utf8_lossy(&output);
    text.lines().next().unwrap_or("unknown").trim_start_matches("QEMU emulator version ").to_owned()
}
