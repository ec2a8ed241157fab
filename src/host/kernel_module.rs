//! Whether the running kernel has a module, or loads it when it is asked for: by what it tells, and by what is installed for it.

use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use flate2::read::GzDecoder;

use crate::plan::doctor::Module;

/// Where the modules of the kernel RELEASE are, in `lib/modules/RELEASE` below; the second is NixOS'.
const PLACES: [&str; 2] = ["", "run/booted-system/kernel-modules"];
/// The most that is read of a kernel's settings, in bytes; those of a distribution have some 300 KiB.
const MOST: u64 = 4 << 20;

/// All that tells of the kernel's modules.
#[derive(Debug)]
pub struct Modules {
    /// `/proc/modules` (proc(5)).
    loaded: String,
    /// `modules.builtin` and `modules.dep` (modules.dep(5)); none where it is not there.
    built_in: Option<String>,
    loadable: Option<String>,
    /// What the kernel was built with.
    settings: Option<String>,
    /// Nothing is loaded any more (the kernel's sysctl/kernel.rst).
    shut: bool,
}

impl Modules {
    /// Reads all of it; `root` is `/`.
    pub fn read(root: &Path) -> Self {
        let text = |path: PathBuf| fs::read_to_string(root.join(path)).ok();
        let release = text("proc/sys/kernel/osrelease".into()).unwrap_or_default();
        let release = release.trim();
        let installed = |file: &str| {
            if release.is_empty() {
                return None;
            }
            let place = |place| Path::new(place).join("lib/modules").join(release).join(file);
            PLACES.into_iter().find_map(|one| text(place(one)))
        };
        let settings = told(&root.join("proc/config.gz"))
            .or_else(|| text(format!("boot/config-{release}").into()))
            .or_else(|| installed("config"));
        Self {
            loaded: text("proc/modules".into()).unwrap_or_default(),
            built_in: installed("modules.builtin"),
            loadable: installed("modules.dep"),
            settings,
            shut: text("proc/sys/kernel/modules_disabled".into())
                .is_some_and(|text| text.trim() == "1"),
        }
    }

    /// What there is of the module `name`, which the kernel has by its setting `option`.
    pub fn of(&self, name: &str, option: &str) -> Module {
        let file = format!("/{name}.ko");
        // A path each, of which `modules.dep` tells the dependencies after a colon; the file may be compressed.
        let lists = |list: &Option<String>| {
            list.as_ref().is_some_and(|list| {
                let path = |line: &str| line.split(':').next().unwrap_or_default().to_owned();
                let ends = |path: String| {
                    path.rfind(&file).is_some_and(|at| {
                        ["", ".gz", ".xz", ".zst"].contains(&&path[at + file.len()..])
                    })
                };
                list.lines().map(path).any(ends)
            })
        };
        let mut loaded = self.loaded.lines().filter_map(|line| line.split(' ').next());
        if loaded.any(|loaded| loaded == name) || lists(&self.built_in) {
            return Module::There;
        }
        let setting = self.settings.as_ref().map(|settings| {
            let set = |line: &str| Some(line.strip_prefix(option)?.strip_prefix('=')?.to_owned());
            settings.lines().find_map(set)
        });
        match (setting.as_ref().map(Option::as_deref), lists(&self.loadable)) {
            (Some(Some("y")), _) => Module::There,
            (_, true) if self.shut => Module::Shut,
            (_, true) => Module::There,
            (Some(None), false) => Module::NotBuilt,
            // Where nothing at all is installed, as in a container, the kernel has its modules elsewhere.
            (_, false) if self.loadable.is_some() && self.built_in.is_some() => {
                Module::NotInstalled
            }
            (_, false) => Module::Unknown,
        }
    }
}

/// The settings that the kernel itself tells (CONFIG_IKCONFIG_PROC).
fn told(path: &Path) -> Option<String> {
    let mut text = String::new();
    let read = GzDecoder::new(File::open(path).ok()?).take(MOST).read_to_string(&mut text).ok()?;
    // What is not there of a part may be in the rest.
    ((read as u64) < MOST).then_some(text)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const CONFIG: &str = "CONFIG_NET_CLS_BPF";

    /// A host that is made up of these files.
    fn host(files: &[(&str, &str)]) -> Module {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, bytes: &[u8]| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        };
        write("proc/sys/kernel/osrelease", b"6.1.0-9\n");
        for (path, text) in files {
            if path.ends_with(".gz") {
                let mut to = flate2::write::GzEncoder::new(Vec::new(), Default::default());
                to.write_all(text.as_bytes()).unwrap();
                write(path, &to.finish().unwrap());
            } else {
                write(path, text.as_bytes());
            }
        }
        Modules::read(root.path()).of("cls_bpf", CONFIG)
    }

    const BUILT_IN: (&str, &str) =
        ("lib/modules/6.1.0-9/modules.builtin", "kernel/fs/ext4/ext4.ko\n");
    const OTHERS: (&str, &str) = (
        "lib/modules/6.1.0-9/modules.dep",
        "kernel/net/sched/act_bpf.ko: kernel/x/cls_bpf.ko\nkernel/net/sched/my_cls_bpf.ko:\nkernel/net/cls_bpf.korg:\n",
    );

    #[test]
    fn it_is_there_by_any_one_sign() {
        for sign in [
            ("proc/modules", "tun 61440 1 - Live 0x0\ncls_bpf 28672 0 - Live 0x0\n"),
            ("lib/modules/6.1.0-9/modules.builtin", "kernel/net/sched/cls_bpf.ko\n"),
            ("lib/modules/6.1.0-9/modules.dep", "kernel/net/sched/cls_bpf.ko: a/b.ko\n"),
            ("lib/modules/6.1.0-9/modules.dep", "kernel/net/sched/cls_bpf.ko.zst:\n"),
            ("lib/modules/6.1.0-9/modules.dep", "kernel/net/sched/cls_bpf.ko.xz:\n"),
            (
                "run/booted-system/kernel-modules/lib/modules/6.1.0-9/modules.dep",
                "kernel/net/sched/cls_bpf.ko.xz:\n",
            ),
            ("proc/config.gz", "# x\nCONFIG_NET_CLS_BPF=y\n"),
            ("boot/config-6.1.0-9", "CONFIG_NET_CLS_BPF=y\n"),
        ] {
            assert_eq!(host(&[sign]), Module::There, "{sign:?}");
        }
    }

    #[test]
    fn it_is_missing_only_where_that_is_told() {
        assert_eq!(host(&[]), Module::Unknown);
        for off in ["# CONFIG_NET_CLS_BPF is not set\n", "CONFIG_NET_CLS_BPFX=y\n"] {
            assert_eq!(host(&[("proc/config.gz", off)]), Module::NotBuilt, "{off}");
        }
        let module = ("proc/config.gz", "CONFIG_NET_CLS_BPF=m\n");
        // A container sees the kernel, and not its modules.
        assert_eq!(host(&[module]), Module::Unknown);
        assert_eq!(host(&[module, BUILT_IN, OTHERS]), Module::NotInstalled);
        assert_eq!(host(&[BUILT_IN, OTHERS]), Module::NotInstalled);
        assert_eq!(host(&[OTHERS]), Module::Unknown);
        // Those of another kernel say nothing of this one.
        let other = |(path, text): (&'static str, &'static str)| (path.replace("-9", "-8"), text);
        let others = [other(BUILT_IN), other(OTHERS)];
        assert_eq!(
            host(&others.each_ref().map(|(path, text)| (path.as_str(), *text))),
            Module::Unknown
        );
    }

    #[test]
    fn where_nothing_is_loaded_any_more_only_what_is_loaded_is_there() {
        let shut = ("proc/sys/kernel/modules_disabled", "1\n");
        let loadable = ("lib/modules/6.1.0-9/modules.dep", "kernel/net/sched/cls_bpf.ko:\n");
        assert_eq!(host(&[shut, loadable]), Module::Shut);
        assert_eq!(host(&[("proc/sys/kernel/modules_disabled", "0\n"), loadable]), Module::There);
        assert_eq!(
            host(&[shut, loadable, ("proc/modules", "cls_bpf 1 0 - Live 0x0\n")]),
            Module::There
        );
        assert_eq!(
            host(&[shut, loadable, ("proc/config.gz", "CONFIG_NET_CLS_BPF=y\n")]),
            Module::There
        );
        assert_eq!(host(&[shut]), Module::Unknown);
    }

    #[test]
    fn what_is_not_as_it_should_be_tells_nothing() {
        assert_eq!(host(&[("proc/config.gz/no-file", "")]), Module::Unknown);
        assert_eq!(host(&[("boot/config-", "CONFIG_NET_CLS_BPF=y\n")]), Module::Unknown);
    }
}
