//! One line of QMP: what a peer may say.

use serde::Deserialize;
use serde_json::Value;

use crate::Event;

/// The longest line that is read, in bytes; QEMU's largest reply (`query-qmp-schema`) has less than a quarter of it.
pub const MAX_LINE: usize = 4 << 20;

/// What a line says.
#[derive(Debug, Clone, PartialEq)]
pub enum Line {
    /// `{"QMP": …}`, once, at the beginning.
    Greeting(Value),
    /// A reply that brings something.
    Return {
        /// Which call it belongs to.
        id: Option<u64>,
        /// What it brings.
        value: Value,
    },
    /// A reply that says no.
    Refused {
        /// Which call it belongs to.
        id: Option<u64>,
        /// The error's class.
        class: String,
        /// The error's text.
        desc: String,
    },
    /// Something happened.
    Event(Event),
}

#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "QMP")]
    qmp: Option<Value>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
    timestamp: Option<Stamp>,
    #[serde(rename = "return", default, deserialize_with = "present")]
    value: Option<Value>,
    error: Option<Refusal>,
    id: Option<Value>,
}

#[derive(Deserialize)]
struct Stamp {
    seconds: i64,
    #[serde(default)]
    microseconds: i64,
}

#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    class: String,
    #[serde(default)]
    desc: String,
}

/// `null` is a value here, and not the same as nothing.
fn present<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(from).map(Some)
}

/// Reads a line; `None` where it is not JSON, or none of the four things.
pub fn parse(line: &[u8]) -> Option<Line> {
    let raw: Raw = serde_json::from_slice(line).ok()?;
    let id = raw.id.as_ref().and_then(Value::as_u64);
    if let Some(Refusal { class, desc }) = raw.error {
        return Some(Line::Refused { id, class, desc });
    }
    if let Some(value) = raw.value {
        return Some(Line::Return { id, value });
    }
    if let Some(name) = raw.event {
        let at = raw.timestamp.map_or((0, 0), |t| (t.seconds, t.microseconds));
        return Some(Line::Event(Event { name, data: raw.data, at }));
    }
    raw.qmp.map(Line::Greeting)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_four_kinds() {
        assert!(matches!(parse(br#"{"QMP":{"version":{}}}"#), Some(Line::Greeting(_))));
        assert_eq!(
            parse(br#"{"return": {}, "id": 7}"#),
            Some(Line::Return { id: Some(7), value: serde_json::json!({}) })
        );
        assert!(matches!(parse(br#"{"return": null}"#), Some(Line::Return { id: None, .. })));
        assert!(matches!(
            parse(br#"{"error":{"class":"GenericError","desc":"no"},"id":1}"#),
            Some(Line::Refused { id: Some(1), .. })
        ));
        assert!(matches!(parse(br#"{"event":"NEW_IN_QEMU_99","x":1}"#), Some(Line::Event(_))));
        for junk in [&b""[..], b"{}", b"[]", b"42", b"{\"event\":", b"\xff\xfe", b"{\"id\":1}"] {
            assert_eq!(parse(junk), None, "{junk:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
        }
    }
}
