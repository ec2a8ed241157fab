//! `qvm ssh`: ssh(1) into a guest, at the address or the forwarded port where it is reached.

use crate::{
    cli::exit::{self, Failure},
    fleet::addresses::addresses,
    spec::{self, Reach, Vm},
    store::layout::Layout,
    sys::program::Program,
    value::VmName,
};

/// The port of ssh in the guest.
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

/// Becomes ssh.
///
/// # Errors
/// It does not run, nobody knows its address, or there is no ssh.
pub async fn run(args: &Args, layout: &Layout) -> Result<(), Failure> {
    let name = &args.name;
    let vm = spec::load_early(&layout.vm_file(name)).ok();
    let forwarded = vm.as_ref().and_then(|vm| match vm.reach(PORT) {
        Some(Reach::Forwarded(at)) => Some(at),
        Some(Reach::Direct(_)) | None => None,
    });
    let mut words: Vec<String> = Vec::new();
    let host = if let Some(at) = forwarded {
        // A VM that does not run is told from a guest that does not answer.
        super::connect(layout, name).await?;
        words.extend(["-p".to_owned(), at.port().to_string()]);
        // The same port of this host is another guest's some day.
        words.extend(["-o".to_owned(), format!("HostKeyAlias=qvm-{name}")]);
        at.ip().to_string()
    } else {
        let found = addresses(layout, name).await;
        let found = super::or_refused(found, layout, name).await?;
        let first = found.into_iter().next().ok_or_else(|| {
            let hint = "`ip` in the VM file, qemu-guest-agent in the guest, or `forward = [\"2222:22\"]` leads there";
            let failure = Failure::new(exit::NOT_RUNNING, "its address is not known");
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
    Err(Failure::of_io("cannot run `ssh`", &error).about(name))
}

fn user(vm: &Vm) -> Option<String> {
    vm.cloud_init.as_ref()?.user.clone()
}
