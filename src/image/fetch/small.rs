//! Small requests: lists of checksums, and the targets of redirects.

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

/// The result of an attempt: the status, the proxy used, and the value.
type Given<T> = (u16, Option<Box<Proxy>>, T);

type Attempt<T> = Result<Given<T>, download::Error>;
/// Makes one attempt; the second argument is called to check for cancellation.
type Ask<'a, T> = dyn FnMut(&download::Request, &mut dyn FnMut() -> bool) -> Attempt<T> + 'a;

/// Downloads a small file, such as a list of checksums. Redirects from https to http are refused,
/// because verification depends on this file.
///
/// # Errors
/// See [`Error`].
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

/// Returns the target of redirects of `url`. A redirect from https to http is returned but not
/// followed: the verified server specifies it.
///
/// # Errors
/// See [`Error`].
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

/// Retries until a response with status 200, or the retry limit.
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
                let why = format!(
                    "the server responded with status {status}{}",
                    through(proxy.as_deref())
                );
                (may_pass(status), why, Error::Status { url, attempts, received, status, proxy })
            }
            Err(download::Error::Canceled) => return Err(Error::Canceled),
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
        progress.note(&format!("{shown}: {why}; retrying in {} s", pause.as_secs_f32()));
        let since = Instant::now();
        while since.elapsed() < pause {
            progress.at(&At { doing: Doing::Fetching, what: &shown, done: 0, total: None });
            if cancel.is_set() {
                return Err(Error::Canceled);
            }
            std::thread::sleep(download::POLL_INTERVAL.min(pause));
        }
    }
}
