//! Parses TOML values by type, with messages for wrong types.

use toml::de::DeValue;

use super::{
    choice::{
        Accel, Admission, Bus, Cache, Clone as DiskClone, Firmware, Format, HostShutdown,
        Isolation, LinkState, Media, Model, OnGuestReboot, OnPanic, ReadyFailure, SectorSize,
        TapHeal,
    },
    nearest,
};
use crate::value::{
    Cidr, CpuList, CpuWeight, Forward, IfName, MacAddr, Operator, Refused, Seconds, Size, UidRange,
    VmName, VncAddress, shown,
};

/// A value that can be read from TOML.
pub(super) trait Written: Sized {
    /// The expected type, such as `a whole number`.
    const WANTED: &'static str;
    /// The plural, such as `whole numbers`.
    const PLURAL: &'static str;

    fn read(value: &DeValue<'_>) -> Result<Self, Refusal>;

    /// Returns a hint for a value of the wrong type.
    fn instead_of(_: &DeValue<'_>) -> Option<String> {
        None
    }
}

/// Why a value was refused.
pub(super) enum Refusal {
    /// The value has the wrong type.
    Type,
    /// The value has the right type but is invalid.
    Value { message: String, hint: Option<String> },
}

impl Refusal {
    /// Returns the refusal of a word that is not in `allowed`.
    pub(super) fn of_word(text: &str, allowed: &[&str]) -> Self {
        let (message, hint) = nearest::word(text, allowed);
        Self::Value { message, hint }
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        Self::Value { message: refused.to_string(), hint: None }
    }
}

const TEXT: &str = "a string";
const TEXTS: &str = "strings";

/// Returns a hint for a string without quotes.
fn quoted(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::Integer(number) => Some(format!("write it in quotes: `\"{number}\"`")),
        DeValue::Boolean(truth) => Some(format!("write it in quotes: `\"{truth}\"`")),
        _ => None,
    }
}

impl Written for String {
    const WANTED: &'static str = TEXT;
    const PLURAL: &'static str = TEXTS;

    fn read(value: &DeValue<'_>) -> Result<Self, Refusal> {
        value.as_str().map(str::to_owned).ok_or(Refusal::Type)
    }

    fn instead_of(value: &DeValue<'_>) -> Option<String> {
        quoted(value)
    }
}

impl Written for bool {
    const WANTED: &'static str = "`true` or `false`";
    const PLURAL: &'static str = "booleans";

    fn read(value: &DeValue<'_>) -> Result<Self, Refusal> {
        value.as_bool().ok_or(Refusal::Type)
    }

    fn instead_of(value: &DeValue<'_>) -> Option<String> {
        match value.as_str()? {
            "true" | "yes" | "on" => Some("write `true`, without quotes".into()),
            "false" | "no" | "off" => Some("write `false`, without quotes".into()),
            _ => None,
        }
    }
}

/// A whole number from `MIN` to `MAX`.
pub(super) struct Whole<const MIN: i64, const MAX: i64>(pub(super) i64);

impl<const MIN: i64, const MAX: i64> Written for Whole<MIN, MAX> {
    const WANTED: &'static str = "a whole number";
    const PLURAL: &'static str = "whole numbers";

    fn read(value: &DeValue<'_>) -> Result<Self, Refusal> {
        let number = whole(value)?;
        if !(MIN..=MAX).contains(&number) {
            let message = format!("{number} is out of range: the range is {MIN} to {MAX}");
            return Err(Refusal::Value { message, hint: None });
        }
        Ok(Self(number))
    }

    fn instead_of(value: &DeValue<'_>) -> Option<String> {
        unquoted(value)
    }
}

/// Returns the whole number of a value.
pub(super) fn whole(value: &DeValue<'_>) -> Result<i64, Refusal> {
    let number = value.as_integer().ok_or(Refusal::Type)?;
    i64::from_str_radix(number.as_str(), number.radix()).map_err(|_| Refusal::Value {
        message: format!("{} is out of range: it has more than 64 bits", shown(number.as_str())),
        hint: None,
    })
}

fn unquoted(value: &DeValue<'_>) -> Option<String> {
    let text = value.as_str()?;
    let number = text.strip_suffix(['G', '%']).unwrap_or(text).parse::<i64>().ok()?;
    Some(format!("write `{number}`, without quotes"))
}

macro_rules! by_number {
    ($($type:ty),*) => {$(
        impl Written for $type {
            const WANTED: &'static str = "a whole number";
            const PLURAL: &'static str = "whole numbers";

            fn read(value: &DeValue<'_>) -> Result<Self, Refusal> {
                Ok(Self::try_from(whole(value)?)?)
            }

            fn instead_of(value: &DeValue<'_>) -> Option<String> {
                unquoted(value)
            }
        }
    )*};
}
by_number!(CpuWeight, Seconds);

macro_rules! by_text {
    ($($type:ty),*) => {$(
        impl Written for $type {
            const WANTED: &'static str = TEXT;
            const PLURAL: &'static str = TEXTS;

            fn read(value: &DeValue<'_>) -> Result<Self, Refusal> {
                Ok(value.as_str().ok_or(Refusal::Type)?.parse::<Self>()?)
            }

            fn instead_of(value: &DeValue<'_>) -> Option<String> {
                quoted(value)
            }
        }
    )*};
}
by_text!(Cidr, CpuList, Forward, IfName, MacAddr, Operator, UidRange, VmName, VncAddress);

impl Written for std::net::IpAddr {
    const WANTED: &'static str = TEXT;
    const PLURAL: &'static str = TEXTS;

    fn read(value: &DeValue<'_>) -> Result<Self, Refusal> {
        let text = value.as_str().ok_or(Refusal::Type)?;
        let refuse = |why: &str| Refusal::Value {
            message: format!("`{}` {why}", shown(text)),
            hint: text.split_once('/').map(|(address, _)| {
                format!("only `ip` has a prefix length; write `{}`", shown(address))
            }),
        };
        match text.parse::<Self>() {
            Ok(ip) if ip.is_unspecified() || ip.is_multicast() => {
                Err(refuse("is not a host address"))
            }
            Ok(ip) => Ok(ip),
            Err(_) => Err(refuse("is not an address: write for example `192.168.1.1`")),
        }
    }

    fn instead_of(value: &DeValue<'_>) -> Option<String> {
        quoted(value)
    }
}

/// The memory of a guest: a string with a unit, or a whole number of MiB.
pub(super) struct Memory(pub(super) Size);

impl Memory {
    /// The minimum for the firmware.
    const MIN: u64 = 16 * Size::MIB;
    /// The limit of QEMU's q35 machine, larger than the memory of hosts.
    const MAX: u64 = 16 << 40;
}

impl Written for Memory {
    const WANTED: &'static str = "a string such as `\"4G\"`, or a whole number of MiB";
    const PLURAL: &'static str = "sizes";

    fn read(value: &DeValue<'_>) -> Result<Self, Refusal> {
        let (size, number) = match value.as_str() {
            Some(text) => {
                let size = text.parse::<Size>().map_err(|refused| Refusal::Value {
                    message: refused.to_string(),
                    hint: text
                        .parse::<u64>()
                        .ok()
                        .map(|mib| format!("write `{mib}`, without quotes, for MiB")),
                })?;
                (Some(size), None)
            }
            None => {
                let number = whole(value)?;
                (u64::try_from(number).ok().and_then(Size::from_mib), Some(number))
            }
        };
        let found = match (size, number) {
            (_, Some(number)) => format!("{number} MiB"),
            (Some(size), None) => format!("`{size}`"),
            (None, None) => String::new(),
        };
        let hint = number
            .filter(|number| (1..16).contains(number))
            .map(|number| format!("a number is in MiB; write `\"{number}G\"` for GiB"));
        let size = size.filter(|size| (Self::MIN..=Self::MAX).contains(&size.bytes())).ok_or_else(
            || Refusal::Value {
                message: format!("{found} is out of range: the range is 16M to 16T"),
                hint,
            },
        )?;
        if size.bytes() % Size::MIB != 0 {
            let message = format!("{found} is not a whole number of MiB");
            return Err(Refusal::Value { message, hint: None });
        }
        Ok(Self(size))
    }
}

/// The size of a disk.
pub(super) struct DiskSize(pub(super) Size);

impl DiskSize {
    const MIN: u64 = Size::MIB;
    const MAX: u64 = 1024 << 40;
}

impl Written for DiskSize {
    const WANTED: &'static str = "a string such as `\"20G\"`";
    const PLURAL: &'static str = "sizes";

    fn read(value: &DeValue<'_>) -> Result<Self, Refusal> {
        let size: Size = value.as_str().ok_or(Refusal::Type)?.parse()?;
        if !(Self::MIN..=Self::MAX).contains(&size.bytes()) {
            let message = format!("`{size}` is out of range: the range is 1M to 1024T");
            return Err(Refusal::Value { message, hint: None });
        }
        Ok(Self(size))
    }

    fn instead_of(value: &DeValue<'_>) -> Option<String> {
        value.as_integer().map(|number| format!("add the unit: `\"{number}G\"`"))
    }
}

/// The bytes of a sector that the guest sees.
impl Written for SectorSize {
    const WANTED: &'static str = "`512` or `4096`";
    const PLURAL: &'static str = "numbers";

    fn read(value: &DeValue<'_>) -> Result<Self, Refusal> {
        match whole(value)? {
            512 => Ok(Self::B512),
            4096 => Ok(Self::B4096),
            number => {
                let message = format!("{number} is no size of a sector: write 512 or 4096");
                Err(Refusal::Value { message, hint: None })
            }
        }
    }

    fn instead_of(value: &DeValue<'_>) -> Option<String> {
        unquoted(value)
    }
}

/// A choice of words. Each value has exactly one spelling.
macro_rules! by_word {
    ($($type:ty { $($word:literal => $value:expr),* })*) => {$(
        impl Written for $type {
            const WANTED: &'static str = TEXT;
            const PLURAL: &'static str = TEXTS;

            fn read(value: &DeValue<'_>) -> Result<Self, Refusal> {
                let text = value.as_str().ok_or(Refusal::Type)?;
                match text {
                    $($word => Ok($value),)*
                    _ => Err(Refusal::of_word(text, &[$($word),*])),
                }
            }

            fn instead_of(_: &DeValue<'_>) -> Option<String> {
                Some(nearest::one_of(&[$($word),*]))
            }
        }
    )*};
}
by_word! {
    Admission { "refuse" => Self::Refuse, "wait" => Self::Wait, "off" => Self::Off }
    Accel { "auto" => Self::Auto, "kvm" => Self::Kvm, "tcg" => Self::Tcg }
    Firmware { "bios" => Self::Bios, "uefi" => Self::Uefi, "uefi-secure" => Self::UefiSecure }
    OnPanic { "restart" => Self::Restart, "stop" => Self::Stop, "pause" => Self::Pause }
    OnGuestReboot { "apply" => Self::Apply, "reset" => Self::Reset }
    ReadyFailure { "continue" => Self::Continue, "fail" => Self::Fail }
    Isolation { "on" => Self::On, "strict" => Self::Strict, "off" => Self::Off }
    HostShutdown { "stop" => Self::Stop, "suspend" => Self::Suspend }
    TapHeal { "heal" => Self::Heal, "report" => Self::Report, "off" => Self::Off }
    Format { "qcow2" => Self::Qcow2, "raw" => Self::Raw }
    DiskClone { "copy" => Self::Copy, "overlay" => Self::Overlay }
    Bus { "virtio" => Self::Virtio, "sata" => Self::Sata, "nvme" => Self::Nvme }
    Cache { "writeback" => Self::Writeback, "none" => Self::None }
    Media { "disk" => Self::Disk, "cdrom" => Self::Cdrom }
    LinkState { "up" => Self::Up, "down" => Self::Down }
    Model { "virtio" => Self::Virtio, "e1000e" => Self::E1000e }
}
