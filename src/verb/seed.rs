//! `qvm seed`: the documents that cloud-init finds in the guest, as the next start would write them.

use std::io::Write;

use crate::{
    exit::{self, Failure},
    plan::seed,
    run::{Settings, prepare},
    spec,
    value::VmName,
};

/// What `qvm seed` takes.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The VM
    pub name: VmName,
    /// Only this one, as it is: `meta-data`, `user-data` or `network-config`
    #[arg(long, value_parser = ["meta-data", "user-data", "network-config"])]
    document: Option<String>,
}

/// Prints them.
///
/// # Errors
/// The VM file is not valid, or wants no seed.
pub fn run(args: &Args, settings: &Settings, out: &mut dyn Write) -> Result<(), Failure> {
    let name = &settings.name;
    let file = settings.layout.vm_file(name);
    if !file.exists() {
        let text = format!("there is no VM file `{}`", file.display());
        return Err(Failure::new(exit::NOT_RUNNING, text).about(name));
    }
    let vm = spec::load(&file).map_err(|invalid| Failure::invalid(&invalid))?;
    let fail = |error: prepare::Error| Failure::of(&error).hint(error.hint()).about(name);
    let facts = prepare::facts_of(settings).map_err(|error| fail(error.into()))?;
    let identity = prepare::identity_of(settings, &vm, &facts).map_err(fail)?;
    let Some(documents) = seed::documents(&vm, &identity) else {
        let failure = Failure::new(exit::NOT_RUNNING, "it gets no seed: it has no `[cloudInit]`");
        return Err(failure.about(name));
    };
    let all = [
        ("meta-data", &documents.meta_data),
        ("user-data", &documents.user_data),
        ("network-config", &documents.network_config),
    ];
    let text: String = match &args.document {
        Some(one) => {
            all.iter().filter(|(name, _)| name == one).map(|(_, text)| text.as_str()).collect()
        }
        None => {
            let whole = |text: &str| if text.ends_with('\n') { "" } else { "\n" };
            all.iter().map(|(name, text)| format!("--- {name}\n{text}{}", whole(text))).collect()
        }
    };
    out.write_all(text.as_bytes()).map_err(|error| Failure::output(&error))
}
