//! `make bench`: how fast and how small, each figure beside what it is compared with, in the same run; medians.
//! It prints a table and writes it to bench/RESULTS.md.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod machine;
mod place;
mod prepare;
mod raw;
mod running;
mod table;

use table::Row;

fn main() {
    // `cargo bench` passes options of libtest's; `--quick` is ours, to see whether all of it works.
    let quick = std::env::args().any(|argument| argument == "--quick");
    let runs = if quick { 3 } else { 15 };
    let vms = if quick { 5 } else { 50 };
    let mut rows: Vec<Row> = vec![];
    rows.extend(running::one(runs));
    rows.extend(running::many(runs, vms));
    rows.extend(prepare::images(runs));
    rows.push(prepare::seed(runs));
    let text = table::text(&rows);
    println!("{text}");
    if !quick {
        let page = format!("{}\n{text}", machine::described());
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/bench/RESULTS.md");
        std::fs::write(file, page).unwrap();
    }
}
