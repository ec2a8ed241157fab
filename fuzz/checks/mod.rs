//! The checks of all parsers of untrusted bytes: one for each fuzz target, valid for any bytes.
//!
//! `fuzz_targets/` searches for bytes that fail a check; `tests/it/spec/corpus.rs` runs the checks
//! with the corpus in every test run.

pub mod agent_reply;
pub mod archive;
pub mod console_log;
pub mod control_call;
pub mod control_reply;
mod cut;
pub mod firmware;
pub mod host_settings;
pub mod host_text;
pub mod http_answer;
pub mod image_fetch;
pub mod image_head;
pub mod iso9660;
pub mod kept;
pub mod packed;
pub mod qmp_line;
pub mod qmp_session;
pub mod sums;
pub mod terminal;
pub mod user_data;
pub mod vm_file;

use cut::Cut;
use qvm::spec;

/// A function that panics if the bytes fail the check.
pub type Check = fn(&[u8]);

/// All checks by the name of their target.
pub const ALL: [(&str, Check); 20] = [
    ("agent_reply", agent_reply::check),
    ("archive", archive::check),
    ("console_log", console_log::check),
    ("control_call", control_call::check),
    ("control_reply", control_reply::check),
    ("firmware", firmware::check),
    ("host_settings", host_settings::check),
    ("host_text", host_text::check),
    ("http_answer", http_answer::check),
    ("image_fetch", image_fetch::check),
    ("image_head", image_head::check),
    ("iso9660", iso9660::check),
    ("kept", kept::check),
    ("packed", packed::check),
    ("qmp_line", qmp_line::check),
    ("qmp_session", qmp_session::check),
    ("sums", sums::check),
    ("terminal", terminal::check),
    ("user_data", user_data::check),
    ("vm_file", vm_file::check),
];

/// Checks that a text does not control a terminal.
fn is_tame(shown: &str) {
    let drives = |c: char| c.is_control() && c != '\n';
    assert!(!shown.chars().any(drives), "drives a terminal: {shown:?}");
}

/// Checks that each problem has a printable message and a position in the text.
fn are_told(problems: &[spec::Problem], text: &str) {
    assert!(!problems.is_empty(), "refused without a reason");
    for problem in problems {
        is_tame(&problem.to_string());
        within(text, problem);
    }
}

/// Checks that line and column are in the text or directly after it.
fn within(text: &str, problem: &spec::Problem) {
    let Some(number) = problem.line else {
        assert_eq!(problem.column, None, "a column without a line: {problem}");
        return;
    };
    // The line after the last newline counts, as in an editor.
    let line = text.split('\n').nth(number.wrapping_sub(1));
    let line = line.unwrap_or_else(|| panic!("there is no line {number}: {problem}"));
    let column = problem.column.unwrap_or(1);
    assert!((1..=line.chars().count() + 1).contains(&column), "no column {column}: {problem}");
}
