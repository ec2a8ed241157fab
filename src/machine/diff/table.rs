//! A named table of the VM file: a disk or a NIC.

use super::{change::ChangeKind, key, row::Row};
use crate::{spec::Vm, value::Label};

/// A named table: a disk or a NIC.
pub(super) trait Table: Sized {
    /// The name of its kind.
    const TABLE: &'static str;

    fn name(&self) -> &Label;

    /// The key of a property.
    fn key(name: &Label, property: &str) -> String;

    fn rows(&self) -> Vec<Row<Self>>;

    /// Returns a one-line summary.
    fn summary(&self) -> String;

    /// Returns when a table that is only in the VM file takes effect; `place` is its index among
    /// its kind.
    fn added(&self, place: usize, running: &Vm) -> ChangeKind;

    /// Returns when the removal of a table takes effect.
    fn removed(&self, place: usize) -> ChangeKind;

    /// Returns the values of all keys and the summary.
    fn texts(&self) -> Vec<(String, String)> {
        let text = |row: Row<Self>| Some((Self::key(self.name(), row.key), row.text?));
        let whole = (key::of_table(Self::TABLE, self.name()), self.summary());
        self.rows().into_iter().filter_map(text).chain([whole]).collect()
    }
}

/// Returns the names of tables in their order.
pub(super) fn names<T: Table>(all: &[T]) -> Option<String> {
    let names: Vec<String> = all.iter().map(|one| one.name().to_string()).collect();
    (!names.is_empty()).then(|| names.join(", "))
}
