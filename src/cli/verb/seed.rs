//! `qvm seed`: prints the cloud-init documents that the next start would write.

use std::io::Write;

use crate::{
    cli::exit::Failure,
    seed::documents,
    spec,
    supervisor::{settings::Settings, start::prepare},
    value::{ErrorCode, VmName},
};

/// The arguments of `qvm seed`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The name of the VM
    pub name: VmName,
    /// Print only this document, unchanged
    #[arg(long, value_parser = ["meta-data", "user-data", "network-config"])]
    document: Option<String>,
}

/// Prints the documents.
///
/// # Errors
/// The VM file is invalid or has no `[cloudInit]`.
pub fn run(args: &Args, settings: &Settings, out: &mut dyn Write) -> Result<(), Failure> {
    let name = &settings.name;
    let file = settings.layout.vm_file(name);
    if !file.exists() {
        let text = format!("the VM file `{}` does not exist", file.display());
        return Err(Failure::new(ErrorCode::VmFileMissing, text).about(name));
    }
    let vm = spec::load(&file).map_err(|invalid| Failure::invalid(&invalid))?;
    let fail = |error: prepare::Error| Failure::described(&error).about(name);
    let facts = prepare::facts_of(settings).map_err(|error| fail(error.into()))?;
    let identity = prepare::identity_of(settings, &vm, &facts).map_err(fail)?;
    let Some(documents) = documents::documents(&vm, &identity) else {
        let failure =
            Failure::new(ErrorCode::NoSeed, "it has no seed: its VM file has no `[cloudInit]`");
        return Err(failure.about(name));
    };
    let all: [(&str, &[u8]); 3] = [
        ("meta-data", documents.meta_data.as_bytes()),
        ("user-data", &documents.user_data),
        ("network-config", documents.network_config.as_bytes()),
    ];
    let bytes: Vec<u8> = match &args.document {
        Some(one) => {
            all.iter().filter(|(name, _)| name == one).flat_map(|(_, b)| *b).copied().collect()
        }
        None => all.iter().flat_map(|(name, bytes)| listed(name, bytes)).collect(),
    };
    out.write_all(&bytes).map_err(|error| Failure::output(&error))
}

/// Returns a document with its name as a heading. Compressed data is not printed.
fn listed(name: &str, bytes: &[u8]) -> Vec<u8> {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => format!("({} bytes of gzip)", bytes.len()),
    };
    let end = if text.ends_with('\n') { "" } else { "\n" };
    format!("--- {name}\n{text}{end}").into_bytes()
}
