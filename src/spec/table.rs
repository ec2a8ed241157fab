//! A table being parsed: known keys are removed, and the remaining keys are unknown.

use std::borrow::Cow;

use toml::de::{DeTable, DeValue};

use super::{
    reading::{At, Key, Reading},
    written::{Refusal, Written},
};
use crate::value::{Label, shown};

/// The message about keys of the CPU model.
pub(super) const NO_CPU_MODEL: &str = "the CPU model cannot be configured: with KVM it is that of \
    the host";

/// The maximum array length, small enough to compare all pairs.
const MOST_ELEMENTS: usize = 256;
/// The maximum number of tables below `disk` or `nic`, more than a VM can have.
const MOST_TABLES: usize = 24;

/// A table with the keys that have not been parsed yet.
pub(super) struct Table<'i> {
    /// The position of its header; the key is its path, empty for the top level.
    pub(super) at: At,
    entries: Vec<Entry<'i>>,
    /// The keys and tables that this table may contain.
    known: Vec<&'static str>,
}

/// The tables below `disk` or `nic`.
pub(super) struct Named<'i> {
    /// The position of the first of them, or of `[disk]` or `[nic]` itself.
    pub(super) at: At,
    /// True if the table is empty.
    pub(super) empty: bool,
    /// The tables with valid names, in the order of the file.
    pub(super) tables: Vec<(Label, Table<'i>)>,
}

struct Entry<'i> {
    name: String,
    key: std::ops::Range<usize>,
    value: toml::Spanned<DeValue<'i>>,
}

impl<'i> Table<'i> {
    /// Returns the table at the path of `at`, with its entries in the order of the file.
    pub(super) fn new(at: At, table: DeTable<'i>) -> Self {
        let mut entries: Vec<Entry<'i>> = table
            .into_iter()
            .map(|(key, value)| Entry { key: key.span(), name: key.into_inner().into(), value })
            .collect();
        entries.sort_by_key(|entry| entry.key.start);
        Self { at, entries, known: Vec::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Removes a key and parses its value.
    pub(super) fn take<T: Written>(&mut self, r: &mut Reading<'_>, key: &'static str) -> Key<T> {
        let Some((at, value)) = self.value(r, key) else {
            return Key::ABSENT;
        };
        let value = read(r, &at, &value);
        Key { at: Some(at), value }
    }

    /// Removes and parses an array; invalid elements are reported and omitted.
    pub(super) fn take_list<T: Written>(
        &mut self,
        r: &mut Reading<'_>,
        key: &'static str,
    ) -> Key<Vec<(At, T)>> {
        let Some((at, value)) = self.value(r, key) else {
            return Key::ABSENT;
        };
        let DeValue::Array(elements) = value else {
            let found = article(&value);
            let hint = value.as_str().map(|text| format!("write `{key} = [\"{}\"]`", shown(text)));
            r.wrong(&at, format!("found {found}, expected an array of {}", T::PLURAL), hint);
            return Key { at: Some(at), value: None };
        };
        if elements.len() > MOST_ELEMENTS {
            let message = format!(
                "{} elements; at most {MOST_ELEMENTS} are \
                allowed",
                elements.len()
            );
            r.wrong(&at, message, None);
            return Key { at: Some(at), value: None };
        }
        let mut list = Vec::with_capacity(elements.len());
        for element in elements {
            let at = At { key: at.key.clone(), span: element.span() };
            if let Some(value) = read(r, &at, element.get_ref()) {
                list.push((at, value));
            }
        }
        Key { at: Some(at), value: Some(list) }
    }

    /// Removes a table.
    pub(super) fn take_table(&mut self, r: &mut Reading<'_>, key: &'static str) -> Option<Self> {
        self.known.push(key);
        let entry = self.entry(key)?;
        let path = self.path(key);
        Self::open(r, entry, path, |path| match path {
            "cpu" => {
                format!("use `vcpu` for the number of CPUs; {}", NO_CPU_MODEL)
            }
            path => format!("write `[{path}]` above its keys"),
        })
    }

    /// Removes the named tables below a key, as in `[disk.data]`, in the order of the file. `first`
    /// is the name that the flat keys refer to.
    pub(super) fn take_named(
        &mut self,
        r: &mut Reading<'_>,
        key: &'static str,
        first: &str,
    ) -> Option<Named<'i>> {
        self.known.push(key);
        let entry = self.entry(key)?;
        let path = self.path(key);
        let group = Self::open(r, entry, path, |_| {
            format!("write one table each: `[{key}.{first}]`, or another name instead of `{first}`")
        })?;
        let mut named = Named { at: group.at, empty: group.entries.is_empty(), tables: Vec::new() };
        if group.entries.len() > MOST_TABLES {
            let message = format!(
                "{} tables; at most {MOST_TABLES} are \
                allowed",
                group.entries.len()
            );
            r.wrong(&named.at, message, None);
            return Some(named);
        }
        for entry in group.entries {
            let path = format!("{key}.{}", bare(&entry.name));
            let at = At { key: path.clone(), span: entry.key.clone() };
            let label = entry.name.parse::<Label>();
            let hint = |_: &str| {
                format!("write `[{key}.{first}]` above it, or another name instead of `{first}`")
            };
            let table = Self::open(r, entry, path, hint);
            match (label, table) {
                (Ok(label), Some(table)) => named.tables.push((label, table)),
                (Err(refused), Some(_)) => r.wrong(&at, refused.to_string(), None),
                (_, None) => {}
            }
        }
        Some(named)
    }

    /// Reports every remaining key as unknown.
    pub(super) fn finish(self, r: &mut Reading<'_>) {
        for entry in &self.entries {
            if r.is_full() {
                continue;
            }
            let at = At { key: self.path(&entry.name), span: entry.key.clone() };
            let hint = (r.unknown_key)(&self.at.key, &entry.name, &self.known);
            r.wrong(&at, "unknown key", Some(hint));
        }
    }

    fn open(
        r: &mut Reading<'_>,
        entry: Entry<'i>,
        path: String,
        hint: impl Fn(&str) -> String,
    ) -> Option<Self> {
        let at = At { key: path, span: entry.key };
        r.lines.insert(at.key.clone(), r.line(at.span.start));
        match entry.value.into_inner() {
            DeValue::Table(table) => Some(Self::new(at, table)),
            other => {
                let found = article(&other);
                r.wrong(&at, format!("found {found}, expected a table"), Some(hint(&at.key)));
                None
            }
        }
    }

    fn value(&mut self, r: &mut Reading<'_>, key: &'static str) -> Option<(At, DeValue<'i>)> {
        self.known.push(key);
        let path = self.path(key);
        r.asked.insert(path.clone());
        let entry = self.entry(key)?;
        r.lines.insert(path.clone(), r.line(entry.key.start));
        let at = At { key: path, span: entry.value.span() };
        Some((at, entry.value.into_inner()))
    }

    fn entry(&mut self, key: &str) -> Option<Entry<'i>> {
        let index = self.entries.iter().position(|entry| entry.name == key)?;
        Some(self.entries.remove(index))
    }

    fn path(&self, key: &str) -> String {
        match self.at.key.as_str() {
            "" => bare(key).into_owned(),
            table => format!("{table}.{}", bare(key)),
        }
    }
}

/// Returns a key as part of a path, quoted if TOML requires it.
fn bare(key: &str) -> Cow<'_, str> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    match !key.is_empty() && key.len() <= 64 && key.bytes().all(plain) {
        true => Cow::Borrowed(key),
        false => Cow::Owned(format!("\"{}\"", shown(key))),
    }
}

fn read<T: Written>(r: &mut Reading<'_>, at: &At, value: &DeValue<'_>) -> Option<T> {
    match T::read(value) {
        Ok(value) => Some(value),
        Err(Refusal::Type) => {
            let hint = T::instead_of(value);
            r.wrong(at, format!("found {}, expected {}", article(value), T::WANTED), hint);
            None
        }
        Err(Refusal::Value { message, hint }) => {
            r.wrong(at, message, hint);
            None
        }
    }
}

/// Returns the type of a value in words.
fn article(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a decimal number",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(array) if array.iter().any(|e| e.get_ref().is_table()) => {
            "an array of tables"
        }
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}
