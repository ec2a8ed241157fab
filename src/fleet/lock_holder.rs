//! The process that holds the lock of a VM. After a kill, its sockets accept connections and its
//! lock is held for some milliseconds. The process that it forked for QEMU holds both until it
//! notices.

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

/// The limit for a reply of a supervisor.
const REPLY_LIMIT: Duration = Duration::from_secs(2);
/// How long an ended supervisor may keep its lock and close connections without a reply.
pub const EXIT_LIMIT: Duration = Duration::from_secs(5);
/// The error with which a supervisor that is about to end answers all calls
/// (docs/io.qvm.Vm.varlink).
const NOT_NOW: &str = "io.qvm.Vm.NotNow";
/// The first pause between two attempts, and the longest: it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_micros(500);
const LONGEST_PAUSE: Duration = Duration::from_millis(10);

/// The state of the lock holder as seen at its control socket.
#[derive(Debug)]
pub enum LockHolder {
    /// No process listens on the control socket.
    NotListening,
    /// The connection was closed without a reply: the process is exiting.
    Exiting,
    /// A supervisor, whose VM is in this state. A supervisor whose QEMU has ended unnoticed counts
    /// as failed.
    Supervisor(State),
    /// A process that does not answer, or does not admit this user.
    Silent(Error),
}

/// Asks a supervisor at its control socket.
pub async fn probe(socket: &Path) -> LockHolder {
    let mut client = match Client::connect(socket).await {
        Ok(client) => client,
        Err(Error::NotRunning) => return LockHolder::NotListening,
        Err(error) => return LockHolder::Silent(error),
    };
    match client.status(REPLY_LIMIT).await {
        Ok(status) => match status.pid {
            Some(pid) if has_ended(pid) => LockHolder::Supervisor(State::Failed),
            _ => LockHolder::Supervisor(status.state),
        },
        Err(Error::Closed) => LockHolder::Exiting,
        // A supervisor reports its VM until it is about to end.
        Err(Error::Refused { error, .. }) if error == NOT_NOW => {
            LockHolder::Supervisor(State::Stopped)
        }
        Err(error) => LockHolder::Silent(error),
    }
}

/// Whether a process has ended; a zombie has.
fn has_ended(pid: u32) -> bool {
    match Process::open(pid) {
        Ok(process) => !process.is_alive(),
        Err(error) => error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()),
    }
}

/// Acquires the lock of a VM. Waits for a holder that is exiting, as seen at its control socket.
/// Creates the runtime directory of the VM if required.
///
/// # Errors
/// The lock is held, or cannot be opened.
pub async fn acquire(paths: &VmPaths) -> Result<Lock, lock::Error> {
    file::make_dir(&paths.runtime).map_err(|error| lock::Error::Io {
        path: paths.lock(),
        source: io::Error::new(error.kind(), error),
    })?;
    let begun = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        match Lock::acquire(&paths.lock()) {
            Err(error @ lock::Error::Held { .. }) => {
                let holder = probe(&paths.control_socket()).await;
                let goes = match holder {
                    LockHolder::NotListening | LockHolder::Exiting => true,
                    LockHolder::Supervisor(state) => {
                        matches!(state, State::Stopped | State::Failed)
                    }
                    LockHolder::Silent(_) => false,
                };
                if !goes || begun.elapsed() >= EXIT_LIMIT {
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
    async fn closed_connection_is_an_exiting_holder() {
        let (_dir, paths) = place();
        let socket = paths.control_socket();
        assert!(matches!(probe(&socket).await, LockHolder::NotListening));
        let listener = UnixListener::bind(&socket).unwrap();
        // The kernel closes connections that were never accepted with the last descriptor.
        let looking = tokio::spawn({
            let socket = socket.clone();
            async move { probe(&socket).await }
        });
        drop(tokio::task::spawn_blocking(move || listener.accept()).await.unwrap().unwrap());
        assert!(matches!(looking.await.unwrap(), LockHolder::Exiting));
        assert!(matches!(probe(&socket).await, LockHolder::NotListening));
    }

    #[tokio::test]
    async fn not_now_is_an_ending_supervisor() {
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
        assert!(matches!(probe(&socket).await, LockHolder::Supervisor(State::Stopped)));
        // Its lock is waited for.
        acquire(&paths).await.unwrap();
        answering.join().unwrap();
    }

    #[tokio::test]
    async fn waits_for_released_lock() {
        let (_dir, paths) = place();
        let first = Lock::acquire(&paths.lock()).unwrap();
        let second = tokio::spawn({
            let paths = paths.clone();
            async move { acquire(&paths).await.map(drop) }
        });
        // Both orders are correct.
        sleep(5 * LONGEST_PAUSE).await;
        drop(first);
        second.await.unwrap().unwrap();
    }
}
