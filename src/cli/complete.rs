//! Shell completion of `qvm`: verbs, options, names of VMs, images and files.

use std::{
    any::TypeId,
    ffi::{OsStr, OsString},
    path::Path,
};

use clap::{Arg, Command, CommandFactory};
use clap_complete::{
    ArgValueCandidates, ArgValueCompleter, CompleteEnv, CompletionCandidate, PathCompleter,
    engine::ValueCompleter,
    env::{Bash, Fish, Shells, Zsh},
};

use super::verb::completions::VARIABLE;
use super::{
    args::Cli,
    dirs::{Dirs, layout},
};
use crate::{
    fleet::inventory, spec::known, store::layout::Layout, sys::user_runtime_dir, value::VmName,
};

/// Answers a completion request, which a shell makes through the variable [`VARIABLE`].
///
/// # Errors
/// The request is invalid.
pub fn complete(
    arguments: &[OsString],
    uid: u32,
    env: &dyn Fn(&str) -> Option<OsString>,
    cwd: &Path,
) -> Result<bool, clap::Error> {
    let factory = || command(layout_of(arguments, uid, env, cwd));
    CompleteEnv::with_factory(factory)
        .var(VARIABLE)
        .completer("qvm")
        .shells(Shells(&[&Bash, &Zsh, &Fish]))
        .try_complete(arguments.iter().cloned(), Some(cwd))
}

/// Returns the directories of the VMs by the options on the line, the environment and the defaults.
fn layout_of(
    words: &[OsString],
    uid: u32,
    env: &dyn Fn(&str) -> Option<OsString>,
    cwd: &Path,
) -> Option<Layout> {
    let option = |option: &str| {
        words.iter().enumerate().rev().find_map(|(at, word)| {
            let rest = word.to_str()?.strip_prefix(option)?;
            match rest.strip_prefix('=') {
                Some(dir) => Some(dir.into()),
                None if rest.is_empty() => words.get(at + 1).map(Into::into),
                None => None,
            }
        })
    };
    let dirs = Dirs {
        config_dir: option("--config-dir"),
        state_dir: option("--state-dir"),
        runtime_dir: option("--runtime-dir"),
    };
    let dirs = dirs.or(env).absolute(Some(cwd)).ok()?;
    // The names do not depend on the runtime directory.
    let without = || Dirs { runtime_dir: Some("/nonexistent".into()), ..dirs.clone() };
    let of = |dirs: &Dirs| layout(uid, dirs, env, &user_runtime_dir::directory);
    of(&dirs).or_else(|_| of(&without())).ok()
}

/// Returns the command line with completers for the values that clap does not know.
fn command(layout: Option<Layout>) -> Command {
    Cli::command().mut_subcommands(move |verb| chosen(verb, layout.as_ref()))
}

fn chosen(verb: Command, layout: Option<&Layout>) -> Command {
    let name = verb.get_name().to_owned();
    let verb = verb.mut_args(|arg| match (name.as_str(), arg.get_id().as_str()) {
        ("new", "image") => arg.add(ArgValueCandidates::new(images)),
        // The argument is the name of a VM that does not exist yet.
        ("new", _) | ("rename" | "clone", "new") | ("import", "name") => arg,
        ("check", "what") => {
            let layout = layout.cloned();
            arg.add(ArgValueCompleter::new(move |word: &OsStr| {
                let mut found = names(layout.as_ref());
                found.retain(|name| {
                    name.get_value().as_encoded_bytes().starts_with(word.as_encoded_bytes())
                });
                found.extend(PathCompleter::file().complete(word));
                found
            }))
        }
        _ if takes_a_name(&arg) => {
            let layout = layout.cloned();
            arg.add(ArgValueCandidates::new(move || names(layout.as_ref())))
        }
        _ => arg,
    });
    let layout = layout.cloned();
    verb.mut_subcommands(move |verb| chosen(verb, layout.as_ref()))
}

fn takes_a_name(arg: &Arg) -> bool {
    arg.get_value_parser().type_id() == TypeId::of::<VmName>()
}

fn names(layout: Option<&Layout>) -> Vec<CompletionCandidate> {
    let names = layout.map(inventory::names).unwrap_or_default();
    names.iter().map(|name| CompletionCandidate::new(name.as_str())).collect()
}

fn images() -> Vec<CompletionCandidate> {
    let candidate = |image: &known::Known| {
        CompletionCandidate::new(&image.key).help(Some(image.title.clone().into()))
    };
    known::all().iter().map(candidate).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_images_are_completed() {
        let command = command(None);
        let mut count = 0;
        for verb in command.get_subcommands().filter(|verb| verb.get_name() != "new") {
            for arg in verb.get_positionals() {
                let named = arg.get_value_names().into_iter().flatten();
                if !named.into_iter().any(|name| name.split('|').any(|name| name == "NAME")) {
                    continue;
                }
                let chosen = arg.get::<ArgValueCandidates>().is_some();
                let chosen = chosen || arg.get::<ArgValueCompleter>().is_some();
                assert!(chosen, "{} {arg}", verb.get_name());
                count += 1;
            }
        }
        assert!(count > 20, "{count}");
        let new = command.find_subcommand("new").unwrap();
        let chosen: Vec<&str> = new
            .get_arguments()
            .filter(|arg| arg.get::<ArgValueCandidates>().is_some())
            .map(|arg| arg.get_id().as_str())
            .collect();
        assert_eq!(chosen, ["image"]);
        assert_eq!(images().len(), known::all().len());
    }

    #[test]
    fn last_directory_option_wins() {
        let words = ["qvm", "--config-dir", "a", "stop", "--config-dir=b/c", "w"];
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        let none = |_: &str| None;
        let found = layout_of(&words, 0, &none, Path::new("/x")).unwrap();
        assert_eq!(found.config, Path::new("/x/b/c"));
        let home = |key: &str| (key == "HOME").then(|| "/home/u".into());
        let found = layout_of(&[], 1, &home, Path::new("/x")).unwrap();
        assert_eq!(found.config, Path::new("/home/u/.config/qvm"));
        assert!(layout_of(&[], 1, &none, Path::new("/x")).is_none());
    }
}
