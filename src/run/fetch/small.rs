//! A small text from the network, such as a SUMS file.

use std::time::{Duration, Instant};

use super::{Error, Patience};
use crate::{
    host::download,
    plan::image::without_password,
    run::progress::{At, Cancel, Doing, Progress},
};

/// The largest that is read; Fedora's and Debian's SUMS files have a few KiB.
pub(super) const LARGEST: usize = 4 << 20;

/// A small text, such as a SUMS file, whole. Never from https by way of http: it is what trust begins with.
///
/// # Errors
/// As [`Error`].
pub(in crate::run) fn text(
    url: &str,
    patience: Patience,
    progress: &mut dyn Progress,
    cancel: &Cancel,
) -> Result<String, Error> {
    let shown = without_password(url);
    let request = download::Request {
        url: url.to_owned(),
        resume: None,
        stay_encrypted: url.starts_with("https:"),
        silence: patience.silence,
    };
    let mut attempts = 0;
    loop {
        attempts += 1;
        let mut goes_on = || {
            progress.at(&At { doing: Doing::Fetching, what: &shown, done: 0, total: None });
            !cancel.is_set()
        };
        let (passes, error) = match whole(&request, &mut goes_on) {
            Ok((200, bytes)) if bytes.len() > LARGEST => {
                return Err(Error::TooLarge { url: shown });
            }
            Ok((200, bytes)) => return Ok(String::from_utf8_lossy(&bytes).into_owned()),
            Ok((status, _)) => (
                matches!(status, 408 | 425 | 429 | 500..600),
                Error::Status { url: shown.clone(), attempts, status },
            ),
            Err(download::Error::CalledOff) => return Err(Error::CalledOff),
            Err(source) => {
                (source.passes(), Error::Download { url: shown.clone(), attempts, source })
            }
        };
        if !passes || attempts >= patience.attempts {
            return Err(error);
        }
        let (since, pause) = (Instant::now(), patience.pause * 2u32.pow((attempts - 1).min(5)));
        while since.elapsed() < pause.min(Duration::from_secs(30)) {
            if !goes_on() {
                return Err(Error::CalledOff);
            }
            std::thread::sleep(download::LOOK.min(pause));
        }
    }
}

fn whole(
    request: &download::Request,
    goes_on: &mut dyn FnMut() -> bool,
) -> Result<(u16, Vec<u8>), download::Error> {
    let mut answer = download::get(request, goes_on)?;
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.next(goes_on)? {
        bytes.extend(chunk);
        if bytes.len() > LARGEST {
            break;
        }
    }
    Ok((answer.status, bytes))
}
