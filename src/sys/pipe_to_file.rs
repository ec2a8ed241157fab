//! Copies a stream of bytes to a file.

use std::{fs::File, io, os::unix::net::UnixStream};

/// Copies the stream until its end and syncs the file; returns the number of bytes.
///
/// # Errors
/// The file cannot be written, usually for lack of disk space.
pub fn receive(mut from: UnixStream, mut to: File) -> io::Result<u64> {
    from.set_nonblocking(false)?;
    let bytes = io::copy(&mut from, &mut to)?;
    to.sync_all()?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};

    use super::*;

    #[test]
    fn all_bytes_arrive() {
        let mut file = tempfile::tempfile().unwrap();
        let (near, mut far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let sent = std::thread::spawn(move || far.write_all(&vec![7; 3 << 20]).unwrap());
        assert_eq!(receive(near, file.try_clone().unwrap()).unwrap(), 3 << 20);
        sent.join().unwrap();
        let mut found = vec![];
        file.rewind().unwrap();
        file.read_to_end(&mut found).unwrap();
        assert_eq!(found, vec![7; 3 << 20]);
    }
}
