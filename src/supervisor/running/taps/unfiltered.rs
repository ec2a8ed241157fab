//! A tap that cannot be filtered: whether the guest does without, and what is told where it must not.

use crate::{
    net::{anti_spoof::filters, tap_spec::Tap},
    spec::{AntiSpoof, Vm},
    value::{Explain, IfName},
};

/// Why a guest is not given a tap that is not filtered.
#[derive(Debug, thiserror::Error)]
pub enum Unfiltered {
    /// `antiSpoof = true` is written.
    #[error("cannot filter what leaves the tap `{tap}` ({at})")]
    Required {
        /// The tap's name.
        tap: IfName,
        /// Where the VM file names the bridge.
        at: String,
        /// Why.
        source: filters::Error,
    },
    /// `isolation = "strict"`, and `antiSpoof` is on as it is by default.
    #[error("`isolation = \"strict\"` ({at}), and what leaves the tap `{tap}` cannot be filtered")]
    Strict {
        /// The tap's name.
        tap: IfName,
        /// Where the VM file says `strict`.
        at: String,
        /// Why.
        source: filters::Error,
    },
}

impl Unfiltered {
    /// What a filter that could not be set comes to; none where the guest does without it.
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

    fn own_hint(&self) -> Option<String> {
        match self {
            Self::Strict { source, .. } => {
                let without = "so does `isolation = \"on\"`, and `qvm status` tells then";
                Some(match source.hint() {
                    Some(hint) => format!("{hint}; {without}"),
                    None => format!("`antiSpoof = false` goes without; {without}"),
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

    /// What is told of a VM whose tap cannot be filtered, on a kernel that has no filter.
    fn told(text: &str) -> Option<(String, Option<String>)> {
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
    fn strict_goes_without_a_filter_only_where_that_is_written() {
        for (written, required) in [
            ("bridge = \"br0\"", false),
            ("bridge = \"br0\"\nantiSpoof = true", true),
            ("isolation = \"off\"\nbridge = \"br0\"", false),
            ("isolation = \"off\"\nbridge = \"br0\"\nantiSpoof = true", true),
            ("isolation = \"strict\"\nbridge = \"br0\"\nantiSpoof = false", false),
            ("isolation = \"strict\"\nbridge = \"br0\"\nantiSpoof = true", true),
        ] {
            let text = "cannot filter what leaves the tap `qvm-web` (/v/web.toml";
            let told = told(written).map(|(what, _)| what);
            assert_eq!(told.is_some_and(|what| what.starts_with(text)), required, "{written}");
        }
        let (what, hint) = told("bridge = \"br0\"\nisolation = \"strict\"\n").unwrap();
        assert_eq!(
            what,
            "`isolation = \"strict\"` (/v/web.toml:2), and what leaves the tap `qvm-web` cannot be filtered"
        );
        assert_eq!(
            hint.unwrap(),
            "load the modules with `modprobe -a sch_ingress cls_bpf`, or set `antiSpoof = false`; so does \
             `isolation = \"on\"`, and `qvm status` tells then"
        );
    }
}
