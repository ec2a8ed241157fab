//! The guest's screen and keyboard: photographed, typed at.

use crate::supervisor::{limits::QMP_LIMIT, refusal::qmp_refusal};
use std::{fs::File, io, os::fd::OwnedFd, path::Path, time::Duration};

use rustix::fs::{MemfdFlags, memfd_create};
use tokio::sync::oneshot;

use crate::supervisor::Supervisor;
use crate::{
    control::types::Refusal,
    value::{chain, keyboard::Chord},
};

/// How long QEMU holds a key, and how long after that the next one comes: a PS/2 keyboard keeps 16 bytes for a guest that is slow.
const HOLD: Duration = Duration::from_millis(20);
const BETWEEN: Duration = Duration::from_millis(30);
/// Which of QEMU's sets of descriptors a picture is written to.
const PICTURE: u32 = 1;
impl Supervisor {
    /// A picture of the screen, as PNG, in a file that has no name.
    pub(crate) fn screenshot(&mut self, reply: oneshot::Sender<Result<OwnedFd, Refusal>>) {
        let Some(qemu) = &self.qemu else {
            let _ = reply.send(Err(Refusal::NotNow("starting")));
            return;
        };
        if self.vm.display.is_none() {
            let why = "it has no screen; `[display]` in the VM file gives it one";
            let _ = reply.send(Err(Refusal::Failed(why.to_owned())));
            return;
        }
        let client = qemu.client.clone();
        self.tasks.spawn(async move {
            let taken = picture(&client).await;
            let _ = reply.send(taken.map_err(|why| {
                Refusal::Failed(format!("cannot take a picture of the screen: {why}"))
            }));
        });
    }

    /// Presses keys, one chord after the other.
    pub(crate) fn press(
        &mut self,
        chords: Vec<Chord>,
        reply: oneshot::Sender<Result<(), Refusal>>,
    ) {
        let Some(qemu) = &self.qemu else {
            let _ = reply.send(Err(Refusal::NotNow("starting")));
            return;
        };
        let client = qemu.client.clone();
        self.tasks.spawn(async move {
            for chord in chords {
                if let Err(error) = client.press(chord.keys(), HOLD, QMP_LIMIT).await {
                    let refusal = qmp_refusal(&format!("press `{chord}`"), &error);
                    let _ = reply.send(Err(refusal));
                    return;
                }
                tokio::time::sleep(HOLD + BETWEEN).await;
            }
            let _ = reply.send(Ok(()));
        });
    }
}

async fn picture(client: &qmp::Client) -> Result<OwnedFd, String> {
    let made = || -> io::Result<(OwnedFd, OwnedFd)> {
        let memory = memfd_create("qvm-screen", MemfdFlags::CLOEXEC)?;
        // QEMU takes only a descriptor of exactly the mode that it would open a file with.
        let number = std::os::fd::AsRawFd::as_raw_fd(&memory);
        let path = format!("/proc/self/fd/{number}");
        let write = File::options().write(true).open(Path::new(&path))?;
        Ok((memory, write.into()))
    };
    let (memory, write) = made().map_err(|error| error.to_string())?;
    client.picture(PICTURE, write, QMP_LIMIT).await.map_err(|error| chain(&error))?;
    Ok(memory)
}
