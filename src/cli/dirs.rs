//! The directories of VM files, disks and sockets: from options, the environment, or the defaults.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
};

use super::exit::Failure;
use crate::{store::layout::Layout, value::ErrorCode};

/// The three directories; `None` is the default.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub struct Dirs {
    /// Directory of host settings and VM files [env: QVM_CONFIG_DIR]
    #[arg(long, global = true, value_name = "DIR", display_order = 900)]
    pub config_dir: Option<PathBuf>,
    /// Directory of disks and images [env: QVM_STATE_DIR]
    #[arg(long, global = true, value_name = "DIR", display_order = 900)]
    pub state_dir: Option<PathBuf>,
    /// Directory of sockets and locks [env: QVM_RUNTIME_DIR]
    #[arg(long, global = true, value_name = "DIR", display_order = 900)]
    pub runtime_dir: Option<PathBuf>,
}

impl Dirs {
    /// Fills in what no option sets from `QVM_CONFIG_DIR`, `QVM_STATE_DIR` and `QVM_RUNTIME_DIR`.
    pub(super) fn or(self, env: &dyn Fn(&str) -> Option<OsString>) -> Self {
        Self {
            config_dir: self.config_dir.or_else(|| dir(env, "QVM_CONFIG_DIR")),
            state_dir: self.state_dir.or_else(|| dir(env, "QVM_STATE_DIR")),
            runtime_dir: self.runtime_dir.or_else(|| dir(env, "QVM_RUNTIME_DIR")),
        }
    }

    /// Returns the directories with absolute paths.
    ///
    /// # Errors
    /// A path is relative, and the current directory does not exist.
    pub(super) fn absolute(self, cwd: Option<&Path>) -> Result<Self, Failure> {
        let absolute = |dir: PathBuf| match cwd {
            Some(cwd) => Ok(cwd.join(dir).components().collect()),
            None if dir.is_absolute() => Ok(dir.components().collect()),
            None => {
                let text = format!(
                    "cannot resolve the relative path `{}`: the current directory does not exist",
                    dir.display()
                );
                let hint = "change to another directory, or write an absolute path";
                Err(Failure::new(ErrorCode::CwdMissing, text).hint(hint.to_owned()))
            }
        };
        Ok(Self {
            config_dir: self.config_dir.map(absolute).transpose()?,
            state_dir: self.state_dir.map(absolute).transpose()?,
            runtime_dir: self.runtime_dir.map(absolute).transpose()?,
        })
    }
}

/// Returns a directory from the environment; an empty variable counts as unset.
pub(super) fn dir(env: &dyn Fn(&str) -> Option<OsString>, key: &str) -> Option<PathBuf> {
    env(key).filter(|dir| !dir.is_empty()).map(PathBuf::from)
}

/// Returns the directories of root's VMs, which the systemd units use.
pub(super) fn system() -> Layout {
    let (config, state, runtime) = ("/etc/qvm", "/var/lib/qvm", "/run/qvm");
    Layout { config: config.into(), state: state.into(), runtime: runtime.into() }
}

/// Returns the directories: from `dirs`, else for root those of the system and for other users
/// those of the XDG Base Directory Specification, which ignores relative paths in its variables.
/// `session_dir` returns a user's runtime directory if `XDG_RUNTIME_DIR` is not set.
///
/// # Errors
/// A directory cannot be determined.
pub fn layout(
    uid: u32,
    dirs: &Dirs,
    env: &dyn Fn(&str) -> Option<OsString>,
    session_dir: &dyn Fn(u32) -> Option<PathBuf>,
) -> Result<Layout, Failure> {
    let dirs = dirs.clone();
    if uid == 0 {
        let system = system();
        return Ok(Layout {
            config: dirs.config_dir.unwrap_or(system.config),
            state: dirs.state_dir.unwrap_or(system.state),
            runtime: dirs.runtime_dir.unwrap_or(system.runtime),
        });
    }
    let xdg = |key: &str| dir(env, key).filter(|dir| dir.is_absolute());
    let home = |below: &str| xdg("HOME").map(|home| home.join(below));
    let unknown = |what: &str, key: &str, option: &str| {
        let text = format!("cannot find the directory of {what}: `{key}` is not set");
        let hint = format!("set it to an absolute path, or use {option}");
        Failure::new(ErrorCode::DirectoryUnknown, text).hint(hint)
    };
    let own = |base: PathBuf| base.join(OsStr::new("qvm"));
    let config = dirs
        .config_dir
        .or_else(|| xdg("XDG_CONFIG_HOME").or_else(|| home(".config")).map(own))
        .ok_or_else(|| unknown("VM files", "HOME", "--config-dir"))?;
    let state = dirs
        .state_dir
        .or_else(|| xdg("XDG_DATA_HOME").or_else(|| home(".local/share")).map(own))
        .ok_or_else(|| unknown("disks and images", "HOME", "--state-dir"))?;
    let runtime = dirs
        .runtime_dir
        .or_else(|| xdg("XDG_RUNTIME_DIR").or_else(|| session_dir(uid)).map(own))
        .ok_or_else(|| unknown("sockets", "XDG_RUNTIME_DIR", "--runtime-dir"))?;
    Ok(Layout { config, state, runtime })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &'static [(&str, &str)]) -> impl Fn(&str) -> Option<OsString> {
        move |key| pairs.iter().find(|(k, _)| *k == key).map(|(_, value)| value.into())
    }

    fn no_session(_: u32) -> Option<PathBuf> {
        None
    }

    #[test]
    fn session_directory_replaces_unset_variable() {
        let session = |uid| Some(PathBuf::from(format!("/run/user/{uid}")));
        let place = |variables| layout(7, &Dirs::default(), &env(variables), &session).unwrap();
        assert_eq!(place(&[("HOME", "/h")]).runtime, Path::new("/run/user/7/qvm"));
        let set = place(&[("HOME", "/h"), ("XDG_RUNTIME_DIR", "/r")]);
        assert_eq!(set.runtime, Path::new("/r/qvm"));
    }

    #[test]
    fn root_and_users() {
        let none = Dirs::default();
        assert_eq!(layout(0, &none, &env(&[("HOME", "/root")]), &no_session).unwrap(), system());
        let user = env(&[("HOME", "/home/u"), ("XDG_RUNTIME_DIR", "/run/user/1")]);
        let places = layout(1, &none, &user, &no_session).unwrap();
        assert_eq!(places.config, Path::new("/home/u/.config/qvm"));
        assert_eq!(places.state, Path::new("/home/u/.local/share/qvm"));
        assert_eq!(places.runtime, Path::new("/run/user/1/qvm"));
        let relative = env(&[("HOME", "/h"), ("XDG_DATA_HOME", "x"), ("XDG_RUNTIME_DIR", "/r")]);
        assert_eq!(
            layout(1, &none, &relative, &no_session).unwrap().state,
            Path::new("/h/.local/share/qvm")
        );
    }

    #[test]
    fn unknown_directory_is_an_error() {
        let home = env(&[("HOME", "/h")]);
        let refused = layout(1, &Dirs::default(), &home, &no_session).unwrap_err();
        assert!(refused.to_string().contains("`XDG_RUNTIME_DIR`"), "{refused}");
        let dirs = Dirs { runtime_dir: Some("/r".into()), ..Dirs::default() };
        assert_eq!(layout(1, &dirs, &home, &no_session).unwrap().runtime, Path::new("/r"));
    }

    #[test]
    fn only_relative_paths_need_a_current_directory() {
        let of = |dir: &str| Dirs { state_dir: Some(dir.into()), ..Dirs::default() };
        assert_eq!(of("/s/").absolute(None).unwrap(), of("/s"));
        let refused = of("s").absolute(None).unwrap_err();
        assert_eq!(refused.code(), Some(ErrorCode::CwdMissing));
        assert!(refused.to_string().contains("`s`"), "{refused}");
        assert_eq!(Dirs::default().absolute(None).unwrap(), Dirs::default());
    }

    #[test]
    fn options_precede_the_environment() {
        let given =
            env(&[("QVM_STATE_DIR", "/e"), ("QVM_CONFIG_DIR", "c"), ("QVM_RUNTIME_DIR", "")]);
        let dirs = Dirs { state_dir: Some("./s/".into()), ..Dirs::default() };
        let dirs = dirs.or(&given).absolute(Some(Path::new("/cwd"))).unwrap();
        assert_eq!(dirs.state_dir.as_deref(), Some(Path::new("/cwd/s")));
        assert_eq!(dirs.config_dir.as_deref(), Some(Path::new("/cwd/c")));
        assert_eq!(dirs.runtime_dir, None);
    }
}
