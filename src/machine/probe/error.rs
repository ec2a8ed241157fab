//! Why a probe of the host or of QEMU failed.

use std::path::PathBuf;

use crate::{machine::facts::Version, sys::program, value::Explain};

/// Why the host could not be probed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no QEMU.
    #[error("cannot find `{0}`: it is not on PATH, nor is there a /usr/libexec/qemu-kvm")]
    NotFound(String),
    /// `QVM_QEMU` names something else than a program.
    #[error("QVM_QEMU is `{}`, which is not a program", .0.display())]
    NotAProgram(PathBuf),
    /// The program cannot be run, does not end in time, or fails.
    #[error(transparent)]
    Program(#[from] program::Error),
    /// The program is from before what qvm needs.
    #[error("`{}` is QEMU {version}, and qvm needs {} or newer", binary.display(), Version::OLDEST)]
    TooOld {
        /// The program.
        binary: PathBuf,
        /// Its version.
        version: Version,
    },
    /// The program printed something else.
    #[error("`{command}` named no {missing}; it printed `{said}`")]
    Strange {
        /// The program and its arguments.
        command: String,
        /// What was looked for.
        missing: &'static str,
        /// How the output begins.
        said: String,
    },
}

impl Explain for Error {
    fn own_hint(&self) -> Option<String> {
        match self {
            Self::NotFound(_) => Some(
                "install QEMU (Debian and Ubuntu: `qemu-system-x86`; Fedora: `qemu-system-x86-core`; \
                 RHEL: `qemu-kvm`), or name the program in QVM_QEMU"
                    .into(),
            ),
            Self::NotAProgram(_) => {
                Some("let it name a `qemu-system-x86_64`, or unset it to use the one on PATH".into())
            }
            Self::TooOld { .. } => Some("QVM_QEMU names another QEMU".into()),
            Self::Strange { .. } => Some(
                "qvm needs a QEMU for x86_64 with the machine type q35; QVM_QEMU names another one"
                    .into(),
            ),
            Self::Program(_) => Some("run it by hand; QVM_QEMU names another QEMU".into()),
        }
    }

    fn is_own_host_fault(&self) -> bool {
        use program::Error::{Run, TimedOut};
        matches!(self, Self::NotFound(_) | Self::Program(Run { .. } | TimedOut { .. }))
    }
}
