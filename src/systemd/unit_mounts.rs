//! Disks in directories that are not accessible in the unit's mount namespace, such as a disk that
//! is added to a running guest: systemd bind mounts them.
//!
//! The mounts of a unit are set up at its start from the drop-in of that time
//! (`systemd::unit_sandbox`). `systemctl bind` (systemd 248) adds to them.

use std::{
    ffi::OsString,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use rustix::fs::{StatVfsMountFlags, statvfs};

use super::service;
use super::{notify::under_systemd, unit::Scope};
use crate::{
    spec::{Disk, Source},
    value::{ErrorCode, Explain, VmName, chain},
};

/// The directory was inaccessible at the start of the unit, and systemd cannot bind mount a home
/// later.
#[derive(Debug, thiserror::Error)]
#[error("the VM's unit is closed to `{}`", .0.display())]
pub struct Closed(PathBuf);

impl Explain for Closed {
    fn own_code(&self) -> Option<ErrorCode> {
        Some(ErrorCode::PathUnreachable)
    }

    fn own_hint(&self) -> Option<String> {
        Some("stop the VM and start it: its unit is then opened for what its VM file names".into())
    }
}

/// Bind mounts the directory of an operator's disk if the unit cannot access it. After a failure,
/// opening the disk reports the reason.
///
/// # Errors
/// The directory is in a home.
pub(crate) fn bind_path(
    name: &VmName,
    scope: Scope,
    env: fn(&str) -> Option<String>,
    disk: &Disk,
) -> Result<(), Closed> {
    let Source::File(path) = &disk.source else { return Ok(()) };
    let env = |key: &str| env(key).map(OsString::from);
    // A user unit has no mount namespace.
    if scope != Scope::System || !under_systemd(env, std::process::id()) {
        return Ok(());
    }
    if path.ancestors().any(is_hidden) {
        return Err(Closed(path.clone()));
    }
    // Behind a symbolic link the directory differs from the one in the VM file.
    let Ok(path) = path.canonicalize() else { return Ok(()) };
    let directory = path.parent().filter(|_| !disk.read_only && is_read_only(&path));
    let Some(directory) = directory else { return Ok(()) };
    match service::bind(name, scope, directory) {
        Ok(()) => tracing::info!("systemd has opened `{}` for the unit", directory.display()),
        Err(error) => tracing::warn!("`{}` stays as it is: {}", directory.display(), chain(&error)),
    }
    Ok(())
}

fn is_read_only(path: &Path) -> bool {
    statvfs(path).is_ok_and(|it| it.f_flag.contains(StatVfsMountFlags::RDONLY))
}

/// The placeholder that systemd mounts over an inaccessible directory has no permissions; root
/// would find it empty.
fn is_hidden(directory: &Path) -> bool {
    directory.metadata().is_ok_and(|it| it.is_dir() && it.mode() & 0o7777 == 0)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn directory_without_permissions_is_hidden() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_hidden(dir.path()) && !is_hidden(&dir.path().join("missing")));
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o000)).unwrap();
        assert!(is_hidden(dir.path()));
        let closed = Closed("/home/op/a.raw".into());
        assert_eq!(closed.to_string(), "the VM's unit is closed to `/home/op/a.raw`");
        assert!(closed.hint().unwrap().contains("start it"));
    }
}
