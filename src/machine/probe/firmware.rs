//! Reads the installed firmware descriptors in search order.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

use crate::machine::firmware::Descriptor;

/// Reads all descriptors, sorted by file name, the most specific directory first. A file shadows
/// those of the same name in later directories, and an empty file hides them (QEMU,
/// `docs/interop/firmware.json`).
///
/// An invalid descriptor, or one with missing firmware files, is skipped with a warning: it belongs
/// to another program, and the next descriptor may match.
pub fn descriptors(directories: &[PathBuf]) -> Vec<(PathBuf, Descriptor)> {
    let mut files: BTreeMap<OsString, PathBuf> = BTreeMap::new();
    for directory in directories {
        match names(directory) {
            Ok(names) => {
                for name in names {
                    let path = directory.join(&name);
                    files.entry(name).or_insert(path);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let directory = directory.display();
                tracing::warn!(%directory, %error, "cannot list firmware descriptors");
            }
        }
    }
    files
        .into_values()
        .filter_map(|path| read(&path).map(|descriptor| (path, descriptor)))
        .collect()
}

fn names(directory: &Path) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        if Path::new(&name).extension().is_some_and(|extension| extension == "json") {
            names.push(name);
        }
    }
    Ok(names)
}

fn read(path: &Path) -> Option<Descriptor> {
    let bytes = fs::read(path)
        .inspect_err(|error| {
            tracing::warn!(path = %path.display(), %error, "cannot read a firmware descriptor");
        })
        .ok()?;
    if bytes.is_empty() {
        return None;
    }
    let descriptor: Descriptor = serde_json::from_slice(&bytes)
        .inspect_err(
            |error| tracing::warn!(path = %path.display(), %error, "not a firmware descriptor"),
        )
        .ok()?;
    let missing = descriptor.files().into_iter().find(|file| !file.is_file());
    if let Some(missing) = missing {
        tracing::warn!(
            path = %path.display(),
            missing = %missing.display(),
            "a firmware descriptor names a file that does not exist"
        );
        return None;
    }
    Some(descriptor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{machine::firmware, spec::Firmware};

    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new() -> Self {
            let tree = Self(tempfile::tempdir().unwrap());
            for directory in ["home", "etc", "usr", "fw"] {
                fs::create_dir(tree.0.path().join(directory)).unwrap();
            }
            tree
        }

        fn directories(&self) -> Vec<PathBuf> {
            ["home", "absent", "etc", "usr"].map(|name| self.0.path().join(name)).into()
        }

        /// Writes a descriptor whose firmware file is `code` and exists.
        fn put(&self, file: &str, code: &str) {
            let at = |name: &str| self.0.path().join("fw").join(name);
            fs::write(at(code), "").unwrap();
            fs::write(at("vars"), "").unwrap();
            let text = serde_json::json!({
                "description": code,
                "interface-types": ["uefi"],
                "mapping": {
                    "device": "flash",
                    "executable": {"filename": at(code), "format": "raw"},
                    "nvram-template": {"filename": at("vars"), "format": "raw"},
                },
                "targets": [{"architecture": "x86_64", "machines": ["pc-q35-*"]}],
                "features": [],
                "tags": [],
            });
            fs::write(self.0.path().join(file), text.to_string()).unwrap();
        }

        fn found(&self) -> Vec<String> {
            descriptors(&self.directories()).into_iter().map(|(_, d)| d.description).collect()
        }
    }

    #[test]
    fn names_order_and_specific_directories_shadow() {
        let tree = Tree::new();
        tree.put("usr/60-a.json", "60");
        tree.put("usr/40-b.json", "40");
        tree.put("etc/50-c.json", "50");
        assert_eq!(tree.found(), ["40", "50", "60"]);
        tree.put("etc/60-a.json", "60 of etc");
        tree.put("home/10-d.json", "10");
        assert_eq!(tree.found(), ["10", "40", "50", "60 of etc"]);
        fs::write(tree.0.path().join("etc/40-b.json"), "").unwrap();
        assert_eq!(tree.found(), ["10", "50", "60 of etc"]);
        tree.put("home/40-b.json", "40 of home");
        assert_eq!(tree.found(), ["10", "40 of home", "50", "60 of etc"]);
    }

    #[test]
    fn invalid_descriptors_are_skipped() {
        let tree = Tree::new();
        tree.put("usr/60-a.json", "60");
        for (name, text) in [("1.json", "{"), ("2.json", "[]"), ("3.json", "{\"features\":[]}")] {
            fs::write(tree.0.path().join("usr").join(name), text).unwrap();
        }
        fs::write(tree.0.path().join("usr/4.json"), b"\xff\xfe").unwrap();
        fs::write(tree.0.path().join("usr/README"), "x").unwrap();
        fs::create_dir(tree.0.path().join("usr/5.json")).unwrap();
        tree.put("usr/50-gone.json", "gone");
        fs::remove_file(tree.0.path().join("fw/gone")).unwrap();
        assert_eq!(tree.found(), ["60"]);
    }

    #[test]
    fn installed_descriptors_are_parsed() {
        let directories = firmware::directories(None, Path::new("/usr/bin/qemu-system-x86_64"));
        let found = descriptors(&directories);
        if !Path::new("/usr/share/qemu/firmware/60-edk2-x86_64.json").exists() {
            let required = std::env::var("QVM_TEST_REQUIRE").unwrap_or_default();
            assert!(!required.split(',').any(|name| name == "ovmf"), "ovmf is required");
            eprintln!("skipped: no ovmf");
            return;
        }
        let choose = |firmware| {
            firmware::choose(&found, &directories, firmware, "pc-q35-10.0").unwrap().unwrap()
        };
        let plain = choose(Firmware::Uefi);
        assert!(plain.vars_template.is_some() && !plain.secure && !plain.smm, "{plain:?}");
        let secure = choose(Firmware::UefiSecure);
        assert!(secure.vars_template.is_some() && secure.secure && secure.smm, "{secure:?}");
        assert_ne!(plain.vars_template, secure.vars_template);
    }
}
