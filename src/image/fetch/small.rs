//! Small questions to the network: a list of checksums, and where an address leads.

use std::time::{Duration, Instant};

use super::{
    error::{Error, LARGEST, Received, may_pass, through},
    patience::Patience,
};
use crate::{
    image::{
        download::{self, proxy::Proxy},
        reference::without_password,
    },
    sys::progress::{At, Cancel, Doing, Progress},
    value::chain,
};

/// What an attempt gave: the status of the answer, the proxy that it came through, and what was
/// asked for.
type Given<T> = (u16, Option<Box<Proxy>>, T);

/// Makes one attempt; the second argument is asked whether to go on.
type Ask<'a, T> = dyn FnMut(&download::Request, &mut dyn FnMut() -> bool) -> Result<Given<T>, download::Error>
    + 'a;

/// A small file, such as a list of checksums, whole. Never from https by way of http: it is what
/// trust begins with.
///
/// # Errors
/// As [`Error`].
pub(crate) fn bytes(
    url: &str,
    patience: Patience,
    progress: &mut dyn Progress,
    cancel: &Cancel,
) -> Result<Vec<u8>, Error> {
    let bytes = persist(url, patience, progress, cancel, &mut |request, goes_on| {
        let mut answer = download::get(request, goes_on)?;
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.next(goes_on)? {
            bytes.extend(chunk);
            if bytes.len() > LARGEST {
                break;
            }
        }
        Ok((answer.status, answer.proxy, bytes))
    })?;
    match bytes.len() > LARGEST {
        true => Err(Error::TooLarge { url: without_password(url) }),
        false => Ok(bytes),
    }
}

/// The address to which redirects of `url` lead. A redirect from https to http is not followed, but
/// named: the server that names it was verified.
///
/// # Errors
/// As [`Error`].
pub(crate) fn redirect_target(
    url: &str,
    patience: Patience,
    progress: &mut dyn Progress,
    cancel: &Cancel,
) -> Result<String, Error> {
    persist(url, patience, progress, cancel, &mut |request, goes_on| match download::get(
        request, goes_on,
    ) {
        Ok(answer) => Ok((answer.status, answer.proxy, answer.url)),
        Err(download::Error::Unencrypted(to)) => Ok((200, None, to)),
        Err(error) => Err(error),
    })
}

/// Asks until there is an answer 200, or patience is at its end.
fn persist<T>(
    url: &str,
    patience: Patience,
    progress: &mut dyn Progress,
    cancel: &Cancel,
    ask: &mut Ask<'_, T>,
) -> Result<T, Error> {
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
        let (url, received) = (shown.clone(), Received::default());
        let (passes, why, error) = match ask(&request, &mut goes_on) {
            Ok((200, _, given)) => return Ok(given),
            Ok((status, proxy, _)) => {
                let why = format!("the server says {status}{}", through(proxy.as_deref()));
                (may_pass(status), why, Error::Status { url, attempts, received, status, proxy })
            }
            Err(download::Error::CalledOff) => return Err(Error::CalledOff),
            Err(source) => {
                let (passes, why) = (source.passes(), chain(&source));
                (passes, why, Error::Download { url, attempts, received, source })
            }
        };
        if !passes || attempts >= patience.attempts {
            return Err(error);
        }
        let pause = patience.pause * 2u32.pow((attempts - 1).min(5));
        let pause = pause.min(Duration::from_secs(30));
        progress.note(&format!("{shown}: {why}; trying again in {} s", pause.as_secs_f32()));
        let since = Instant::now();
        while since.elapsed() < pause {
            progress.at(&At { doing: Doing::Fetching, what: &shown, done: 0, total: None });
            if cancel.is_set() {
                return Err(Error::CalledOff);
            }
            std::thread::sleep(download::LOOK.min(pause));
        }
    }
}
