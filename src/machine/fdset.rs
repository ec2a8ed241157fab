//! The files that QEMU gets as descriptors. It opens none of a VM's files itself: it may be another user, without rights to any.
//!
//! Each file is a set of descriptors of its own (`-add-fd`, `add-fd`), which QEMU opens as `/dev/fdset/SET`.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// The set of the first file of a machine that is started, and that file's number; beyond those of `machine::fd`.
pub const FIRST: i32 = 40;

/// How a file is opened: by the supervisor, whose descriptor QEMU inherits, and by QEMU.
///
/// QEMU takes from a set only a descriptor with the access mode that the block node asks for, and since 9.1 only one
/// whose `O_DIRECT` is that of `cache.direct` (`monitor_fdset_dup_fd_add`). Both sides are made from this one value.
/// No node sets `auto-read-only`, so QEMU does not open a file again with another access mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Read and write; else read only.
    pub write: bool,
    /// Past the host's page cache, `O_DIRECT`.
    pub direct: bool,
}

impl Access {
    /// Read only, through the page cache.
    pub const READ: Self = Self { write: false, direct: false };

    /// Through the page cache, for reading alone or for writing too.
    pub const fn cached(write: bool) -> Self {
        Self { write, direct: false }
    }

    /// Writes into a block node of a file or device what makes QEMU open it in this way.
    pub fn apply_to(self, node: &mut Value) {
        node["read-only"] = (!self.write).into();
        if self.direct {
            node["cache"] = json!({"direct": true});
        }
    }
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handed {
    /// Its set; and the descriptor's number, when the machine is started.
    pub set: i32,
    /// The file.
    pub path: PathBuf,
    /// How it is opened.
    pub access: Access,
    /// The block node that it is for.
    pub node: String,
}

impl Handed {
    /// What QEMU keeps beside the descriptor, and tells again: whose it is.
    pub fn opaque(&self) -> String {
        format!("{} {}", self.node, self.path.display())
    }

    /// The value of `-add-fd`; a comma is doubled, as in all of QEMU's `key=value`.
    pub fn option(&self) -> String {
        let opaque = self.opaque().replace(',', ",,");
        format!("fd={0},set={0},opaque={opaque}", self.set)
    }

    /// Whether what QEMU keeps says that a set is for this block node.
    pub fn is_of(opaque: &str, node: &str) -> bool {
        opaque.split_once(' ').is_some_and(|(of, _)| of == node)
    }
}

/// Gathers files and gives each its set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    next: i32,
    files: Vec<Handed>,
}

impl Files {
    /// None yet; the first gets this set.
    pub const fn from(first: i32) -> Self {
        Self { next: first, files: vec![] }
    }

    /// Adds a file of a block node, and says what QEMU is to open.
    pub fn add(&mut self, node: &str, path: &Path, access: Access) -> String {
        let set = self.next;
        self.next += 1;
        self.files.push(Handed { set, path: path.to_owned(), access, node: node.to_owned() });
        format!("/dev/fdset/{set}")
    }

    /// All of them.
    pub fn into_all(self) -> Vec<Handed> {
        self.files
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_sets_what_qemu_compares() {
        let node = |write, direct| {
            let mut node = json!({});
            Access { write, direct }.apply_to(&mut node);
            node
        };
        assert_eq!(node(true, false), json!({"read-only": false}));
        assert_eq!(node(false, true), json!({"read-only": true, "cache": {"direct": true}}));
    }

    #[test]
    fn a_file_is_named_by_its_set_and_told_by_its_node() {
        let mut files = Files::from(FIRST);
        assert_eq!(
            files.add("node-root", Path::new("/a,b c"), Access::cached(true)),
            "/dev/fdset/40"
        );
        assert_eq!(files.add("seed", Path::new("/s"), Access::READ), "/dev/fdset/41");
        let all = files.into_all();
        assert_eq!(all[0].option(), "fd=40,set=40,opaque=node-root /a,,b c");
        assert!(Handed::is_of(&all[0].opaque(), "node-root"));
        assert!(!Handed::is_of(&all[0].opaque(), "node"));
        assert!(all[0].access.write && !all[1].access.write);
    }
}
