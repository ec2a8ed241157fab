//! A named table of the VM file that there may be several of: a disk or a NIC.

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

    /// It in one line.
    fn summary(&self) -> String;

    /// What becomes of it if the running VM does not have it; `place` is its place among its kind.
    fn added(&self, place: usize, running: &Vm) -> ChangeKind;

    /// What becomes of it if the VM file does not have it.
    fn removed(&self, place: usize) -> ChangeKind;

    /// All texts of it by their keys, the line about the whole as well.
    fn texts(&self) -> Vec<(String, String)> {
        let text = |row: Row<Self>| Some((Self::key(self.name(), row.key), row.text?));
        let whole = (key::of_table(Self::TABLE, self.name()), self.summary());
        self.rows().into_iter().filter_map(text).chain([whole]).collect()
    }
}

/// The names of tables in their order.
pub(super) fn names<T: Table>(all: &[T]) -> Option<String> {
    let names: Vec<String> = all.iter().map(|one| one.name().to_string()).collect();
    (!names.is_empty()).then(|| names.join(", "))
}
