//! The files that QEMU gets as descriptors. QEMU opens none of a VM's files itself: it may run with
//! a UID without access to them.
//!
//! Each file has its own descriptor set (`-add-fd`, `add-fd`), which QEMU opens as
//! `/dev/fdset/SET`.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// The set and descriptor number of the first file at the start, after those of `machine::fd`.
pub const FIRST: i32 = 40;

/// The access mode of a file, for the supervisor, whose descriptor QEMU inherits, and for QEMU.
///
/// QEMU uses a descriptor of a set only if its access mode equals that of the block node, and since
/// 9.1 only if its `O_DIRECT` equals `cache.direct` (`monitor_fdset_dup_fd_add`). Both sides are
/// derived from this value. No node sets `auto-read-only`, so QEMU never opens a file again with
/// another mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Read and write; otherwise read only.
    pub write: bool,
    /// `O_DIRECT`, without the host's page cache.
    pub direct: bool,
}

impl Access {
    /// Read only, through the page cache.
    pub const READ: Self = Self { write: false, direct: false };

    /// Returns access through the page cache, for reading only or also for writing.
    pub const fn cached(write: bool) -> Self {
        Self { write, direct: false }
    }

    /// Sets the options of a block node so that QEMU opens the file in this mode.
    pub fn apply_to(self, node: &mut Value) {
        node["read-only"] = (!self.write).into();
        if self.direct {
            node["cache"] = json!({"direct": true});
        }
    }
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PassedFile {
    /// Its set, which is also the descriptor number at the start.
    pub set: i32,
    /// The file.
    pub path: PathBuf,
    /// Its access mode.
    pub access: Access,
    /// The block node that uses it.
    pub node: String,
}

impl PassedFile {
    /// Returns the text that QEMU stores with the descriptor and returns from `query-fdsets`: the
    /// owner of the set.
    pub fn opaque(&self) -> String {
        format!("{} {}", self.node, self.path.display())
    }

    /// Returns the value of `-add-fd`; commas are doubled as in all `key=value` options of QEMU.
    pub fn option(&self) -> String {
        let opaque = self.opaque().replace(',', ",,");
        format!("fd={0},set={0},opaque={opaque}", self.set)
    }

    /// Returns true if the stored text names this block node.
    pub fn is_of(opaque: &str, node: &str) -> bool {
        opaque.split_once(' ').is_some_and(|(of, _)| of == node)
    }
}

/// Collects files and assigns their sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    next: i32,
    files: Vec<PassedFile>,
}

impl Files {
    /// Returns an empty collection whose first file gets this set.
    pub const fn from(first: i32) -> Self {
        Self { next: first, files: vec![] }
    }

    /// Adds a file of a block node and returns the path for QEMU to open.
    pub fn add(&mut self, node: &str, path: &Path, access: Access) -> String {
        let set = self.next;
        self.next += 1;
        self.files.push(PassedFile { set, path: path.to_owned(), access, node: node.to_owned() });
        format!("/dev/fdset/{set}")
    }

    /// Returns all files.
    pub fn into_all(self) -> Vec<PassedFile> {
        self.files
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_sets_options_that_qemu_compares() {
        let node = |write, direct| {
            let mut node = json!({});
            Access { write, direct }.apply_to(&mut node);
            node
        };
        assert_eq!(node(true, false), json!({"read-only": false}));
        assert_eq!(node(false, true), json!({"read-only": true, "cache": {"direct": true}}));
    }

    #[test]
    fn file_has_a_set_and_its_node() {
        let mut files = Files::from(FIRST);
        assert_eq!(
            files.add("node-root", Path::new("/a,b c"), Access::cached(true)),
            "/dev/fdset/40"
        );
        assert_eq!(files.add("seed", Path::new("/s"), Access::READ), "/dev/fdset/41");
        let all = files.into_all();
        assert_eq!(all[0].option(), "fd=40,set=40,opaque=node-root /a,,b c");
        assert!(PassedFile::is_of(&all[0].opaque(), "node-root"));
        assert!(!PassedFile::is_of(&all[0].opaque(), "node"));
        assert!(all[0].access.write && !all[1].access.write);
    }
}
