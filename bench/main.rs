//! Measures the speed and size of qvm, compared with QEMU by hand, and with libvirt where it is
//! installed, and writes bench/RESULTS.md.
//!
//! `make bench` measures everything, `cargo bench -- one many stopping files` some parts. Results are
//! medians. What is compared is measured in turns, in one run, so that ratios hold on a machine with
//! other load as well. `QVM_BENCH_BEFORE=PATH` adds the results of another `qvm` as a column.

mod exec;
mod figure;
mod files;
mod libvirt;
mod machine;
mod many;
mod one;
mod place;
mod raw;
mod stopping;

use std::{env, fs, path::Path, process::ExitCode};

use figure::{Figure, Outcome};

/// A name and what it measures.
type Part = (&'static str, fn() -> Outcome<Vec<Figure>>);

const PARTS: [Part; 4] = [
    ("one", one::measure),
    ("many", many::measure),
    ("stopping", stopping::measure),
    ("files", files::measure),
];

fn main() -> ExitCode {
    // cargo says `--bench` to whatever it runs as one.
    let wanted: Vec<String> = env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    match run(&wanted) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

/// Whether every bound is kept.
fn run(wanted: &[String]) -> Outcome<bool> {
    let mut figures = Vec::new();
    for (part, measure) in PARTS {
        if wanted.is_empty() || wanted.iter().any(|word| word == part) {
            eprintln!("measuring: {part}");
            figures.extend(measure()?);
        }
    }
    // The agreed bounds first.
    figures.sort_by_key(|figure| figure.is_extra);
    let table = figure::table(&figures);
    print!("{table}");
    // A part of the figures, or a comparison, is not for the record.
    if wanted.is_empty() && env::var_os(place::BEFORE).is_none() {
        let at = jiff::Timestamp::now().strftime("%Y-%m-%d").to_string();
        let text =
            format!("# Figures\n\n`make bench`, {at}; medians.\n\n{}\n{table}", machine::kind());
        fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/RESULTS.md"), text)?;
    }
    Ok(figures.iter().all(|figure| figure.met))
}
