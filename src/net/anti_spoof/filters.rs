//! Installs the anti-spoofing filter of a tap: a classic BPF program on its ingress hook
//! (tc-bpf(8)), set by rtnetlink(7).
//!
//! The filter is part of the device and vanishes with it. One message replaces a program by
//! another, so that every frame passes one of them. No program such as nft(8) is needed, no
//! capability except CAP_NET_ADMIN, and only the kernel modules `sch_ingress` and `cls_bpf`, which
//! are loaded automatically.

use std::io;

use futures_util::{StreamExt, TryStreamExt};
use nix::errno::Errno;
use rtnetlink::{
    Handle,
    packet_core::{
        DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
        NetlinkMessage, NetlinkPayload,
    },
    packet_route::{
        RouteNetlinkMessage,
        tc::{
            TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcOption,
        },
    },
};

use super::Instruction;
use crate::value::{ErrorCode, Explain, IfName};

/// The qdisc of ingress filters; it queues nothing.
const HOOK: &str = "clsact";
/// The priority among filters: filters of operators can be before or after.
const PRIORITY: u16 = 4242;
const NUMBER: u32 = 1;
type Attribute = u16;
type Protocol = u16;
/// `TCA_BPF_OPS_LEN` and `TCA_BPF_OPS` of linux/pkt_cls.h.
const OPS_LEN: Attribute = 4;
const OPS: Attribute = 5;
/// `ETH_P_ALL` of linux/if_ether.h.
const EVERY_PROTOCOL: Protocol = 3;

/// Why a filter cannot be set.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A netlink socket cannot be opened.
    #[error("cannot open a netlink socket")]
    Socket(#[source] io::Error),
    /// The tap does not exist.
    #[error("tap `{0}` does not exist")]
    Gone(IfName),
    /// The kernel lacks a module.
    #[error("the kernel lacks `sch_ingress` or `cls_bpf`")]
    Missing(#[source] io::Error),
    /// The capability is missing.
    #[error("no permission to filter tap `{tap}`")]
    Denied {
        /// The tap.
        tap: IfName,
        /// The cause.
        source: io::Error,
    },
    /// Any other error.
    #[error("cannot set the filter")]
    Io(#[source] io::Error),
}

impl Error {
    fn new(tap: &IfName, source: io::Error) -> Self {
        match Errno::from_raw(source.raw_os_error().unwrap_or(0)) {
            Errno::ENOENT | Errno::EOPNOTSUPP => Self::Missing(source),
            Errno::EPERM | Errno::EACCES => Self::Denied { tap: tap.clone(), source },
            Errno::ENODEV => Self::Gone(tap.clone()),
            _ => Self::Io(source),
        }
    }
}

impl Explain for Error {
    fn own_code(&self) -> Option<ErrorCode> {
        Some(match self {
            Self::Socket(..) => ErrorCode::NetworkFailed,
            Self::Gone(..) => ErrorCode::TapMissing,
            Self::Missing(..) => ErrorCode::FilterUnsupported,
            Self::Denied { .. } => ErrorCode::FilterDenied,
            Self::Io(..) => ErrorCode::FilterFailed,
        })
    }

    fn own_hint(&self) -> Option<String> {
        match self {
            Self::Missing(_) => Some(
                "load the modules with `modprobe -a sch_ingress cls_bpf`, or set `antiSpoof = \
                 false`"
                    .into(),
            ),
            Self::Denied { .. } => {
                Some("run as root or with CAP_NET_ADMIN, or set `antiSpoof = false`".into())
            }
            Self::Socket(_) | Self::Gone(_) | Self::Io(_) => None,
        }
    }
}

/// Sets filters over a netlink connection. Requires a runtime.
#[derive(Debug)]
pub struct Filters {
    handle: Handle,
}

impl Filters {
    /// Uses the result of [`Network::connect`](super::network::Network::connect).
    ///
    /// # Errors
    /// The connection failed.
    pub fn open(connected: io::Result<Handle>) -> Result<Self, Error> {
        Ok(Self { handle: connected.map_err(Error::Socket)? })
    }

    /// Filters all frames from the guest by this program, which replaces an earlier one.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn set(&self, tap: &IfName, program: &[Instruction]) -> Result<(), Error> {
        let failed = |source| Error::new(tap, source);
        let index = self.index(tap).await.map_err(failed)?;
        let mut hook = TcMessage::with_index(index);
        hook.header.parent = TcHandle::CLSACT;
        hook.header.handle = TcHandle { major: 0xffff, minor: 0 };
        hook.attributes.push(TcAttribute::Kind(HOOK.into()));
        let hook = RouteNetlinkMessage::NewQueueDiscipline(hook);
        match self.ask(hook, NLM_F_CREATE | NLM_F_EXCL).await {
            Err(error) if error.raw_os_error() != Some(Errno::EEXIST as i32) => {
                return Err(failed(error));
            }
            Ok(()) | Err(_) => {}
        }
        let mut filter = filter(index);
        let length =
            u16::try_from(program.len()).map_err(|_| failed(io::ErrorKind::InvalidInput.into()))?;
        let other = |kind, bytes| TcFilterBpfOption::Other(DefaultNla::new(kind, bytes));
        filter.attributes.push(TcAttribute::Options(
            [
                other(OPS_LEN, length.to_ne_bytes().into()),
                other(OPS, program.iter().flat_map(bytes).collect()),
                TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
            ]
            .map(TcOption::Bpf)
            .into(),
        ));
        let filter = RouteNetlinkMessage::NewTrafficFilter(filter);
        self.ask(filter, NLM_F_CREATE | NLM_F_REPLACE).await.map_err(failed)?;
        // A success and the end of the connection look the same, so another request is sent.
        self.index(tap).await.map(drop).map_err(failed)
    }

    /// Removes the filter. A missing filter is no error.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn clear(&self, tap: &IfName) -> Result<(), Error> {
        let failed = |source| Error::new(tap, source);
        let index = self.index(tap).await.map_err(failed)?;
        match self.ask(RouteNetlinkMessage::DelTrafficFilter(filter(index)), 0).await {
            // The filter, or its hook, does not exist.
            Err(e)
                if [Errno::ENOENT as i32, Errno::EINVAL as i32]
                    .map(Some)
                    .contains(&e.raw_os_error()) =>
            {
                Ok(())
            }
            done => done.map_err(failed),
        }
    }

    async fn index(&self, tap: &IfName) -> io::Result<i32> {
        let mut found = Box::pin(self.handle.link().get().match_name(tap.to_string()).execute());
        let link = match found.try_next().await {
            // A missing interface is reported separately: the connection has ended.
            Ok(link) => link.ok_or(io::ErrorKind::BrokenPipe)?,
            Err(rtnetlink::Error::NetlinkError(error)) => return Err(error.to_io()),
            Err(error) => return Err(io::Error::other(error)),
        };
        Ok(link.header.index.cast_signed())
    }

    async fn ask(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let answers = self.handle.clone().request(message).map_err(io::Error::other)?;
        let mut answers = Box::pin(answers);
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload
                && error.code.is_some()
            {
                return Err(error.to_io());
            }
        }
        Ok(())
    }
}

/// Returns the message that identifies the filter.
fn filter(index: i32) -> TcMessage {
    let mut message = TcMessage::with_index(index);
    message.header.parent = TcHandle { major: 0xffff, minor: TcHandle::MIN_INGRESS };
    message.header.handle = TcHandle::from(NUMBER);
    message.header.info = u32::from(PRIORITY) << 16 | u32::from(EVERY_PROTOCOL.to_be());
    message.attributes.push(TcAttribute::Kind(TcFilterBpf::KIND.into()));
    message
}

/// `struct sock_filter` of linux/filter.h.
fn bytes(instruction: &Instruction) -> Vec<u8> {
    let Instruction { code, jump_true, jump_false, k } = instruction;
    [&code.to_ne_bytes()[..], &[*jump_true, *jump_false], &k.to_ne_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_errno_has_a_message_and_hint() {
        let tap = "qvm-web".parse().unwrap();
        for (errno, text, hint) in [
            (
                Errno::ENOENT,
                "the kernel lacks `sch_ingress` or `cls_bpf`",
                Some("modprobe -a sch_ingress"),
            ),
            (
                Errno::EOPNOTSUPP,
                "the kernel lacks `sch_ingress` or `cls_bpf`",
                Some("antiSpoof = false"),
            ),
            (Errno::EPERM, "no permission to filter tap `qvm-web`", Some("CAP_NET_ADMIN")),
            (Errno::ENODEV, "tap `qvm-web` does not exist", None),
            (Errno::ENOMEM, "cannot set the filter", None),
        ] {
            let error = Error::new(&tap, errno.into());
            assert_eq!(error.to_string(), text);
            match hint {
                Some(hint) => assert!(error.hint().unwrap().contains(hint), "{errno}"),
                None => assert_eq!(error.hint(), None),
            }
        }
    }
}
