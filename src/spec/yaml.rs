//! What a YAML text is, as far as a check of user-data asks: a mapping, and which keys it has
//! twice.
//!
//! YAML forbids duplicate keys, and PyYAML, which cloud-init reads with, takes the last of them.

use std::{cell::RefCell, collections::HashSet, fmt};

use serde::de::{DeserializeSeed, EnumAccess, Error, MapAccess, SeqAccess, VariantAccess, Visitor};
use serde_norway::{Deserializer, Value};

/// What is known of a text.
pub(super) struct Outline {
    /// It is a mapping, or nothing.
    pub(super) is_mapping: bool,
    /// The keys that a mapping has more than once, each once.
    pub(super) duplicates: Vec<String>,
}

/// Reads a text of one document.
///
/// # Errors
/// It is not YAML.
pub(super) fn outline(text: &str) -> Result<Outline, serde_norway::Error> {
    let duplicates = RefCell::default();
    let is_mapping = Node(&duplicates).deserialize(Deserializer::from_str(text))?;
    Ok(Outline { is_mapping, duplicates: duplicates.into_inner() })
}

/// How many lines are tried for a duplicate key: each one costs reading the text up to it.
const MOST_LINES: usize = 32;

/// The line, from 1, up to which a text has to be read to have the key twice in one mapping. `None`
/// where the key is not the first of a line, as in `{a: 1, a: 2}`.
pub(super) fn second_line(text: &str, key: &str) -> Option<usize> {
    let mut end = 0;
    let ends = text.split_inclusive('\n').map(|line| {
        end += line.len();
        (line, end)
    });
    let candidates = ends.enumerate().filter(|(_, (line, _))| begins_with_key(line, key));
    candidates
        .skip(1)
        .take(MOST_LINES)
        .find(|(_, (_, end))| {
            let upto = text.get(..*end).unwrap_or_default();
            outline(upto).is_ok_and(|outline| outline.duplicates.iter().any(|one| one == key))
        })
        .map(|(number, _)| number + 1)
}

/// `KEY:`, `"KEY":` or `'KEY':`, also as the first of an item.
fn begins_with_key(line: &str, key: &str) -> bool {
    let line = line.trim_start_matches(['-', '?', ' ', '\t']);
    let line = line.strip_prefix(['"', '\'']).unwrap_or(line);
    let rest = line.strip_prefix(key).map(|rest| rest.trim_start_matches(['"', '\'', ' ', '\t']));
    rest.is_some_and(|rest| rest.starts_with(':'))
}

/// A node, read for its duplicate keys. Gives whether it is a mapping or null.
struct Node<'d>(&'d RefCell<Vec<String>>);

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = bool;

    fn deserialize<D: serde::Deserializer<'de>>(self, from: D) -> Result<bool, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<bool, A::Error> {
        let mut seen = HashSet::new();
        while let Some(key) = map.next_key::<Value>()? {
            let name = match &key {
                Value::String(text) => text.clone(),
                other => format!("{other:?}"),
            };
            let again = !seen.insert(key) && name != "<<";
            let mut duplicates = self.0.borrow_mut();
            if again && !duplicates.contains(&name) {
                duplicates.push(name);
            }
            drop(duplicates);
            map.next_value_seed(Node(self.0))?;
        }
        Ok(true)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<bool, A::Error> {
        while items.next_element_seed(Node(self.0))?.is_some() {}
        Ok(false)
    }

    /// A value with a tag.
    fn visit_enum<A: EnumAccess<'de>>(self, tagged: A) -> Result<bool, A::Error> {
        let (_, value) = tagged.variant::<String>()?;
        value.newtype_variant_seed(self)
    }

    fn visit_unit<E: Error>(self) -> Result<bool, E> {
        Ok(true)
    }

    fn visit_none<E: Error>(self) -> Result<bool, E> {
        Ok(true)
    }

    fn visit_some<D: serde::Deserializer<'de>>(self, from: D) -> Result<bool, D::Error> {
        from.deserialize_any(self)
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_i128<E: Error>(self, _: i128) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_u128<E: Error>(self, _: u128) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<bool, E> {
        Ok(false)
    }
}
