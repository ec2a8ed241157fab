//! Who supervises a VM. A process that was killed goes in steps: for some milliseconds its sockets still take callers, and its
//! lock is held, though nobody is there any more. What it had forked for its QEMU holds both until it notices.

use std::{io, path::Path, time::Duration};

use tokio::time::{Instant, sleep};

use crate::{
    control::{
        client::{Client, Error},
        types::State,
    },
    store::layout::VmPaths,
    sys::{
        file,
        lock::{self, Lock},
        pidfd::Process,
    },
};

/// How long a supervisor may take to answer.
const ANSWER: Duration = Duration::from_secs(2);
/// How long one that is gone may keep its lock, and hang up.
pub const GOES_WITHIN: Duration = Duration::from_secs(5);
/// What one that is about to end says to everything (docs/io.qvm.Vm.varlink).
const NOT_NOW: &str = "io.qvm.Vm.NotNow";
/// The first pause between two attempts, and the longest: it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_micros(500);
const LONGEST_PAUSE: Duration = Duration::from_millis(10);

/// Who is there.
#[derive(Debug)]
pub enum Holder {
    /// Nobody, as far as its control socket tells.
    Nobody,
    /// One that hung up: it is going, or gone.
    Gone,
    /// A supervisor, with its VM in this state. One that has not yet noticed that its QEMU is gone has failed.
    Supervisor(State),
    /// One that does not answer, or not to us.
    Silent(Error),
}

/// Asks at a control socket.
pub async fn look(socket: &Path) -> Holder {
    let mut client = match Client::connect(socket).await {
        Ok(client) => client,
        Err(Error::NotRunning) => return Holder::Nobody,
        Err(error) => return Holder::Silent(error),
    };
    match client.status(ANSWER).await {
        Ok(status) => match status.pid {
            Some(pid) if has_ended(pid) => Holder::Supervisor(State::Failed),
            _ => Holder::Supervisor(status.state),
        },
        Err(Error::Closed) => Holder::Gone,
        // Of its VM every supervisor tells as long as it has anything to do with it.
        Err(Error::Refused { error, .. }) if error == NOT_NOW => Holder::Supervisor(State::Stopped),
        Err(error) => Holder::Silent(error),
    }
}

/// Whether a process is gone, or would be but for its parent, who has yet to be told.
fn has_ended(pid: u32) -> bool {
    match Process::open(pid) {
        Ok(process) => !process.is_alive(),
        Err(error) => error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()),
    }
}

/// Takes the lock of a VM. One that is held by a process that is going is waited for; a supervisor that is there shows at its control
/// socket. The VM's runtime directory is made if it is not there.
///
/// # Errors
/// It is taken, or cannot be.
pub async fn take(paths: &VmPaths) -> Result<Lock, lock::Error> {
    file::make_dir(&paths.runtime).map_err(|error| lock::Error::Io {
        path: paths.lock(),
        source: io::Error::new(error.kind(), error),
    })?;
    let begun = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        match Lock::acquire(&paths.lock()) {
            Err(error @ lock::Error::Held { .. }) => {
                let holder = look(&paths.control_socket()).await;
                let goes = match holder {
                    Holder::Nobody | Holder::Gone => true,
                    Holder::Supervisor(state) => matches!(state, State::Stopped | State::Failed),
                    Holder::Silent(_) => false,
                };
                if !goes || begun.elapsed() >= GOES_WITHIN {
                    return Err(error);
                }
            }
            taken => return taken,
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        os::unix::net::UnixListener,
        path::PathBuf,
    };

    use super::*;
    use crate::store::layout::Layout;

    fn place() -> (tempfile::TempDir, VmPaths) {
        let dir = tempfile::tempdir().unwrap();
        let place = |name: &str| -> PathBuf { dir.path().join(name) };
        let layout = Layout { config: place("c"), state: place("s"), runtime: place("r") };
        let paths = layout.vm(&"web".parse().unwrap());
        std::fs::create_dir_all(&paths.runtime).unwrap();
        (dir, paths)
    }

    #[tokio::test]
    async fn one_that_hangs_up_is_nobody() {
        let (_dir, paths) = place();
        let socket = paths.control_socket();
        assert!(matches!(look(&socket).await, Holder::Nobody));
        let listener = UnixListener::bind(&socket).unwrap();
        // What the kernel does with those that nobody has accepted, once the last descriptor is closed.
        let looking = tokio::spawn({
            let socket = socket.clone();
            async move { look(&socket).await }
        });
        drop(tokio::task::spawn_blocking(move || listener.accept()).await.unwrap().unwrap());
        assert!(matches!(looking.await.unwrap(), Holder::Gone));
        assert!(matches!(look(&socket).await, Holder::Nobody));
    }

    #[tokio::test]
    async fn one_that_has_no_word_for_its_vm_any_more_is_about_to_end() {
        let (_dir, paths) = place();
        let socket = paths.control_socket();
        let listener = UnixListener::bind(&socket).unwrap();
        let held = Lock::acquire(&paths.lock()).unwrap();
        let answering = std::thread::spawn(move || {
            let answer = r#"{"error":"io.qvm.Vm.NotNow","parameters":{"state":"stopping"}}"#;
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().unwrap();
                let mut asked = [0; 999];
                assert!(stream.read(&mut asked).unwrap() > 0);
                stream.write_all(format!("{answer}\0").as_bytes()).unwrap();
            }
            drop(held);
        });
        assert!(matches!(look(&socket).await, Holder::Supervisor(State::Stopped)));
        // So its lock is waited for.
        take(&paths).await.unwrap();
        answering.join().unwrap();
    }

    #[tokio::test]
    async fn a_lock_that_is_let_go_is_waited_for() {
        let (_dir, paths) = place();
        let first = Lock::acquire(&paths.lock()).unwrap();
        let second = tokio::spawn({
            let paths = paths.clone();
            async move { take(&paths).await.map(drop) }
        });
        // It has found it taken by then, or finds it free: both are right.
        sleep(5 * LONGEST_PAUSE).await;
        drop(first);
        second.await.unwrap().unwrap();
    }
}
