//! The command line: its words, and which verb they mean.

mod args;
mod complete;
mod dirs;
pub mod edited;
pub mod exit;
mod given;
mod help;
mod run_line;
mod settings;
pub mod table;
pub mod verb;
mod verbs;

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use clap::CommandFactory;

use self::{exit::Failure, table::Screen, verb::exec_stop_post::Ended};
use crate::{
    doctor::collect,
    image::{self, qemu_img::QemuImg},
    spec::{self, Vm},
    store::layout::Layout,
    supervisor::settings::Settings,
    sys::{progress, user_runtime_dir},
    systemd::unit::Scope,
    value::Explain,
};

pub use self::args::Cli;
pub use self::complete::complete;
pub use self::dirs::{Dirs, layout};
use self::dirs::{dir, system};
pub use self::given::Given;
use self::settings::{config_home, means, settings};
use self::verbs::Verb;

impl Cli {
    /// What is done at once, before there is anything that it could wait for, and needs no place of its own; `None` for
    /// other verbs.
    pub fn at_once(&self, given: &Given<'_>) -> Option<Result<(), Failure>> {
        match &self.verb {
            Verb::Generate(args) => {
                generate(args, &self.dirs, given);
                Some(Ok(()))
            }
            Verb::Completions(args) => Some(verb::completions::run(args)),
            Verb::Man(args) => Some(verb::man::run(args, Self::command())),
            _ => None,
        }
    }
}

/// Does what the command line says.
///
/// # Errors
/// As the verb.
pub async fn run(cli: Cli, given: &Given<'_>) -> Result<(), Failure> {
    if let Some(done) = cli.at_once(given) {
        return done;
    }
    let dirs = cli.dirs.or(given.env).absolute(given.cwd)?;
    // Without a current directory a relative path stays relative, and the kernel refuses it.
    let cwd = given.cwd.unwrap_or(Path::new(""));
    let layout = layout(given.uid, &dirs, given.env, &user_runtime_dir::directory)?;
    let manager = manager(given, &dirs, &layout);
    let screen = Screen::of(&io::stdout(), given.env);
    // Each on the heap, as large as it is: what the largest of them would need stays out of a supervisor.
    match cli.verb {
        Verb::List(args) => {
            let proc = Path::new("/proc");
            let how = verb::list::Shown { now: jiff::Timestamp::now, screen, proc };
            Box::pin(verb::list::run(&args, &layout, &how)).await
        }
        Verb::Status(args) => {
            let zone = jiff::tz::TimeZone::system();
            let clock = verb::status::Clock { now: given.now, zone, screen };
            Box::pin(verb::status::run(&args, &layout, &clock, Path::new("/proc"))).await
        }
        Verb::Start(args) => Box::pin(verb::start::run(&args, &layout, given.exe, manager)).await,
        Verb::Stop(args) => Box::pin(verb::stop::run(&args, &layout)).await,
        Verb::Restart(args) => {
            Box::pin(verb::restart::run(&args, &layout, given.exe, manager)).await
        }
        Verb::Reboot(args) => Box::pin(verb::reboot::run(&args, &layout)).await,
        Verb::Kill(args) => {
            let settings = |name| crate::cli::settings::settings(name, layout.clone(), given);
            Box::pin(verb::kill::run(&args, &layout, &settings)).await
        }
        Verb::Pause(args) => Box::pin(verb::pause::run(&args, &layout)).await,
        Verb::Screenshot(args) => Box::pin(verb::screenshot::run(&args, &layout)).await,
        Verb::Vnc(args) => Box::pin(verb::vnc::run(&args, &layout)).await,
        Verb::Type(args) => Box::pin(verb::type_text::run(&args, &layout)).await,
        Verb::Sendkey(args) => Box::pin(verb::sendkey::run(&args, &layout)).await,
        Verb::Ip(args) => Box::pin(verb::ip::run(&args, &layout)).await,
        Verb::Ssh(args) => Box::pin(verb::ssh::run(&args, &layout)).await,
        Verb::Wait(args) => Box::pin(verb::wait::run(&args, &layout)).await,
        Verb::Diff(args) => Box::pin(verb::diff::run(&args, &layout)).await,
        Verb::Seed(args) => {
            let settings = settings(args.name.clone(), layout, given);
            verb::seed::run(&args, &settings, &mut io::stdout().lock())
        }
        Verb::Suspend(args) => Box::pin(verb::suspend::run(&args, &layout)).await,
        Verb::Resume(args) => Box::pin(verb::resume::run(&args, &layout)).await,
        Verb::Apply(args) => Box::pin(verb::apply::run(&args, &layout, given.exe, manager)).await,
        Verb::Console(args) => Box::pin(verb::console::run(&args, &layout)).await,
        Verb::Log(args) => {
            Box::pin(verb::log::run(&args, &layout, jiff::tz::TimeZone::system())).await
        }
        Verb::Events(args) => {
            Box::pin(verb::events::run(&args, &layout, jiff::tz::TimeZone::system())).await
        }
        Verb::Top(args) => {
            let (proc, colours) = (Path::new("/proc"), screen.colours);
            let within = verb::top::Within { layout: &layout, proc, exe: given.exe, colours };
            Box::pin(verb::top::run(&args, &within)).await
        }
        Verb::Metrics(args) => {
            Box::pin(verb::metrics::run(&args, &layout, Path::new("/proc"))).await
        }
        Verb::Exec(args) => Box::pin(verb::exec::run(&args, &layout)).await,
        Verb::Cp(args) => Box::pin(verb::cp::run(&args, &layout, given.terminal)).await,
        Verb::Fsfreeze(args) => Box::pin(verb::fsfreeze::run(&args, &layout)).await,
        Verb::New(args) => {
            verb::new::run(&args, &layout, dir(given.env, "HOME").as_deref(), screen)
        }
        Verb::Edit(args) => {
            let said = |key: &str| (given.env)(key).filter(|editor| !editor.is_empty());
            let editor = said("VISUAL").or_else(|| said("EDITOR")).unwrap_or_else(|| "vi".into());
            Box::pin(verb::edit::run(&args, &layout, &editor)).await
        }
        Verb::Check(args) => {
            let (mut out, mut err) = (io::stdout().lock(), io::stderr().lock());
            match verb::check::run(&args, &layout, &mut out, &mut err) {
                0 => Ok(()),
                code => Err(Failure::quiet(code)),
            }
        }
        Verb::Doctor(args) => {
            let (qemu, path) = ((given.env)("QVM_QEMU"), (given.env)("PATH"));
            let config_home = config_home(given);
            let from = collect::Sources {
                layout: &layout,
                root: &args.root,
                qemu: qemu.as_deref(),
                search_path: path.as_deref(),
                config_home: config_home.as_deref(),
                manager,
            };
            Box::pin(verb::doctor::run(&args, &from, screen)).await
        }
        Verb::Plan(args) => {
            let settings = settings(args.name, layout, given);
            verb::plan::run(&settings, &mut io::stdout().lock())
        }
        Verb::Reseed(args) => {
            Box::pin(verb::reseed::run(&settings(args.name, layout, given))).await
        }
        Verb::Run(args) => {
            let settings = settings(args.name, layout, given);
            let scope = if given.uid == 0 { Scope::System } else { Scope::User };
            // By the path that it was started by: a link there may lead to a newer program by then.
            let started = given.arguments.first().map(Path::new).filter(|path| path.is_absolute());
            let program = started.unwrap_or(given.exe);
            Box::pin(verb::run::run(settings, program, given.arguments, scope)).await
        }
        Verb::Image(args) => images(&args, &layout, given, screen),
        Verb::Disk(args) => {
            let qemu = (given.env)("QVM_QEMU").filter(|qemu| !qemu.is_empty());
            let (qemu, sys) = (qemu.as_deref(), Path::new("/sys"));
            let within = verb::disk::Within { layout: &layout, qemu, sys, screen };
            Box::pin(verb::disk::run(&args, &within)).await
        }
        Verb::Rename(args) => Box::pin(verb::rename::run(&args, &layout, manager)).await,
        Verb::Clone(args) => {
            let means = means(layout);
            Box::pin(verb::clone::run(&args, means, given.exe, manager, given.terminal)).await
        }
        Verb::Export(args) => {
            Box::pin(verb::export::run(&args, &layout, cwd, given.now, given.terminal)).await
        }
        Verb::Import(args) => {
            let means = means(layout);
            Box::pin(verb::import::run(&args, means, cwd, manager, given.terminal)).await
        }
        Verb::Rm(args) => Box::pin(verb::rm::run(&args, &layout)).await,
        Verb::Gc(args) => {
            // Not of this verb's own unit, where it has one.
            let settings =
                |name| Settings { env: |_| None, ..settings(name, layout.clone(), given) };
            Box::pin(verb::gc::run(&args, &layout, given.now, &settings)).await
        }
        Verb::ExecStopPost(args) => {
            // The unit's cgroup is systemd's; but it listens to its main process alone, which this is not.
            let env = |key: &str| (key == "SYSTEMD_EXEC_PID").then(|| std::env::var(key).ok())?;
            let settings = Settings { env, ..settings(args.name.clone(), layout, given) };
            let scope = if given.uid == 0 { Scope::System } else { Scope::User };
            Box::pin(verb::exec_stop_post::run(
                &args,
                settings,
                Ended::read(given.env),
                scope,
                given.exe,
            ))
            .await
        }
        Verb::NetworkBroker(args) => verb::network_broker::run(&args),
        // Done at once.
        Verb::Generate(_) | Verb::Completions(_) | Verb::Man(_) => Ok(()),
    }
}

/// A generator that fails would be reported without its reason: what is wrong is logged, and no more.
fn generate(args: &verb::generate::Args, dirs: &Dirs, given: &Given<'_>) {
    let mut err = io::stderr();
    let dirs = match dirs.clone().or(given.env).absolute(given.cwd) {
        Ok(dirs) => dirs,
        Err(failure) => return drop(writeln!(err, "{failure}")),
    };
    // Set since systemd 251.
    let scope = match (given.env)("SYSTEMD_SCOPE") {
        Some(scope) if scope == "user" => Scope::User,
        Some(scope) if scope == "system" => Scope::System,
        _ if given.uid == 0 => Scope::System,
        _ => Scope::User,
    };
    match layout(given.uid, &dirs, given.env, &user_runtime_dir::directory) {
        // root's own manager: the VMs that root would find are the host's, and the system's manager has them already.
        Ok(layout) if scope == Scope::User && layout == system() => {}
        Ok(layout) => {
            let kernel_log = given.by_init.then_some(Path::new("/dev/kmsg"));
            let (exe, err, layout) = (given.exe, &mut err, &layout);
            let mut within = verb::generate::Within { layout, scope, exe, kernel_log, err };
            verb::generate::run(args, &mut within);
        }
        Err(failure) => drop(writeln!(err, "{failure}")),
    }
}

fn images(
    args: &verb::image::Args,
    layout: &Layout,
    given: &Given<'_>,
    screen: Screen,
) -> Result<(), Failure> {
    let (mut vms, mut invalid): (Vec<Vm>, Vec<PathBuf>) = (vec![], vec![]);
    for (file, vm) in spec::load_all(&layout.vm_files()) {
        match vm {
            Ok(vm) => vms.push(vm),
            Err(_) => invalid.push(file),
        }
    }
    let tools = image::Tools {
        qemu_img: QemuImg::new("qemu-img"),
        patience: image::Patience::default(),
        now: given.now,
    };
    let mut within = verb::image::Within {
        layout,
        vms: &vms,
        invalid: &invalid,
        tools: &tools,
        progress: &mut progress::TerminalProgress::new(given.terminal),
        cancel: &progress::Cancel::default(),
        out: &mut io::stdout().lock(),
        screen,
    };
    verb::image::image(args, &mut within).map_err(|error| match &error {
        verb::image::Error::Out(error) => Failure::output(error),
        error @ verb::image::Error::UnknownVm { .. } => Failure::explained(error),
        error => Failure::of(error).hint(error.hint()),
    })
}

/// The systemd whose units look for VMs where `layout` does.
fn manager(given: &Given<'_>, dirs: &Dirs, layout: &Layout) -> Option<Scope> {
    let env = |key| dir(given.env, key);
    if !given.systemd {
        None
    } else if given.uid == 0 {
        (*layout == system()).then_some(Scope::System)
    } else {
        // Variables of this shell alone are not known to the user's manager.
        let usual = *dirs == Dirs::default()
            && env("XDG_CONFIG_HOME").is_none()
            && env("XDG_DATA_HOME").is_none();
        let runtime = env("XDG_RUNTIME_DIR").or_else(|| user_runtime_dir::directory(given.uid))?;
        let private = runtime.join("systemd/private");
        (usual && private.exists()).then_some(Scope::User)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clap_is_content() {
        Cli::command().debug_assert();
    }

    /// Loaded units and NixOS configurations of earlier versions call these names.
    #[test]
    fn hidden_verbs_keep_their_old_names() {
        for (words, name) in [
            (&["lend"][..], "network-broker"),
            (&["network-broker", "/run/x"], "network-broker"),
            (&["reap", "web"], "exec-stop-post"),
            (&["reap", "--probe", "web"], "exec-stop-post"),
            (&["exec-stop-post", "web", "--guard", "1"], "exec-stop-post"),
        ] {
            let words =
                std::iter::once("qvm").chain(words.iter().copied()).map(std::ffi::OsString::from);
            let verb = match Cli::read(words).unwrap().verb {
                Verb::NetworkBroker(_) => "network-broker",
                Verb::ExecStopPost(_) => "exec-stop-post",
                _ => "another",
            };
            assert_eq!(verb, name);
        }
    }

    #[test]
    fn what_was_written_is_repeated_without_control_characters() {
        for words in
            [&["stop", "a\nb\u{1b}[2J"][..], &["st\nop"], &["--a\nb"], &["list", "--\u{1b}"]]
        {
            let words =
                std::iter::once("qvm").chain(words.iter().copied()).map(std::ffi::OsString::from);
            let said = Cli::read(words).unwrap_err().to_string();
            assert!(!said.contains('\u{1b}') && !said.contains("\nb"), "{said:?}");
            assert!(said.contains("\\n") || said.contains("\\u{1b}"), "{said:?}");
        }
    }
}
