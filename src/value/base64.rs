//! Base64 (RFC 4648, section 4) as guest agents send it.

use base64::{Engine, prelude::BASE64_STANDARD};

/// Decodes base64 and ignores line breaks. Returns `None` if the text is not base64.
pub fn base64(text: &str) -> Option<Vec<u8>> {
    if text.contains(['\n', '\r']) {
        BASE64_STANDARD.decode(text.replace(['\n', '\r'], "")).ok()
    } else {
        BASE64_STANDARD.decode(text).ok()
    }
}

/// Encodes bytes as base64 with padding, without line breaks.
pub fn to_base64(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc_4648_vectors() {
        let vectors = ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"];
        for (length, text) in vectors.into_iter().enumerate() {
            assert_eq!(base64(text).unwrap(), &b"foobar"[..length]);
            assert_eq!(to_base64(&b"foobar"[..length]), text);
        }
        assert_eq!(base64("/+8A\r\n").unwrap(), [0xff, 0xef, 0]);
        for wrong in ["Z", "Zg=", "Zg", "Zm9*", "=m9v", "Zg==Zg==", "===="] {
            assert_eq!(base64(wrong), None, "{wrong}");
        }
    }

    proptest::proptest! {
        #[test]
        fn bytes_round_trip(bytes: Vec<u8>) {
            assert_eq!(base64(&to_base64(&bytes)), Some(bytes));
        }
    }
}
