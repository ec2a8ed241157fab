//! `qvm --help`: the verbs by what an operator wants, on one screen of 80 columns.

/// What clap fills in.
pub(super) const TEMPLATE: &str = "\
{about}

Usage: qvm [OPTIONS] VERB …        `qvm VERB --help` tells more

Prepare
  new       write a new VM's file        edit      change a VM file, checked
  check     are VM files valid?          plan      the QEMU command line
  seed      cloud-init's documents       image     the image cache
  doctor    trouble, and what to do      completions  for bash, zsh, fish
Run
  start     boot, or go on               stop      clean shutdown, bounded
  restart   stop, then start             reboot    guest down and up again
  kill      the power cut                suspend   save the state and end
  pause     hold the vCPUs               resume    let them go on
  wait      until it is ready, down, …   run       the supervisor itself
See
  list      every VM in one line         status    all about each VM
  log       what the console said        events    what happens
  top       what they use, live          metrics   for Prometheus
Change, remove
  diff      what runs, what is written   apply     do what can be done live
  reseed    cloud-init from the start
  rename    another name                 clone     a second one like it
  export    all of it into a file        import    a VM out of that file
  rm        delete a VM's disks          gc        what no VM file wants
Reach
  console   serial console               exec      a command in the guest
  cp        a file in or out             fsfreeze  hold its disks still
  ip        the guest's addresses        ssh       ssh into the guest
  vnc       where its screen is served   screenshot  a picture of it
  type      a text at its keyboard       sendkey   such as ctrl-alt-delete

Options:
{options}";

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn every_verb_has_its_place_and_the_whole_fits_a_screen() {
        let groups = TEMPLATE.split("\nOptions:").next().unwrap();
        let mut told: Vec<&str> = groups
            .lines()
            .filter(|line| line.starts_with("  "))
            .flat_map(|line| line.split("  ").map(str::trim).filter(|part| !part.is_empty()))
            .step_by(2)
            .collect();
        let mut verbs: Vec<String> = Cli::command()
            .get_subcommands()
            .filter(|verb| !verb.is_hide_set())
            .map(|verb| verb.get_name().to_owned())
            .collect();
        told.sort_unstable();
        verbs.sort_unstable();
        assert_eq!(told, verbs);
        let help = Cli::command().render_help().to_string();
        assert!(help.lines().count() <= 40, "{help}");
        assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
        assert!(groups.lines().all(|line| line.chars().count() <= 79), "{help}");
    }
}
