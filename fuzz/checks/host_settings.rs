//! Any text as the host's settings: no panic, every problem lies inside the text, and what is accepted is what a host can have.

use std::path::Path;

use qvm::{spec::HostSettings, value::UidRange};

pub fn check(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let read = || HostSettings::read(Path::new("/etc/qvm/qvm.toml"), text);
    let first = read();
    assert_eq!(first, read(), "the same text reads differently");
    match first {
        Ok(settings) => {
            let range = settings.uid_range;
            assert!(range.first() <= range.last() && range.first() >= UidRange::MIN);
            // It is written down, and read again.
            assert_eq!(range.to_string().parse(), Ok(range));
            assert!(
                UidRange::is_assignable(range.first()) && UidRange::is_assignable(range.last())
            );
        }
        Err(problems) => super::are_told(&problems, text),
    }
}
