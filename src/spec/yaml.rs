//! Examines a YAML text for the checks of user-data: whether it is a mapping, and its duplicate
//! keys.
//!
//! YAML forbids duplicate keys, but PyYAML, the parser of cloud-init, uses the last one.

use std::{cell::RefCell, collections::HashSet, fmt};

use serde::de::{DeserializeSeed, EnumAccess, Error, MapAccess, SeqAccess, VariantAccess, Visitor};
use serde_norway::{Deserializer, Value};

/// The properties of a text.
pub(super) struct Outline {
    /// The text is a mapping or empty.
    pub(super) is_mapping: bool,
    /// The duplicate keys of mappings, each once.
    pub(super) duplicates: Vec<String>,
}

/// Parses a text with one document.
///
/// # Errors
/// The text is not YAML.
pub(super) fn outline(text: &str) -> Result<Outline, serde_norway::Error> {
    let duplicates = RefCell::default();
    let is_mapping = Node(&duplicates).deserialize(Deserializer::from_str(text))?;
    Ok(Outline { is_mapping, duplicates: duplicates.into_inner() })
}

/// The maximum number of lines tried for a duplicate key: each one requires parsing the text up to
/// it.
const MOST_LINES: usize = 32;

/// Returns the first line, from 1, such that the text up to it contains the key twice in one
/// mapping. `None` if the key is not the first of a line, as in `{a: 1, a: 2}`.
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

/// Returns true for `KEY:`, `"KEY":` or `'KEY':`, also after `- `.
fn begins_with_key(line: &str, key: &str) -> bool {
    let line = line.trim_start_matches(['-', '?', ' ', '\t']);
    let line = line.strip_prefix(['"', '\'']).unwrap_or(line);
    let rest = line.strip_prefix(key).map(|rest| rest.trim_start_matches(['"', '\'', ' ', '\t']));
    rest.is_some_and(|rest| rest.starts_with(':'))
}

/// Deserializes a node and collects duplicate keys. The value is true for a mapping or null.
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

    /// A tagged value.
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
