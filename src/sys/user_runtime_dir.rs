//! A user's runtime directory without `XDG_RUNTIME_DIR`.

use std::{os::unix::fs::MetadataExt, path::PathBuf};

/// Returns the directory that pam_systemd(8) creates for a user, if it exists and the user owns it.
/// su(1), sudo(8) and cron(8) do not set `XDG_RUNTIME_DIR`, although the VMs of the user's manager
/// have their sockets there.
pub fn directory(uid: u32) -> Option<PathBuf> {
    let directory = PathBuf::from(format!("/run/user/{uid}"));
    let found = std::fs::symlink_metadata(&directory).ok()?;
    (found.is_dir() && found.uid() == uid).then_some(directory)
}

/// Returns [`directory`] of this process's user; `None` if the variable is set.
pub fn unnamed() -> Option<PathBuf> {
    let unset = std::env::var_os("XDG_RUNTIME_DIR").is_none_or(|directory| directory.is_empty());
    unset.then(|| directory(rustix::process::geteuid().as_raw())).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_directory_is_none() {
        assert_eq!(directory(u32::MAX - 1), None);
    }
}
