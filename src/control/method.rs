//! What a call asks for: its method and parameters, typed; or what is wrong with them.

use std::time::Duration;

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::{
    interface::{MACHINE, SERVICE, VM},
    types::Command,
    varlink_error::VarlinkError,
};
use crate::value::keyboard::Chord;

/// How long a command in the guest may take unless the caller says.
const EXEC_LIMIT: u32 = 60;
/// How long one command of the agent's may take unless the caller says, and at most: nobody else reaches the agent meanwhile.
const AGENT_LIMIT: u32 = 10;
const LONGEST_CALL: u32 = 600;
/// The longest that file systems may be frozen for, in seconds.
const LONGEST_FREEZE: u32 = 600;
/// The longest time that a caller may give, in seconds: one day.
const LONGEST: u32 = 86_400;

/// The most chords in one call: some minutes of typing.
const MOST_CHORDS: usize = 4096;

/// A call's method and parameters as they come.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Written {
    pub(super) method: String,
    #[serde(default)]
    parameters: Option<Value>,
}

/// What is asked for.
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
    Screenshot,
    Press(Vec<Chord>),
    Console { read_only: bool, scrollback: u64 },
}

impl Written {
    /// Whether the method is one of systemd's interface.
    pub(super) fn is_machine(&self) -> bool {
        self.method.rsplit_once('.').is_some_and(|(interface, _)| interface == MACHINE)
    }

    /// The method, typed. A parameter that it does not have is refused, as systemd's services do: what
    /// a newer client asks for must not be passed over.
    pub(super) fn read(self) -> Result<Method, VarlinkError> {
        let Self { method: full, parameters } = self;
        let (interface, name) = full.rsplit_once('.').unwrap_or((&full, ""));
        let mut given = Parameters::of(parameters);
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
        "GetInterfaceDescription" => Method::Description { interface: given.need("interface")? },
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
        "SetMemory" => Method::Command(Command::SetMemory { bytes: given.need("bytes")? }),
        "Describe" => Method::Describe { memory: true },
        "QueryStatus" => Method::Describe { memory: false },
        "SubscribeEvents" => {
            // systemd's own servers take an empty filter for none.
            let filter: Option<Vec<String>> = given.take("filter")?;
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
            let timeout_sec = given.seconds("timeoutSec", LONGEST)?;
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
            let keys: Vec<String> = given.need("keys")?;
            let chords: Result<Vec<Chord>, _> = keys.iter().map(|text| text.parse()).collect();
            let chords = chords.ok().filter(|all| (1..=MOST_CHORDS).contains(&all.len()));
            Method::Press(chords.ok_or_else(|| VarlinkError::invalid("keys"))?)
        }
        "Exec" => {
            let argv: Vec<String> = given.need("argv")?;
            if argv.is_empty() {
                return Err(VarlinkError::invalid("argv"));
            }
            let limit = given.seconds("timeoutSec", LONGEST)?.unwrap_or(EXEC_LIMIT);
            Method::Exec { argv, limit: Duration::from_secs(limit.into()) }
        }
        "Agent" => {
            let command: String = given.need("command")?;
            // These two are the supervisor's, which keeps the deadline.
            if command.starts_with("guest-fsfreeze-") && command != "guest-fsfreeze-status" {
                return Err(VarlinkError::invalid("command"));
            }
            let arguments: Map<String, Value> = given.take("arguments")?.unwrap_or_default();
            let limit = given.seconds("timeoutSec", LONGEST_CALL)?.unwrap_or(AGENT_LIMIT);
            let limit = Duration::from_secs(limit.into());
            Method::Agent { command, arguments: Value::Object(arguments), limit }
        }
        "Freeze" => {
            let after = given.seconds("thawAfterSec", LONGEST_FREEZE)?;
            let after = after.ok_or_else(|| VarlinkError::invalid("thawAfterSec"))?;
            Method::Freeze { thaw_after: Duration::from_secs(after.into()) }
        }
        "Thaw" => Method::Thaw,
        "Console" => Method::Console {
            read_only: given.take("readOnly")?.unwrap_or(false),
            scrollback: given.take("scrollbackBytes")?.unwrap_or(0),
        },
        _ => return Ok(None),
    }))
}

/// The parameters that nobody has asked for yet.
enum Parameters {
    Object(Map<String, Value>),
    /// They are none: what varlink calls parameters is an object.
    NoObject,
}

impl Parameters {
    fn of(given: Option<Value>) -> Self {
        match given {
            None | Some(Value::Null) => Self::Object(Map::new()),
            Some(Value::Object(object)) => Self::Object(object),
            Some(_) => Self::NoObject,
        }
    }

    /// One by its name; null is the same as none.
    fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, VarlinkError> {
        let Self::Object(object) = self else { return Ok(None) };
        match object.shift_remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                serde_json::from_value(value).map(Some).map_err(|_| VarlinkError::invalid(name))
            }
        }
    }

    fn need<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, VarlinkError> {
        self.take(name)?.ok_or_else(|| VarlinkError::invalid(name))
    }

    fn seconds(&mut self, name: &str, most: u32) -> Result<Option<u32>, VarlinkError> {
        match self.take(name)? {
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
        Written { method: method.to_owned(), parameters: Some(parameters) }.read()
    }

    #[test]
    fn parameters_are_typed() {
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
    fn the_parameter_that_is_wrong_is_named() {
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
    fn what_is_not_there_is_said_to_be() {
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

    /// Every method that is described can be called, and nothing else.
    #[test]
    fn what_is_described_is_what_there_is() {
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
        assert_eq!(seen, 2 + 12 + 20);
    }

    proptest! {
        #[test]
        fn no_name_panics(name in ".*", nr in any::<i64>()) {
            let _ = read(&name, json!({ "timeoutSec": nr }));
            let _ = read(&format!("io.qvm.Vm.{name}"), json!(nr));
        }
    }
}
