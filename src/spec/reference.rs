//! The reference of the VM file's keys: the table in reference.toml, from which all documents and
//! the NixOS options come.

use std::{collections::BTreeMap, sync::LazyLock};

use serde::Deserialize;

/// The whole reference.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reference {
    /// Markdown before the first section, without a title.
    pub intro: String,
    /// The NixOS description of each table, by its path, such as `disk.NAME.image`.
    pub tables: BTreeMap<String, String>,
    /// The sections in the order of the document.
    #[serde(rename = "section")]
    pub sections: Vec<Section>,
}

/// The keys of one area of the VM file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Section {
    /// The heading, as Markdown.
    pub heading: String,
    /// Markdown after the table of keys.
    pub text: String,
    /// The keys in the order of the table.
    #[serde(rename = "key")]
    pub keys: Vec<Key>,
}

/// One key.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Key {
    /// The path, such as `disk.NAME.size`.
    pub name: String,
    /// One sentence.
    pub summary: String,
    /// Replaces `summary` on NixOS.
    pub nix: Option<String>,
    /// The type of the value.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// Bounds of an integer, both inclusive.
    pub min: i64,
    /// See `min`.
    pub max: i64,
    /// The values of an enum.
    pub values: Vec<String>,
    /// Restrictions that the type does not express, as Markdown.
    pub allowed: String,
    /// The default, as Markdown; empty if there is none.
    pub default: String,
    /// When a change takes effect, as Markdown.
    pub effect: String,
    /// The key whose other fields this key repeats.
    like: Option<String>,
}

/// The types of values.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs)] // The names are the words of the table.
pub enum Kind {
    Boolean,
    #[default]
    String,
    Strings,
    Integer,
    Enum,
    Memory,
    Size,
    Bandwidth,
    Sector,
    Ready,
    Secret,
    Sha256,
    Sha512,
}

/// The reference that is compiled into the program.
pub fn reference() -> &'static Reference {
    // A unit test proves that the data can be read.
    static ALL: LazyLock<Reference> =
        LazyLock::new(|| read(include_str!("reference.toml")).unwrap_or_default());
    &ALL
}

fn read(text: &str) -> Result<Reference, toml::de::Error> {
    let mut reference: Reference = toml::from_str(text)?;
    let all: Vec<Key> =
        reference.sections.iter().flat_map(|section| section.keys.iter().cloned()).collect();
    for key in reference.sections.iter_mut().flat_map(|section| &mut section.keys) {
        let like = key.like.as_ref();
        if let Some(model) = like.and_then(|like| all.iter().find(|key| &key.name == like)) {
            *key = Key { name: key.name.clone(), like: key.like.clone(), ..model.clone() };
        }
    }
    Ok(reference)
}

impl Key {
    /// Type and restrictions, as Markdown: `whole number, 1 to 255`.
    pub fn value(&self) -> String {
        let words = || {
            let words = self.values.iter().map(|word| format!("`\"{word}\"`"));
            words.collect::<Vec<_>>().join(", ")
        };
        let kind = match self.kind {
            Kind::Boolean => "boolean".to_owned(),
            Kind::String | Kind::Secret => "string".to_owned(),
            Kind::Strings => "array of strings".to_owned(),
            Kind::Integer => format!("whole number, {} to {}", self.min, self.max),
            Kind::Enum => words(),
            Kind::Memory => "size of 16M to 16T in whole MiB, or whole number of MiB".to_owned(),
            Kind::Size => "size of 1M to 1024T".to_owned(),
            Kind::Bandwidth => "size of 64K to 512T".to_owned(),
            Kind::Sector => "`512`, `4096`".to_owned(),
            Kind::Ready => {
                "`\"running\"`, `\"agent\"`, `\"tcp:PORT\"`, `\"cloud-init\"`".to_owned()
            }
            Kind::Sha256 => "64 hex digits, also as `sha256:HEX` or `sha256-BASE64`".to_owned(),
            Kind::Sha512 => "128 hex digits, also as `sha512:HEX` or `sha512-BASE64`".to_owned(),
        };
        match self.allowed.as_str() {
            "" => kind,
            allowed => format!("{kind}: {allowed}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn table_has_every_key_of_the_reader_once() {
        let reference = read(include_str!("reference.toml")).unwrap();
        let keys: Vec<&Key> = reference.sections.iter().flat_map(|one| &one.keys).collect();
        let names: BTreeSet<String> = keys.iter().map(|key| key.name.clone()).collect();
        assert_eq!(names.len(), keys.len(), "a key appears twice");
        assert_eq!(&names, crate::spec::keys());
        for key in keys {
            assert!(key.summary.ends_with('.') && !key.effect.is_empty(), "{key:?}");
            assert_eq!(key.kind == Kind::Enum, !key.values.is_empty(), "{key:?}");
            assert_eq!(key.kind == Kind::Integer, key.max > 0, "{key:?}");
            for text in [&key.summary, &key.allowed, &key.default, &key.effect] {
                assert!(!text.contains(['|', '\n']), "{key:?}");
            }
        }
    }

    #[test]
    fn repeated_key_copies_its_model() {
        let reference = read(include_str!("reference.toml")).unwrap();
        let mut keys = reference.sections.iter().flat_map(|one| &one.keys);
        let clone = keys.find(|key| key.name == "disk.NAME.clone").unwrap();
        assert_eq!(clone.value(), "`\"copy\"`, `\"overlay\"`");
        assert_eq!(clone.effect, "new disk");
    }
}
