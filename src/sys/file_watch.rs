//! Reports changes of files and directories by inotify(7), without polling.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use tokio::io::unix::AsyncFd;

use super::readable_fd::readable;

/// A watch that can be stopped and restarted; clones share it. No lock is held while a file system
/// is accessed.
#[derive(Debug, Clone)]
pub struct Watching {
    fd: Arc<OwnedFd>,
    files: Arc<Files>,
    watches: Arc<Mutex<Vec<i32>>>,
}

/// The watched files.
#[derive(Debug, Default)]
struct Files(Mutex<Vec<PathBuf>>);

/// Matches every file of a directory.
const ANY: &str = "*";

impl Files {
    fn all(&self) -> MutexGuard<'_, Vec<PathBuf>> {
        // No holder of the lock can panic during a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns true if a watched file has this name. The directory is not compared: a spurious
    /// event is harmless.
    fn has(&self, name: &[u8]) -> bool {
        let is = |file: &PathBuf| {
            let known = file.file_name().map(|known| known.as_encoded_bytes());
            known == Some(name) || known == Some(ANY.as_bytes())
        };
        self.all().iter().any(is)
    }
}

/// The stream of changes.
#[derive(Debug)]
pub struct Changes {
    fd: AsyncFd<Arc<OwnedFd>>,
    files: Arc<Files>,
}

/// Watches the directory of `path`, since editors replace files by renaming.
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

/// Watches all files in `dir`.
///
/// # Errors
/// The directory cannot be watched.
pub fn directory(dir: &Path) -> io::Result<(Watching, Changes)> {
    file(&dir.join(ANY))
}

impl Watching {
    /// Watches an additional file; repeated calls have no effect.
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

    /// Resumes after [`Self::end`]; changes in between are not reported.
    ///
    /// # Errors
    /// A directory cannot be watched.
    pub fn begin(&self) -> io::Result<()> {
        let files = self.files.all().clone();
        files.iter().try_for_each(|file| self.watch(file))
    }

    fn watches(&self) -> MutexGuard<'_, Vec<i32>> {
        // No holder of the lock can panic during a change.
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(&self, path: &Path) -> io::Result<()> {
        let what = WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO | WatchFlags::DELETE;
        let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        let watch = inotify::add_watch(&self.fd, dir, what)?;
        // Two files of one directory have the same watch.
        let mut watches = self.watches();
        if !watches.contains(&watch) {
            watches.push(watch);
        }
        Ok(())
    }

    /// Stops watching. Call this well before the process exits: closing an inotify descriptor waits
    /// until all CPUs have released its watches (about 15 ms). This call starts the release and
    /// does not wait.
    pub fn end(&self) {
        let watches = std::mem::take(&mut *self.watches());
        for watch in watches {
            let _ = inotify::remove_watch(&self.fd, watch);
        }
    }
}

impl Changes {
    /// Waits for the next change; `None` if no more changes can be reported.
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
    async fn only_changes_of_the_file_are_reported() {
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
    async fn directory_and_additional_file_are_watched() {
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
