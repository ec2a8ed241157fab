//! `[cloudInit]`: the content of the NoCloud seed.

use super::{
    reading::{Key, Reading},
    ssh_key,
    table::Table,
    text,
    user_data::{ReadFile, UserData},
};
use crate::value::shown;

/// The table. `user_data` excludes `user`, `ssh_authorized_keys` and `password_hash`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CloudInit {
    /// `hostname`; the default is the VM name.
    pub hostname: Option<String>,
    /// `user`: an account with passwordless sudo; without it the image's default user.
    pub user: Option<String>,
    /// `sshAuthorizedKeys`: lines as in authorized_keys(5).
    pub ssh_authorized_keys: Vec<String>,
    /// `passwordHash`: a crypt(5) hash, for the serial console; by default no password is set.
    pub password_hash: Option<String>,
    /// `userData`: a user-data file, used unchanged.
    pub user_data: Option<UserData>,
}

impl CloudInit {
    /// Parses `[cloudInit]`.
    pub(super) fn take(r: &mut Reading<'_>, mut table: Table<'_>, read: &mut ReadFile<'_>) -> Self {
        let hostname: Key<String> = table.take(r, "hostname");
        let user: Key<String> = table.take(r, "user");
        let keys = table.take_list::<String>(r, "sshAuthorizedKeys");
        let hash: Key<String> = table.take(r, "passwordHash");
        let data: Key<String> = table.take(r, "userData");
        table.finish(r);

        if let Some((at, name)) = hostname.good().filter(|(_, name)| !text::is_hostname(name)) {
            let message = format!("`{}` is not a host name", shown(name));
            let hint = "use labels of 1 to 63 letters, digits and inner `-`, separated by dots";
            r.wrong(at, message, Some(hint.into()));
        }
        if let Some((at, name)) = user.good().filter(|(_, name)| !text::is_user(name)) {
            let message = format!("`{}` is not a valid user name", shown(name));
            let hint = "use 1 to 32 of a-z, 0-9, `_` and `-`, beginning with a letter or `_`";
            r.wrong(at, message, Some(hint.into()));
        }
        for (at, line) in keys.value.iter().flatten() {
            if let Err((message, hint)) = ssh_key::check(line) {
                r.wrong(at, message, hint);
            }
        }
        if let Some((at, _)) = hash.good().filter(|(_, hash)| !text::is_crypt(hash)) {
            let hint = "use the output of `openssl passwd -6` or `mkpasswd`";
            r.wrong(at, "the value is not a crypt(5) hash", Some(hint.into()));
        }
        if let Some(data) = &data.at {
            for at in [&user.at, &keys.at, &hash.at].into_iter().flatten() {
                let line = r.line(data.span.start);
                r.refuse(
                    at,
                    format!("`userData` in line {line} replaces this key"),
                    Some("keep one of the two, or set it in the user-data".into()),
                );
            }
        }
        Self {
            hostname: hostname.value,
            user: user.value,
            ssh_authorized_keys: keys.value.into_iter().flatten().map(|(_, line)| line).collect(),
            password_hash: hash.value,
            user_data: data.good().and_then(|(at, path)| UserData::load(r, at, path, read)),
        }
    }
}
