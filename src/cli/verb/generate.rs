//! `qvm generate`, and `qvm-generator`: writes drop-ins of systemd units from VM files
//! (systemd.generator(7)).
//!
//! Runs early in the boot and at each daemon-reload. It reads VM files and writes a few small
//! files, and requires neither QEMU nor a network nor later mounts. An invalid VM file does not
//! affect other VMs.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use crate::{
    spec,
    store::layout::Layout,
    systemd::unit::{self, DROP_IN, Scope, TARGET, TEMPLATE},
    value::VmName,
};

/// The arguments of `qvm generate`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The directory for units of normal priority
    pub normal: PathBuf,
    /// The directory for units that override units in /etc
    pub early: Option<PathBuf>,
    /// The directory for units that all other units override
    pub late: Option<PathBuf>,
}

/// The context of a run.
pub struct Context<'a> {
    /// The layout of the VM files.
    pub layout: &'a Layout,
    /// The manager to generate for.
    pub scope: Scope,
    /// This program; its units are installed beside it.
    pub exe: &'a Path,
    /// The kernel log, for messages at boot, when nothing else stores them; `None` if not needed.
    pub kernel_log: Option<&'a Path>,
    /// Standard error.
    pub err: &'a mut dyn Write,
}

/// Writes the drop-ins below `args.normal`. Errors are logged.
pub fn run(args: &Args, context: &mut Context<'_>) {
    let files = match spec::files_in(&context.layout.vm_files()) {
        Ok(files) => files,
        Err(invalid) => return context.log(&invalid.to_string()),
    };
    let template = template(context.scope, context.exe);
    let mut wanted = false;
    for file in files {
        match one(&args.normal, &template, &file, context) {
            Ok(autostart) => wanted |= autostart,
            Err(error) => context.log(&error),
        }
    }
    if wanted {
        // An operator only writes `autostart = true`; `systemctl mask qvm.target` prevents all
        // automatic starts.
        let by = match context.scope {
            Scope::System => "multi-user.target",
            Scope::User => "default.target",
        };
        let target = template.with_file_name(TARGET);
        if let Err(error) = want(&args.normal, by, TARGET, &target) {
            context.log(&error);
        }
    }
}

/// Writes the drop-in of one VM; returns whether the VM starts with the host.
fn one(
    normal: &Path,
    template: &Path,
    file: &Path,
    context: &mut Context<'_>,
) -> Result<bool, String> {
    let name = spec::name_of(file).map_err(|invalid| invalid.to_string())?;
    let (text, autostart) = match spec::load_early(file) {
        Ok(vm) => (unit::drop_in(&vm, context.scope), vm.autostart),
        Err((invalid, text)) => {
            // The unit is started even so if `autostart` can be read, and fails with the same
            // message.
            context.log(&invalid.to_string());
            (unit::drop_in_of_invalid(file, context.scope), unit::wants_autostart(&text))
        }
    };
    write(normal, &name, &text)?;
    if autostart {
        want(normal, TARGET, &unit::unit_name(&name), template)?;
    }
    Ok(autostart)
}

fn write(normal: &Path, name: &VmName, text: &str) -> Result<(), String> {
    let dir = normal.join(format!("{}.d", unit::unit_name(name)));
    let path = dir.join(DROP_IN);
    fs::create_dir_all(&dir)
        .and_then(|()| fs::write(&path, text))
        .map_err(|error| format!("cannot write `{}`: {error}", path.display()))
}

/// Makes the unit `by` want `name`, whose unit file is `to`.
fn want(normal: &Path, by: &str, name: &str, to: &Path) -> Result<(), String> {
    let dir = normal.join(format!("{by}.wants"));
    let link = dir.join(name);
    let make = || {
        fs::create_dir_all(&dir)?;
        match fs::remove_file(&link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        symlink(to, &link)
    };
    make().map_err(|error| format!("cannot create the link `{}`: {error}", link.display()))
}

/// Returns the template unit of all VMs: the operator's own, or the one installed with this
/// program.
fn template(scope: Scope, exe: &Path) -> PathBuf {
    let kind = match scope {
        Scope::System => "system",
        Scope::User => "user",
    };
    let own = Path::new("/etc/systemd").join(kind).join(TEMPLATE);
    let prefix = exe.parent().and_then(Path::parent).unwrap_or(Path::new("/usr"));
    let beside = prefix.join("lib/systemd").join(kind).join(TEMPLATE);
    let usual = Path::new("/usr/lib/systemd").join(kind).join(TEMPLATE);
    [own, beside].into_iter().find(|path| path.exists()).unwrap_or(usual)
}

impl Context<'_> {
    /// Writes to standard error, and line by line to the kernel log.
    fn log(&mut self, text: &str) {
        // If both fail, the unit reports the same error.
        let _ = writeln!(self.err, "{text}");
        let Some(path) = self.kernel_log else { return };
        let Ok(mut kernel) = OpenOptions::new().append(true).open(path) else { return };
        for line in text.lines() {
            // 3 is LOG_ERR. One write is one message, of less than 1 KiB (printk's LOG_LINE_MAX).
            let line: String = line.chars().take(200).collect();
            let _ = kernel.write_all(format!("<3>qvm-generator: {line}\n").as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    struct Place(tempfile::TempDir);

    impl Place {
        fn new() -> Self {
            let place = Self(tempfile::tempdir().unwrap());
            fs::create_dir_all(place.0.path().join("c/vms")).unwrap();
            place
        }

        fn file(&self, name: &str, text: impl AsRef<[u8]>) {
            fs::write(self.0.path().join("c/vms").join(name), text).unwrap();
        }

        /// Runs the generator and returns what it logged.
        fn generate(&self, scope: Scope) -> String {
            let at = |part: &str| self.0.path().join(part);
            let layout = Layout { config: at("c"), state: at("s"), runtime: at("r") };
            fs::write(at("kmsg"), "").unwrap();
            let mut err = vec![];
            let kernel_log = at("kmsg");
            let mut context = Context {
                layout: &layout,
                scope,
                exe: Path::new("/nowhere/bin/qvm"),
                kernel_log: Some(&kernel_log),
                err: &mut err,
            };
            run(&Args { normal: at("normal"), early: None, late: None }, &mut context);
            String::from_utf8(err).unwrap()
        }

        fn drop_in(&self, name: &str) -> String {
            let dir = self.0.path().join(format!("normal/qvm@{name}.service.d"));
            fs::read_to_string(dir.join("10-qvm.conf")).unwrap()
        }

        fn link(&self, path: &str) -> Option<PathBuf> {
            fs::read_link(self.0.path().join("normal").join(path)).ok()
        }
    }

    #[test]
    fn each_file_gets_drop_in_and_autostart_a_link() {
        let place = Place::new();
        place.file("web.toml", "autostart = true\ncpuWeight = 7\n");
        place.file("db.toml", "vcpu = 1\n");
        for _ in 0..2 {
            assert_eq!(place.generate(Scope::System), "");
            assert!(place.drop_in("web").contains("\nCPUWeight=7\n"));
            assert!(place.drop_in("db").contains("\nCPUWeight=100\n"));
            let unit = place.link("qvm.target.wants/qvm@web.service").unwrap();
            assert_eq!(unit, Path::new("/usr/lib/systemd/system/qvm@.service"));
            assert_eq!(place.link("qvm.target.wants/qvm@db.service"), None);
            let target = place.link("multi-user.target.wants/qvm.target").unwrap();
            assert_eq!(target, Path::new("/usr/lib/systemd/system/qvm.target"));
        }
    }

    #[test]
    fn user_manager_gets_user_units() {
        let place = Place::new();
        place.file("web.toml", "autostart = true\nvcpu = 1\n");
        assert_eq!(place.generate(Scope::User), "");
        let unit = place.link("qvm.target.wants/qvm@web.service").unwrap();
        assert_eq!(unit, Path::new("/usr/lib/systemd/user/qvm@.service"));
        assert!(place.link("default.target.wants/qvm.target").is_some());
    }

    #[test]
    fn no_autostart_and_no_directory_are_no_errors() {
        let place = Place::new();
        place.file("web.toml", "vcpu = 1\n");
        assert_eq!(place.generate(Scope::System), "");
        assert_eq!(place.link("multi-user.target.wants/qvm.target"), None);
        fs::remove_dir_all(place.0.path().join("c")).unwrap();
        assert_eq!(place.generate(Scope::System), "");
    }

    #[test]
    fn invalid_file_fails_only_its_own_unit() {
        let place = Place::new();
        place.file("a.toml", "autostart = true\nvcpu = 'many'\n");
        place.file("b.toml", "autostart = true\nvcpu = ");
        place.file("c.toml", b"autostart = true\n\xff");
        place.file("Not-A-Name.toml", "autostart = true\nvcpu = 1\n");
        place.file("z.toml", "autostart = true\nvcpu = 1\n");
        fs::create_dir(place.0.path().join("c/vms/dir.toml")).unwrap();
        let output = place.generate(Scope::System);
        for (file, words) in [
            ("a.toml:2", "vcpu"),
            ("b.toml:2", ""),
            ("c.toml:2", "not UTF-8"),
            ("Not-A-Name.toml", "not a VM name"),
            ("dir.toml", "a directory"),
        ] {
            let line = output
                .lines()
                .find(|line| line.contains(file))
                .unwrap_or_else(|| panic!("{file}: {output}"));
            assert!(line.contains(words), "{line}");
        }
        for name in ["a", "b", "c", "z"] {
            assert!(
                place.link(&format!("qvm.target.wants/qvm@{name}.service")).is_some(),
                "{name}"
            );
            assert!(place.drop_in(name).contains("\nSourcePath=/"), "{name}");
        }
        assert_eq!(place.link("qvm.target.wants/qvm@dir.service"), None);
        let kernel = fs::read_to_string(place.0.path().join("kmsg")).unwrap();
        assert!(kernel.lines().all(|line| line.starts_with("<3>qvm-generator: ")), "{kernel}");
        assert_eq!(kernel.lines().count(), output.lines().count());
    }

    #[test]
    fn user_data_may_be_unmounted() {
        let place = Place::new();
        let data = "vcpu = 1\nautostart = true\n[cloudInit]\nuserData = '/not/mounted/web.yaml'\n";
        place.file("web.toml", data);
        assert_eq!(place.generate(Scope::System), "");
        assert!(place.drop_in("web").contains("RequiresMountsFor=\"/not/mounted/web.yaml\""));
    }

    #[test]
    fn failed_write_is_logged_and_others_continue() {
        let place = Place::new();
        place.file("a.toml", "vcpu = 1\n");
        place.file("b.toml", "vcpu = 1\n");
        fs::create_dir_all(place.0.path().join("normal/qvm@a.service.d/10-qvm.conf")).unwrap();
        let output = place.generate(Scope::System);
        assert!(
            output.starts_with("cannot write `") && output.contains("qvm@a.service.d"),
            "{output}"
        );
        assert!(place.drop_in("b").contains("[Unit]"));
    }

    #[test]
    fn two_hundred_files_take_little_cpu_time() {
        let place = Place::new();
        let text = include_str!("../../../examples/web.toml");
        for nr in 0..200 {
            place.file(&format!("vm-{nr}.toml"), text);
        }
        // CPU time does not depend on the load of the machine.
        let cpu = || {
            let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
            Duration::try_from(time).unwrap()
        };
        let begun = cpu();
        assert_eq!(place.generate(Scope::System), "");
        let took = cpu() - begun;
        println!("200 VM files: {} ms", took.as_millis());
        // A release build takes a tenth of this.
        assert!(took < Duration::from_secs(5), "{took:?}");
        assert!(place.drop_in("vm-199").contains("[Unit]"));
    }
}
