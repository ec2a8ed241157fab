//! What can be done to a machine that runs, of all that its VM file has changed.

use super::{
    facets::{DISKS, Facets, MEM, NICS, disk_key, nic_key, part},
    pending::{Pending, TakesEffect},
};
use crate::{
    spec::{Disk, Link, LinkState, Nic, Vm},
    value::{Label, Size},
};

/// One change that QEMU or the kernel has to be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// By the balloon.
    Memory(Size),
    /// A disk is plugged in.
    AddDisk(Box<Disk>),
    /// A disk is plugged out; its file stays.
    RemoveDisk(Label),
    /// A disk is made larger.
    Grow(Label, Size),
    /// A NIC is plugged in.
    AddNic(Box<Nic>),
    /// A NIC is plugged out.
    RemoveNic(Label),
    /// A NIC's tap goes to another bridge.
    Move(Box<Nic>),
    /// A NIC's tap is filtered, or not: `antiSpoof`.
    Filter(Box<Nic>),
    /// A NIC's tap is isolated on its bridge, or not.
    Isolate(Box<Nic>),
    /// A NIC's cable.
    Link(Label, LinkState),
}

impl Change {
    /// What a difference asks for, if it can be done live and is not a number that only qvm itself looks at.
    pub fn of(pending: &Pending, written: &Vm) -> Option<Self> {
        if pending.takes_effect != TakesEffect::Live {
            return None;
        }
        let key = pending.key.as_str();
        let disk = |name: &str| written.disks.iter().find(|disk| disk.name.as_str() == name);
        let nic = |name: &str| written.nics.iter().find(|nic| nic.name.as_str() == name);
        let bridged = |nic: &&Nic| matches!(nic.link, Link::Bridge { .. });
        let mut parts = key.splitn(3, '.');
        match (parts.next()?, parts.next(), parts.next()) {
            (MEM, None, None) => Some(Self::Memory(written.mem)),
            ("diskSizeG", None, None) => grow(disk(Label::ROOT)?),
            (DISKS, Some(name), Some("size")) => grow(disk(name)?),
            (DISKS, Some(name), None) => match disk(name) {
                Some(disk) => Some(Self::AddDisk(Box::new(disk.clone()))),
                None => Some(Self::RemoveDisk(name.parse().ok()?)),
            },
            ("bridge", None, None) => {
                Some(Self::Move(Box::new(nic(Label::NET).filter(bridged)?.clone())))
            }
            (NICS, Some(name), Some("bridge")) => {
                Some(Self::Move(Box::new(nic(name).filter(bridged)?.clone())))
            }
            ("antiSpoof", None, None) => {
                Some(Self::Filter(Box::new(nic(Label::NET).filter(bridged)?.clone())))
            }
            (NICS, Some(name), Some("antiSpoof")) => {
                Some(Self::Filter(Box::new(nic(name).filter(bridged)?.clone())))
            }
            (NICS, Some(name), Some("isolated")) => {
                Some(Self::Isolate(Box::new(nic(name).filter(bridged)?.clone())))
            }
            (NICS, Some(name), Some("link")) => {
                let nic = nic(name)?;
                Some(Self::Link(nic.name.clone(), nic.state))
            }
            (NICS, Some(name), None) => match nic(name) {
                Some(nic) => Some(Self::AddNic(Box::new(nic.clone()))),
                None => Some(Self::RemoveNic(name.parse().ok()?)),
            },
            _ => None,
        }
    }

    /// The key of what is changed.
    pub fn key(&self) -> String {
        match self {
            Self::Memory(_) => MEM.to_owned(),
            Self::AddDisk(disk) => part(DISKS, &disk.name),
            Self::RemoveDisk(name) => part(DISKS, name),
            Self::Grow(name, _) => disk_key(name.as_str(), "size"),
            Self::AddNic(nic) => part(NICS, &nic.name),
            Self::RemoveNic(name) => part(NICS, name),
            Self::Move(nic) => nic_key(nic.name.as_str(), "bridge"),
            Self::Filter(nic) => nic_key(nic.name.as_str(), "antiSpoof"),
            Self::Isolate(nic) => nic_key(nic.name.as_str(), "isolated"),
            Self::Link(name, _) => nic_key(name.as_str(), "link"),
        }
    }

    /// The keys that have other values once it is done, with these values; `from` is what ran before, `to` what was written.
    pub fn done(&self, from: &Facets, to: &Facets) -> Vec<(String, Option<String>)> {
        let value = |key: String| {
            let value = to.get(&key).map(str::to_owned);
            (key, value)
        };
        let (kind, name) = match self {
            Self::AddDisk(disk) => (DISKS, disk.name.as_str()),
            Self::RemoveDisk(name) => (DISKS, name.as_str()),
            Self::AddNic(nic) => (NICS, nic.name.as_str()),
            Self::RemoveNic(name) => (NICS, name.as_str()),
            Self::Memory(_) | Self::Link(..) | Self::Filter(_) | Self::Isolate(_) => {
                return vec![value(self.key())];
            }
            // The line about the whole has it as well.
            Self::Grow(name, _) => return vec![value(self.key()), value(part(DISKS, name))],
            Self::Move(nic) => return vec![value(self.key()), value(part(NICS, &nic.name))],
        };
        let added = matches!(self, Self::AddDisk(_) | Self::AddNic(_));
        let keys = from.keys_of(to, kind, name).into_iter();
        let mut done: Vec<(String, Option<String>)> =
            if added { keys.map(value).collect() } else { keys.map(|key| (key, None)).collect() };
        let mut names = from.names(kind);
        names.retain(|other| *other != name);
        if added {
            names.push(name);
        }
        done.push((kind.to_owned(), (!names.is_empty()).then(|| names.join(", "))));
        done
    }
}

fn grow(disk: &Disk) -> Option<Change> {
    Some(Change::Grow(disk.name.clone(), disk.size?))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        machine::pending::{machine, pending},
        spec,
    };

    fn vm(text: &str) -> Vm {
        let file = Path::new("/v/web.toml");
        spec::read(&"web".parse().unwrap(), file, text, &mut |_| Ok(vec![])).unwrap()
    }

    /// Whatever is changed live: once it is done, nothing live is pending any more.
    #[test]
    fn what_is_done_is_not_pending_any_more() {
        let files = [
            "mem = \"2G\"",
            "mem = \"1G\"\ndiskSizeG = 3\n[disk.data]\nsize = \"1G\"\n",
            "mem = \"1G\"\ndiskSizeG = 2\n[disk.data]\nsize = \"2G\"\n[disk.logs]\npath = \"/l.qcow2\"\n",
            "mem = \"2G\"\nbridge = \"br0\"\n[nic.lan]\nbridge = \"br1\"\nlink = \"down\"\n",
            "mem = \"2G\"\nbridge = \"br1\"\nantiSpoof = false\n[nic.lan]\nisolated = true\nbridge = \"br2\"\n[nic.wan]\nip = \"10.0.2.5/24\"\n",
        ];
        for from in files {
            for to in files {
                let (old, new) = (vm(from), vm(to));
                let (mut running, written) = (Facets::of(&old), Facets::of(&new));
                for one in pending(&running, &written, &machine(&old)) {
                    let Some(change) = Change::of(&one, &new) else { continue };
                    assert_eq!(change.key(), one.key);
                    for (key, value) in change.done(&running, &written) {
                        running.set(key, value);
                    }
                }
                let left = pending(&running, &written, &machine(&old));
                let live: Vec<&Pending> =
                    left.iter().filter(|p| p.takes_effect == TakesEffect::Live).collect();
                assert!(live.is_empty(), "{from}\n{to}\n{live:?}");
            }
        }
    }
}
