//! `[cloudInit]`: what the NoCloud seed tells the guest.

use std::path::PathBuf;

/// The table. `user_data` excludes `user`, `ssh_authorized_keys` and `password_hash`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CloudInit {
    /// `hostname`: the VM's name unless written.
    pub hostname: Option<String>,
    /// `user`: an account with passwordless sudo; without it the image's default user.
    pub user: Option<String>,
    /// `sshAuthorizedKeys`: lines as in authorized_keys(5).
    pub ssh_authorized_keys: Vec<String>,
    /// `passwordHash`: as crypt(5) makes it, for the serial console; without it no password works.
    pub password_hash: Option<String>,
    /// `userData`: own user-data, passed through byte for byte.
    pub user_data: Option<UserData>,
}

/// A user-data file, read when the VM file was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserData {
    /// The file, absolute, resolved against the VM file's directory.
    pub path: PathBuf,
    /// Its bytes as text.
    pub text: String,
}
