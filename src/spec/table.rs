//! One table of the VM file while it is read: keys are taken out of it, and what is left is unknown.

use std::borrow::Cow;

use toml::de::{DeTable, DeValue};

use super::{
    reading::{At, Key, Reading},
    written::{Refusal, Written},
};
use crate::value::{Label, shown};

/// The guest's CPU model.
pub(super) const NO_CPU_MODEL: &str = "the CPU model cannot be chosen: with KVM it is the host's";

/// The longest array: far more than anyone writes, few enough to compare each with each.
const MOST_ELEMENTS: usize = 256;
/// The most tables below `disk` or `nic` that are looked at: more than a VM can have of either.
const MOST_TABLES: usize = 24;

/// A table whose keys have not all been taken yet.
pub(super) struct Table<'i> {
    /// Where its header is; the key is its path, empty for the top of the file.
    pub(super) at: At,
    entries: Vec<Entry<'i>>,
    /// The keys and tables that this table may have.
    known: Vec<&'static str>,
}

/// The tables below `disk` or `nic`.
pub(super) struct Named<'i> {
    /// Where the first of them, or `[disk]` or `[nic]` itself, is.
    pub(super) at: At,
    /// Whether nothing at all is written there.
    pub(super) empty: bool,
    /// Those that have a good name, in the order of the file.
    pub(super) tables: Vec<(Label, Table<'i>)>,
}

struct Entry<'i> {
    name: String,
    key: std::ops::Range<usize>,
    value: toml::Spanned<DeValue<'i>>,
}

impl<'i> Table<'i> {
    /// The table at the path of `at`, its entries in the order of the file.
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

    /// Takes the value of a key.
    pub(super) fn take<T: Written>(&mut self, r: &mut Reading<'_>, key: &'static str) -> Key<T> {
        let Some((at, value)) = self.value(r, key) else {
            return Key::ABSENT;
        };
        let value = read(r, &at, &value);
        Key { at: Some(at), value }
    }

    /// Takes an array; elements that are refused are reported and left out.
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
            let message = format!("{} elements, and there can be {MOST_ELEMENTS}", elements.len());
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

    /// Takes a table.
    pub(super) fn take_table(&mut self, r: &mut Reading<'_>, key: &'static str) -> Option<Self> {
        self.known.push(key);
        let entry = self.entry(key)?;
        let path = self.path(key);
        Self::open(r, entry, path, |path| match path {
            "cpu" => {
                format!("the number of CPUs is `vcpu`; {}", NO_CPU_MODEL)
            }
            path => format!("write `[{path}]` above its keys"),
        })
    }

    /// Takes the named tables below a key, as in `[disk.data]`, in the order of the file.
    /// `first` is the name that the flat keys mean.
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
            format!("each has a table of its own: `[{key}.{first}]`, or another name for `{first}`")
        })?;
        let mut named = Named { at: group.at, empty: group.entries.is_empty(), tables: Vec::new() };
        if group.entries.len() > MOST_TABLES {
            let message = format!("{} tables, and there can be {MOST_TABLES}", group.entries.len());
            r.wrong(&named.at, message, None);
            return Some(named);
        }
        for entry in group.entries {
            let path = format!("{key}.{}", bare(&entry.name));
            let at = At { key: path.clone(), span: entry.key.clone() };
            let label = entry.name.parse::<Label>();
            let hint = |_: &str| {
                format!("write `[{key}.{first}]` above it, or another name for `{first}`")
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

    /// Refuses every key that was not taken.
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

/// A key as it stands in a path: in quotes where TOML wants them.
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

/// What a value is, in words.
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
