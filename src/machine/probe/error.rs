//! Why a probe of the host or of QEMU failed.

use crate::{machine::facts::Version, value::Explain};
use std::{
    io::{self},
    path::PathBuf,
};

/// Why the host could not be probed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no QEMU.
    #[error("cannot find `{0}`: it is not on PATH, nor is there a /usr/libexec/qemu-kvm")]
    NotFound(String),
    /// `QVM_QEMU` names something else than a program.
    #[error("QVM_QEMU is `{}`, which is not a program", .0.display())]
    NotAProgram(PathBuf),
    /// The program could not be looked at or run.
    #[error("cannot run `{command}`")]
    Run {
        /// The program and its arguments.
        command: String,
        /// The cause.
        source: io::Error,
    },
    /// The program did not end in time.
    #[error("`{0}` did not end within {1} s and was killed")]
    Hung(String, u64),
    /// The program said no.
    #[error("`{command}` failed ({status}): {said}")]
    Failed {
        /// The program and its arguments.
        command: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// The first line it printed on standard error.
        said: String,
    },
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
            Self::Run { .. } | Self::Hung(..) | Self::Failed { .. } => {
                Some("run it by hand; QVM_QEMU names another QEMU".into())
            }
        }
    }

    fn is_own_host_fault(&self) -> bool {
        matches!(self, Self::NotFound(_) | Self::Run { .. } | Self::Hung(..))
    }
}
