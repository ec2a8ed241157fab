//! `qvm wait`: waits for a condition of a VM.

use std::time::Duration;

use crate::{
    cli::exit::Failure,
    control::{
        client::{self, Client},
        types::{Ready, State, Status},
    },
    fleet::inventory::STATUS_LIMIT,
    store::layout::Layout,
    value::{ErrorCode, Seconds, VmName, base64},
};

/// The arguments of `qvm wait`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The name of the VM
    name: VmName,
    /// The condition to wait for
    #[arg(long = "for", value_name = "WHAT", value_enum)]
    what: Condition,
    /// Fail with exit code 1 after this time
    #[arg(
        long,
        value_name = "SEC",
        value_parser = clap::value_parser!(u32).range(1..=i64::from(Seconds::MAX))
    )]
    timeout: Option<u32>,
}

/// The conditions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Condition {
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

/// The poll interval.
const POLL: Duration = Duration::from_millis(200);
/// The limit of one `cloud-init status --wait`.
const CLOUD_INIT: Duration = Duration::from_secs(60);

/// Waits for the condition.
///
/// # Errors
/// The VM does not exist, or the time limit was exceeded.
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
        let text = format!("the condition was not met within {limit} s");
        Err(Failure::new(ErrorCode::WaitTimeout, text).about(name))
    })
}

async fn is(what: Condition, layout: &Layout, name: &VmName) -> Result<bool, Failure> {
    let paths = layout.vm(name);
    let mut client = match Client::connect(&paths.control_socket()).await {
        Ok(client) => client,
        Err(client::Error::NotRunning) => {
            return match super::find(layout, name).await? {
                Ok(found) => Ok(what == Condition::Stopped && !found.is_running()),
                // A supervisor that has just started holds the locks, and answers by now.
                Err(_) if Client::connect(&paths.control_socket()).await.is_ok() => Ok(false),
                Err(error) => Err(super::unknown(&error, name)),
            };
        }
        Err(error) => return Err(super::refused(&error, layout, name).await),
    };
    // A supervisor that ends meanwhile is not a failure: the next poll decides.
    let state = |is: &dyn Fn(&Status) -> bool, status: Result<Status, client::Error>| {
        status.is_ok_and(|status| is(&status))
    };
    Ok(match what {
        Condition::Stopped => false,
        Condition::Running => {
            state(&|status| status.state == State::Running, client.status(STATUS_LIMIT).await)
        }
        Condition::Ready => {
            state(&|status| status.ready == Some(Ready::Yes), client.status(STATUS_LIMIT).await)
        }
        Condition::Agent => client.guest().await.is_ok_and(|guest| guest.answers),
        Condition::CloudInit => {
            let command = ["cloud-init", "status"].map(str::to_owned).to_vec();
            let done = client.exec(command, CLOUD_INIT).await;
            done.is_ok_and(|done| {
                let out = base64(&done.out).unwrap_or_default();
                use crate::guest::readiness::{CloudInit, cloud_init};
                let state = cloud_init(&String::from_utf8_lossy(&out), done.exit_code);
                state != CloudInit::Going
            })
        }
    })
}
