//! `qvm`: parse the command line, run the verb, print the error chain, exit with the code.

fn main() {}
