//! `Digest`: the checksum of an image.

use std::{fmt, str::FromStr};

use super::{refused::Refused, shown::shown, text_form::serde_by_text};

/// The hash functions that distributions publish checksums with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// SHA-256, 64 hex digits.
    Sha256,
    /// SHA-512, 128 hex digits.
    Sha512,
}

impl Algorithm {
    /// Returns the name of the key in the VM file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// Returns the length of a digest in hex digits.
    pub const fn hex_len(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

/// A digest with its algorithm, shown as `sha256:9f86d0…`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest {
    algorithm: Algorithm,
    hex: String,
}

impl Digest {
    /// Parses `hex`, in upper or lower case, as a digest of `algorithm`.
    ///
    /// # Errors
    /// The text has the wrong length or a character that is not a hex digit.
    pub fn new(algorithm: Algorithm, hex: &str) -> Result<Self, Refused> {
        if hex.len() != algorithm.hex_len() || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(Refused::new(format!(
                "`{}` is not a {} digest: it has {} characters instead of {} hex digits",
                shown(hex),
                algorithm.name(),
                hex.chars().count(),
                algorithm.hex_len()
            )));
        }
        Ok(Self { algorithm, hex: hex.to_ascii_lowercase() })
    }

    /// Parses a digest of `algorithm`: hex digits, `sha256:HEX`, or `sha256-BASE64` as used by
    /// Subresource Integrity and Nix.
    ///
    /// # Errors
    /// As for [`Self::new`], or the prefix is that of another algorithm.
    pub fn parse_prefixed(algorithm: Algorithm, text: &str) -> Result<Self, Refused> {
        let own =
            |sign| text.strip_prefix(algorithm.name()).and_then(|rest| rest.strip_prefix(sign));
        if let Some(hex) = own(':') {
            return Self::new(algorithm, hex);
        }
        let Some(digits) = own('-') else { return Self::new(algorithm, text) };
        let bytes = super::base64(digits).unwrap_or_default();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Self::new(algorithm, &hex).map_err(|_| {
            Refused::new(format!(
                "`{}` is not a {} digest: `{}-` must be followed by the base64 of {} bytes",
                shown(text),
                algorithm.name(),
                algorithm.name(),
                algorithm.hex_len() / 2
            ))
        })
    }

    /// Returns the hash function.
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Returns the digest in lower-case hex digits.
    pub fn hex(&self) -> &str {
        &self.hex
    }
}

impl FromStr for Digest {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Refused> {
        match text.split_once(':') {
            Some(("sha256", hex)) => Self::new(Algorithm::Sha256, hex),
            Some(("sha512", hex)) => Self::new(Algorithm::Sha512, hex),
            _ => Err(Refused::new(format!(
                "`{}` is not a digest: write `sha256:` or `sha512:`, followed by the hex digits",
                shown(text)
            ))),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}:{}", self.algorithm.name(), self.hex))
    }
}

serde_by_text!(Digest);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_both_cases_and_displays_lower_case() {
        let digest = Digest::new(Algorithm::Sha256, &"AB".repeat(32)).unwrap();
        assert_eq!(digest.hex(), "ab".repeat(32));
        assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
    }

    #[test]
    fn parses_prefixed_forms() {
        let hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let sri = "sha256-ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=";
        for text in [hex, &format!("sha256:{hex}"), sri] {
            assert_eq!(
                Digest::parse_prefixed(Algorithm::Sha256, text).unwrap().hex(),
                hex,
                "{text}"
            );
            assert!(Digest::parse_prefixed(Algorithm::Sha512, text).is_err(), "{text}");
        }
        for text in ["sha256-", "sha256-AAAA", &sri[..sri.len() - 1], &format!("{sri}=")] {
            assert!(
                Digest::parse_prefixed(Algorithm::Sha256, text).is_err(),
                "{text:?} was \
                accepted"
            );
        }
    }

    #[test]
    fn invalid_text_is_refused() {
        for hex in ["", "ab", &"ab".repeat(31), &"ab".repeat(33), &"zz".repeat(32), &"é".repeat(32)]
        {
            assert!(Digest::new(Algorithm::Sha256, hex).is_err(), "{hex:?} was accepted");
        }
        for text in ["", "sha256", "md5:00", &format!("sha1:{}", "a".repeat(40))] {
            assert!(text.parse::<Digest>().is_err(), "{text:?} was accepted");
        }
    }
}
