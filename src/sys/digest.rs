//! Computes the digest of a byte stream on a separate thread.
//!
//! Hashing takes about as long as writing to the page cache, so both run in parallel.

use std::{
    sync::{
        Arc,
        mpsc::{SyncSender, sync_channel},
    },
    thread::JoinHandle,
};

use sha2::{Digest as _, Sha256, Sha512};

use crate::value::{Algorithm, Digest};

enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

/// A running digest computation.
pub struct Digesting {
    algorithm: Algorithm,
    bytes: SyncSender<Arc<Vec<u8>>>,
    thread: JoinHandle<Vec<u8>>,
}

impl Digesting {
    /// Starts the thread.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn begin(algorithm: Algorithm) -> std::io::Result<Self> {
        let (bytes, chunks) = sync_channel::<Arc<Vec<u8>>>(16);
        let mut hasher = match algorithm {
            Algorithm::Sha256 => Hasher::Sha256(Sha256::new()),
            Algorithm::Sha512 => Hasher::Sha512(Sha512::new()),
        };
        let thread = std::thread::Builder::new().name("digest".into()).spawn(move || {
            for chunk in chunks {
                match &mut hasher {
                    Hasher::Sha256(h) => h.update(&chunk[..]),
                    Hasher::Sha512(h) => h.update(&chunk[..]),
                }
            }
            match hasher {
                Hasher::Sha256(h) => h.finalize().to_vec(),
                Hasher::Sha512(h) => h.finalize().to_vec(),
            }
        })?;
        Ok(Self { algorithm, bytes, thread })
    }

    /// Adds the next bytes.
    pub fn take(&self, chunk: &Arc<Vec<u8>>) {
        // The thread ends only when this sender is dropped. A panic is reported by `end`.
        let _ = self.bytes.send(Arc::clone(chunk));
    }

    /// Returns the digest of all bytes; `None` if the thread panicked.
    pub fn end(self) -> Option<Digest> {
        drop(self.bytes);
        let bytes = self.thread.join().ok()?;
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        Digest::new(self.algorithm, &hex).ok()
    }
}

/// Returns the SHA-256 of a text in hex digits, for file names.
pub fn of_text(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_do_not_change_the_digest() {
        for (algorithm, hex) in [
            (Algorithm::Sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            (
                Algorithm::Sha512,
                "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a8\
                 36ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
            ),
        ] {
            let digesting = Digesting::begin(algorithm).unwrap();
            for piece in ["a", "", "bc"] {
                digesting.take(&Arc::new(piece.into()));
            }
            assert_eq!(digesting.end().unwrap().hex(), hex);
        }
        assert!(of_text("abc").starts_with("ba7816bf"));
    }
}
