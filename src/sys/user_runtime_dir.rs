//! A user's runtime directory, where no variable names it.

use std::{os::unix::fs::MetadataExt, path::PathBuf};

/// The directory that pam_systemd(8) makes for a user, where it exists and is the user's. su(1), sudo(8) and cron(8) do not
/// set `XDG_RUNTIME_DIR`, while the VMs that the user's manager runs have their sockets there.
pub fn directory(uid: u32) -> Option<PathBuf> {
    let directory = PathBuf::from(format!("/run/user/{uid}"));
    let found = std::fs::symlink_metadata(&directory).ok()?;
    (found.is_dir() && found.uid() == uid).then_some(directory)
}

/// [`directory`] of this process' user, for a program that needs the variable; `None` where it is set.
pub fn unnamed() -> Option<PathBuf> {
    let unset = std::env::var_os("XDG_RUNTIME_DIR").is_none_or(|directory| directory.is_empty());
    unset.then(|| directory(rustix::process::geteuid().as_raw())).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_that_does_not_exist_is_none() {
        assert_eq!(directory(u32::MAX - 1), None);
    }
}
