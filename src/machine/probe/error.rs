//! The errors of probing the host and QEMU.

use std::path::PathBuf;

use crate::{
    machine::facts::Version,
    sys::program,
    value::{ErrorCode, Explain},
};

/// Why the host cannot be probed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// QEMU is not installed.
    #[error("cannot find `{0}` on PATH, and /usr/libexec/qemu-kvm does not exist")]
    NotFound(String),
    /// `QVM_QEMU` is not a program.
    #[error("QVM_QEMU is `{}`, which is not a program", .0.display())]
    NotAProgram(PathBuf),
    /// The program cannot be run, does not end in time, or fails.
    #[error(transparent)]
    Program(#[from] program::Error),
    /// The version is too old.
    #[error("`{}` is QEMU {version}; qvm requires {} or newer", binary.display(), Version::OLDEST)]
    TooOld {
        /// The program.
        binary: PathBuf,
        /// Its version.
        version: Version,
    },
    /// The output has an unexpected format.
    #[error("`{command}` printed no {missing}; its output begins with `{output}`")]
    Strange {
        /// The program and its arguments.
        command: String,
        /// The missing information.
        missing: &'static str,
        /// The beginning of the output.
        output: String,
    },
}

impl Explain for Error {
    fn own_code(&self) -> Option<ErrorCode> {
        Some(match self {
            Self::NotFound(..) | Self::NotAProgram(..) => ErrorCode::QemuMissing,
            Self::Program(error) => error.code(),
            Self::TooOld { .. } => ErrorCode::QemuTooOld,
            Self::Strange { .. } => ErrorCode::QemuVersionUnknown,
        })
    }

    fn own_hint(&self) -> Option<String> {
        match self {
            Self::NotFound(_) => Some(
                "install QEMU (Debian and Ubuntu: `qemu-system-x86`; Fedora: \
                 `qemu-system-x86-core`; RHEL: `qemu-kvm`), or name the program in QVM_QEMU"
                    .into(),
            ),
            Self::NotAProgram(_) => {
                Some("set it to a `qemu-system-x86_64`, or unset it to use the one on PATH".into())
            }
            Self::TooOld { .. } => Some("set QVM_QEMU to use another QEMU".into()),
            Self::Strange { .. } => Some(
                "qvm requires a QEMU for x86_64 with the machine type q35; set QVM_QEMU to use \
                 another one"
                    .into(),
            ),
            Self::Program(_) => Some(
                "run the command in a shell to see its output; set QVM_QEMU \
                to use another QEMU"
                    .into(),
            ),
        }
    }

    fn is_own_host_fault(&self) -> bool {
        use program::Error::{Run, TimedOut};
        matches!(self, Self::NotFound(_) | Self::Program(Run { .. } | TimedOut { .. }))
    }
}
