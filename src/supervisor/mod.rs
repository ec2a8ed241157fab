//! The supervisor of one VM: one loop and one QEMU process.

pub(crate) mod actions;
pub(crate) mod config;
pub(crate) mod context;
pub(crate) mod dispatch;
pub(crate) mod effects;
pub mod error;
pub(crate) mod file_reading;
pub(crate) mod history;
pub(crate) mod input;
pub(crate) mod limits;
pub(crate) mod machined;
pub(crate) mod operators;
pub mod outcome;
pub(crate) mod qemu_events;
pub(crate) mod refusal;
pub(crate) mod reload;
pub(crate) mod requests;
pub mod running;
pub mod settings;
pub(crate) mod shutdown;
pub mod start;
pub(crate) mod start_events;
pub(crate) mod status;
pub mod supervise;

use self::{
    config::Config,
    context::Context,
    effects::Effects,
    file_reading::FileReader,
    history::History,
    input::Input,
    machined::Registration,
    running::{RunningVm, console::Console, resources::HostShare},
    start::Start,
};
use crate::{life::Life, sys::tasks::Reporters};

/// The supervisor of one VM, from its start to its end.
pub(crate) struct Supervisor {
    ctx: Context,
    /// The tasks of the supervisor, whose results are inputs of the loop.
    tasks: Reporters<Input>,
    life: Life,
    config: Config,
    files: FileReader,
    /// The running start; `None` afterwards.
    start: Option<Start>,
    /// The QEMU process and its components.
    vm: Option<RunningVm>,
    console: Console,
    /// Pending control requests.
    effects: Effects,
    host_share: HostShare,
    registration: Registration,
    history: History,
}

#[cfg(test)]
mod tests;
