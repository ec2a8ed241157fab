//! Keys by their QEMU names: chords, and the characters of a US keyboard.

use std::{fmt, str::FromStr};

use super::{error_code::ErrorCode, explain::Explain, shown::shown};

/// Keys that are pressed together, by their names in QEMU's `QKeyCode`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chord(Vec<String>);

/// The maximum number of keys of a chord.
const MOST: usize = 10;

/// Why a text is not a chord or cannot be typed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No key has this name.
    #[error("`{}` is not a key", shown(.0))]
    Unknown(String),
    /// The chord has no key, or more than [`MOST`].
    #[error("`{}` is not a chord: write 1 to {MOST} keys separated by `-`, such as \
        `ctrl-alt-delete`", shown(.0))]
    NoChord(String),
    /// A character that a US keyboard does not have.
    #[error("the character `{}` is not on a US keyboard", .0.escape_debug())]
    NotOnKeyboard(char),
}

impl Explain for Error {
    fn own_code(&self) -> Option<ErrorCode> {
        Some(match self {
            Self::Unknown(..) | Self::NoChord(..) => ErrorCode::KeyUnknown,
            Self::NotOnKeyboard(..) => ErrorCode::CharacterUnknown,
        })
    }

    fn own_hint(&self) -> Option<String> {
        match self {
            Self::Unknown(_) | Self::NoChord(_) => Some(
                "key names are those of QEMU: `ctrl`, `alt`, `shift`, `meta_l`, `ret`, `esc`, \
                 `tab`, `delete`, `up`, `f1`, `a`, `1`, `kp_0`, …"
                    .into(),
            ),
            Self::NotOnKeyboard(_) => Some(
                "`qvm type` presses the keys of a US keyboard; use `qvm exec` to write other text \
                 into a file of the guest"
                    .into(),
            ),
        }
    }
}

impl Chord {
    /// Returns the keys by their QEMU names.
    pub fn keys(&self) -> &[String] {
        &self.0
    }

    /// Returns the chords that type a text.
    ///
    /// # Errors
    /// A character is not on a US keyboard.
    pub fn typing(text: &str) -> Result<Vec<Self>, Error> {
        text.chars().map(|c| key(c).ok_or(Error::NotOnKeyboard(c))).collect()
    }
}

impl FromStr for Chord {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let name = |word: &str| -> Result<String, Error> {
            let word = word.to_ascii_lowercase();
            let name = match word.as_str() {
                "del" => "delete",
                "enter" | "return" => "ret",
                "escape" => "esc",
                "control" => "ctrl",
                "win" | "super" | "meta" => "meta_l",
                "space" => "spc",
                "ins" => "insert",
                "pgup" => "pgup",
                other => other,
            };
            let known: Result<qapi::qmp::QKeyCode, _> =
                serde_json::from_value(serde_json::Value::from(name));
            known.map(|_| name.to_owned()).map_err(|_| Error::Unknown(word.clone()))
        };
        let keys: Vec<String> =
            text.split('-').filter(|word| !word.is_empty()).map(name).collect::<Result<_, _>>()?;
        match (1..=MOST).contains(&keys.len()) {
            true => Ok(Self(keys)),
            false => Err(Error::NoChord(text.to_owned())),
        }
    }
}

impl fmt::Display for Chord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("-"))
    }
}

/// The keys of signs: the character without shift, the character with shift, the key's name.
const SIGNS: [(char, char, &str); 13] = [
    ('-', '_', "minus"),
    ('=', '+', "equal"),
    ('[', '{', "bracket_left"),
    (']', '}', "bracket_right"),
    ('\\', '|', "backslash"),
    (';', ':', "semicolon"),
    ('\'', '"', "apostrophe"),
    ('`', '~', "grave_accent"),
    (',', '<', "comma"),
    ('.', '>', "dot"),
    ('/', '?', "slash"),
    (' ', ' ', "spc"),
    ('\t', '\t', "tab"),
];
/// The characters of the digit keys with shift, from key 0 on.
const SHIFTED_DIGITS: &str = ")!@#$%^&*(";

fn key(c: char) -> Option<Chord> {
    let alone = |name: &str| Some(Chord(vec![name.to_owned()]));
    let shifted = |name: &str| Some(Chord(vec!["shift".to_owned(), name.to_owned()]));
    if c == '\n' {
        return alone("ret");
    }
    if c.is_ascii_lowercase() || c.is_ascii_digit() {
        return alone(&c.to_string());
    }
    if c.is_ascii_uppercase() {
        return shifted(&c.to_ascii_lowercase().to_string());
    }
    if let Some(digit) = SHIFTED_DIGITS.chars().position(|sign| sign == c) {
        return shifted(&digit.to_string());
    }
    let (one, _, name) = SIGNS.iter().find(|(one, two, _)| *one == c || *two == c)?;
    if *one == c { alone(name) } else { shifted(name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_us_character_has_known_keys() {
        let all: String = (0x20_u8..0x7f).map(char::from).chain(['\n', '\t']).collect();
        let chords = Chord::typing(&all).unwrap();
        for chord in &chords {
            assert_eq!(chord.to_string().parse::<Chord>().as_ref(), Ok(chord), "{chord}");
        }
        // Different characters need different keys.
        let mut names: Vec<String> = chords.iter().map(ToString::to_string).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), chords.len());
        assert_eq!(Chord::typing("ä").unwrap_err(), Error::NotOnKeyboard('ä'));
    }

    #[test]
    fn chords_accept_common_key_names() {
        let keys = |text: &str| text.parse::<Chord>().map(|chord| chord.to_string());
        assert_eq!(keys("Ctrl-Alt-Del").unwrap(), "ctrl-alt-delete");
        assert_eq!(keys("enter").unwrap(), "ret");
        assert_eq!(keys("ctrl-alt-f2").unwrap(), "ctrl-alt-f2");
        assert!(matches!(keys("ctrl-nokey"), Err(Error::Unknown(_))));
        assert!(matches!(keys(""), Err(Error::NoChord(_))));
        assert!(matches!(keys("a-a-a-a-a-a-a-a-a-a-a"), Err(Error::NoChord(_))));
    }
}
