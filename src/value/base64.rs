//! base64, as guest agents answer.

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
