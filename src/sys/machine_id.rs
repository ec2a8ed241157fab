//! The unique ID of this host: machine-id(5).

use std::{fs, io, sync::OnceLock};

const PATH: &str = "/etc/machine-id";

/// Returns the machine ID; empty if there is none.
pub fn read() -> String {
    fs::read_to_string(PATH).map(|id| id.trim().to_owned()).unwrap_or_default()
}

/// Returns the machine ID; `None` if the host has none yet. Each process reads the file once.
///
/// # Errors
/// The file exists and cannot be read.
pub fn known() -> io::Result<Option<&'static str>> {
    static KNOWN: OnceLock<Option<String>> = OnceLock::new();
    if let Some(known) = KNOWN.get() {
        return Ok(known.as_deref());
    }
    let id = match fs::read_to_string(PATH) {
        Ok(text) => valid(&text).map(str::to_owned),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    Ok(KNOWN.get_or_init(|| id).as_deref())
}

/// 32 hexadecimal digits; `uninitialized` in an image that has not booted.
fn valid(text: &str) -> Option<&str> {
    let id = text.trim();
    (id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_is_32_hexadecimal_digits() {
        let id = "0123456789abcdef0123456789abcdef";
        assert_eq!(valid(&format!("{id}\n")), Some(id));
        for text in ["", "uninitialized\n", "../../0123456789abcdef0123456789", &id[1..]] {
            assert_eq!(valid(text), None);
        }
    }
}
