//! Disks in directories that the unit was not opened for when it started, as one that a running guest is given: systemd opens them.
//!
//! A unit's mounts are made when it starts, from the drop-in of that time (`plan::sandbox`). `systemctl bind` (systemd 248) adds to them.

use std::{ffi::OsString, path::Path};

use rustix::fs::{StatVfsMountFlags, statvfs};

use super::{Settings, service};
use crate::{
    host::systemd::under_systemd,
    plan::unit::Scope,
    spec::{Disk, Source},
    value::chain,
};

/// Has systemd open the directory of a disk of the operator's, if it is closed to this unit. Where that fails, whoever opens the disk
/// says why it cannot.
pub(super) fn bring(settings: &Settings, disk: &Disk) {
    let Source::File(path) = &disk.source else { return };
    let env = |key: &str| (settings.env)(key).map(OsString::from);
    // A user's unit has no mounts of its own.
    let in_unit = settings.scope == Scope::System && under_systemd(env, std::process::id());
    if disk.read_only || !in_unit {
        return;
    }
    // Behind a symbolic link, the directory is another one than the VM file says.
    let Ok(path) = path.canonicalize() else { return };
    let Some(directory) = path.parent().filter(|_| is_closed(&path)) else { return };
    match service::bind(&settings.name, settings.scope, directory) {
        Ok(()) => tracing::info!("systemd has opened `{}` for the unit", directory.display()),
        Err(error) => tracing::warn!("`{}` stays as it is: {}", directory.display(), chain(&error)),
    }
}

fn is_closed(path: &Path) -> bool {
    statvfs(path).is_ok_and(|it| it.f_flag.contains(StatVfsMountFlags::RDONLY))
}
