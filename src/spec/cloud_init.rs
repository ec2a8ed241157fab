//! `[cloudInit]`: what the NoCloud seed tells the guest.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{
    reading::{At, Key, Reading},
    ssh_key,
    table::Table,
    text,
};
use crate::value::shown;

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

/// Reads a file that a VM file names.
pub(super) type ReadFile<'r> = dyn FnMut(&Path) -> io::Result<Vec<u8>> + 'r;

impl CloudInit {
    /// Takes `[cloudInit]`.
    pub(super) fn take(r: &mut Reading<'_>, mut table: Table<'_>, read: &mut ReadFile<'_>) -> Self {
        let hostname: Key<String> = table.take(r, "hostname");
        let user: Key<String> = table.take(r, "user");
        let keys = table.take_list::<String>(r, "sshAuthorizedKeys");
        let hash: Key<String> = table.take(r, "passwordHash");
        let data: Key<String> = table.take(r, "userData");
        table.finish(r);

        if let Some((at, name)) = hostname.good().filter(|(_, name)| !text::is_hostname(name)) {
            let message = format!("`{}` is not a host name", shown(name));
            let hint =
                "use letters, digits and `-` (1 to 63, neither first nor last), with dots between";
            r.wrong(at, message, Some(hint.into()));
        }
        if let Some((at, name)) = user.good().filter(|(_, name)| !text::is_user(name)) {
            let message = format!("`{}` is not the name of an account", shown(name));
            let hint = "use 1 to 32 of a-z, 0-9, `_` and `-`, a letter or `_` first";
            r.wrong(at, message, Some(hint.into()));
        }
        for (at, line) in keys.value.iter().flatten() {
            if let Err((message, hint)) = ssh_key::check(line) {
                r.wrong(at, message, hint);
            }
        }
        if let Some((at, _)) = hash.good().filter(|(_, hash)| !text::is_crypt(hash)) {
            let hint = "write what `openssl passwd -6` or `mkpasswd` prints";
            r.wrong(at, "it is not a hash as crypt(5) makes it", Some(hint.into()));
        }
        if let Some(data) = &data.at {
            for at in [&user.at, &keys.at, &hash.at].into_iter().flatten() {
                let line = r.line(data.span.start);
                r.refuse(
                    at,
                    format!("`userData` in line {line} takes the place of this key"),
                    Some("keep one of the two, or say it in the user-data".into()),
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

impl UserData {
    /// The largest user-data, in bytes: enough for every use, too little to fill a disk with.
    pub const MAX: usize = 1 << 20;

    fn load(r: &mut Reading<'_>, at: &At, path: &str, read: &mut ReadFile<'_>) -> Option<Self> {
        let path = text::path(r, at, path)?;
        let shown_path = super::problem::one_line(&path.to_string_lossy());
        let bytes = match read(&path) {
            Ok(bytes) => bytes,
            Err(error) => {
                r.wrong(at, format!("cannot read `{shown_path}`: {error}"), None);
                return None;
            }
        };
        if bytes.len() > Self::MAX {
            r.wrong(at, format!("`{shown_path}` has more than 1 MiB"), None);
            return None;
        }
        let Ok(text) = String::from_utf8(bytes) else {
            r.wrong(at, format!("`{shown_path}` is not UTF-8 text"), None);
            return None;
        };
        if let Err((line, message, hint)) = check(&text) {
            let place = line.map(|line| format!(":{line}")).unwrap_or_default();
            r.wrong(at, format!("`{shown_path}{place}` {message}"), hint);
            return None;
        }
        Some(Self { path, text })
    }
}

/// What cloud-init tells the kind of user-data by
/// (<https://docs.cloud-init.io/en/latest/explanation/format.html>), and `#cloud-config` itself.
const HEADERS: [&str; 8] = [
    "#!",
    "#include",
    "#cloud-boothook",
    "#cloud-config-archive",
    "#part-handler",
    "## template: jinja",
    "Content-Type:",
    "MIME-Version:",
];

/// Whether brackets seem to nest so deep that libyaml, which looks at each open one for each token, would take
/// minutes to refuse it. That can also be a script full of lone brackets, so it is left to cloud-init.
fn is_deep(text: &str) -> bool {
    let mut open = 0_u32;
    text.bytes().any(|byte| {
        match byte {
            b'[' | b'{' => open += 1,
            b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        open > 256
    })
}

/// The line, what is wrong with it, and the way out.
type Flaw = (Option<usize>, String, Option<String>);

/// Checks user-data as far as it can be without cloud-init: its header, and that a `#cloud-config` is a mapping.
fn check(text: &str) -> Result<(), Flaw> {
    let first = text.lines().next().unwrap_or_default().trim_end();
    if first != "#cloud-config" {
        if HEADERS.iter().any(|header| first.starts_with(header)) {
            return Ok(());
        }
        let hint = "begin it with `#cloud-config`, or with `#!` for a script";
        let message = "begins with nothing that cloud-init knows".to_owned();
        return Err((Some(1), message, Some(hint.into())));
    }
    if is_deep(text) {
        return Ok(());
    }
    match serde_norway::from_str::<serde_norway::Value>(text) {
        Ok(serde_norway::Value::Mapping(_) | serde_norway::Value::Null) => Ok(()),
        Ok(_) => Err((None, "is not a mapping of keys to values".into(), None)),
        Err(error) => {
            let line = error.location().map(|location| location.line());
            let error = super::problem::one_line(&error.to_string());
            Err((line, format!("is not YAML: {error}"), None))
        }
    }
}
