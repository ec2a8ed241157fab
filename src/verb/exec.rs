//! `qvm exec`: runs a command in the guest by its agent; says what it said, exits as it exited.

use std::{
    io::{self, Write},
    time::Duration,
};

use crate::{
    exit::Failure,
    plan::layout::Layout,
    value::{Seconds, VmName},
};

/// What `qvm exec` takes.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The VM; its guest needs qemu-guest-agent
    name: VmName,
    /// How long the command may take
    #[arg(long, value_name = "SEC", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=i64::from(Seconds::MAX)))]
    timeout: u32,
    /// The command and its arguments
    #[arg(value_name = "CMD", required = true, last = true)]
    command: Vec<String>,
}

/// Runs the command. Its exit code becomes that of qvm.
///
/// # Errors
/// The VM is not running, its agent does not answer, or the command's own code.
pub async fn run(args: &Args, layout: &Layout) -> Result<(), Failure> {
    let mut client = super::connect(layout, &args.name).await?;
    let limit = Duration::from_secs(u64::from(args.timeout));
    let done = client.exec(args.command.clone(), limit).await;
    let done = done.map_err(|error| super::refused(&error, layout, &args.name))?;
    let bytes = |text: &str| {
        let what = "the guest's agent sent what is no base64";
        base64(text).ok_or_else(|| Failure::new(1, what).about(&args.name))
    };
    let (out, err) = (bytes(&done.out)?, bytes(&done.err)?);
    // Where standard error is closed, nobody can be told.
    let _ = io::stderr().write_all(&err);
    super::print_bytes(&out)?;
    match done.exit_code {
        0 => Ok(()),
        code => Err(Failure::quiet(u8::try_from(code).unwrap_or(1))),
    }
}

/// RFC 4648, section 4; line breaks are passed over. `None` where it is no base64.
fn base64(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let digits: Vec<u8> = text.bytes().filter(|b| !matches!(b, b'\n' | b'\r')).collect();
    let unpadded = match digits.as_slice() {
        [rest @ .., b'=', b'='] | [rest @ .., b'='] => rest,
        all => all,
    };
    if !digits.len().is_multiple_of(4) {
        return None;
    }
    for group in unpadded.chunks(4) {
        let mut bits = 0_u32;
        for digit in group {
            let value = match digit {
                b'A'..=b'Z' => digit - b'A',
                b'a'..=b'z' => digit - b'a' + 26,
                b'0'..=b'9' => digit - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(value);
        }
        bits <<= 6 * (4 - group.len());
        out.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vectors_of_rfc_4648() {
        let vectors = ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"];
        for (length, text) in vectors.into_iter().enumerate() {
            assert_eq!(base64(text).unwrap(), &b"foobar"[..length]);
        }
        assert_eq!(base64("/+8A\r\n").unwrap(), [0xff, 0xef, 0]);
        for wrong in ["Z", "Zg=", "Zg", "Zm9*", "=m9v", "Zg==Zg==", "===="] {
            assert_eq!(base64(wrong), None, "{wrong}");
        }
    }
}
