//! `qvm ip`: the guest's addresses and their sources.

use crate::{
    cli::exit::Failure,
    control::types::Address,
    fleet::addresses::addresses,
    store::layout::Layout,
    value::{ErrorCode, VmName, plain},
};

/// The arguments of `qvm ip`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The name of the VM
    name: VmName,
    /// Print a JSON array of objects
    #[arg(long)]
    json: bool,
}

/// Prints one address a line, the most useful one first.
///
/// # Errors
/// The VM is not running, or no address is known (3).
pub async fn run(args: &Args, layout: &Layout) -> Result<(), Failure> {
    let name = &args.name;
    let found = addresses(layout, name).await;
    let found = super::or_refused(found, layout, name).await?;
    if args.json {
        let json =
            serde_json::to_string_pretty(&found).map_err(|error| Failure::from_error(&error))?;
        super::print(&format!("{json}\n"))?;
    } else {
        let width = found.iter().map(|one| one.address.len()).max().unwrap_or(0);
        let lines: Vec<String> = found.iter().map(|one| line(one, width)).collect();
        super::print(&lines.concat())?;
    }
    match found.is_empty() {
        true => Err(unknown(name)),
        false => Ok(()),
    }
}

fn line(one: &Address, width: usize) -> String {
    let source = match one.source.as_str() {
        "agent" => "guest agent",
        "vm-file" => "VM file",
        "neighbour" => "neighbour table",
        other => other,
    };
    // A guest chooses the names of its interfaces.
    let interface = one.interface.as_ref().map_or_else(String::new, |name| format!(", {name}"));
    format!("{}\n", plain(&format!("{:width$}  {source}{interface}", one.address)))
}

/// The failure if no address is known.
fn unknown(name: &VmName) -> Failure {
    let hint = "install qemu-guest-agent in the guest, or set `ip` in the VM file";
    let failure = Failure::new(ErrorCode::NoAddress, "its address is unknown");
    failure.about(name).hint(hint.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_name_is_escaped() {
        let interface = Some("eth0\u{1b}[2J\u{9b}2J\n10.0.0.1".to_owned());
        let one = Address { address: "10.0.2.15".into(), interface, source: "agent".into() };
        let shown = "10.0.2.15    guest agent, eth0\\u{1b}[2J\\u{9b}2J\\n10.0.0.1\n";
        assert_eq!(line(&one, 11), shown);
    }
}
