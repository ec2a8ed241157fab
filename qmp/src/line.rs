//! Parses one line of QMP.

use serde::Deserialize;
use serde_json::Value;

use crate::Event;

/// The maximum length of a line in bytes; QEMU's largest reply (`query-qmp-schema`) has less than a
/// quarter of it.
pub const MAX_LINE: usize = 4 << 20;

/// A parsed line.
#[derive(Debug, Clone, PartialEq)]
pub enum Line {
    /// `{"QMP": …}`, the first line of a connection.
    Greeting(Value),
    /// A successful reply.
    Return {
        /// The id of the call.
        id: Option<u64>,
        /// The return value.
        value: Value,
    },
    /// An error reply.
    Refused {
        /// The id of the call.
        id: Option<u64>,
        /// The error's class.
        class: String,
        /// The error's text.
        desc: String,
    },
    /// An event.
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

/// Distinguishes `null` from a missing value.
fn present<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(from).map(Some)
}

/// The maximum number of values in one line. Two bytes, as in `[0,0,0]`, need a hundred bytes of
/// memory, so the length alone is no bound; long data, such as the output of a command in the
/// guest, is one string.
const MOST_VALUES: usize = 1 << 16;

/// Counts separators outside of strings, one before each value except the first, which bounds the
/// number of values.
fn is_modest(json: &[u8]) -> bool {
    let (mut values, mut bytes) = (0, json.iter());
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => {
                while bytes.next().is_some_and(|byte| match byte {
                    b'\\' => bytes.next().is_some(),
                    byte => *byte != b'"',
                }) {}
            }
            b',' | b'[' | b'{' => values += 1,
            _ => {}
        }
    }
    values < MOST_VALUES
}

/// Escapes text for messages and logs: a guest agent or a compromised QEMU could otherwise forge
/// log lines by a newline.
fn one_line(text: String) -> String {
    if !text.contains(char::is_control) {
        return text;
    }
    let shown = |c: char| match c.is_control() {
        true => c.escape_default().collect(),
        false => c.to_string(),
    };
    text.chars().map(shown).collect::<String>()
}

/// Parses a line; `None` if it is not JSON, none of the four kinds, or has too many values.
pub fn parse(line: &[u8]) -> Option<Line> {
    if !is_modest(line) {
        return None;
    }
    let raw: Raw = serde_json::from_slice(line).ok()?;
    let id = raw.id.as_ref().and_then(Value::as_u64);
    if let Some(Refusal { class, desc }) = raw.error {
        return Some(Line::Refused { id, class: one_line(class), desc: one_line(desc) });
    }
    if let Some(value) = raw.value {
        return Some(Line::Return { id, value });
    }
    if let Some(name) = raw.event {
        let at = raw.timestamp.map_or((0, 0), |t| (t.seconds, t.microseconds));
        return Some(Line::Event(Event { name: one_line(name), data: raw.data, at }));
    }
    raw.qmp.map(Line::Greeting)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn four_kinds_are_parsed() {
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

    #[test]
    fn texts_are_escaped_to_one_line() {
        let said = br#"{"error":{"class":"X\u001b[2J","desc":"no \u00fc\nerror: gone\u009b2J"}}"#;
        let (class, desc) = ("X\\u{1b}[2J".into(), "no \u{fc}\\nerror: gone\\u{9b}2J".into());
        assert_eq!(parse(said), Some(Line::Refused { id: None, class, desc }));
        let event = parse(br#"{"event":"STOP\n"}"#);
        assert!(matches!(event, Some(Line::Event(event)) if event.name == "STOP\\n"));
    }

    #[test]
    fn memory_of_a_line_is_bounded() {
        let list =
            |values: usize| format!("{{\"return\": [0{}]}}", ",0".repeat(values)).into_bytes();
        assert!(parse(&list(MOST_VALUES / 2)).is_some());
        assert_eq!(parse(&list(MOST_VALUES)), None);
        assert_eq!(parse(&b"[".repeat(MOST_VALUES)), None);
        // A string counts as one value.
        let text = format!(r#"{{"return": {{"out": "\\\"{}\\"}}}}"#, ",[{".repeat(MOST_VALUES));
        assert!(parse(text.as_bytes()).is_some());
        assert!(is_modest(br#""\"#) && is_modest(br#""#));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
        }
    }
}
