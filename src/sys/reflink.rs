//! The same bytes in another file: shared with it where the file system can, else copied without filling holes.

use std::{
    fs::File,
    io::{self, Read, Seek, Write},
    os::unix::fs::FileExt,
};

use rustix::{
    fs::{SeekFrom, copy_file_range, ioctl_ficlone, seek},
    io::Errno,
};

/// How it was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// FICLONE, ioctl_ficlone(2): the blocks are shared until one side writes.
    Reflink,
    /// By copying so many bytes.
    Copy(u64),
}

/// How much is copied between two looks at `goes_on`.
const STEP: usize = 16 << 20;

/// Makes `to`, which is empty, a reflink of `from`; `false` where the file system cannot.
///
/// # Errors
/// It can, and yet fails, as with a full file system.
pub fn reflink(from: &File, to: &File) -> io::Result<bool> {
    match ioctl_ficlone(to, from) {
        Ok(()) => Ok(true),
        // What ioctl_ficlone(2) and the file systems say when they cannot do it between these two files.
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

/// Copies `from` into `to`, which is empty; holes stay holes. `goes_on` is told how many bytes are done, and
/// ends it by saying `false`.
///
/// # Errors
/// Reading or writing fails; `Interrupted` where `goes_on` said so.
pub fn copy(from: &File, to: &File, goes_on: &mut dyn FnMut(u64) -> bool) -> io::Result<u64> {
    let length = from.metadata()?.len();
    to.set_len(length)?;
    let (mut at, mut copied, mut in_kernel) = (0, 0, true);
    while at < length {
        let (start, end) = match seek(from, SeekFrom::Data(at)) {
            Ok(start) => (start, seek(from, SeekFrom::Hole(start))?.min(length)),
            Err(Errno::NXIO) => break,
            // A file system that knows no holes.
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
                    // Two file systems, or one that cannot: by hand from here on.
                    Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                        in_kernel = false;
                        continue;
                    }
                    Err(Errno::INTR) => continue,
                    Err(e) => return Err(e.into()),
                }
            } else {
                match by_hand(from, to, at, most)? {
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
                "it became shorter meanwhile",
            ));
        }
    }
    goes_on(copied);
    Ok(copied)
}

fn by_hand(from: &File, to: &File, at: u64, most: usize) -> io::Result<usize> {
    let mut buffer = vec![0; most.min(1 << 20)];
    let read = from.read_at(&mut buffer, at)?;
    to.write_all_at(&buffer[..read], at)?;
    Ok(read)
}

/// A block of zeros of this size becomes a hole.
const BLOCK: usize = 64 << 10;

/// Writes all of `from` into `to`, which is empty, leaving holes for blocks of zeros; says how long it is.
///
/// # Errors
/// Reading or writing fails. An error of reading is the one that `from` gave.
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
    fn a_copy_has_the_same_bytes_and_holes() {
        let (from, to) = (sparse(), tempfile::tempfile().unwrap());
        let mut told = Vec::new();
        copy(&from, &to, &mut |done| {
            told.push(done);
            true
        })
        .unwrap();
        assert!(content(&from) == content(&to));
        assert!(to.metadata().unwrap().blocks() * 512 < 2 << 20, "holes were filled");
        assert!(told.is_sorted() && told.len() >= 2, "{told:?}");
    }

    #[test]
    fn a_copy_between_file_systems_too() {
        let Ok(other) = tempfile::tempfile_in("/dev/shm") else {
            return println!("skipped: no /dev/shm");
        };
        let from = sparse();
        copy(&from, &other, &mut |_| true).unwrap();
        assert!(content(&from) == content(&other));
    }

    #[test]
    fn a_copy_can_be_called_off() {
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
