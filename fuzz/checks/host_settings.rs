//! Any text as host settings: no panic, every problem has a position in the text, and accepted
//! settings are valid.

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
            // The range round-trips.
            assert_eq!(range.to_string().parse(), Ok(range));
            assert!(
                UidRange::is_assignable(range.first()) && UidRange::is_assignable(range.last())
            );
        }
        Err(problems) => super::are_told(&problems, text),
    }
}
