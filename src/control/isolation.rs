//! The isolation layers of a QEMU process, and those that the host does not support.

use serde::{Deserialize, Serialize};

pub use crate::spec::Isolation as Mode;

/// An isolation layer. Each is independent of the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    /// A separate UID, which owns only this VM's disks.
    Uid,
    /// No capabilities (capabilities(7)).
    Capabilities,
    /// No more rights for programs that QEMU executes (`no_new_privs`, prctl(2)).
    NoNewPrivileges,
    /// An empty network namespace (network_namespaces(7)).
    Network,
    /// No access to files other than QEMU's own (landlock(7)).
    Landlock,
    /// System call filters (seccomp(2)): QEMU's own (`-sandbox`), and one for calls that QEMU's
    /// filter permits and QEMU does not use.
    Seccomp,
}

impl Layer {
    /// All layers, in the order in which they are applied.
    pub const ALL: [Self; 6] = [
        Self::Network,
        Self::Uid,
        Self::Capabilities,
        Self::NoNewPrivileges,
        Self::Landlock,
        Self::Seccomp,
    ];

    /// Returns the word in status and messages.
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

/// A layer that is not active.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing<L = Layer> {
    /// The layer.
    pub layer: L,
    /// The cause.
    pub why: String,
}

/// A word of this version, or of a newer version, which is preserved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Word<T> {
    /// A known word.
    Known(T),
    /// A word of a newer version.
    Other(String),
}

impl<T: PartialEq> PartialEq<T> for Word<T> {
    fn eq(&self, other: &T) -> bool {
        matches!(self, Self::Known(known) if known == other)
    }
}

impl Word<Layer> {
    /// Returns the word in status and messages.
    pub fn word(&self) -> &str {
        match self {
            Self::Known(layer) => layer.word(),
            Self::Other(word) => word,
        }
    }
}

/// The isolation of the running QEMU process, possibly written by a supervisor of another version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Isolation {
    /// The requested mode.
    pub mode: Word<Mode>,
    /// The UID of QEMU, if it is the VM's own.
    pub uid: Option<u32>,
    /// The active layers.
    pub layers: Vec<Word<Layer>>,
    /// The inactive layers.
    pub missing: Vec<Missing<Word<Layer>>>,
    /// Unknown fields of a newer version.
    #[serde(flatten)]
    pub other: serde_json::Map<String, serde_json::Value>,
}

impl Isolation {
    /// Returns all layers but the missing ones.
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

    /// Whether a layer is active.
    pub fn has(&self, layer: Layer) -> bool {
        self.layers.iter().any(|word| *word == layer)
    }

    /// Formats the isolation for operators.
    pub fn describe(&self) -> String {
        if self.mode == Mode::Off {
            return "off".to_owned();
        }
        let mut words: Vec<String> =
            self.layers.iter().map(|layer| layer.word().to_owned()).collect();
        if let (Some(uid), Some(word)) = (self.uid, words.iter_mut().find(|word| *word == "uid")) {
            *word = format!("uid {uid}");
        }
        let mut text = words.join(", ");
        if self.mode == Mode::Strict {
            text.insert_str(0, "strict: ");
        }
        for Missing { layer, why } in &self.missing {
            text.push_str(&format!("; no {}: {why}", layer.word()));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_layer_is_inactive_and_described() {
        let why = "no such thing".to_owned();
        let missing = vec![Missing { layer: Layer::Landlock, why }];
        let isolation = Isolation::without(Mode::On, Some(1_900_000_000), missing);
        assert_eq!(
            isolation.describe(),
            "network, uid 1900000000, capabilities, no-new-privileges, seccomp; no landlock: no \
             such thing"
        );
        let off = Isolation::without(Mode::Off, Some(1), vec![]);
        assert_eq!((off.describe().as_str(), off.uid), ("off", None));
        assert!(Isolation::without(Mode::Strict, None, vec![]).describe().starts_with("strict: "));
    }
}
