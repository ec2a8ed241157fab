//! The varlink interfaces of a supervisor, with their descriptions.

use serde_json::{Value, json};

use super::varlink_error::VarlinkError;

/// The interface of every varlink service.
pub(super) const SERVICE: &str = "org.varlink.service";
/// systemd's interface of a machine.
pub(super) const MACHINE: &str = "io.systemd.MachineInstance";
/// qvm's own interface.
pub(super) const VM: &str = "io.qvm.Vm";

const DESCRIPTIONS: [(&str, &str); 3] = [
    (SERVICE, include_str!("../../docs/org.varlink.service.varlink")),
    (MACHINE, include_str!("../../docs/io.systemd.MachineInstance.varlink")),
    (VM, include_str!("../../docs/io.qvm.Vm.varlink")),
];

/// Returns the reply to `GetInfo`.
pub(super) fn info() -> Value {
    json!({
        "vendor": "qvm",
        "product": "qvm",
        "version": env!("CARGO_PKG_VERSION"),
        "url": "",
        "interfaces": DESCRIPTIONS.map(|(name, _)| name),
    })
}

/// Returns the reply to `GetInterfaceDescription`.
pub(super) fn description(interface: &str) -> Result<Value, VarlinkError> {
    let found = DESCRIPTIONS.iter().find(|(name, _)| *name == interface);
    let (_, text) = found.ok_or_else(|| VarlinkError::no_interface(interface))?;
    Ok(json!({ "description": text }))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use zlink::idl::Interface;

    use super::*;
    use crate::{
        control::types::{End, Pending, Status, TakesEffect},
        value::{Note, NoteCode},
    };

    fn parsed(name: &str) -> Interface<'static> {
        let (_, text) = DESCRIPTIONS.iter().find(|(n, _)| *n == name).unwrap();
        Interface::try_from(*text).unwrap()
    }

    #[test]
    fn descriptions_have_their_interface_names() {
        for (name, _) in DESCRIPTIONS {
            assert_eq!(parsed(name).name().as_str(), name);
        }
    }

    /// Returns the fields of a type, sorted by name.
    fn fields(type_name: &str) -> BTreeSet<String> {
        let vm = parsed(VM);
        let found = vm.custom_types().find(|t| t.name().as_str() == type_name).unwrap();
        let object = found.as_object().unwrap();
        object.fields().map(|field| field.name().to_string()).collect()
    }

    fn keys(value: &impl serde::Serialize) -> BTreeSet<String> {
        serde_json::to_value(value).unwrap().as_object().unwrap().keys().cloned().collect()
    }

    #[test]
    fn replies_match_descriptions() {
        let end = End {
            reason: "stopped".into(),
            at: "2026-01-01T00:00:00Z".into(),
            detail: "x".into(),
            code: Some(crate::value::ErrorCode::NotReady),
            hint: Some("x".into()),
            failed: true,
            console: vec!["x".into()],
        };
        let pending = Pending {
            key: "mem".into(),
            from: None,
            to: None,
            takes_effect: TakesEffect::Live,
            reruns: None,
        };
        let status = Status::of_stopped("web");
        assert_eq!(fields("VmStatus"), keys(&status));
        assert_eq!(fields("End"), keys(&end));
        assert_eq!(fields("Pending"), keys(&pending));
        assert_eq!(fields("Note"), keys(&Note::new(NoteCode::Other, "text")));
    }

    /// Types, methods and errors share one namespace: zlink's parser accepts duplicates, others do
    /// not.
    #[test]
    fn member_names_are_unique() {
        for (interface, _) in DESCRIPTIONS {
            let parsed = parsed(interface);
            let names = parsed.custom_types().map(|t| t.name().to_string());
            let names = names.chain(parsed.methods().map(|m| m.name().to_string()));
            let names = names.chain(parsed.errors().map(|e| e.name().to_string()));
            let mut seen = BTreeSet::new();
            for name in names {
                assert!(seen.insert(name.clone()), "{interface} has two of `{name}`");
            }
        }
    }

    #[test]
    fn unknown_interface_is_reported() {
        assert_eq!(description("io.nobody").unwrap_err(), VarlinkError::no_interface("io.nobody"));
        assert!(description(VM).unwrap()["description"].as_str().unwrap().contains("interface"));
    }
}
