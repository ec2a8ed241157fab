//! The verbs. The comment of each verb is the first sentence of its help.

use clap::Subcommand;

use super::verb;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// List VMs, one per line
    List(verb::list::Args),
    /// Show the detailed status of VMs
    Status(verb::status::Args),
    /// Start VMs and wait until the guests run
    Start(verb::start::Args),
    /// Shut guests down cleanly within a time limit
    Stop(verb::stop::Args),
    /// Stop VMs and start them from the current VM file
    Restart(verb::restart::Args),
    /// Shut guests down cleanly and boot them again; the supervisors stay
    Reboot(verb::reboot::Args),
    /// Force VMs off, like a power cut
    Kill(verb::kill::Args),
    /// Pause the vCPUs of VMs
    Pause(verb::pause::Args),
    /// Resume the vCPUs of paused VMs
    Resume(verb::resume::Args),
    /// Save the state of guests to disk and end; the next start continues from there
    Suspend(verb::suspend::Args),
    /// Read VM files again and apply changes that can be applied live
    #[command(visible_alias = "reload")]
    Apply(verb::apply::Args),
    /// Connect to the serial console; Ctrl-] disconnects
    Console(verb::console::Args),
    /// Print the log of the serial console
    Log(verb::log::Args),
    /// Print the events of VMs
    Events(verb::events::Args),
    /// Show the resource usage of VMs, updated continuously
    Top(verb::top::Args),
    /// Print metrics in the Prometheus text format
    Metrics(verb::metrics::Args),
    /// Run a command in the guest through its agent
    Exec(verb::exec::Args),
    /// Copy a file into or out of the guest through its agent
    Cp(verb::cp::Args),
    /// Freeze the guest's file systems while a backup command runs
    Fsfreeze(verb::fsfreeze::Args),
    /// Print the guest's addresses and their sources
    Ip(verb::ip::Args),
    /// Log in to the guest with ssh
    Ssh(verb::ssh::Args),
    /// Wait until a VM is running, ready or stopped
    Wait(verb::wait::Args),
    /// Save a picture of the guest's screen
    Screenshot(verb::screenshot::Args),
    /// Print the address of the guest's screen, or open a viewer
    Vnc(verb::vnc::Args),
    /// Type text on the guest's keyboard
    Type(verb::type_text::Args),
    /// Press keys on the guest's keyboard
    Sendkey(verb::sendkey::Args),
    /// Compare running VMs with their VM files
    Diff(verb::diff::Args),
    /// Write the VM file of a new VM based on a known image
    New(verb::new::Args),
    /// Edit a VM file; the file is replaced only if the result is valid
    Edit(verb::edit::Args),
    /// Validate VM files without changing anything
    Check(verb::check::Args),
    /// Check the host and all VM files for problems
    Doctor(verb::doctor::Args),
    /// Print the QEMU command line of a VM
    Plan(verb::plan::Args),
    /// Print the cloud-init documents of a VM
    Seed(verb::seed::Args),
    /// Make the guest's next boot a first boot for cloud-init
    Reseed(verb::reseed::Args),
    /// Run the supervisor of a VM in the foreground
    Run(verb::run::Args),
    /// Manage the image cache
    Image(verb::image::Args),
    /// List disks, and check the disks of a stopped VM
    Disk(verb::disk::Args),
    /// Create, list and remove snapshots of disks, and return to them
    Snapshot(verb::snapshot::Args),
    /// Rename a stopped VM
    Rename(verb::rename::Args),
    /// Create a copy of a stopped VM
    Clone(verb::clone::Args),
    /// Write a stopped VM to an archive
    Export(verb::export::Args),
    /// Create a VM from an archive
    Import(verb::import::Args),
    /// Delete the disks of a stopped VM
    Rm(verb::rm::Args),
    /// Stop VMs without a VM file and delete their data
    Gc(verb::gc::Args),
    /// Print the completion script of a shell
    Completions(verb::completions::Args),
    /// Print a manual page or a generated document
    #[command(hide = true)]
    Man(verb::man::Args),
    /// Write unit drop-ins for all VM files; systemd runs this verb as `qvm-generator`
    #[command(hide = true)]
    Generate(verb::generate::Args),
    /// Pass descriptors of the host's network to supervisors in private network namespaces
    #[command(hide = true, alias = "lend")]
    NetworkBroker(verb::network_broker::Args),
    /// Handle the end of a VM's unit; systemd runs this verb as ExecStopPost=
    #[command(hide = true, alias = "reap")]
    ExecStopPost(verb::exec_stop_post::Args),
}
