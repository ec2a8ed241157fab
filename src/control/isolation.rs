//! What keeps a QEMU apart from the host and from other VMs, layer by layer, and which of it a host could not give.

use serde::{Deserialize, Serialize};

pub use crate::spec::Isolation as Mode;

/// One of the layers. Each holds alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    /// A user of its own, who owns this VM's disks and nothing else.
    Uid,
    /// No capabilities (capabilities(7)).
    Capabilities,
    /// No program that it starts has more rights (`no_new_privs`, prctl(2)).
    NoNewPrivileges,
    /// A network namespace with nothing in it (network_namespaces(7)).
    Network,
    /// No files but QEMU's own (landlock(7)).
    Landlock,
    /// Filters of system calls (seccomp(2)): QEMU's own (`-sandbox`), and one of what that lets pass and QEMU has no use for.
    Seccomp,
}

impl Layer {
    /// All of them, in the order in which they are put on.
    pub const ALL: [Self; 6] = [
        Self::Network,
        Self::Uid,
        Self::Capabilities,
        Self::NoNewPrivileges,
        Self::Landlock,
        Self::Seccomp,
    ];

    /// The word for it, in status and in messages.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Uid => "uid",
            Self::Capabilities => "capabilities",
            Self::NoNewPrivileges => "no-new-privileges",
            Self::Network => "network",
            Self::Landlock => "landlock",
            Self::Seccomp => "seccomp",
        }
    }
}

/// A layer that is not there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing<L = Layer> {
    /// Which.
    pub layer: L,
    /// Why.
    pub why: String,
}

/// A word that this version knows, or one that a newer version wrote, which is kept as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Word<T> {
    /// A known one.
    Known(T),
    /// One of a newer version.
    Other(String),
}

impl<T: PartialEq> PartialEq<T> for Word<T> {
    fn eq(&self, other: &T) -> bool {
        matches!(self, Self::Known(known) if known == other)
    }
}

impl Word<Layer> {
    /// The word for it, in status and in messages.
    pub fn word(&self) -> &str {
        match self {
            Self::Known(layer) => layer.word(),
            Self::Other(word) => word,
        }
    }
}

/// How the QEMU that runs is kept apart. A supervisor of another version may have written it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Isolation {
    /// What the VM file asked for.
    pub mode: Word<Mode>,
    /// QEMU's user, where it is the VM's own.
    pub uid: Option<u32>,
    /// The layers that hold.
    pub layers: Vec<Word<Layer>>,
    /// Those that do not.
    pub missing: Vec<Missing<Word<Layer>>>,
    /// What a newer version wrote beside.
    #[serde(flatten)]
    pub other: serde_json::Map<String, serde_json::Value>,
}

impl Isolation {
    /// All layers but the missing ones.
    pub fn without(mode: Mode, uid: Option<u32>, missing: Vec<Missing>) -> Self {
        let lacks = |layer: &Layer| missing.iter().any(|one| one.layer == *layer);
        let layers: Vec<Layer> = match mode {
            Mode::Off => vec![],
            Mode::On | Mode::Strict => Layer::ALL.into_iter().filter(|l| !lacks(l)).collect(),
        };
        let uid = uid.filter(|_| layers.contains(&Layer::Uid));
        let named = |Missing { layer, why }| Missing { layer: Word::Known(layer), why };
        Self {
            mode: Word::Known(mode),
            uid,
            layers: layers.into_iter().map(Word::Known).collect(),
            missing: missing.into_iter().map(named).collect(),
            other: serde_json::Map::new(),
        }
    }

    /// Whether a layer holds.
    pub fn has(&self, layer: Layer) -> bool {
        self.layers.iter().any(|word| *word == layer)
    }

    /// What an operator reads.
    pub fn told(&self) -> String {
        if self.mode == Mode::Off {
            return "off".to_owned();
        }
        let mut words: Vec<String> =
            self.layers.iter().map(|layer| layer.word().to_owned()).collect();
        if let (Some(uid), Some(word)) = (self.uid, words.iter_mut().find(|word| *word == "uid")) {
            *word = format!("uid {uid}");
        }
        let mut told = words.join(", ");
        if self.mode == Mode::Strict {
            told.insert_str(0, "strict: ");
        }
        for Missing { layer, why } in &self.missing {
            told.push_str(&format!("; no {}: {why}", layer.word()));
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_does_not_hold_and_is_told() {
        let why = "no such thing".to_owned();
        let missing = vec![Missing { layer: Layer::Landlock, why }];
        let isolation = Isolation::without(Mode::On, Some(1_900_000_000), missing);
        assert_eq!(
            isolation.told(),
            "network, uid 1900000000, capabilities, no-new-privileges, seccomp; no landlock: no such thing"
        );
        let off = Isolation::without(Mode::Off, Some(1), vec![]);
        assert_eq!((off.told().as_str(), off.uid), ("off", None));
        assert!(Isolation::without(Mode::Strict, None, vec![]).told().starts_with("strict: "));
    }
}
