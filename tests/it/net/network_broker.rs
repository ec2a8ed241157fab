//! `qvm network-broker`: silent clients, a host without free descriptors, and a second broker.

use std::{
    io::Write,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use qvm::{net::broker::Network, value::ErrorCode};

use crate::lab::refusal::Refusal;

/// A `qvm network-broker` that ends with its test.
struct Lender {
    child: Child,
    socket: PathBuf,
}

impl Lender {
    /// With this limit of descriptors.
    fn new(dir: &Path, descriptors: u32) -> Self {
        let socket = dir.join("network");
        let mut command = Command::new("prlimit");
        command.arg(format!("--nofile={descriptors}")).arg(env!("CARGO_BIN_EXE_qvm"));
        let child =
            command.arg("network-broker").arg(&socket).stderr(Stdio::null()).spawn().unwrap();
        let mut lender = Self { child, socket };
        while UnixStream::connect(&lender.socket).is_err() {
            assert!(lender.child.try_wait().unwrap().is_none(), "it has ended");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        lender
    }
}

impl Drop for Lender {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn borrows(socket: &Path) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { Network::lent(socket.to_owned()).route().await.map(drop) })
}

#[test]
fn second_broker_keeps_the_first_socket() {
    let dir = tempfile::tempdir().unwrap();
    let lender = Lender::new(dir.path(), 1024);
    let second =
        Command::new(env!("CARGO_BIN_EXE_qvm")).arg("network-broker").arg(&lender.socket).output();
    let second = second.unwrap();
    let refusal = Refusal::new(&second, &dir.path().display().to_string());
    refusal.is(ErrorCode::SocketInUse, 1).golden("net", "second-broker");
    borrows(&lender.socket).unwrap();
}

#[test]
fn broker_survives_descriptor_exhaustion() {
    let dir = tempfile::tempdir().unwrap();
    let mut lender = Lender::new(dir.path(), 16);
    // More connections than descriptors, all silent.
    let silent: Vec<_> = (0..64).map(|_| UnixStream::connect(&lender.socket).unwrap()).collect();
    // Other clients get an answer meanwhile.
    borrows(&lender.socket).unwrap();
    assert!(lender.child.try_wait().unwrap().is_none(), "it has ended");
    for mut caller in silent {
        let _ = caller.write_all(b"r");
    }
    borrows(&lender.socket).unwrap();
    assert!(lender.child.try_wait().unwrap().is_none(), "it has ended");
}
