//! base64, as guest agents take and give bytes.

/// The bytes of a base64 text: RFC 4648, section 4; line breaks are passed over. `None` where it is no base64.
pub fn base64(text: &str) -> Option<Vec<u8>> {
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

/// Bytes as base64: RFC 4648, section 4, in one line.
pub fn to_base64(bytes: &[u8]) -> String {
    const DIGITS: [u8; 64] = *b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or_default());
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            text.push(match digit {
                _ if digit > group.len() => '=',
                _ => char::from(DIGITS[(bits >> (18 - 6 * digit) & 0x3f) as usize]),
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vectors_of_rfc_4648() {
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
        fn bytes_come_back(bytes: Vec<u8>) {
            assert_eq!(base64(&to_base64(&bytes)), Some(bytes));
        }
    }
}
