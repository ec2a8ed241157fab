//! The limits of a disk's I/O: `iops`, `bandwidth` and their relatives, each with a burst.

use toml::de::DeValue;

use super::{
    reading::{At, Key, Reading},
    table::Table,
    written::{Refusal, Whole, Written},
};
use crate::value::Size;

/// What a limit counts, with its keys in the VM file and its name in QEMU's `ThrottleLimits`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitKind {
    /// The key of the limit, such as `iopsRead`.
    pub key: &'static str,
    /// The key of the burst.
    pub burst: &'static str,
    /// The key of the burst's length.
    pub burst_sec: &'static str,
    /// The property of QEMU's throttle group.
    pub qemu: &'static str,
    /// Whether the limit is bytes per second, and not requests per second.
    pub is_bytes: bool,
}

/// All limits of a disk, in the order of [`DiskLimits`]: requests and bytes, each total, read and
/// write.
pub const LIMIT_KINDS: [LimitKind; 6] = [
    LimitKind {
        key: "iops",
        burst: "iopsBurst",
        burst_sec: "iopsBurstSec",
        qemu: "iops-total",
        is_bytes: false,
    },
    LimitKind {
        key: "iopsRead",
        burst: "iopsReadBurst",
        burst_sec: "iopsReadBurstSec",
        qemu: "iops-read",
        is_bytes: false,
    },
    LimitKind {
        key: "iopsWrite",
        burst: "iopsWriteBurst",
        burst_sec: "iopsWriteBurstSec",
        qemu: "iops-write",
        is_bytes: false,
    },
    LimitKind {
        key: "bandwidth",
        burst: "bandwidthBurst",
        burst_sec: "bandwidthBurstSec",
        qemu: "bps-total",
        is_bytes: true,
    },
    LimitKind {
        key: "bandwidthRead",
        burst: "bandwidthReadBurst",
        burst_sec: "bandwidthReadBurstSec",
        qemu: "bps-read",
        is_bytes: true,
    },
    LimitKind {
        key: "bandwidthWrite",
        burst: "bandwidthWriteBurst",
        burst_sec: "bandwidthWriteBurstSec",
        qemu: "bps-write",
        is_bytes: true,
    },
];

/// The largest number of requests per second.
pub(super) const MAX_IOPS: i64 = 1_000_000_000;
/// The longest burst in seconds.
pub(super) const MAX_BURST_SEC: i64 = 86_400;
/// QEMU's `THROTTLE_VALUE_MAX`: a burst times its seconds is at most this.
const MAX_BURST_TOTAL: u64 = 1_000_000_000_000_000;

/// A limit: requests or bytes per second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limit {
    /// The rate that is kept up; `None` is no limit.
    pub rate: Option<u64>,
    /// The rate that is allowed for `burst_sec`, at least `rate`.
    pub burst: Option<u64>,
    /// How long a burst lasts; QEMU's default is a second.
    pub burst_sec: Option<u64>,
}

/// The limits of a disk, in the order of [`LIMIT_KINDS`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskLimits([Limit; LIMIT_KINDS.len()]);

impl DiskLimits {
    /// Changes one limit.
    pub fn set(&mut self, kind: LimitKind, limit: Limit) {
        self.iter_mut().filter(|(other, _)| *other == kind).for_each(|(_, old)| *old = limit);
    }

    /// The limits, each with its kind.
    pub fn iter(&self) -> impl Iterator<Item = (LimitKind, Limit)> {
        LIMIT_KINDS.into_iter().zip(self.0)
    }

    fn iter_mut(&mut self) -> impl Iterator<Item = (LimitKind, &mut Limit)> {
        LIMIT_KINDS.into_iter().zip(&mut self.0)
    }

    /// Whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The keys as they were written, in the order of [`LIMIT_KINDS`].
pub(super) struct LimitKeys([LimitKey; LIMIT_KINDS.len()]);

struct LimitKey {
    rate: Key<u64>,
    burst: Key<u64>,
    burst_sec: Key<u64>,
}

impl LimitKeys {
    pub(super) const ABSENT: Self = Self(
        [const { LimitKey { rate: Key::ABSENT, burst: Key::ABSENT, burst_sec: Key::ABSENT } };
            LIMIT_KINDS.len()],
    );

    /// Takes them from `[disk.NAME]`.
    pub(super) fn take(r: &mut Reading<'_>, table: &mut Table<'_>) -> Self {
        Self(LIMIT_KINDS.map(|kind| LimitKey {
            rate: take_rate(r, table, kind.key, kind.is_bytes),
            burst: take_rate(r, table, kind.burst, kind.is_bytes),
            burst_sec: {
                let taken: Key<Whole<1, MAX_BURST_SEC>> = table.take(r, kind.burst_sec);
                Key { at: taken.at, value: taken.value.map(|Whole(sec)| sec.unsigned_abs()) }
            },
        }))
    }

    /// The limits, with every rule that QEMU has for them.
    pub(super) fn build(self, r: &mut Reading<'_>) -> DiskLimits {
        let [iops, iops_read, iops_write, bandwidth, bandwidth_read, bandwidth_write] = &self.0;
        for (total, parts) in
            [(iops, [iops_read, iops_write]), (bandwidth, [bandwidth_read, bandwidth_write])]
        {
            let part = parts.into_iter().find_map(|part| part.rate.at.as_ref());
            if let (Some(total), Some(part)) = (&total.rate.at, part) {
                let (message, hint) = total_and_part(r, total, part);
                r.refuse(part, message, Some(hint));
            }
        }
        for (key, kind) in self.0.iter().zip(LIMIT_KINDS) {
            key.check(r, kind);
        }
        DiskLimits(self.0.map(|key| Limit {
            rate: key.rate.value,
            burst: key.burst.value,
            burst_sec: key.burst_sec.value,
        }))
    }
}

fn total_and_part(r: &Reading<'_>, total: &At, part: &At) -> (String, String) {
    let name = |at: &At| at.key.rsplit('.').next().unwrap_or_default().to_owned();
    let (total_name, part_name, line) = (name(total), name(part), r.line(total.span.start));
    (
        format!("`{total_name}` in line {line} already limits reads and writes together"),
        format!("keep `{total_name}`, or `{part_name}` and its counterpart"),
    )
}

fn take_rate(
    r: &mut Reading<'_>,
    table: &mut Table<'_>,
    key: &'static str,
    is_bytes: bool,
) -> Key<u64> {
    if is_bytes {
        let taken: Key<Bandwidth> = table.take(r, key);
        Key { at: taken.at, value: taken.value.map(|Bandwidth(size)| size.bytes()) }
    } else {
        let taken: Key<Whole<1, MAX_IOPS>> = table.take(r, key);
        Key { at: taken.at, value: taken.value.map(|Whole(rate)| rate.unsigned_abs()) }
    }
}

impl LimitKey {
    fn check(&self, r: &mut Reading<'_>, kind: LimitKind) {
        if let (Some(burst), None) = (&self.burst.at, &self.rate.at) {
            let message =
                format!("a burst needs a limit that it exceeds, and `{}` is absent", kind.key);
            r.refuse(burst, message, Some(format!("write `{}` as well", kind.key)));
        }
        if let (Some(burst_sec), None) = (&self.burst_sec.at, &self.burst.at) {
            let message = format!("there is no burst: `{}` is absent", kind.burst);
            r.refuse(burst_sec, message, Some(format!("write `{}` as well", kind.burst)));
        }
        let Some((at, burst)) = self.burst.good() else { return };
        if let Some(rate) = self.rate.value
            && *burst < rate
        {
            let (burst, rate) = (amount(*burst, kind.is_bytes), amount(rate, kind.is_bytes));
            let message = format!("a burst of {burst} is less than the limit of {rate}");
            r.refuse(at, message, Some(format!("write at least {rate}, or leave it out")));
        }
        let seconds = self.burst_sec.value.unwrap_or(1);
        if burst.saturating_mul(seconds) > MAX_BURST_TOTAL {
            let at = self.burst_sec.at.as_ref().unwrap_or(at);
            let message = format!("QEMU cannot count a burst of {seconds} s at this rate");
            let most = MAX_BURST_TOTAL / burst;
            r.refuse(at, message, Some(format!("write at most {most}")));
        }
    }
}

/// A rate as the VM file has it, without its quotes.
pub fn amount(rate: u64, is_bytes: bool) -> String {
    if is_bytes { Size::from_bytes(rate).to_string() } else { rate.to_string() }
}

/// Bytes per second. A rate far below one request per second would look like a disk that hangs.
struct Bandwidth(Size);

impl Bandwidth {
    const MIN: u64 = 64 << 10;
    const MAX: u64 = 512 << 40;
}

impl Written for Bandwidth {
    const WANTED: &'static str = "a string such as `\"50M\"`";
    const PLURAL: &'static str = "sizes";

    fn read(value: &DeValue<'_>) -> Result<Self, Refusal> {
        let size: Size = value.as_str().ok_or(Refusal::Type)?.parse()?;
        if !(Self::MIN..=Self::MAX).contains(&size.bytes()) {
            let message = format!("`{size}` is out of range: it goes from 64K to 512T a second");
            return Err(Refusal::Value { message, hint: None });
        }
        Ok(Self(size))
    }

    fn instead_of(value: &DeValue<'_>) -> Option<String> {
        value.as_integer().map(|number| format!("with its unit: `\"{number}M\"`"))
    }
}
