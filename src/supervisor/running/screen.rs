//! Screenshots of the guest's screen, and key presses.

use std::{fs::File, io, os::fd::OwnedFd, path::Path, time::Duration};

use rustix::fs::{MemfdFlags, memfd_create};

use crate::{
    control::types::Refusal,
    supervisor::{limits::QMP_LIMIT, refusal::qmp_refusal},
    value::{ErrorCode, chain, keyboard::Chord},
};

/// The duration of a key press and of the pause after it: a PS/2 keyboard buffers 16 bytes.
const HOLD: Duration = Duration::from_millis(20);
const BETWEEN: Duration = Duration::from_millis(30);
/// The number of QEMU's fd set for a screenshot.
const PICTURE: u32 = 1;

/// Takes a screenshot as PNG, in an unnamed file.
///
/// # Errors
/// QEMU refuses the command.
pub(crate) async fn screenshot(client: qmp::Client) -> Result<OwnedFd, Refusal> {
    let failed =
        |why| Refusal::Failed(ErrorCode::QemuRefused, format!("cannot take a screenshot: {why}"));
    picture(&client).await.map_err(failed)
}

/// Presses keys, one chord after the other.
///
/// # Errors
/// QEMU refuses a key, or does not answer.
pub(crate) async fn press(client: qmp::Client, chords: Vec<Chord>) -> Result<(), Refusal> {
    for chord in chords {
        let pressed = client.press(chord.keys(), HOLD, QMP_LIMIT).await;
        pressed.map_err(|error| qmp_refusal(&format!("press `{chord}`"), &error))?;
        tokio::time::sleep(HOLD + BETWEEN).await;
    }
    Ok(())
}

async fn picture(client: &qmp::Client) -> Result<OwnedFd, String> {
    let made = || -> io::Result<(OwnedFd, OwnedFd)> {
        let memory = memfd_create("qvm-screen", MemfdFlags::CLOEXEC)?;
        // QEMU accepts only a descriptor with the access mode that it requests.
        let number = std::os::fd::AsRawFd::as_raw_fd(&memory);
        let path = format!("/proc/self/fd/{number}");
        let write = File::options().write(true).open(Path::new(&path))?;
        Ok((memory, write.into()))
    };
    let (memory, write) = made().map_err(|error| error.to_string())?;
    client.picture(PICTURE, write, QMP_LIMIT).await.map_err(|error| chain(&error))?;
    Ok(memory)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::supervisor::tests::{Answer, FakeQemu, Host};

    #[tokio::test]
    async fn chords_are_pressed_in_their_order() {
        let host = Host::new();
        let fake = FakeQemu::new(&host).await;
        let chords = ["ctrl-alt-f1", "a"].map(|chord| chord.parse().unwrap());
        press(fake.qemu.client(), chords.to_vec()).await.unwrap();
        let names = fake.peer.commands.names();
        assert_eq!(names.iter().filter(|name| *name == "send-key").count(), 2);
        let last = fake.peer.commands.arguments("send-key");
        assert_eq!(last["keys"], json!([{ "type": "qcode", "data": "a" }]));
    }

    #[tokio::test]
    async fn refused_chord_ends_the_input() {
        let host = Host::new();
        let fake = FakeQemu::new(&host).await;
        fake.peer.script.on("send-key", Answer::Refuse("no keyboard"));
        let chords = ["a", "b"].map(|chord| chord.parse().unwrap());
        let refused = press(fake.qemu.client(), chords.to_vec()).await;
        assert!(matches!(refused, Err(Refusal::Failed(ErrorCode::QemuRefused, _))));
        let names = fake.peer.commands.names();
        assert_eq!(names.iter().filter(|name| *name == "send-key").count(), 1);
    }

    #[tokio::test]
    async fn picture_is_a_file_without_a_name() {
        let host = Host::new();
        let fake = FakeQemu::new(&host).await;
        let picture = File::from(screenshot(fake.qemu.client()).await.unwrap());
        // The peer has written no data.
        assert_eq!(picture.metadata().unwrap().len(), 0);
        fake.peer.script.on("screendump", Answer::Refuse("no display"));
        let refused = screenshot(fake.qemu.client()).await;
        assert!(matches!(refused, Err(Refusal::Failed(ErrorCode::QemuRefused, _))));
    }
}
