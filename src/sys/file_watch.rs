//! Whether files, or anything in a directory, have changed, told by inotify(7): nothing wakes us while nothing happens.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use tokio::io::unix::AsyncFd;

use super::readable_fd::readable;

/// The watching, to be ended and begun again; clones share it. No lock is held while a file system is asked.
#[derive(Debug, Clone)]
pub struct Watching {
    fd: Arc<OwnedFd>,
    files: Arc<Files>,
    watches: Arc<Mutex<Vec<i32>>>,
}

/// The files that are watched.
#[derive(Debug, Default)]
struct Files(Mutex<Vec<PathBuf>>);

/// Stands for every file of a directory.
const ANY: &str = "*";

impl Files {
    fn all(&self) -> MutexGuard<'_, Vec<PathBuf>> {
        // Nothing that holds the lock can panic half-way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether one of them is called so. In which directory is not asked: that a file of that name has changed elsewhere does no harm.
    fn has(&self, name: &[u8]) -> bool {
        let is = |file: &PathBuf| {
            let known = file.file_name().map(|known| known.as_encoded_bytes());
            known == Some(name) || known == Some(ANY.as_bytes())
        };
        self.all().iter().any(is)
    }
}

/// The changes of the files.
#[derive(Debug)]
pub struct Changes {
    fd: AsyncFd<Arc<OwnedFd>>,
    files: Arc<Files>,
}

/// Begins to watch `path`. It is the directory that is watched, since editors replace files by renaming.
///
/// # Errors
/// The directory cannot be watched.
pub fn file(path: &Path) -> io::Result<(Watching, Changes)> {
    let fd = Arc::new(inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?);
    let files = Arc::new(Files::default());
    let watching = Watching { fd: fd.clone(), files: files.clone(), watches: Arc::default() };
    watching.also(path)?;
    let fd = readable(fd)?;
    Ok((watching, Changes { fd, files }))
}

/// Begins to watch everything in `dir`.
///
/// # Errors
/// The directory cannot be watched.
pub fn directory(dir: &Path) -> io::Result<(Watching, Changes)> {
    file(&dir.join(ANY))
}

impl Watching {
    /// Watches another file as well; one that is watched already is watched once.
    ///
    /// # Errors
    /// The directory cannot be watched.
    pub fn also(&self, path: &Path) -> io::Result<()> {
        if !self.files.all().iter().any(|file| file == path) {
            self.watch(path)?;
            self.files.all().push(path.to_owned());
        }
        Ok(())
    }

    /// Goes on after an end; what happened in between is not told.
    ///
    /// # Errors
    /// A directory cannot be watched.
    pub fn begin(&self) -> io::Result<()> {
        let files = self.files.all().clone();
        files.iter().try_for_each(|file| self.watch(file))
    }

    fn watches(&self) -> MutexGuard<'_, Vec<i32>> {
        // Nothing that holds the lock can panic half-way through a change.
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(&self, path: &Path) -> io::Result<()> {
        let what = WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO | WatchFlags::DELETE;
        let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        let watch = inotify::add_watch(&self.fd, dir, what)?;
        // The same for two files of one directory.
        let mut watches = self.watches();
        if !watches.contains(&watch) {
            watches.push(watch);
        }
        Ok(())
    }

    /// Ends it. To be called well before the process exits: the kernel lets nobody close an inotify descriptor, or exit with one,
    /// until all CPUs have forgotten its watches (some 15 ms), and begins with that here, without waiting.
    pub fn end(&self) {
        let watches = std::mem::take(&mut *self.watches());
        for watch in watches {
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
                        ours |= name.is_some_and(|name| self.files.has(name))
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_write_and_a_replacement_are_seen_and_other_files_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("web.toml");
        let (watching, mut changes) = file(&path).unwrap();
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
        let program = dir.path().join("qemu");
        watching.also(&program).unwrap();
        std::fs::write(&program, "x").unwrap();
        changes.next().await.unwrap();
        std::fs::write(&path, "y").unwrap();
        changes.next().await.unwrap();
    }

    #[tokio::test]
    async fn all_of_a_directory_is_seen_and_a_file_of_another() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(dir.path().join("x"), "x").unwrap();
        let (watching, mut changes) = directory(dir.path()).unwrap();
        watching.also(&other.path().join("y")).unwrap();
        std::fs::remove_file(dir.path().join("x")).unwrap();
        changes.next().await.unwrap();
        std::fs::write(other.path().join("y"), "y").unwrap();
        changes.next().await.unwrap();
    }
}
