//! The command line: arguments, and the dispatch to verbs.

mod args;
mod complete;
mod dirs;
pub mod edited;
pub mod exit;
mod help;
mod invocation;
mod run_line;
mod settings;
pub mod table;
pub mod verb;
mod verbs;

use std::{
    io::{self, Write},
    path::Path,
    pin::Pin,
};

use clap::CommandFactory;

use self::{exit::Failure, table::Screen, verb::exec_stop_post::Ended};
use crate::{
    doctor::collect,
    image::{self, qemu_img::QemuImg},
    spec,
    store::layout::Layout,
    supervisor::settings::Settings,
    sys::{progress, user_runtime_dir},
    systemd::unit::Scope,
};

pub use self::args::Cli;
pub use self::complete::complete;
pub use self::dirs::{Dirs, layout};
use self::dirs::{dir, system};
pub use self::invocation::Invocation;
pub use self::run_line::recognize_run;
use self::settings::{config_home, identity_source, settings};
use self::verbs::Verb;

impl Cli {
    /// Runs a verb that needs neither the event loop nor directories; `None` for other verbs.
    pub fn at_once(&self, invocation: &Invocation<'_>) -> Option<Result<(), Failure>> {
        match &self.verb {
            Verb::Generate(args) => {
                generate(args, &self.dirs, invocation);
                Some(Ok(()))
            }
            Verb::Completions(args) => Some(verb::completions::run(args)),
            Verb::Man(args) => Some(verb::man::run(args, Self::command())),
            _ => None,
        }
    }
}

/// Runs the verb of the command line. The futures are on the heap, and that of a supervisor is not
/// part of the others': the stack of a future is in use for as long as the future runs.
///
/// # Errors
/// Those of the verb.
pub fn run<'a>(
    cli: Cli,
    invocation: &'a Invocation<'a>,
) -> Pin<Box<dyn Future<Output = Result<(), Failure>> + 'a>> {
    match cli.verb {
        Verb::Run(args) => Box::pin(supervise(args, cli.dirs, invocation)),
        _ => Box::pin(run_verb(cli, invocation)),
    }
}

/// Runs the supervisor of a VM.
async fn supervise(
    args: verb::run::Args,
    dirs: Dirs,
    invocation: &Invocation<'_>,
) -> Result<(), Failure> {
    let dirs = dirs.or(invocation.env).absolute(invocation.cwd)?;
    let layout = layout(invocation.uid, &dirs, invocation.env, &user_runtime_dir::directory)?;
    let settings = settings(args.name, layout, invocation);
    let scope = if invocation.uid == 0 { Scope::System } else { Scope::User };
    // The path at the time of the start: a symbolic link may resolve to a newer program later.
    let started = invocation.arguments.first().map(Path::new).filter(|path| path.is_absolute());
    let program = started.unwrap_or(invocation.exe);
    verb::run::run(settings, program, invocation.arguments, scope).await
}

async fn run_verb(cli: Cli, invocation: &Invocation<'_>) -> Result<(), Failure> {
    if let Some(done) = cli.at_once(invocation) {
        return done;
    }
    let dirs = cli.dirs.or(invocation.env).absolute(invocation.cwd)?;
    // Without a current directory, relative paths stay relative and fail with ENOENT.
    let cwd = invocation.cwd.unwrap_or(Path::new(""));
    let layout = layout(invocation.uid, &dirs, invocation.env, &user_runtime_dir::directory)?;
    let manager = manager(invocation, &dirs, &layout);
    let screen = Screen::detect(&io::stdout(), invocation.env);
    // Each future is boxed: the size of the largest one would otherwise count in every supervisor.
    match cli.verb {
        Verb::List(args) => {
            let proc = Path::new("/proc");
            let how = verb::list::Shown { now: jiff::Timestamp::now, screen, proc };
            Box::pin(verb::list::run(&args, &layout, &how)).await
        }
        Verb::Status(args) => {
            let zone = jiff::tz::TimeZone::system();
            let clock = verb::status::Clock { now: invocation.now, zone, screen };
            Box::pin(verb::status::run(&args, &layout, &clock, Path::new("/proc"))).await
        }
        Verb::Start(args) => {
            Box::pin(verb::start::run(&args, &layout, invocation.exe, manager)).await
        }
        Verb::Stop(args) => Box::pin(verb::stop::run(&args, &layout)).await,
        Verb::Restart(args) => {
            Box::pin(verb::restart::run(&args, &layout, invocation.exe, manager)).await
        }
        Verb::Reboot(args) => Box::pin(verb::reboot::run(&args, &layout)).await,
        Verb::Kill(args) => {
            let settings = |name| crate::cli::settings::settings(name, layout.clone(), invocation);
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
            let settings = settings(args.name.clone(), layout, invocation);
            verb::seed::run(&args, &settings, &mut io::stdout().lock())
        }
        Verb::Suspend(args) => Box::pin(verb::suspend::run(&args, &layout)).await,
        Verb::Resume(args) => Box::pin(verb::resume::run(&args, &layout)).await,
        Verb::Apply(args) => {
            Box::pin(verb::apply::run(&args, &layout, invocation.exe, manager)).await
        }
        Verb::Console(args) => Box::pin(verb::console::run(&args, &layout)).await,
        Verb::Log(args) => {
            Box::pin(verb::log::run(&args, &layout, jiff::tz::TimeZone::system())).await
        }
        Verb::Events(args) => {
            Box::pin(verb::events::run(&args, &layout, jiff::tz::TimeZone::system())).await
        }
        Verb::Top(args) => {
            let (proc, colours) = (Path::new("/proc"), screen.colours);
            let context =
                verb::top::Context { layout: &layout, proc, exe: invocation.exe, colours };
            Box::pin(verb::top::run(&args, &context)).await
        }
        Verb::Metrics(args) => {
            Box::pin(verb::metrics::run(&args, &layout, Path::new("/proc"))).await
        }
        Verb::Exec(args) => Box::pin(verb::exec::run(&args, &layout)).await,
        Verb::Cp(args) => Box::pin(verb::cp::run(&args, &layout, invocation.terminal)).await,
        Verb::Fsfreeze(args) => Box::pin(verb::fsfreeze::run(&args, &layout)).await,
        Verb::New(args) => {
            verb::new::run(&args, &layout, dir(invocation.env, "HOME").as_deref(), screen)
        }
        Verb::Edit(args) => {
            let variable = |key: &str| (invocation.env)(key).filter(|editor| !editor.is_empty());
            let editor =
                variable("VISUAL").or_else(|| variable("EDITOR")).unwrap_or_else(|| "vi".into());
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
            let (qemu, path) = ((invocation.env)("QVM_QEMU"), (invocation.env)("PATH"));
            let config_home = config_home(invocation);
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
            let settings = settings(args.name, layout, invocation);
            verb::plan::run(&settings, &mut io::stdout().lock())
        }
        Verb::Reseed(args) => {
            Box::pin(verb::reseed::run(&settings(args.name, layout, invocation))).await
        }
        Verb::Image(args) => images(&args, &layout, invocation, screen),
        Verb::Disk(args) => {
            let qemu = (invocation.env)("QVM_QEMU").filter(|qemu| !qemu.is_empty());
            let (qemu, sys) = (qemu.as_deref(), Path::new("/sys"));
            let context = verb::disk::Context { layout: &layout, qemu, sys, screen };
            Box::pin(verb::disk::run(&args, &context)).await
        }
        Verb::Snapshot(args) => {
            let qemu = (invocation.env)("QVM_QEMU").filter(|qemu| !qemu.is_empty());
            let context = verb::snapshot::Context {
                layout: &layout,
                qemu: qemu.as_deref(),
                exe: invocation.exe,
                manager,
                now: invocation.now,
                screen,
                terminal: invocation.terminal,
            };
            Box::pin(verb::snapshot::run(&args, &context)).await
        }
        Verb::Rename(args) => Box::pin(verb::rename::run(&args, &layout, manager)).await,
        Verb::Clone(args) => {
            let identity_source = identity_source(layout);
            Box::pin(verb::clone::run(
                &args,
                identity_source,
                invocation.exe,
                manager,
                invocation.terminal,
            ))
            .await
        }
        Verb::Export(args) => {
            Box::pin(verb::export::run(&args, &layout, cwd, invocation.now, invocation.terminal))
                .await
        }
        Verb::Import(args) => {
            let identity_source = identity_source(layout);
            Box::pin(verb::import::run(&args, identity_source, cwd, manager, invocation.terminal))
                .await
        }
        Verb::Rm(args) => Box::pin(verb::rm::run(&args, &layout)).await,
        Verb::Gc(args) => {
            // The environment of this process' own unit does not apply to the VM.
            let settings =
                |name| Settings { env: |_| None, ..settings(name, layout.clone(), invocation) };
            Box::pin(verb::gc::run(&args, &layout, invocation.now, &settings)).await
        }
        Verb::ExecStopPost(args) => {
            // systemd owns the cgroup of the unit, but accepts notifications of its main process
            // only.
            let env = |key: &str| (key == "SYSTEMD_EXEC_PID").then(|| std::env::var(key).ok())?;
            let settings = Settings { env, ..settings(args.name.clone(), layout, invocation) };
            let scope = if invocation.uid == 0 { Scope::System } else { Scope::User };
            Box::pin(verb::exec_stop_post::run(
                &args,
                settings,
                Ended::from_environment(invocation.env),
                scope,
                invocation.exe,
            ))
            .await
        }
        Verb::NetworkBroker(args) => verb::network_broker::run(&args),
        // Handled by `at_once`.
        Verb::Run(_) | Verb::Generate(_) | Verb::Completions(_) | Verb::Man(_) => Ok(()),
    }
}

/// systemd reports a failed generator without the reason, so errors are logged and not returned.
fn generate(args: &verb::generate::Args, dirs: &Dirs, invocation: &Invocation<'_>) {
    let mut err = io::stderr();
    let dirs = match dirs.clone().or(invocation.env).absolute(invocation.cwd) {
        Ok(dirs) => dirs,
        Err(failure) => return drop(writeln!(err, "{failure}")),
    };
    // Set since systemd 251.
    let scope = match (invocation.env)("SYSTEMD_SCOPE") {
        Some(scope) if scope == "user" => Scope::User,
        Some(scope) if scope == "system" => Scope::System,
        _ if invocation.uid == 0 => Scope::System,
        _ => Scope::User,
    };
    match layout(invocation.uid, &dirs, invocation.env, &user_runtime_dir::directory) {
        // The user manager of root: the system manager has these VMs already.
        Ok(layout) if scope == Scope::User && layout == system() => {}
        Ok(layout) => {
            let kernel_log = invocation.by_init.then_some(Path::new("/dev/kmsg"));
            let (exe, err, layout) = (invocation.exe, &mut err, &layout);
            let mut context = verb::generate::Context { layout, scope, exe, kernel_log, err };
            verb::generate::run(args, &mut context);
        }
        Err(failure) => drop(writeln!(err, "{failure}")),
    }
}

fn images(
    args: &verb::image::Args,
    layout: &Layout,
    invocation: &Invocation<'_>,
    screen: Screen,
) -> Result<(), Failure> {
    let (mut vms, mut invalid) = (vec![], vec![]);
    for (file, vm) in spec::load_all(&layout.vm_files()) {
        match vm {
            Ok(vm) => vms.push(vm),
            Err(problems) => invalid.push((file, problems)),
        }
    }
    let tools = image::Tools {
        qemu_img: QemuImg::new("qemu-img"),
        patience: image::Patience::default(),
        now: invocation.now,
    };
    let mut context = verb::image::Context {
        layout,
        vms: &vms,
        invalid: &invalid,
        tools: &tools,
        progress: &mut progress::TerminalProgress::new(invocation.terminal),
        cancel: &progress::Cancel::default(),
        out: &mut io::stdout().lock(),
        screen,
    };
    verb::image::image(args, &mut context).map_err(|error| match &error {
        verb::image::Error::Out(error) => Failure::output(error),
        error => Failure::explained(error),
    })
}

/// Returns the systemd manager whose units use the directories of `layout`.
fn manager(invocation: &Invocation<'_>, dirs: &Dirs, layout: &Layout) -> Option<Scope> {
    let env = |key| dir(invocation.env, key);
    if !invocation.systemd {
        None
    } else if invocation.uid == 0 {
        (*layout == system()).then_some(Scope::System)
    } else {
        // The user manager does not know variables of this shell.
        let usual = *dirs == Dirs::default()
            && env("XDG_CONFIG_HOME").is_none()
            && env("XDG_DATA_HOME").is_none();
        let runtime =
            env("XDG_RUNTIME_DIR").or_else(|| user_runtime_dir::directory(invocation.uid))?;
        let private = runtime.join("systemd/private");
        (usual && private.exists()).then_some(Scope::User)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_valid_for_clap() {
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
            let verb = match Cli::from_arguments(words).unwrap().verb {
                Verb::NetworkBroker(_) => "network-broker",
                Verb::ExecStopPost(_) => "exec-stop-post",
                _ => "another",
            };
            assert_eq!(verb, name);
        }
    }

    #[test]
    fn arguments_in_errors_are_escaped() {
        for words in
            [&["stop", "a\nb\u{1b}[2J"][..], &["st\nop"], &["--a\nb"], &["list", "--\u{1b}"]]
        {
            let words =
                std::iter::once("qvm").chain(words.iter().copied()).map(std::ffi::OsString::from);
            let variable = Cli::from_arguments(words).unwrap_err().to_string();
            assert!(!variable.contains('\u{1b}') && !variable.contains("\nb"), "{variable:?}");
            assert!(variable.contains("\\n") || variable.contains("\\u{1b}"), "{variable:?}");
        }
    }
}
