//! A file system whose storage hangs on demand: FUSE (fuse(4)) over a directory, by the test.

use std::{
    collections::HashMap,
    ffi::{CString, OsStr, OsString},
    fs,
    io::{Read, Write},
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
};

use command_fds::{CommandFdExt, FdMapping};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::mounts::Mounts;

/// The state of the storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Storage {
    /// It answers.
    Answers = 0,
    /// It reads no requests: waiting processes can be killed, as on NFS.
    Hangs = 1,
    /// It reads requests without answering: waiting processes cannot be killed, as on a suspended
    /// disk.
    HangsUnkillably = 2,
    /// The server ends.
    Ends = 3,
}

/// The file system.
pub(crate) struct Hanging {
    below: PathBuf,
    mode: Arc<AtomicU8>,
    taken: Arc<AtomicUsize>,
    server: Option<JoinHandle<()>>,
}

impl Hanging {
    /// Mounts the file system over `at`, with the files of `below`; `None` if this kernel has no
    /// FUSE.
    pub(crate) fn mount(mounts: &Mounts, at: &Path, below: &Path) -> Option<Self> {
        let device = fs::File::options().read(true).write(true).open("/dev/fuse").ok()?;
        fs::create_dir_all(at).unwrap();
        fs::create_dir_all(below).unwrap();
        let mut mount = mounts.command("mount");
        mount.args(["-i", "-t", "fuse", "-o"]);
        mount.arg("fd=9,rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions");
        mount.arg("hanging").arg(at);
        let fd = device.try_clone().unwrap().into();
        mount.fd_mappings(vec![FdMapping { parent_fd: fd, child_fd: 9 }]).unwrap();
        let (mode, taken) = (Arc::new(AtomicU8::new(0)), Arc::new(AtomicUsize::new(0)));
        let mut server = Server {
            device,
            mode: mode.clone(),
            taken: taken.clone(),
            paths: HashMap::from([(1, below.to_owned())]),
            files: HashMap::new(),
            next: 2,
        };
        let server = std::thread::spawn(move || server.serve());
        assert!(mount.status().unwrap().success(), "FUSE cannot be mounted");
        Some(Self { below: below.to_owned(), mode, taken, server: Some(server) })
    }

    pub(crate) fn is(&self, storage: Storage) {
        self.mode.store(storage as u8, Ordering::SeqCst);
    }

    /// The number of unanswered requests.
    pub(crate) fn taken(&self) -> usize {
        self.taken.load(Ordering::SeqCst)
    }

    /// A file in the directory below the storage.
    pub(crate) fn past(&self, file: &str) -> PathBuf {
        self.below.join(file)
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        // Closing the device aborts all waiting requests.
        self.is(Storage::Ends);
        let _ = self.server.take().map(JoinHandle::join);
    }
}

struct Server {
    device: fs::File,
    mode: Arc<AtomicU8>,
    taken: Arc<AtomicUsize>,
    /// The paths by node.
    paths: HashMap<u64, PathBuf>,
    files: HashMap<u64, fs::File>,
    next: u64,
}

/// A reply, or an errno.
type Reply = Result<Vec<u8>, i32>;

fn errno(error: std::io::Error) -> i32 {
    error.raw_os_error().unwrap_or(nix::libc::EIO)
}

/// Reads integers in the byte order of this machine from a request.
struct Words<'a>(&'a [u8]);

impl Words<'_> {
    fn u32(&mut self) -> u32 {
        let (word, rest) = self.0.split_at(4);
        self.0 = rest;
        u32::from_ne_bytes(word.try_into().unwrap())
    }

    fn u64(&mut self) -> u64 {
        let (word, rest) = self.0.split_at(8);
        self.0 = rest;
        u64::from_ne_bytes(word.try_into().unwrap())
    }

    fn name(&mut self) -> OsString {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap();
        let name = OsStr::from_bytes(&self.0[..end]).to_owned();
        self.0 = &self.0[end + 1..];
        name
    }
}

/// `struct fuse_attr` of include/uapi/linux/fuse.h.
fn attr(found: &fs::Metadata) -> Vec<u8> {
    let mut out = vec![];
    for word in [found.ino(), found.size(), found.blocks()] {
        out.extend(word.to_ne_bytes());
    }
    for time in [found.atime(), found.mtime(), found.ctime()] {
        out.extend(time.to_ne_bytes());
    }
    for nanoseconds in [found.atime_nsec(), found.mtime_nsec(), found.ctime_nsec()] {
        out.extend(u32::try_from(nanoseconds).unwrap().to_ne_bytes());
    }
    let links = u32::try_from(found.nlink()).unwrap();
    for word in [found.mode(), links, found.uid(), found.gid(), 0, 4096, 0] {
        out.extend(word.to_ne_bytes());
    }
    out
}

impl Server {
    fn serve(&mut self) {
        let mut buffer = vec![0; 1 << 20];
        let mut held: Vec<Vec<u8>> = vec![];
        loop {
            let mode = self.mode.load(Ordering::SeqCst);
            if mode == Storage::Ends as u8 {
                return;
            }
            if mode == Storage::Answers as u8 {
                for request in std::mem::take(&mut held) {
                    self.answer(&request);
                }
                self.taken.store(0, Ordering::SeqCst);
            }
            if mode == Storage::Hangs as u8 {
                std::thread::sleep(std::time::Duration::from_millis(5));
                continue;
            }
            let mut waits = [PollFd::new(&self.device, PollFlags::IN)];
            let pause = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
            if poll(&mut waits, Some(&pause)).unwrap_or(0) == 0 {
                continue;
            }
            match self.device.read(&mut buffer) {
                Ok(count) if mode == Storage::HangsUnkillably as u8 => {
                    held.push(buffer[..count].to_vec());
                    self.taken.fetch_add(1, Ordering::SeqCst);
                }
                Ok(count) => {
                    let request = buffer[..count].to_vec();
                    self.answer(&request);
                }
                // An interrupted request, or the file system is not mounted yet.
                Err(error)
                    if [
                        nix::libc::ENOENT,
                        nix::libc::EINTR,
                        nix::libc::EAGAIN,
                        nix::libc::EPERM,
                    ]
                    .contains(&error.raw_os_error().unwrap_or(0)) => {}
                Err(_) => return,
            }
        }
    }

    fn answer(&mut self, request: &[u8]) {
        let mut head = Words(request);
        let (_length, opcode, unique, node) = (head.u32(), head.u32(), head.u64(), head.u64());
        // FORGET, BATCH_FORGET and INTERRUPT have no reply.
        if [2, 42, 36].contains(&opcode) {
            return;
        }
        let reply = self.act(opcode, node, Words(&request[40..]));
        let (error, body) = match reply {
            Ok(body) => (0, body),
            Err(error) => (-error, vec![]),
        };
        let length = u32::try_from(16 + body.len()).unwrap();
        let mut out = length.to_ne_bytes().to_vec();
        out.extend(error.to_ne_bytes());
        out.extend(unique.to_ne_bytes());
        out.extend(body);
        // The requesting process may have ended.
        let _ = self.device.write(&out);
    }

    fn path(&self, node: u64) -> Result<PathBuf, i32> {
        self.paths.get(&node).cloned().ok_or(nix::libc::ENOENT)
    }

    fn child(&self, node: u64, name: &OsStr) -> Result<PathBuf, i32> {
        Ok(self.path(node)?.join(name))
    }

    /// `struct fuse_entry_out`, without caching.
    fn entry(&mut self, path: PathBuf) -> Reply {
        let found = fs::symlink_metadata(&path).map_err(errno)?;
        let node = match self.paths.iter().find(|(_, known)| **known == path) {
            Some((node, _)) => *node,
            None => {
                self.next += 1;
                self.paths.insert(self.next, path);
                self.next
            }
        };
        let mut out = vec![];
        for word in [node, 0, 0, 0, 0] {
            out.extend(word.to_ne_bytes());
        }
        out.extend(attr(&found));
        Ok(out)
    }

    fn attributes(&self, node: u64) -> Reply {
        let found = fs::symlink_metadata(self.path(node)?).map_err(errno)?;
        Ok([vec![0; 16], attr(&found)].concat())
    }

    /// `struct fuse_open_out`.
    fn opened(&mut self, file: fs::File) -> Vec<u8> {
        self.next += 1;
        self.files.insert(self.next, file);
        [self.next.to_ne_bytes().to_vec(), vec![0; 8]].concat()
    }

    fn file(&self, handle: u64) -> Result<&fs::File, i32> {
        self.files.get(&handle).ok_or(nix::libc::EBADF)
    }

    fn open(&self, path: &Path, flags: u32, mode: Option<u32>) -> Result<fs::File, i32> {
        let access = flags.cast_signed() & nix::libc::O_ACCMODE;
        let rest = flags.cast_signed()
            & !(nix::libc::O_ACCMODE | nix::libc::O_DIRECT | nix::libc::O_APPEND);
        let mut options = fs::File::options();
        options.read(access != nix::libc::O_WRONLY).write(access != nix::libc::O_RDONLY);
        if let Some(mode) = mode {
            options.create(true).mode(mode);
            if access == nix::libc::O_RDONLY {
                options.write(true);
            }
        }
        options.custom_flags(rest & !nix::libc::O_CREAT).open(path).map_err(errno)
    }

    fn act(&mut self, opcode: u32, node: u64, mut words: Words<'_>) -> Reply {
        match opcode {
            // INIT: version 7.31, requests of up to 256 KiB.
            26 => {
                let mut out = vec![];
                out.extend(7_u32.to_ne_bytes());
                out.extend(31_u32.to_ne_bytes());
                out.extend((128_u32 << 10).to_ne_bytes());
                out.extend((1_u32 << 5).to_ne_bytes());
                out.extend(16_u16.to_ne_bytes());
                out.extend(12_u16.to_ne_bytes());
                out.extend((128_u32 << 10).to_ne_bytes());
                out.extend(1_u32.to_ne_bytes());
                out.resize(64, 0);
                Ok(out)
            }
            1 => {
                let path = self.child(node, &words.name())?;
                self.entry(path)
            }
            3 => self.attributes(node),
            4 => {
                self.set_attributes(node, &mut words)?;
                self.attributes(node)
            }
            5 => {
                let target = fs::read_link(self.path(node)?).map_err(errno)?;
                Ok(target.into_os_string().into_vec())
            }
            6 => {
                let (name, target) = (words.name(), words.name());
                let path = self.child(node, &name)?;
                std::os::unix::fs::symlink(target, &path).map_err(errno)?;
                self.entry(path)
            }
            9 => {
                let (mode, _) = (words.u32(), words.u32());
                let path = self.child(node, &words.name())?;
                fs::create_dir(&path).map_err(errno)?;
                fs::set_permissions(&path, fs::Permissions::from_mode(mode)).map_err(errno)?;
                self.entry(path)
            }
            10 => fs::remove_file(self.child(node, &words.name())?).map(|()| vec![]).map_err(errno),
            11 => fs::remove_dir(self.child(node, &words.name())?).map(|()| vec![]).map_err(errno),
            12 | 45 => {
                let to = words.u64();
                let flags = if opcode == 45 { words.u64() & 0xffff_ffff } else { 0 };
                let (from, name) = (words.name(), words.name());
                let (from, to) = (self.child(node, &from)?, self.child(to, &name)?);
                if flags & 1 != 0 && to.symlink_metadata().is_ok() {
                    return Err(nix::libc::EEXIST);
                }
                fs::rename(&from, &to).map_err(errno)?;
                self.paths.retain(|_, path| *path != to);
                for path in self.paths.values_mut() {
                    if let Ok(rest) = path.strip_prefix(&from) {
                        let rest = rest.to_owned();
                        *path =
                            if rest.as_os_str().is_empty() { to.clone() } else { to.join(rest) };
                    }
                }
                Ok(vec![])
            }
            13 => {
                let old = self.path(words.u64())?;
                let path = self.child(node, &words.name())?;
                fs::hard_link(old, &path).map_err(errno)?;
                self.entry(path)
            }
            14 => {
                let file = self.open(&self.path(node)?, words.u32(), None)?;
                Ok(self.opened(file))
            }
            35 => {
                let (flags, mode, _, _) = (words.u32(), words.u32(), words.u32(), words.u32());
                let path = self.child(node, &words.name())?;
                let file = self.open(&path, flags, Some(mode))?;
                let entry = self.entry(path)?;
                Ok([entry, self.opened(file)].concat())
            }
            15 => {
                let (handle, offset, size) = (words.u64(), words.u64(), words.u32());
                let mut bytes = vec![0; size as usize];
                let mut read = 0;
                while read < bytes.len() {
                    let at = offset + read as u64;
                    match self.file(handle)?.read_at(&mut bytes[read..], at).map_err(errno)? {
                        0 => break,
                        count => read += count,
                    }
                }
                bytes.truncate(read);
                Ok(bytes)
            }
            16 => {
                let (handle, offset, size, _) =
                    (words.u64(), words.u64(), words.u32(), words.u32());
                let (_, _, _) = (words.u64(), words.u32(), words.u32());
                let bytes = &words.0[..size as usize];
                self.file(handle)?.write_all_at(bytes, offset).map_err(errno)?;
                Ok([size.to_ne_bytes(), [0; 4]].concat())
            }
            17 => {
                let found = rustix::fs::statvfs(self.path(node)?).map_err(|e| e.raw_os_error())?;
                let mut out = vec![];
                for word in
                    [found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree]
                {
                    out.extend(word.to_ne_bytes());
                }
                out.extend(u32::try_from(found.f_bsize).unwrap().to_ne_bytes());
                out.extend(255_u32.to_ne_bytes());
                out.extend(u32::try_from(found.f_frsize).unwrap().to_ne_bytes());
                out.resize(80, 0);
                Ok(out)
            }
            18 | 29 => {
                self.files.remove(&words.u64());
                Ok(vec![])
            }
            // FLUSH is not implemented (ENOSYS), because the kernel waits for it unkillably when a
            // process exits. This is the synchronization of a directory.
            30 => Ok(vec![]),
            20 => self.file(words.u64())?.sync_data().map(|()| vec![]).map_err(errno),
            27 => Ok(vec![0; 16]),
            28 => {
                let (_, offset, size) = (words.u64(), words.u64(), words.u32());
                self.list(node, offset, size)
            }
            43 => {
                let (handle, offset, length, mode) =
                    (words.u64(), words.u64(), words.u64(), words.u32());
                let mode = rustix::fs::FallocateFlags::from_bits_truncate(mode);
                let done = rustix::fs::fallocate(self.file(handle)?, mode, offset, length);
                done.map(|()| vec![]).map_err(|error| error.raw_os_error())
            }
            _ => Err(nix::libc::ENOSYS),
        }
    }

    fn set_attributes(&self, node: u64, words: &mut Words<'_>) -> Result<(), i32> {
        let path = self.path(node)?;
        let (valid, _, handle, size) = (words.u32(), words.u32(), words.u64(), words.u64());
        // The lock owner and the times.
        for _ in 0..4 {
            words.u64();
        }
        for _ in 0..3 {
            words.u32();
        }
        let (mode, _, uid, gid) = (words.u32(), words.u32(), words.u32(), words.u32());
        if valid & 8 != 0 {
            let file = match self.files.get(&handle).filter(|_| valid & 64 != 0) {
                Some(file) => file.try_clone(),
                None => fs::File::options().write(true).open(&path),
            };
            file.and_then(|file| file.set_len(size)).map_err(errno)?;
        }
        if valid & 1 != 0 {
            let mode = fs::Permissions::from_mode(mode & 0o7777);
            fs::set_permissions(&path, mode).map_err(errno)?;
        }
        if valid & 6 != 0 {
            let (uid, gid) = ((valid & 2 != 0).then_some(uid), (valid & 4 != 0).then_some(gid));
            std::os::unix::fs::lchown(&path, uid, gid).map_err(errno)?;
        }
        Ok(())
    }

    /// `struct fuse_dirent`s from `offset`.
    fn list(&self, node: u64, offset: u64, size: u32) -> Reply {
        let mut names: Vec<(OsString, u64)> = vec![];
        for entry in fs::read_dir(self.path(node)?).map_err(errno)? {
            let entry = entry.map_err(errno)?;
            names.push((entry.file_name(), entry.metadata().map_err(errno)?.ino()));
        }
        names.sort();
        let mut out = vec![];
        for (nth, (name, inode)) in names.iter().enumerate().skip(usize::try_from(offset).unwrap())
        {
            let mut entry = vec![];
            entry.extend(inode.to_ne_bytes());
            entry.extend((nth as u64 + 1).to_ne_bytes());
            entry.extend(u32::try_from(name.len()).unwrap().to_ne_bytes());
            entry.extend(0_u32.to_ne_bytes());
            entry.extend(CString::new(name.as_bytes()).unwrap().as_bytes());
            entry.resize(entry.len().next_multiple_of(8), 0);
            if out.len() + entry.len() > size as usize {
                break;
            }
            out.extend(entry);
        }
        Ok(out)
    }
}
