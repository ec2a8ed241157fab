//! Floor 0: words that cannot be wrong. Each type parses or refuses; whoever holds one need not look again.

mod base64;
mod chain;
mod cidr;
mod cpu_list;
mod cpu_weight;
mod digest;
mod forward;
mod if_name;
pub mod keyboard;
mod label;
mod mac_addr;
mod operator;
mod peer;
mod plain;
mod seconds;
mod size;
mod uid_range;
mod vm_name;
mod vnc_address;

pub use self::base64::{base64, to_base64};
pub use self::chain::chain;
pub use self::cidr::Cidr;
pub use self::cpu_list::CpuList;
pub use self::cpu_weight::CpuWeight;
pub use self::digest::{Algorithm, Digest};
pub use self::forward::{Forward, Protocol};
pub use self::if_name::IfName;
pub use self::label::Label;
pub use self::mac_addr::MacAddr;
pub use self::operator::Operator;
pub use self::peer::Peer;
pub use self::plain::plain;
pub use self::seconds::Seconds;
pub use self::size::Size;
pub use self::uid_range::UidRange;
pub use self::vm_name::VmName;
pub use self::vnc_address::VncAddress;

/// Why a text is not one of these values: what was found, and what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(String);

impl Refused {
    pub(crate) fn new(sentence: impl Into<String>) -> Self {
        Self(sentence.into())
    }
}

/// A text as a message may show it: at most 64 characters, control characters escaped.
pub fn shown(text: &str) -> String {
    let mut out: String = text.chars().take(64).flat_map(char::escape_debug).collect();
    if text.chars().nth(64).is_some() {
        out.push('…');
    }
    out
}

/// serde by way of `FromStr` and `Display`: the text form is the only form.
macro_rules! serde_by_text {
    ($type:ty) => {
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }
    };
}
use serde_by_text;
