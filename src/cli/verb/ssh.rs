//! `qvm ssh`: runs ssh(1) to the guest's address or forwarded port.

use crate::{
    cli::exit::Failure,
    fleet::addresses::addresses,
    spec::{self, Reach, Vm},
    store::layout::Layout,
    sys::program::{Program, run_code},
    value::{ErrorCode, VmName},
};

/// The guest's ssh port.
const PORT: u16 = 22;

/// The arguments of `qvm ssh`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The name of the VM
    name: VmName,
    /// The user to log in as [default: `user` of `[cloudInit]`]
    #[arg(short = 'l', long)]
    login: Option<String>,
    /// Options of ssh and a command
    #[arg(value_name = "ARGUMENT", last = true)]
    arguments: Vec<String>,
}

/// Executes ssh.
///
/// # Errors
/// The VM is not running, its address is unknown, or ssh is not installed.
pub async fn run(args: &Args, layout: &Layout) -> Result<(), Failure> {
    let name = &args.name;
    let vm = spec::load_early(&layout.vm_file(name)).ok();
    let forwarded = vm.as_ref().and_then(|vm| match vm.reach(PORT) {
        Some(Reach::Forwarded(at)) => Some(at),
        Some(Reach::Direct(_)) | None => None,
    });
    let mut words: Vec<String> = Vec::new();
    let host = if let Some(at) = forwarded {
        // "Not running" is reported as such, not as an unknown address.
        super::connect(layout, name).await?;
        words.extend(["-p".to_owned(), at.port().to_string()]);
        // The same host port may belong to another guest later: no known_hosts entry by port alone.
        words.extend(["-o".to_owned(), format!("HostKeyAlias=qvm-{name}")]);
        at.ip().to_string()
    } else {
        let found = addresses(layout, name).await;
        let found = super::or_refused(found, layout, name).await?;
        let first = found.into_iter().next().ok_or_else(|| {
            let hint = "set `ip` or `forward = [\"2222:22\"]` in the VM file, or install \
                        qemu-guest-agent in the guest";
            let failure = Failure::new(ErrorCode::NoAddress, "its address is unknown");
            failure.about(name).hint(hint.to_owned())
        })?;
        first.address
    };
    if let Some(user) = args.login.clone().or_else(|| vm.as_ref().and_then(user)) {
        words.extend(["-l".to_owned(), user]);
    }
    words.push(host);
    words.extend(args.arguments.iter().cloned());
    let error = Program::new("ssh").args(words).exec();
    Err(Failure::from_io("cannot run `ssh`", &error).error_code(run_code(&error)).about(name))
}

fn user(vm: &Vm) -> Option<String> {
    vm.cloud_init.as_ref()?.user.clone()
}
