//! Whether a file has changed, told by inotify(7): nothing wakes us while nothing happens.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::fd::OwnedFd,
    path::Path,
    sync::Arc,
};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use tokio::io::{Interest, unix::AsyncFd};

/// The changes of one file.
#[derive(Debug)]
pub struct Changes {
    fd: Arc<AsyncFd<OwnedFd>>,
    name: OsString,
}

/// Keeps a watch; it ends where this is dropped.
#[derive(Debug)]
pub struct Watch {
    fd: Arc<AsyncFd<OwnedFd>>,
    descriptor: i32,
}

impl Watch {
    /// Ends the watch, and returns at once. The kernel frees it later, after a grace period of 10 ms or so, for which a
    /// `close` has to wait, and so has the end of the process (`fsnotify_wait_marks_destroyed` in fs/notify/mark.c):
    /// who lets go of it before there is other work to do does not notice.
    pub fn let_go(&self) {
        // A second time it is not there any more.
        let _ = inotify::remove_watch(&*self.fd, self.descriptor);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.let_go();
    }
}

/// Begins to watch `path`, until the `Watch` lets go; then there are no more changes. It is the directory that is watched, since editors replace files by renaming.
///
/// # Errors
/// The directory cannot be watched.
pub fn file(path: &Path) -> io::Result<(Watch, Changes)> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let what = WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO | WatchFlags::DELETE;
    let descriptor = inotify::add_watch(&fd, dir, what)?;
    // SAFETY: an `OwnedFd` stays open, and the same, as long as the `AsyncFd` that owns it.
    let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
    let fd = Arc::new(fd);
    Ok((Watch { fd: fd.clone(), descriptor }, Changes { fd, name: name.to_owned() }))
}

impl Changes {
    /// Waits until the file has changed; `None` when nothing can be told any more.
    pub async fn next(&mut self) -> Option<()> {
        loop {
            let mut ready = self.fd.readable().await.ok()?;
            let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
            let mut events = inotify::Reader::new(self.fd.get_ref(), &mut buffer);
            let (mut ours, mut over) = (false, false);
            loop {
                match events.next() {
                    Ok(event) => {
                        let name = event.file_name().map(|n| n.to_bytes());
                        over |= event.events().contains(ReadFlags::IGNORED);
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
            if over {
                return None;
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
        let (watch, mut changes) = file(&path).unwrap();
        std::fs::write(dir.path().join("other.toml"), "x").unwrap();
        std::fs::write(&path, "x").unwrap();
        changes.next().await.unwrap();
        std::fs::rename(dir.path().join("other.toml"), &path).unwrap();
        changes.next().await.unwrap();
        watch.let_go();
        std::fs::write(&path, "y").unwrap();
        assert_eq!(changes.next().await, None);
    }
}
