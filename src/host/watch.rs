//! Whether a file has changed, told by inotify(7): nothing wakes us while nothing happens.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use tokio::io::{Interest, unix::AsyncFd};

/// The watching, to be ended and begun again.
#[derive(Debug)]
pub struct Watching {
    fd: Arc<OwnedFd>,
    dir: PathBuf,
    watch: Option<i32>,
}

/// The changes of one file.
#[derive(Debug)]
pub struct Changes {
    fd: AsyncFd<Arc<OwnedFd>>,
    name: OsString,
}

/// Begins to watch `path`. It is the directory that is watched, since editors replace files by renaming.
///
/// # Errors
/// The directory cannot be watched.
pub fn file(path: &Path) -> io::Result<(Watching, Changes)> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let fd = Arc::new(inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?);
    let mut watching = Watching { fd: fd.clone(), dir: dir.to_owned(), watch: None };
    watching.begin()?;
    // SAFETY: an `OwnedFd` stays open, and the same, as long as the `AsyncFd` that shares it.
    let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
    Ok((watching, Changes { fd, name: name.to_owned() }))
}

impl Watching {
    /// Goes on after an end; what happened in between is not told.
    ///
    /// # Errors
    /// The directory cannot be watched.
    pub fn begin(&mut self) -> io::Result<()> {
        let what = WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO | WatchFlags::DELETE;
        self.watch = Some(inotify::add_watch(&self.fd, &self.dir, what)?);
        Ok(())
    }

    /// Ends it. To be called well before the process exits: the kernel lets nobody close an inotify descriptor, or exit with one,
    /// until all CPUs have forgotten its watches (some 15 ms), and begins with that here, without waiting.
    pub fn end(&mut self) {
        if let Some(watch) = self.watch.take() {
            let _ = inotify::remove_watch(&self.fd, watch);
        }
    }
}

impl Changes {
    /// Waits until the file has changed; `None` when nothing can be told any more.
    pub async fn next(&mut self) -> Option<()> {
        loop {
            let mut ready = self.fd.readable().await.ok()?;
            let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
            let mut events = inotify::Reader::new(self.fd.get_ref(), &mut buffer);
            let mut ours = false;
            loop {
                match events.next() {
                    Ok(event) => {
                        let name = event.file_name().map(|n| n.to_bytes());
                        ours |= name == Some(self.name.as_encoded_bytes())
                            || event.events().contains(ReadFlags::QUEUE_OVERFLOW);
                    }
                    Err(rustix::io::Errno::WOULDBLOCK) => break,
                    Err(_) => return None,
                }
            }
            ready.clear_ready();
            if ours {
                return Some(());
            }
        }
    }

    /// The file's name within its directory.
    pub fn name(&self) -> &OsStr {
        &self.name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_write_and_a_replacement_are_seen_and_other_files_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("web.toml");
        let (mut watching, mut changes) = file(&path).unwrap();
        std::fs::write(dir.path().join("other.toml"), "x").unwrap();
        std::fs::write(&path, "x").unwrap();
        changes.next().await.unwrap();
        std::fs::rename(dir.path().join("other.toml"), &path).unwrap();
        changes.next().await.unwrap();
        watching.end();
        std::fs::write(&path, "not seen").unwrap();
        let quiet = tokio::time::timeout(std::time::Duration::from_millis(50), changes.next());
        assert!(quiet.await.is_err());
        watching.begin().unwrap();
        std::fs::write(&path, "y").unwrap();
        changes.next().await.unwrap();
    }
}
