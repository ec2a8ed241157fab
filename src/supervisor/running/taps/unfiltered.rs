//! Whether a guest starts without a filter of its tap, and the errors otherwise.

use crate::{
    net::{anti_spoof::filters, tap_spec::Tap},
    spec::{AntiSpoof, Vm},
    value::{ErrorCode, Explain, IfName},
};

/// Errors of a tap whose filter is required.
#[derive(Debug, thiserror::Error)]
pub enum Unfiltered {
    /// `antiSpoof = true` is in the VM file.
    #[error("cannot filter the traffic of the tap `{tap}` ({at})")]
    Required {
        /// The tap's name.
        tap: IfName,
        /// The location of the bridge in the VM file.
        at: String,
        /// The cause.
        source: filters::Error,
    },
    /// `isolation = "strict"`, with `antiSpoof` on by default.
    #[error(
        "`isolation = \"strict\"` ({at}), but the traffic of the tap `{tap}` cannot be filtered"
    )]
    Strict {
        /// The tap's name.
        tap: IfName,
        /// The location of `isolation` in the VM file.
        at: String,
        /// The cause.
        source: filters::Error,
    },
}

impl Unfiltered {
    /// Returns the error for a missing filter; `None` if the guest starts without it.
    pub(crate) fn of(vm: &Vm, tap: &Tap, source: filters::Error) -> Option<Self> {
        let name = tap.name.clone();
        tap.needs_filter(vm.isolation).then(|| match tap.anti_spoof {
            AntiSpoof::Required => {
                let at = vm.at(&format!("nic.{}.bridge", tap.nic));
                Self::Required { tap: name, at, source }
            }
            AntiSpoof::WherePossible | AntiSpoof::Off => {
                Self::Strict { tap: name, at: vm.at("isolation"), source }
            }
        })
    }
}

impl Explain for Unfiltered {
    fn wrapped(&self) -> Option<&dyn Explain> {
        match self {
            Self::Required { source, .. } => Some(source),
            _ => None,
        }
    }

    fn own_code(&self) -> Option<ErrorCode> {
        Some(match self {
            Self::Strict { .. } => ErrorCode::IsolationIncomplete,
            Self::Required { .. } => return None,
        })
    }

    fn own_hint(&self) -> Option<String> {
        match self {
            Self::Strict { source, .. } => {
                let without = "`isolation = \"on\"` starts without the filter, too";
                Some(match source.hint() {
                    Some(hint) => format!("{hint}; {without}"),
                    None => format!("`antiSpoof = false` disables the filter; {without}"),
                })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{error::Error as _, io, path::Path};

    use nix::errno::Errno;

    use super::*;
    use crate::{net::tap_spec::taps, spec, supervisor::running::taps::open};

    /// The error and its hint on a kernel without the filter.
    fn refusal(text: &str) -> Option<(String, Option<String>)> {
        let name = "web".parse().unwrap();
        let vm = spec::read(&name, Path::new("/v/web.toml"), text, &mut |_| Ok(vec![])).unwrap();
        let missing = filters::Error::Missing(io::Error::from(Errno::EOPNOTSUPP));
        let refused = Unfiltered::of(&vm, &taps(&vm)[0], missing)?;
        assert!(refused.source().is_some());
        let refused = open::Error::from(refused);
        assert!(refused.is_host_fault());
        Some((refused.to_string(), refused.hint()))
    }

    #[test]
    fn strict_requires_the_filter_unless_disabled() {
        for (written, required) in [
            ("bridge = \"br0\"", false),
            ("bridge = \"br0\"\nantiSpoof = true", true),
            ("isolation = \"off\"\nbridge = \"br0\"", false),
            ("isolation = \"off\"\nbridge = \"br0\"\nantiSpoof = true", true),
            ("isolation = \"strict\"\nbridge = \"br0\"\nantiSpoof = false", false),
            ("isolation = \"strict\"\nbridge = \"br0\"\nantiSpoof = true", true),
        ] {
            let text = "cannot filter the traffic of the tap `qvm-web` (/v/web.toml";
            let refusal = refusal(written).map(|(what, _)| what);
            assert_eq!(refusal.is_some_and(|what| what.starts_with(text)), required, "{written}");
        }
        let (what, hint) = refusal("bridge = \"br0\"\nisolation = \"strict\"\n").unwrap();
        assert_eq!(
            what,
            "`isolation = \"strict\"` (/v/web.toml:2), but the traffic of the tap `qvm-web` cannot \
             be filtered"
        );
        assert_eq!(
            hint.unwrap(),
            "load the modules with `modprobe -a sch_ingress cls_bpf`, or set `antiSpoof = \
             false`; `isolation = \"on\"` starts without the filter, too"
        );
    }
}
