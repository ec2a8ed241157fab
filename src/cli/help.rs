//! `qvm --help`: all verbs by task, on one screen of 80 columns.

/// The help template for clap.
pub(super) const TEMPLATE: &str = "\
{about}

Usage: qvm [OPTIONS] VERB …        `qvm VERB --help` prints details

Prepare
  new       write a VM file              edit      edit and check a VM file
  check     validate VM files            plan      print the QEMU command line
  seed      print cloud-init documents   image     manage the image cache
  doctor    find problems of the host    completions  for bash, zsh, fish
Run
  start     boot, or continue            stop      shut down within a limit
  restart   stop, then start             reboot    reboot with pending changes
  kill      force off                    suspend   save the state and end
  pause     pause the vCPUs              resume    resume the vCPUs
  wait      wait for a condition         run       run a supervisor
Inspect
  list      list VMs                     status    show details of VMs
  log       print the console log        events    print events
  top       show resource usage          metrics   print Prometheus metrics
Change, remove
  diff      show pending changes         apply     apply live changes
  reseed    run cloud-init again       disk      list and check disks
  snapshot  keep and restore disks       rename  rename a VM  clone  copy a VM
  export    write a VM to an archive     import    read a VM from an archive
  rm        delete the disks of a VM     gc        remove VMs without VM file
Access
  console   open the serial console      exec      run a command in the guest
  cp        copy a file in or out        fsfreeze  freeze file systems
  ip        print addresses              ssh       log in with ssh
  vnc       show or open the screen      screenshot  save a picture
  type      type text                    sendkey   press keys

Options:
{options}";

/// Returns the groups of the template with their verbs.
pub(super) fn groups() -> Vec<(&'static str, Vec<&'static str>)> {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    let body = TEMPLATE.split("\n\n").skip(2).take_while(|part| !part.starts_with("Options:"));
    for line in body.flat_map(str::lines) {
        match (line.strip_prefix("  "), groups.last_mut()) {
            (None, _) => groups.push((line, Vec::new())),
            (Some(line), Some((_, verbs))) => {
                let cells = line.split("  ").map(str::trim).filter(|cell| !cell.is_empty());
                verbs.extend(cells.step_by(2));
            }
            (Some(_), None) => {}
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn template_lists_all_verbs_on_one_screen() {
        let mut listed: Vec<&str> = groups().into_iter().flat_map(|(_, verbs)| verbs).collect();
        let mut verbs: Vec<String> = Cli::command()
            .get_subcommands()
            .filter(|verb| !verb.is_hide_set())
            .map(|verb| verb.get_name().to_owned())
            .collect();
        listed.sort_unstable();
        verbs.sort_unstable();
        assert_eq!(listed, verbs);
        assert_eq!(groups().len(), 5);
        let help = Cli::command().render_help().to_string();
        assert!(help.lines().count() <= 40, "{help}");
        assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
        let body = TEMPLATE.split("\nOptions:").next().unwrap();
        assert!(body.lines().all(|line| line.chars().count() <= 79), "{body}");
    }
}
