//! `qvm cp`: copies a file into the guest or out of it through the guest agent.

use std::{path::PathBuf, str::FromStr};

use crate::{
    cli::exit::Failure,
    guest::{Local, copy_in, copy_out},
    store::layout::Layout,
    sys::progress::{Progress, Quiet, TerminalProgress},
    value::{ErrorCode, VmName},
};

/// The arguments of `qvm cp`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The source: a file, `-` for standard input, or NAME:/path in the guest
    from: Place,
    /// The target: a file or directory, `-` for standard output, or NAME:/path in the guest
    to: Place,
}

/// One end of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Here(Local),
    Guest(VmName, String),
}

impl FromStr for Place {
    type Err = String;

    /// As in scp(1), a name before a colon is remote; `./a:b` is a local file.
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "-" {
            return Ok(Self::Here(Local::Stream));
        }
        match text.split_once(':').map(|(name, path)| (name.parse::<VmName>(), path)) {
            Some((Ok(name), path)) if path.starts_with('/') => {
                Ok(Self::Guest(name, path.to_owned()))
            }
            Some((Ok(name), _)) => Err(format!(
                "a path in a guest begins with `/`: `{name}:/path`; a file here is `./{text}`"
            )),
            Some((Err(_), _)) | None => Ok(Self::Here(Local::File(PathBuf::from(text)))),
        }
    }
}

/// Copies one file; `terminal` is true if standard error is one.
///
/// # Errors
/// The VM is not running, its agent does not answer, or the copy fails; the target is unchanged
/// then.
pub async fn run(args: &Args, layout: &Layout, terminal: bool) -> Result<(), Failure> {
    let mut progress: Box<dyn Progress> =
        if terminal { Box::new(TerminalProgress::new(true)) } else { Box::new(Quiet) };
    let (name, copied) = match (&args.from, &args.to) {
        (Place::Guest(name, from), Place::Here(to)) => {
            let mut guest = super::guest(layout, name).await?;
            (name, copy_out(&mut guest, from, to, &mut *progress).await)
        }
        (Place::Here(from), Place::Guest(name, to)) => {
            let mut guest = super::guest(layout, name).await?;
            (name, copy_in(&mut guest, from, to, &mut *progress).await)
        }
        (Place::Guest(..), Place::Guest(..)) | (Place::Here(_), Place::Here(_)) => {
            let text = "path in a guest/path in a guest";
            return Err(Failure::new(ErrorCode::Usage, text));
        }
    };
    drop(progress);
    match copied {
        Ok(_) => Ok(()),
        Err(error) => Err(super::guest_failure(&error, layout, name).await),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colon_after_name_is_a_guest_path() {
        let here = |path: &str| Ok(Place::Here(Local::File(path.into())));
        let guest = |path: &str| Ok(Place::Guest("web".parse().unwrap(), path.into()));
        for (text, place) in [
            ("-", Ok(Place::Here(Local::Stream))),
            ("file", here("file")),
            ("./web:/etc", here("./web:/etc")),
            ("/a:b", here("/a:b")),
            ("A B:/c", here("A B:/c")),
            ("web:/etc/passwd", guest("/etc/passwd")),
            ("web:/", guest("/")),
            ("web:/a:b", guest("/a:b")),
        ] {
            assert_eq!(text.parse::<Place>(), place, "{text}");
        }
        for text in ["web:", "web:etc", "web:./x"] {
            assert!(text.parse::<Place>().unwrap_err().contains("begins with `/`"), "{text}");
        }
    }
}
