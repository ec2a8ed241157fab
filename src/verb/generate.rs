//! `qvm-generator`: tells systemd which VMs there are, at boot and at each daemon-reload (systemd.generator(7)).

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use crate::{
    exit::Failure,
    plan::{layout::Layout, unit},
    spec,
    value::VmName,
};

/// What `qvm-generator` takes; systemd gives three directories.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Where units go
    normal: PathBuf,
    /// Where units go that come before an operator's own
    early: PathBuf,
    /// Where units go that come after all others
    late: PathBuf,
}

/// Writes a drop-in for each VM, and puts those with `autostart` into qvm.target. A VM file that is not valid is told and
/// harms nobody: its unit fails with the whole message. `called` is what this program was called as.
///
/// # Errors
/// Nothing can be written at all.
pub fn run(args: &Args, layout: &Layout, called: &Path) -> Result<(), Failure> {
    let template = template(called);
    for (file, vm) in spec::load_all(&layout.vm_files()) {
        let (name, text, autostart) = match vm {
            Ok(vm) => (vm.name.clone(), Some(unit::drop_in(&vm)), vm.autostart),
            Err(invalid) => {
                tell(&invalid.to_string());
                let Ok(name) = spec::name_of(&file) else { continue };
                (name, None, seems_to_start(&file))
            }
        };
        let written = write(&args.normal, &name, text.as_deref(), autostart, &template);
        written.map_err(|(path, error)| {
            let text = format!("cannot write `{}`: {error}", path.display());
            Failure::new(1, text).about(&name)
        })?;
    }
    Ok(())
}

/// The unit that links lead to: `PREFIX/lib/systemd/system` lies beside `system-generators`.
fn template(called: &Path) -> PathBuf {
    let generators = called.parent().unwrap_or(Path::new(""));
    let lib = generators.parent().filter(|lib| lib.is_absolute());
    let place = if generators.ends_with("user-generators") { "user" } else { "system" };
    lib.unwrap_or(Path::new("/usr/lib/systemd")).join(place).join("qvm@.service")
}

/// Whether the text of a file that cannot be read says `autostart = true`: then its unit shall fail, so that it is seen.
fn seems_to_start(file: &Path) -> bool {
    let text = fs::read(file).unwrap_or_default();
    String::from_utf8_lossy(&text).lines().any(|line| {
        let line = line.split('#').next().unwrap_or_default();
        line.split_once('=').is_some_and(|(k, v)| k.trim() == "autostart" && v.trim() == "true")
    })
}

fn write(
    normal: &Path,
    name: &VmName,
    text: Option<&str>,
    autostart: bool,
    template: &Path,
) -> Result<(), (PathBuf, io::Error)> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |error| (path, error)
    };
    if let Some(text) = text {
        let dir = normal.join(format!("{}.d", unit::name(name)));
        fs::create_dir_all(&dir).map_err(at(&dir))?;
        let path = dir.join("10-qvm.conf");
        fs::write(&path, text).map_err(at(&path))?;
    }
    if autostart {
        let dir = normal.join("qvm.target.wants");
        fs::create_dir_all(&dir).map_err(at(&dir))?;
        let link = dir.join(unit::name(name));
        symlink(template, &link).map_err(at(&link))?;
    }
    Ok(())
}

/// Into the kernel's log, which the journal reads: nobody sees a generator's standard error (systemd.generator(7)).
fn tell(text: &str) {
    for line in text.lines() {
        let _ = writeln!(io::stderr(), "{line}");
        if std::env::var_os("SYSTEMD_SCOPE").is_some()
            && let Ok(mut log) = OpenOptions::new().write(true).open("/dev/kmsg")
        {
            // One write is one record; <4> is a warning.
            let _ = log.write_all(format!("<4>qvm-generator: {line}").as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_lies_beside_the_generators() {
        for (called, unit) in [
            (
                "/usr/lib/systemd/system-generators/qvm-generator",
                "/usr/lib/systemd/system/qvm@.service",
            ),
            (
                "/usr/lib/systemd/user-generators/qvm-generator",
                "/usr/lib/systemd/user/qvm@.service",
            ),
            (
                "/opt/lib/systemd/system-generators/qvm-generator",
                "/opt/lib/systemd/system/qvm@.service",
            ),
            ("qvm", "/usr/lib/systemd/system/qvm@.service"),
        ] {
            assert_eq!(template(Path::new(called)), Path::new(unit), "{called}");
        }
    }
}
