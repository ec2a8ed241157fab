//! Any text as a VM file: no panic, every problem lies inside the text, and what is accepted reads the same twice.
#![no_main]

use std::{io, path::Path};

use libfuzzer_sys::fuzz_target;
use qvm::spec;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let first = read(text);
    assert_eq!(first, read(text), "the same text reads differently");
    let Err(problems) = first else { return };
    assert!(!problems.is_empty(), "refused without a reason");
    for problem in &problems {
        let shown = problem.to_string();
        assert!(!shown.chars().any(|c| c.is_control() && c != '\n'), "drives a terminal: {shown:?}");
        within(text, problem);
    }
});

fn read(text: &str) -> Result<spec::Vm, Vec<spec::Problem>> {
    let name = "web".parse().expect("a VM's name");
    // Some files that VM files name are there, and some are text.
    let mut user_data = |path: &Path| match path.as_os_str().len() % 3 {
        0 => Err(io::Error::from(io::ErrorKind::NotFound)),
        1 => Ok(b"#cloud-config\n".to_vec()),
        _ => Ok(text.as_bytes().to_vec()),
    };
    spec::read(&name, Path::new("/etc/qvm/vms/web.toml"), text, &mut user_data)
}

/// A line and a column that are in the text, or just behind it.
fn within(text: &str, problem: &spec::Problem) {
    let Some(number) = problem.line else {
        assert_eq!(problem.column, None, "a column without a line: {problem}");
        return;
    };
    // The line behind the last newline counts, as it does in an editor.
    let line = text.split('\n').nth(number.wrapping_sub(1));
    let line = line.unwrap_or_else(|| panic!("there is no line {number}: {problem}"));
    let column = problem.column.unwrap_or(1);
    assert!((1..=line.chars().count() + 1).contains(&column), "no column {column}: {problem}");
}
