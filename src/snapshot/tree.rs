//! Orders snapshots as a tree: each below its parent, the present below the snapshot that it is
//! based on.

use std::collections::BTreeSet;

use crate::value::SnapshotName;

/// A line of the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Branch {
    /// The snapshot; `None` is the present.
    pub name: Option<SnapshotName>,
    /// The number of ancestors.
    pub depth: usize,
}

/// Returns the lines of the tree. `all` are the snapshots, the oldest first, each with its parent;
/// `present` is the parent of the present. A snapshot whose parent is not known is a root.
pub fn branches(
    all: &[(SnapshotName, Option<SnapshotName>)],
    present: Option<&SnapshotName>,
) -> Vec<Branch> {
    let known: BTreeSet<&SnapshotName> = all.iter().map(|(name, _)| name).collect();
    let parent_of = |parent: Option<&SnapshotName>| -> Option<SnapshotName> {
        parent.filter(|parent| known.contains(parent)).cloned()
    };
    let mut edges: Vec<(Option<SnapshotName>, Option<SnapshotName>)> =
        all.iter().map(|(name, parent)| (parent_of(parent.as_ref()), Some(name.clone()))).collect();
    edges.push((parent_of(present), None));
    let mut lines = Vec::new();
    let mut seen = BTreeSet::new();
    add(&edges, None, 0, &mut seen, &mut lines);
    // Damaged records may form a circle, which no root leads to.
    for (name, _) in all.iter().filter(|(name, _)| !seen.contains(name)) {
        lines.push(Branch { name: Some(name.clone()), depth: 0 });
    }
    if !lines.iter().any(|line| line.name.is_none()) {
        lines.push(Branch { name: None, depth: 0 });
    }
    lines
}

fn add(
    edges: &[(Option<SnapshotName>, Option<SnapshotName>)],
    parent: Option<&SnapshotName>,
    depth: usize,
    seen: &mut BTreeSet<SnapshotName>,
    lines: &mut Vec<Branch>,
) {
    for (_, name) in edges.iter().filter(|(of, _)| of.as_ref() == parent) {
        lines.push(Branch { name: name.clone(), depth });
        if let Some(name) = name
            && seen.insert(name.clone())
        {
            add(edges, Some(name), depth + 1, seen, lines);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> SnapshotName {
        text.parse().unwrap()
    }

    fn drawn(all: &[(&str, Option<&str>)], present: Option<&str>) -> Vec<String> {
        let all: Vec<_> = all.iter().map(|(one, parent)| (name(one), parent.map(name))).collect();
        let line = |line: Branch| {
            let text = line.name.map_or_else(|| "*".to_owned(), |name| name.to_string());
            format!("{}{text}", "-".repeat(line.depth))
        };
        branches(&all, present.map(name).as_ref()).into_iter().map(line).collect()
    }

    #[test]
    fn present_is_below_its_parent() {
        assert_eq!(drawn(&[], None), ["*"]);
        let all = [("a", None), ("b", Some("a")), ("c", Some("b")), ("d", Some("a"))];
        assert_eq!(drawn(&all, Some("d")), ["a", "-b", "--c", "-d", "--*"]);
        assert_eq!(drawn(&all, Some("a")), ["a", "-b", "--c", "-d", "-*"]);
    }

    #[test]
    fn damaged_records_are_listed() {
        let all = [("a", Some("gone")), ("b", Some("c")), ("c", Some("b"))];
        assert_eq!(drawn(&all, Some("gone")), ["a", "*", "b", "c"]);
    }

    proptest! {
        #[test]
        fn every_snapshot_is_listed_once(
            parents in prop::collection::vec(prop::option::of(0_usize..8), 0..8),
            present in prop::option::of(0_usize..8),
        ) {
            let named = |number: usize| name(&format!("s{number}"));
            let all: Vec<_> = parents
                .iter()
                .enumerate()
                .map(|(number, parent)| (named(number), parent.map(named)))
                .collect();
            let lines = branches(&all, present.map(named).as_ref());
            prop_assert_eq!(lines.len(), all.len() + 1);
            let names: BTreeSet<_> = lines.into_iter().map(|line| line.name).collect();
            prop_assert_eq!(names.len(), all.len() + 1);
        }
    }
}
