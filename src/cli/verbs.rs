//! The verbs, each with the sentence that its own help begins with.

use clap::Subcommand;

use super::verb;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Every VM in one line
    List(verb::list::Args),
    /// The whole truth about each VM
    Status(verb::status::Args),
    /// Start VMs; returns when the guests run
    Start(verb::start::Args),
    /// Shut guests down cleanly, within a bound
    Stop(verb::stop::Args),
    /// Stop, then start by the VM file as it is now
    Restart(verb::restart::Args),
    /// Shut guests down cleanly and start them again; the supervisors stay
    Reboot(verb::reboot::Args),
    /// The power cut
    Kill(verb::kill::Args),
    /// Hold the vCPUs
    Pause(verb::pause::Args),
    /// Let them go on
    Resume(verb::resume::Args),
    /// Save the guest's state to the disk and end; the next start goes on from it
    Suspend(verb::suspend::Args),
    /// Re-read VM files and apply what can be applied live
    #[command(visible_alias = "reload")]
    Apply(verb::apply::Args),
    /// The serial console; Ctrl-] leaves
    Console(verb::console::Args),
    /// What the serial console said
    Log(verb::log::Args),
    /// What happens, a JSON object a line
    Events(verb::events::Args),
    /// What VMs use, as it changes
    Top(verb::top::Args),
    /// Everything as Prometheus wants it
    Metrics(verb::metrics::Args),
    /// Run a command in the guest, by its agent
    Exec(verb::exec::Args),
    /// Copy a file into the guest or out of it, by its agent
    Cp(verb::cp::Args),
    /// Hold the guest's file systems still, for a backup
    Fsfreeze(verb::fsfreeze::Args),
    /// The guest's addresses, and who says so
    Ip(verb::ip::Args),
    /// ssh into the guest
    Ssh(verb::ssh::Args),
    /// Return when a VM is running, ready, stopped, …
    Wait(verb::wait::Args),
    /// A picture of the guest's screen
    Screenshot(verb::screenshot::Args),
    /// Where the guest's screen is served
    Vnc(verb::vnc::Args),
    /// Type a text at the guest's keyboard
    Type(verb::type_text::Args),
    /// Press keys at the guest's keyboard
    Sendkey(verb::sendkey::Args),
    /// What runs beside what is written
    Diff(verb::diff::Args),
    /// Write the file of a new VM, around an image that is known
    New(verb::new::Args),
    /// Change a VM file in an editor; it counts only if it is valid
    Edit(verb::edit::Args),
    /// Validate VM files without touching anything
    Check(verb::check::Args),
    /// What of the host and of all VM files is, or will be, trouble
    Doctor(verb::doctor::Args),
    /// Print the QEMU command line
    Plan(verb::plan::Args),
    /// The documents that cloud-init finds in the guest
    Seed(verb::seed::Args),
    /// Have cloud-init take the guest for a new one at its next boot
    Reseed(verb::reseed::Args),
    /// The supervisor, in the foreground
    Run(verb::run::Args),
    /// The image cache
    Image(verb::image::Args),
    /// Give a stopped VM another name
    Rename(verb::rename::Args),
    /// Make a second VM like a stopped one
    Clone(verb::clone::Args),
    /// Write a stopped VM into one file
    Export(verb::export::Args),
    /// Read a VM out of such a file
    Import(verb::import::Args),
    /// Delete the disks of a stopped VM
    Rm(verb::rm::Args),
    /// Stop VMs whose VM file is gone, and delete what is kept of them
    Gc(verb::gc::Args),
    /// What a shell reads to complete command lines of qvm
    Completions(verb::completions::Args),
    /// The manual pages, as roff
    #[command(hide = true)]
    Man(verb::man::Args),
    /// VM files as drop-ins of their units; systemd runs it as `qvm-generator`
    #[command(hide = true)]
    Generate(verb::generate::Args),
    /// Descriptors of the host's network, for supervisors that have one of their own
    #[command(hide = true)]
    Lend(verb::lend::Args),
    /// ExecStopPost= of a VM's unit
    #[command(hide = true)]
    Reap(verb::reap::Args),
}
