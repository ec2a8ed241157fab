//! `qvm`: parse the command line, run the verb, print the error chain, exit with the code.

use std::{
    env,
    io::{self, IsTerminal, Write},
    path::Path,
    process::ExitCode,
};

use qvm::{
    cli::{
        self, Cli, Invocation,
        exit::{self, Failure},
        table::Screen,
    },
    sys::memory,
    systemd::journal,
    value::ErrorCode,
};
use tracing::Level;
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    fmt,
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

// SIGPIPE stays ignored, as by Rust's runtime: a closed pipe is a write error without a message.
fn main() -> ExitCode {
    memory::use_one_heap();
    let arguments: Vec<_> = env::args_os().collect();
    // A completion request of a shell: it shows no messages.
    match complete(&arguments) {
        Ok(false) => {}
        Ok(true) => return ExitCode::SUCCESS,
        Err(_) => return ExitCode::FAILURE,
    }
    let cli = read(arguments).unwrap_or_else(|error| exit_with_usage(&error));
    if cli.is_supervisor() {
        // Each file is created with an explicit mode; a stricter umask would exclude the group.
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    }
    let in_journal = journal::is_standard_error(env::var_os("JOURNAL_STREAM").as_deref());
    log(cli.verbose + u8::from(cli.is_supervisor()), cli.quiet, in_journal);
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let screen = Screen::detect(&io::stderr(), &|key| env::var_os(key));
            let hint = cwd_hint(&env::args_os().collect::<Vec<_>>());
            let (failure, hint) = match (failure.code(), hint) {
                (Some(_), Some(hint)) => (failure.or_hint(hint), None),
                (_, hint) => (failure, hint),
            };
            let text = match (failure.shown(screen), in_journal) {
                (text, false) if !text.is_empty() => format!("{text}\n"),
                (text, true) => journal::prioritised(&text, Level::ERROR),
                (text, false) => text,
            };
            let hint = hint.map_or_else(String::new, |hint| format!("hint: {hint}\n"));
            let text = text + &hint;
            // Without standard error only the exit code remains. `eprint!` is not used: a thread
            // that is blocked by a stopped terminal may hold its lock.
            if !text.is_empty() {
                let _ = io::stderr().write_all(text.as_bytes());
            }
            ExitCode::from(failure.exit_code())
        }
    }
}

/// Prints an error of the command line with its code, or the help that was asked for, and exits.
fn exit_with_usage(error: &clap::Error) -> ! {
    let _ = error.print();
    if error.use_stderr() {
        let _ = writeln!(io::stderr(), "code: {}", ErrorCode::Usage);
    }
    std::process::exit(error.exit_code())
}

/// Returns a hint if an argument is a relative path and the current directory does not
/// exist: each system call then fails with "not found".
fn cwd_hint(arguments: &[std::ffi::OsString]) -> Option<&'static str> {
    let is_relative = |argument: &std::ffi::OsString| {
        let text = argument.to_string_lossy();
        !text.starts_with(['-', '/']) && text.contains(['.', '/'])
    };
    let gone = env::current_dir().is_err() && arguments.iter().skip(1).any(is_relative);
    gone.then_some(
        "the current directory does not exist; change to another, or write an absolute path",
    )
}

fn complete(arguments: &[std::ffi::OsString]) -> Result<bool, clap::Error> {
    let uid = rustix::process::geteuid().as_raw();
    let cwd = env::current_dir().unwrap_or_default();
    cli::complete(arguments, uid, &|key| env::var_os(key), &cwd)
}

/// Reads the command line: that of a supervisor without clap, others on a stack of their own.
/// clap's tree of all verbs takes a hundred kilobytes of stack, which a supervisor with other
/// options would keep for as long as it lives.
fn read(arguments: Vec<std::ffi::OsString>) -> Result<Cli, clap::Error> {
    if let Some(cli) = cli::recognize_run(&arguments) {
        return Ok(cli);
    }
    let again = arguments.clone();
    let reading =
        std::thread::Builder::new().name("cli".into()).spawn(|| Cli::from_arguments(arguments));
    match reading.map(std::thread::JoinHandle::join) {
        Ok(Ok(cli)) => cli,
        // No thread can be created, or an assertion of clap failed and is reported again.
        Ok(Err(_)) | Err(_) => Cli::from_arguments(again),
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    // Faults of the host. Exit code 1 of a supervisor would make the unit's ExecStopPost= end the
    // guest.
    let cannot = |what: &str, error: io::Error| {
        Failure::from_io(&format!("cannot {what}"), &error).exit(exit::HOST)
    };
    // The directory may have been removed; only relative paths need it.
    let cwd = env::current_dir().ok();
    let exe = env::current_exe().map_err(|e| cannot("determine the path of this program", e))?;
    let arguments: Vec<_> = env::args_os().collect();
    let invocation = Invocation {
        uid: rustix::process::geteuid().as_raw(),
        cwd: cwd.as_deref(),
        env: &|key| env::var_os(key),
        exe: &exe,
        arguments: &arguments,
        by_init: rustix::process::getppid() == Some(rustix::process::Pid::INIT),
        // As sd_booted(3) has it.
        systemd: Path::new("/run/systemd/system").is_dir(),
        terminal: io::stderr().is_terminal(),
        now: jiff::Timestamp::now(),
    };
    if let Some(done) = cli.at_once(&invocation) {
        return done;
    }
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    // The default reserves 12 KiB for 1024 events. Further ones come with the next poll.
    let runtime = runtime.enable_all().max_io_events_per_tick(64).build();
    let runtime = runtime.map_err(|e| cannot("create the event loop", e))?;
    let done = runtime.block_on(cli::run(cli, &invocation));
    // A blocking task, such as one that waits for a hung program, must not delay the exit.
    runtime.shutdown_background();
    done
}

/// Logs to standard error.
fn log(verbose: u8, quiet: bool, in_journal: bool) {
    let level = match (quiet, verbose) {
        (true, _) => LevelFilter::ERROR,
        (false, 0) => LevelFilter::WARN,
        (false, 1) => LevelFilter::INFO,
        (false, _) => LevelFilter::DEBUG,
    };
    let is_set = verbose > 1 || quiet;
    // `warn,qvm=debug`; a filter that cannot be read is none.
    let wanted = env::var("QVM_LOG").ok().filter(|filter| !is_set && !filter.is_empty());
    let filter = wanted.and_then(|filter| filter.parse().ok());
    let filter: Targets = filter.unwrap_or_else(|| Targets::new().with_default(level));
    let log = fmt().with_max_level(LevelFilter::TRACE).with_writer(io::stderr).with_target(false);
    let log = log.with_ansi(false);
    match in_journal {
        true => log.event_format(journal::Lines).finish().with(filter).init(),
        false => log.finish().with(filter).init(),
    }
}
