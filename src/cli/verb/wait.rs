//! `qvm wait`: returns when a VM is what it is waited for to be.

use std::time::Duration;

use crate::{
    cli::exit::{self, Failure},
    control::{
        client::{self, Client},
        types::{Ready, State, Status},
    },
    fleet::inventory::PATIENCE,
    store::layout::Layout,
    value::{Seconds, VmName, base64},
};

/// The arguments of `qvm wait`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The name of the VM
    name: VmName,
    /// The condition to wait for
    #[arg(long = "for", value_name = "WHAT", value_enum)]
    what: What,
    /// Fail with exit code 1 after this time
    #[arg(long, value_name = "SEC", value_parser = clap::value_parser!(u32).range(1..=i64::from(Seconds::MAX)))]
    timeout: Option<u32>,
}

/// What a VM can be waited for to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// The vCPUs run
    Running,
    /// The condition `ready` of the VM file is met
    Ready,
    /// The guest agent answers
    Agent,
    /// cloud-init has finished in the guest, with or without errors
    CloudInit,
    /// The VM is stopped
    Stopped,
}

/// Between two looks.
const POLL: Duration = Duration::from_millis(200);
/// How long `cloud-init status --wait` may take at a time.
const CLOUD_INIT: Duration = Duration::from_secs(60);

/// Waits.
///
/// # Errors
/// There is no such VM, or the time is up.
pub async fn run(args: &Args, layout: &Layout) -> Result<(), Failure> {
    let name = &args.name;
    let is_supervised = Client::connect(&layout.vm(name).control_socket()).await.is_ok();
    if !is_supervised && !super::is_known(layout, name).await? {
        return Err(super::not_running(layout, name).await);
    }
    let wait = async {
        while !is(args.what, layout, name).await? {
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    };
    let wait = super::followed(wait);
    let Some(limit) = args.timeout else { return wait.await };
    let waited = tokio::time::timeout(Duration::from_secs(limit.into()), wait).await;
    waited.unwrap_or_else(|_| {
        let text = format!("not within {limit} s");
        Err(Failure::new(exit::FAILED, text).about(name))
    })
}

async fn is(what: What, layout: &Layout, name: &VmName) -> Result<bool, Failure> {
    let paths = layout.vm(name);
    let mut client = match Client::connect(&paths.control_socket()).await {
        Ok(client) => client,
        Err(client::Error::NotRunning) => {
            return match super::find(layout, name).await? {
                Ok(found) => Ok(what == What::Stopped && !found.is_running()),
                // A supervisor that began a moment ago holds the locks, and answers by now.
                Err(_) if Client::connect(&paths.control_socket()).await.is_ok() => Ok(false),
                Err(error) => Err(super::unknown(&error, name)),
            };
        }
        Err(error) => return Err(super::refused(&error, layout, name).await),
    };
    // A supervisor that goes meanwhile is no failure: the next look will tell.
    let state = |is: &dyn Fn(&Status) -> bool, status: Result<Status, client::Error>| {
        status.is_ok_and(|status| is(&status))
    };
    Ok(match what {
        What::Stopped => false,
        What::Running => {
            state(&|status| status.state == State::Running, client.status(PATIENCE).await)
        }
        What::Ready => {
            state(&|status| status.ready == Some(Ready::Yes), client.status(PATIENCE).await)
        }
        What::Agent => client.guest().await.is_ok_and(|guest| guest.answers),
        What::CloudInit => {
            let command = ["cloud-init", "status"].map(str::to_owned).to_vec();
            let done = client.exec(command, CLOUD_INIT).await;
            done.is_ok_and(|done| {
                let out = base64(&done.out).unwrap_or_default();
                use crate::guest::readiness::{CloudInit, cloud_init};
                let said = cloud_init(&String::from_utf8_lossy(&out), done.exit_code);
                said != CloudInit::Going
            })
        }
    })
}
