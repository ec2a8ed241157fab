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

/// The most values in one line. Two bytes, as in `[0,0,0]`, become a hundred of memory, so that the length alone is no bound; what has many
/// bytes in truth, such as what a command in the guest printed, is one text.
const MOST_VALUES: usize = 1 << 16;

/// There are not more values in it than that: each but the first of all has a sign before it that is in no text.
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

/// What stands in messages and logs, and was said by a guest's agent, or by a QEMU that its guest has taken over: a newline would begin a
/// line of a log that nobody wrote.
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

/// Reads a line; `None` where it is not JSON, none of the four things, or too many.
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

    #[test]
    fn words_for_people_are_one_line() {
        let said = br#"{"error":{"class":"X\u001b[2J","desc":"no \u00fc\nerror: gone\u009b2J"}}"#;
        let (class, desc) = ("X\\u{1b}[2J".into(), "no \u{fc}\\nerror: gone\\u{9b}2J".into());
        assert_eq!(parse(said), Some(Line::Refused { id: None, class, desc }));
        let event = parse(br#"{"event":"STOP\n"}"#);
        assert!(matches!(event, Some(Line::Event(event)) if event.name == "STOP\\n"));
    }

    #[test]
    fn a_line_takes_no_more_memory_than_its_length_lets_expect() {
        let list =
            |values: usize| format!("{{\"return\": [0{}]}}", ",0".repeat(values)).into_bytes();
        assert!(parse(&list(MOST_VALUES / 2)).is_some());
        assert_eq!(parse(&list(MOST_VALUES)), None);
        assert_eq!(parse(&b"[".repeat(MOST_VALUES)), None);
        // What stands in a text counts as one.
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
