//! The verbs, one per file; here what several of them share.

pub mod apply;
pub mod check;
pub mod clone;
pub mod completions;
pub mod console;
pub mod cp;
pub mod diff;
pub mod disk;
pub mod doctor;
pub mod edit;
pub mod events;
pub mod exec;
pub mod exec_stop_post;
pub mod export;
pub mod fsfreeze;
pub mod gc;
pub mod generate;
pub mod image;
pub mod import;
pub mod ip;
pub mod kill;
pub mod list;
pub mod log;
pub mod man;
pub mod metrics;
pub mod network_broker;
pub mod new;
pub mod pause;
pub mod plan;
pub mod reboot;
mod refusal;
pub mod rename;
pub mod reseed;
pub mod restart;
pub mod resume;
pub mod rm;
pub mod run;
pub mod screenshot;
pub mod seed;
pub mod sendkey;
pub mod snapshot;
pub mod ssh;
pub mod start;
pub mod status;
pub mod stop;
pub mod suspend;
pub mod top;
pub mod type_text;
pub mod vnc;
pub mod wait;

use std::{
    collections::BTreeSet,
    io::{self, Write},
    time::Duration,
};

use self::refusal::{
    find, guest_failure, is_known, no_answer, not_ended, not_held, not_running, not_started,
    or_refused, refused, unknown, without_supervisor,
};
use futures_util::future::join_all;
use jiff::Timestamp;

use super::exit::{self, Failure};
use crate::{
    control::{
        client::Client,
        types::{Command, Pending},
    },
    fleet,
    guest::Guest,
    spec::Vm,
    store::{layout::Layout, running},
    sys::{
        progress::Cancel,
        session::{Session, SessionEnd},
    },
    systemd::{service::Unit, unit::Scope},
    transfer,
    value::{Explain, VmName, keyboard::Chord, plain},
};

/// How long a supervisor may take to return the notes of a started VM.
const NOTES_LIMIT: Duration = Duration::from_secs(5);

/// Runs `work` for all names in parallel, without duplicates, and combines the failures.
async fn each<W>(names: &[VmName], work: impl Fn(VmName) -> W) -> Result<(), Failure>
where
    W: Future<Output = Result<(), Failure>>,
{
    let mut seen = BTreeSet::new();
    let names: Vec<&VmName> = names.iter().filter(|name| seen.insert(*name)).collect();
    followed(async {
        let done = join_all(names.into_iter().map(|name| work(name.clone()))).await;
        Failure::all(done.into_iter().filter_map(Result::err).collect())
    })
    .await
}

/// Runs `work` until it is done, the terminal hangs up, or standard output has no reader. Requests
/// already sent to a supervisor are still executed.
async fn followed(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let mut session = Session::watch();
    tokio::select! {
        biased;
        done = work => done,
        vanished = session.end() => Err(Failure::quiet(vanished.exit_code())),
    }
}

/// Runs read-only work: a closed standard output is not an error.
async fn shown(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    match followed(work).await {
        Err(failure) if failure.exit_code() == SessionEnd::NoReader.exit_code() => Ok(()),
        done => done,
    }
}

/// Prints the notes of a started VM: the deviations from its VM file. `qvm status` shows them too,
/// so a supervisor that does not answer is not an error here.
async fn print_notes(layout: &Layout, name: &VmName) {
    let socket = layout.vm(name).control_socket();
    let Ok(mut client) = Client::connect(&socket).await else { return };
    let Ok(status) = client.status(NOTES_LIMIT).await else { return };
    for note in status.notes.iter() {
        report(name, &format!("note: {note}"));
    }
}

/// Writes the result to standard output.
fn print(text: &str) -> Result<(), Failure> {
    print_bytes(text.as_bytes())
}

fn print_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(|e| Failure::output(&e))
}

/// Reports progress on standard output. Write errors are ignored.
fn report(name: &VmName, text: &str) {
    let lines: Vec<String> = text.split('\n').map(plain).collect();
    let _ = print(&format!("{name}: {}\n", lines.join("\n")));
}

async fn connect(layout: &Layout, name: &VmName) -> Result<Client, Failure> {
    let socket = layout.vm(name).control_socket();
    or_refused(Client::connect(&socket).await, layout, name).await
}

/// Connects to the guest through its agent.
async fn guest(layout: &Layout, name: &VmName) -> Result<Guest, Failure> {
    let cannot = |error: io::Error| Failure::from_error(&error).about(name);
    let session = Session::catch().map_err(cannot)?;
    match Guest::connect(layout.vm(name), session).await {
        Ok(guest) => Ok(guest),
        Err(error) => Err(guest_failure(&error, layout, name).await),
    }
}

/// Sends a command that returns no data to each VM.
async fn command(layout: &Layout, names: &[VmName], command: Command) -> Result<(), Failure> {
    each(names, async |name| {
        let mut client = connect(layout, &name).await?;
        or_refused(client.command(command).await, layout, &name).await
    })
    .await
}

/// Presses keys on a guest's keyboard.
async fn press(layout: &Layout, name: &VmName, chords: &[Chord]) -> Result<(), Failure> {
    let mut client = connect(layout, name).await?;
    or_refused(client.press(chords).await, layout, name).await
}

/// Returns a function that reports whether the QEMU process of now is alive: false if none is
/// running, `None` if the state of the VM is unknown.
async fn qemu_before(layout: &Layout, name: &VmName) -> impl Fn() -> Option<bool> + use<> {
    let before = match find(layout, name).await {
        Ok(Ok(running::PreviousQemu::Running(qemu, _))) => Ok(Some(qemu)),
        Ok(Ok(_)) => Ok(None),
        Ok(Err(_)) | Err(_) => Err(()),
    };
    move || Some(before.as_ref().ok()?.as_ref().is_some_and(|qemu| qemu.is_alive()))
}

/// Sends a command that ends VMs and prints each rung; with `wait`, returns when they are down.
async fn ask_down(
    layout: &Layout,
    names: &[VmName],
    command: Command,
    wait: bool,
) -> Result<(), Failure> {
    each(names, async |name| {
        let paths = layout.vm(&name);
        let mut say = |text: &str| report(&name, text);
        let done = if wait {
            let is_alive = qemu_before(layout, &name).await;
            fleet::stop::end(&paths, command, &mut say, is_alive).await
        } else {
            fleet::stop::ask_down(&paths.control_socket(), command, false, &mut say).await
        };
        or_refused(done, layout, &name).await
    })
    .await
}

/// How long canceled work may take to end. It may be waiting for another program at the end of a
/// pipe.
const CANCEL_GRACE: Duration = Duration::from_secs(3);

/// Runs blocking work on a thread. SIGINT, SIGTERM, SIGHUP and a terminal that hangs up cancel it.
async fn long<T: Send + 'static>(
    work: impl FnOnce(&Cancel) -> T + Send + 'static,
) -> Result<T, Failure> {
    let cancel = Cancel::default();
    let mut session = Session::catch().map_err(|error| Failure::from_error(&error))?;
    let called_off = cancel.clone();
    let work = tokio::task::spawn_blocking(move || work(&called_off));
    tokio::pin!(work);
    let called_off = async {
        // Progress is not required: write errors are ignored.
        while session.end().await == SessionEnd::NoReader {}
        cancel.set();
        tokio::time::sleep(CANCEL_GRACE).await;
    };
    tokio::select! {
        done = &mut work => done.map_err(|error| Failure::from_error(&error)),
        () = called_off => Err(Failure::described(&transfer::Error::Canceled)),
    }
}

/// Returns the failure of a rename, clone, export or import.
fn transfer_failure(error: &transfer::Error, name: &VmName) -> Failure {
    match error {
        transfer::Error::Invalid(invalid) => Failure::invalid(invalid),
        transfer::Error::WouldBeInvalid(invalid) => {
            let text = format!("error: {name}: {error}:\n{invalid}");
            Failure::preformatted(exit::INVALID, text).error_code(error.code())
        }
        transfer::Error::NoVm(_) => Failure::described(error).exit(exit::NOT_RUNNING),
        transfer::Error::NoFile(_) => Failure::described(error).exit(exit::NOT_RUNNING).about(name),
        error => Failure::explained_for(error, name),
    }
}

/// Reloads the service manager for a new VM file: order, autostart, weights.
async fn reload_units(name: &VmName, manager: Option<Scope>) -> Result<(), Failure> {
    let Some(scope) = manager else { return Ok(()) };
    let taken_up = match Unit::find(name, scope).await {
        Ok(Some(unit)) => unit.refresh().await,
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    let hint = "the VM file was written; run `systemctl daemon-reload`".to_owned();
    taken_up.map_err(|e| Failure::described(&e).about(name).hint(hint))
}

/// Prints a remaining task to standard error.
fn advise(text: &str) {
    let _ = writeln!(io::stderr(), "hint: {text}");
}

/// Prints the keys that were removed from the copy of a VM file.
fn print_removed_keys(name: &VmName, keys: &[String]) {
    if !keys.is_empty() {
        report(name, &format!("removed from its VM file: {}", keys.join(", ")));
    }
}

fn keeps_hostname(hostname: &str) {
    advise(&format!(
        "its guest keeps the host name `{hostname}`: set `hostname` in `[cloudInit]` to change it"
    ));
}

/// Prints what is unique to a guest that has run, and should not be in a copy.
fn advise_copy(name: &VmName, from: &VmName, vm: &Vm, has_run: bool) {
    if has_run {
        let (also, keys) = match vm.cloud_init {
            Some(_) => ("", ""),
            None => (" and the SSH host keys", "; rm /etc/ssh/ssh_host_*; ssh-keygen -A"),
        };
        let renew = "rm -f /etc/machine-id /var/lib/dbus/machine-id; systemd-machine-id-setup";
        advise(&format!(
            "the guest has the machine-id{also} of `{from}`; to replace it, \
             run `{renew}{keys}` in the guest of `{name}` and reboot it"
        ));
    }
    if let Some(data) = vm.cloud_init.as_ref().and_then(|seed| seed.user_data.as_ref()) {
        advise(&format!(
            "it uses the user-data of `{from}`, `{}`: check it for settings that must be unique",
            data.path.display()
        ));
    }
}

/// Formats bytes, rounded up to MiB: `512M`, `4G`.
fn size(bytes: u64) -> String {
    use crate::value::Size;
    Size::from_mib(bytes.div_ceil(Size::MIB)).map_or_else(|| bytes.to_string(), |s| s.to_string())
}

/// `mem: 1G -> 2G`.
fn difference(pending: &Pending) -> String {
    let value = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
    format!("{}: {} -> {}", pending.key, value(&pending.from), value(&pending.to))
}

/// `mem: 1G -> 2G, when the guest reboots`.
fn change(pending: &Pending) -> String {
    let reruns = match &pending.reruns {
        Some(modules) => format!(", which repeats: {modules}"),
        None => String::new(),
    };
    format!("{}, {}{reruns}", difference(pending), pending.takes_effect.words())
}

/// Returns the time since `at` in the two largest units: `3d 4h`, `4h 5m`, `5m 6s`, `6s`.
fn age(at: &str, now: Timestamp) -> Option<String> {
    let at: Timestamp = at.parse().ok()?;
    let seconds = u64::try_from(now.as_second() - at.as_second()).unwrap_or(0);
    let (d, h, m, s) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    Some(match (d, h, m) {
        (0, 0, 0) => format!("{s}s"),
        (0, 0, _) => format!("{m}m {s}s"),
        (0, ..) => format!("{h}h {m}m"),
        _ => format!("{d}d {h}h"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duration_has_two_largest_units() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        for (at, shown) in [
            ("2026-01-01T23:59:54Z", "6s"),
            ("2026-01-01T23:54:54Z", "5m 6s"),
            ("2026-01-01T19:54:54Z", "4h 5m"),
            ("2025-12-29T20:00:00Z", "3d 4h"),
            // The clock was set back.
            ("2026-01-03T00:00:00Z", "0s"),
        ] {
            assert_eq!(age(at, now).as_deref(), Some(shown));
        }
        assert_eq!(age("yesterday", now), None);
    }
}
