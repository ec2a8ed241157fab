//! `qvm network-broker`: passes descriptors of the host's network to supervisors in private network
//! namespaces.

use std::{os::unix::net::UnixListener, path::PathBuf};

use crate::{
    cli::exit::{self, Failure},
    net::broker,
    sys::socket,
    value::ErrorCode,
};

/// The arguments of `qvm network-broker`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Listen on this socket without an idle timeout [default: the socket passed by systemd, until
    /// idle]
    pub socket: Option<PathBuf>,
}

/// Serves requests.
///
/// # Errors
/// The socket does not exist or is not usable.
pub fn run(args: &Args) -> Result<(), Failure> {
    let (listener, stays): (UnixListener, bool) = match &args.socket {
        Some(path) => {
            let failed = |error: socket::Error| Failure::described(&error);
            (socket::listen_unless_served(path).map_err(failed)?, true)
        }
        None => match broker::listener() {
            Some(listener) => (listener, false),
            None => {
                let text = "no socket was passed to the network broker";
                let hint =
                    "`qvm-network.socket` starts it; without systemd: `qvm network-broker SOCKET`";
                return Err(Failure::new(ErrorCode::Usage, text).hint(hint.to_owned()));
            }
        },
    };
    broker::lend(&listener, stays)
        .map_err(|error| Failure::from_io("cannot serve requests", &error).exit(exit::FAILED))
}
