//! The digest of bytes as they come, worked out on a thread of its own.
//!
//! Hashing takes about as long as writing to the page cache; side by side the two take as long as one of them.

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

/// A digest in the making.
pub struct Digesting {
    algorithm: Algorithm,
    bytes: SyncSender<Arc<Vec<u8>>>,
    thread: JoinHandle<Vec<u8>>,
}

impl Digesting {
    /// Begins.
    ///
    /// # Errors
    /// The kernel gives no thread.
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

    /// Takes the next bytes.
    pub fn take(&self, chunk: &Arc<Vec<u8>>) {
        // The thread ends only when this sender is dropped; were it otherwise, `end` would say so.
        let _ = self.bytes.send(Arc::clone(chunk));
    }

    /// The digest of all bytes taken; `None` if the thread died.
    pub fn end(self) -> Option<Digest> {
        drop(self.bytes);
        let bytes = self.thread.join().ok()?;
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        Digest::new(self.algorithm, &hex).ok()
    }
}

/// The SHA-256 of a text, for names of files.
pub fn of_text(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_pieces_as_in_one() {
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
