//! Copies file contents: by reflink if the file system supports it, else by copying without filling
//! holes.

use std::{
    fs::File,
    io::{self, Read, Seek, Write},
    os::unix::fs::FileExt,
};

use rustix::{
    fs::{SeekFrom, copy_file_range, ioctl_ficlone, seek},
    io::Errno,
};

/// How a file was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// FICLONE, ioctl_ficlone(2): the blocks are shared until one side writes.
    Reflink,
    /// Copied this number of bytes.
    Copy(u64),
}

/// The number of bytes copied between two calls of `goes_on`.
const STEP: usize = 16 << 20;

/// Makes the empty file `to` a reflink of `from`; `false` if the file system does not support it.
///
/// # Errors
/// The reflink fails, for example on a full file system.
pub fn reflink(from: &File, to: &File) -> io::Result<bool> {
    match ioctl_ficlone(to, from) {
        Ok(()) => Ok(true),
        // The errors of ioctl_ficlone(2) and of file systems that do not support reflinks between
        // these files.
        Err(
            Errno::OPNOTSUPP
            | Errno::NOTTY
            | Errno::XDEV
            | Errno::INVAL
            | Errno::NOSYS
            | Errno::PERM
            | Errno::BADF,
        ) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Copies `from` to the empty file `to` and keeps holes. `goes_on` is called with the number of
/// bytes copied and returns `false` to cancel.
///
/// # Errors
/// Reading or writing fails; `Interrupted` if canceled.
pub fn copy(from: &File, to: &File, goes_on: &mut dyn FnMut(u64) -> bool) -> io::Result<u64> {
    let length = from.metadata()?.len();
    to.set_len(length)?;
    let (mut at, mut copied, mut in_kernel) = (0, 0, true);
    while at < length {
        let (start, end) = match seek(from, SeekFrom::Data(at)) {
            Ok(start) => (start, seek(from, SeekFrom::Hole(start))?.min(length)),
            Err(Errno::NXIO) => break,
            // A file system without holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => (at, length),
            Err(e) => return Err(e.into()),
        };
        at = start;
        while at < end {
            if !goes_on(copied) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let most = usize::try_from(end - at).unwrap_or(STEP).min(STEP);
            let done = if in_kernel {
                let (mut read, mut written) = (at, at);
                match copy_file_range(from, Some(&mut read), to, Some(&mut written), most) {
                    Ok(0) => break,
                    Ok(done) => done,
                    // Two file systems, or no support: the rest is copied with read and write.
                    Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                        in_kernel = false;
                        continue;
                    }
                    Err(Errno::INTR) => continue,
                    Err(e) => return Err(e.into()),
                }
            } else {
                match copy_range_by_read_write(from, to, at, most)? {
                    0 => break,
                    done => done,
                }
            };
            at += done as u64;
            copied += done as u64;
        }
        if at < end {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the source was truncated during the copy",
            ));
        }
    }
    goes_on(copied);
    Ok(copied)
}

fn copy_range_by_read_write(from: &File, to: &File, at: u64, most: usize) -> io::Result<usize> {
    let mut buffer = vec![0; most.min(1 << 20)];
    let read = from.read_at(&mut buffer, at)?;
    to.write_all_at(&buffer[..read], at)?;
    Ok(read)
}

/// The size in bytes of a block of zeros that becomes a hole.
const BLOCK: usize = 64 << 10;

/// Writes `from` to the empty file `to`, with holes for blocks of zeros; returns the length in
/// bytes.
///
/// # Errors
/// Reading or writing fails. Errors of `from` are returned unchanged.
pub fn write_sparse(from: &mut dyn Read, mut to: &File) -> io::Result<u64> {
    let mut block = vec![0; BLOCK];
    let mut length = 0;
    loop {
        let mut filled = 0;
        while filled < BLOCK {
            match from.read(&mut block[filled..]) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        if filled == 0 {
            to.set_len(length)?;
            return Ok(length);
        }
        if block[..filled].iter().all(|b| *b == 0) {
            to.seek(io::SeekFrom::Current(filled as i64))?;
        } else {
            to.write_all(&block[..filled])?;
        }
        length += filled as u64;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    /// 8 MiB with data at 1 MiB and in the last 5 bytes.
    fn sparse() -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8 << 20).unwrap();
        file.write_all_at(&[7; 100_000], 1 << 20).unwrap();
        file.write_all_at(b"last!", (8 << 20) - 5).unwrap();
        file
    }

    fn content(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn copy_preserves_bytes_and_holes() {
        let (from, to) = (sparse(), tempfile::tempfile().unwrap());
        let mut told = Vec::new();
        copy(&from, &to, &mut |done| {
            told.push(done);
            true
        })
        .unwrap();
        assert!(content(&from) == content(&to));
        assert!(to.metadata().unwrap().blocks() * 512 < 2 << 20, "holes are filled");
        assert!(told.is_sorted() && told.len() >= 2, "{told:?}");
    }

    #[test]
    fn copy_works_between_file_systems() {
        let Ok(other) = tempfile::tempfile_in("/dev/shm") else {
            return println!("skipped: no /dev/shm");
        };
        let from = sparse();
        copy(&from, &other, &mut |_| true).unwrap();
        assert!(content(&from) == content(&other));
    }

    #[test]
    fn copy_can_be_canceled() {
        let to = tempfile::tempfile().unwrap();
        let error = copy(&sparse(), &to, &mut |_| false).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
    }

    #[test]
    fn zeros_become_holes() {
        let (bytes, to) = (content(&sparse()), tempfile::tempfile().unwrap());
        assert_eq!(write_sparse(&mut &bytes[..], &to).unwrap(), 8 << 20);
        assert!(content(&to) == bytes);
        assert!(to.metadata().unwrap().blocks() * 512 < 2 << 20);
        let short = tempfile::tempfile().unwrap();
        assert_eq!(write_sparse(&mut &[0; 10][..], &short).unwrap(), 10);
        assert_eq!(content(&short), [0; 10]);
    }
}
