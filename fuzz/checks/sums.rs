//! Any bytes as a list of checksums with any names: no panic; a found digest is in the text, and
//! belongs to the requested file unless the list is for only one file.

use qvm::{image::checksum_file, value::to_base64};

pub fn check(bytes: &[u8]) {
    let cut = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let text = checksum_file::decoded(bytes.get(cut + 1..).unwrap_or_default());
    // The first line is the requested name and the name of the list.
    let first = String::from_utf8_lossy(&bytes[..cut]);
    let (name, list) = match first.split_once('\t') {
        Some((name, list)) => (name, Some(list)),
        None => (&*first, None),
    };
    let entries = checksum_file::entries(&text);
    match checksum_file::find(&text, name, list) {
        Ok(digest) => {
            let hex = digest.hex();
            let nibble = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex digits");
            let raw: Vec<u8> = (0..hex.len()).step_by(2).map(nibble).collect();
            let found = text.to_ascii_lowercase().contains(hex) || text.contains(&to_base64(&raw));
            assert!(found, "made up: {hex}");
            let own = entries.iter().any(|entry| entry.name == name && entry.digest == digest);
            let sole = entries.windows(2).all(|pair| pair[0].name == pair[1].name);
            let of_it = list.is_some_and(|list| list.starts_with(name));
            assert!(own || entries.is_empty() || (sole && of_it), "another file's: {entries:?}");
        }
        Err(error) => super::is_tame(&error.to_string()),
    }
}
