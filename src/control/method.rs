//! The method and parameters of a call, parsed, or the error in them.

use std::time::Duration;

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::{
    interface::{MACHINE, SERVICE, VM},
    types::{Command, SnapshotToCreate},
    varlink_error::VarlinkError,
};
use crate::value::keyboard::Chord;

/// The default limit of a command in the guest, in seconds.
const EXEC_LIMIT: u32 = 60;
/// The default limit of a guest agent command, in seconds.
const AGENT_LIMIT: u32 = 10;
const MAX_AGENT_LIMIT: u32 = 600;
/// The longest time that file systems may be frozen, in seconds.
const MAX_FREEZE: u32 = 600;
/// The longest time that a caller may request, in seconds: one day.
const MAX_LIMIT: u32 = 86_400;

/// The largest number of chords in one call: some minutes of typing.
const MAX_CHORDS: usize = 4096;

/// The method and parameters of a call, unparsed.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct RawCall {
    pub(super) method: String,
    #[serde(default)]
    parameters: Option<Value>,
}

/// A parsed call.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Method {
    Info,
    Description { interface: String },
    Command(Command),
    Describe { memory: bool },
    Status,
    Guest,
    Events { filter: Option<Vec<String>>, with_time: bool },
    RecentEvents,
    Statistics,
    Exec { argv: Vec<String>, limit: Duration },
    Agent { command: String, arguments: Value, limit: Duration },
    Freeze { thaw_after: Duration },
    Thaw,
    CreateSnapshot(SnapshotToCreate),
    Screenshot,
    Press(Vec<Chord>),
    Console { read_only: bool, scrollback: u64 },
}

impl RawCall {
    /// Whether the method belongs to systemd's interface.
    pub(super) fn is_machine(&self) -> bool {
        self.method.rsplit_once('.').is_some_and(|(interface, _)| interface == MACHINE)
    }

    /// Parses the method. An unknown parameter is refused, as in systemd's services: a newer client
    /// may depend on it.
    pub(super) fn parse(self) -> Result<Method, VarlinkError> {
        let Self { method: full, parameters } = self;
        let (interface, name) = full.rsplit_once('.').unwrap_or((&full, ""));
        let mut given = Parameters::from_value(parameters);
        let method = match interface {
            SERVICE => service(name, &mut given),
            MACHINE => machine(name, &mut given),
            VM => vm(name, &mut given),
            _ => return Err(VarlinkError::no_interface(interface)),
        };
        let method = method?.ok_or_else(|| VarlinkError::no_method(&full))?;
        given.end()?;
        Ok(method)
    }
}

fn service(name: &str, given: &mut Parameters) -> Result<Option<Method>, VarlinkError> {
    Ok(Some(match name {
        "GetInfo" => Method::Info,
        "GetInterfaceDescription" => {
            Method::Description { interface: given.required("interface")? }
        }
        _ => return Ok(None),
    }))
}

fn machine(name: &str, given: &mut Parameters) -> Result<Option<Method>, VarlinkError> {
    Ok(Some(match name {
        "Terminate" => Method::Command(Command::Terminate),
        "PowerOff" => Method::Command(Command::PowerOff { timeout_sec: None }),
        "Reboot" => Method::Command(Command::Reboot),
        "Pause" => Method::Command(Command::Pause),
        "Resume" => Method::Command(Command::Resume),
        "SetMemory" => Method::Command(Command::SetMemory { bytes: given.required("bytes")? }),
        "Describe" => Method::Describe { memory: true },
        "QueryStatus" => Method::Describe { memory: false },
        "SubscribeEvents" => {
            // systemd's own servers treat an empty filter as no filter.
            let filter: Option<Vec<String>> = given.optional("filter")?;
            Method::Events { filter: filter.filter(|names| !names.is_empty()), with_time: false }
        }
        "AddStorage" | "RemoveStorage" | "ReplaceStorage" => {
            return Err(VarlinkError::NOT_SUPPORTED);
        }
        _ => return Ok(None),
    }))
}

fn vm(name: &str, given: &mut Parameters) -> Result<Option<Method>, VarlinkError> {
    Ok(Some(match name {
        "Status" => Method::Status,
        "Guest" => Method::Guest,
        "PowerOff" => {
            let timeout_sec = given.seconds("timeoutSec", MAX_LIMIT)?;
            Method::Command(Command::PowerOff { timeout_sec })
        }
        "Kill" => Method::Command(Command::Terminate),
        "Reboot" => Method::Command(Command::Reboot),
        "Reset" => Method::Command(Command::Reset),
        "Pause" => Method::Command(Command::Pause),
        "Resume" => Method::Command(Command::Resume),
        "Suspend" => Method::Command(Command::Suspend),
        "Reload" => Method::Command(Command::Reload),
        "Watch" => Method::Events { filter: None, with_time: true },
        "RecentEvents" => Method::RecentEvents,
        "Statistics" => Method::Statistics,
        "Screenshot" => Method::Screenshot,
        "Press" => {
            let keys: Vec<String> = given.required("keys")?;
            let chords: Result<Vec<Chord>, _> = keys.iter().map(|text| text.parse()).collect();
            let chords = chords.ok().filter(|all| (1..=MAX_CHORDS).contains(&all.len()));
            Method::Press(chords.ok_or_else(|| VarlinkError::invalid("keys"))?)
        }
        "Exec" => {
            let argv: Vec<String> = given.required("argv")?;
            if argv.is_empty() {
                return Err(VarlinkError::invalid("argv"));
            }
            let limit = given.seconds("timeoutSec", MAX_LIMIT)?.unwrap_or(EXEC_LIMIT);
            Method::Exec { argv, limit: Duration::from_secs(limit.into()) }
        }
        "Agent" => {
            let command: String = given.required("command")?;
            // The supervisor enforces the deadline of these two commands.
            if command.starts_with("guest-fsfreeze-") && command != "guest-fsfreeze-status" {
                return Err(VarlinkError::invalid("command"));
            }
            let arguments: Map<String, Value> = given.optional("arguments")?.unwrap_or_default();
            let limit = given.seconds("timeoutSec", MAX_AGENT_LIMIT)?.unwrap_or(AGENT_LIMIT);
            let limit = Duration::from_secs(limit.into());
            Method::Agent { command, arguments: Value::Object(arguments), limit }
        }
        "Freeze" => {
            let after = given.seconds("thawAfterSec", MAX_FREEZE)?;
            let after = after.ok_or_else(|| VarlinkError::invalid("thawAfterSec"))?;
            Method::Freeze { thaw_after: Duration::from_secs(after.into()) }
        }
        "Thaw" => Method::Thaw,
        "CreateSnapshot" => Method::CreateSnapshot(SnapshotToCreate {
            name: given.optional("name")?,
            comment: given.optional("comment")?,
            freeze: !given.optional("noFreeze")?.unwrap_or(false),
        }),
        "Console" => Method::Console {
            read_only: given.optional("readOnly")?.unwrap_or(false),
            scrollback: given.optional("scrollbackBytes")?.unwrap_or(0),
        },
        _ => return Ok(None),
    }))
}

/// The parameters that are not parsed yet.
enum Parameters {
    Object(Map<String, Value>),
    /// Not an object, which varlink requires.
    NoObject,
}

impl Parameters {
    fn from_value(given: Option<Value>) -> Self {
        match given {
            None | Some(Value::Null) => Self::Object(Map::new()),
            Some(Value::Object(object)) => Self::Object(object),
            Some(_) => Self::NoObject,
        }
    }

    /// Removes and parses a parameter; null is the same as none.
    fn optional<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, VarlinkError> {
        let Self::Object(object) = self else { return Ok(None) };
        match object.shift_remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                serde_json::from_value(value).map(Some).map_err(|_| VarlinkError::invalid(name))
            }
        }
    }

    fn required<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, VarlinkError> {
        self.optional(name)?.ok_or_else(|| VarlinkError::invalid(name))
    }

    fn seconds(&mut self, name: &str, most: u32) -> Result<Option<u32>, VarlinkError> {
        match self.optional(name)? {
            Some(seconds) if !(1..=most).contains(&seconds) => Err(VarlinkError::invalid(name)),
            seconds => Ok(seconds),
        }
    }

    fn end(self) -> Result<(), VarlinkError> {
        match self {
            Self::Object(object) => match object.keys().next() {
                None => Ok(()),
                Some(unknown) => Err(VarlinkError::invalid(unknown)),
            },
            Self::NoObject => Err(VarlinkError::invalid("parameters")),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn read(method: &str, parameters: Value) -> Result<Method, VarlinkError> {
        RawCall { method: method.to_owned(), parameters: Some(parameters) }.parse()
    }

    #[test]
    fn parameters_are_parsed() {
        let off = |timeout_sec| Ok(Method::Command(Command::PowerOff { timeout_sec }));
        assert_eq!(read("io.qvm.Vm.PowerOff", json!({ "timeoutSec": 5 })), off(Some(5)));
        assert_eq!(read("io.qvm.Vm.PowerOff", json!({ "timeoutSec": null })), off(None));
        assert_eq!(read("io.qvm.Vm.PowerOff", Value::Null), off(None));
        assert_eq!(
            read("io.systemd.MachineInstance.SubscribeEvents", json!({ "filter": [] })),
            Ok(Method::Events { filter: None, with_time: false })
        );
    }

    #[test]
    fn error_names_invalid_parameter() {
        for (method, parameters, wrong) in [
            ("io.qvm.Vm.PowerOff", json!({ "timeoutSec": 0 }), "timeoutSec"),
            ("io.qvm.Vm.PowerOff", json!({ "timeoutSec": 86_401 }), "timeoutSec"),
            ("io.qvm.Vm.PowerOff", json!({ "timeoutSec": "5" }), "timeoutSec"),
            ("io.qvm.Vm.PowerOff", json!({ "timeout": 5 }), "timeout"),
            ("io.qvm.Vm.PowerOff", json!([5]), "parameters"),
            ("io.qvm.Vm.Kill", json!({ "force": true }), "force"),
            ("io.qvm.Vm.Exec", json!({}), "argv"),
            ("io.qvm.Vm.Exec", json!({ "argv": [] }), "argv"),
            ("io.qvm.Vm.Exec", json!({ "argv": "true" }), "argv"),
            ("io.qvm.Vm.Agent", json!({}), "command"),
            ("io.qvm.Vm.Agent", json!({ "command": "guest-ping", "arguments": [] }), "arguments"),
            (
                "io.qvm.Vm.Agent",
                json!({ "command": "guest-ping", "timeoutSec": 601 }),
                "timeoutSec",
            ),
            ("io.qvm.Vm.Agent", json!({ "command": "guest-fsfreeze-freeze" }), "command"),
            ("io.qvm.Vm.Agent", json!({ "command": "guest-fsfreeze-freeze-list" }), "command"),
            ("io.qvm.Vm.Agent", json!({ "command": "guest-fsfreeze-thaw" }), "command"),
            ("io.qvm.Vm.Freeze", json!({}), "thawAfterSec"),
            ("io.qvm.Vm.Freeze", json!({ "thawAfterSec": 0 }), "thawAfterSec"),
            ("io.qvm.Vm.Freeze", json!({ "thawAfterSec": 601 }), "thawAfterSec"),
            ("io.qvm.Vm.CreateSnapshot", json!({ "name": "a/b" }), "name"),
            ("io.qvm.Vm.CreateSnapshot", json!({ "noFreeze": "yes" }), "noFreeze"),
            ("io.qvm.Vm.Console", json!({ "readOnly": 1 }), "readOnly"),
            ("io.systemd.MachineInstance.SetMemory", json!({ "bytes": -1 }), "bytes"),
            ("io.systemd.MachineInstance.SetMemory", json!({ "bytes": 1.5 }), "bytes"),
            ("io.systemd.MachineInstance.SetMemory", json!({}), "bytes"),
            ("io.systemd.MachineInstance.SubscribeEvents", json!({ "filter": "x" }), "filter"),
            ("org.varlink.service.GetInterfaceDescription", json!({}), "interface"),
        ] {
            assert_eq!(read(method, parameters), Err(VarlinkError::invalid(wrong)), "{method}");
        }
    }

    #[test]
    fn unknown_methods_are_reported() {
        for (method, fault) in [
            ("io.qvm.Vm.Fly", VarlinkError::no_method("io.qvm.Vm.Fly")),
            ("io.qvm.Vm.", VarlinkError::no_method("io.qvm.Vm.")),
            ("io.qvm.Other.Status", VarlinkError::no_interface("io.qvm.Other")),
            ("Status", VarlinkError::no_interface("Status")),
            ("", VarlinkError::no_interface("")),
        ] {
            assert_eq!(read(method, json!({})), Err(fault), "{method:?}");
        }
    }

    /// Every described method can be called, and no other.
    #[test]
    fn methods_match_descriptions() {
        let texts = [
            include_str!("../../docs/org.varlink.service.varlink"),
            include_str!("../../docs/io.systemd.MachineInstance.varlink"),
            include_str!("../../docs/io.qvm.Vm.varlink"),
        ];
        let mut seen = 0;
        for text in texts {
            let interface = zlink::idl::Interface::try_from(text).unwrap();
            for method in interface.methods() {
                let full = format!("{}.{}", interface.name(), method.name());
                assert_ne!(read(&full, json!({})), Err(VarlinkError::no_method(&full)));
                seen += 1;
            }
        }
        assert_eq!(seen, 2 + 12 + 21);
    }

    proptest! {
        #[test]
        fn no_input_panics(name in ".*", nr in any::<i64>()) {
            let _ = read(&name, json!({ "timeoutSec": nr }));
            let _ = read(&format!("io.qvm.Vm.{name}"), json!(nr));
        }
    }
}
