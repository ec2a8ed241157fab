//! The data of a VM for systemd-machined: the parameters of its varlink interface, and the
//! busctl(1) arguments for its D-Bus interface.

use std::path::Path;

use serde_json::{Value, json};

use crate::value::VmName;

/// machined's varlink socket (systemd 256).
pub const SOCKET: &str = "/run/systemd/machine/io.systemd.Machine";
/// The class by which machined distinguishes qvm's machines.
pub const SERVICE: &str = "qvm";

/// A VM as machined sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// The name of the VM, which is always a valid machine name.
    pub name: VmName,
    /// The machine's UUID with hyphens.
    pub uuid: String,
    /// The PID of the supervisor, which handles the signals of machinectl(1); they would kill QEMU.
    pub leader: u32,
    /// The interface indexes of the taps.
    pub if_indices: Vec<u32>,
}

impl Machine {
    /// The parameters of `io.systemd.Machine.Register`; `control` is the socket of
    /// `io.systemd.MachineInstance`, which machined uses since systemd 260.
    pub fn parameters(&self, control: Option<&Path>) -> Value {
        let mut parameters = json!({
            "name": self.name.as_str(),
            "id": self.id(),
            "service": SERVICE,
            "class": "vm",
            "leader": self.leader,
        });
        if !self.if_indices.is_empty() {
            parameters["ifIndices"] = json!(self.if_indices);
        }
        if let Some(control) = control.and_then(Path::to_str) {
            parameters["controlAddress"] = json!(control);
        }
        parameters
    }

    /// The arguments of `busctl call` (org.freedesktop.machine1(5), RegisterMachineWithNetwork).
    pub fn call(&self) -> Vec<String> {
        let id = self.id();
        let bytes =
            (0..16).filter_map(|at| u8::from_str_radix(id.get(2 * at..2 * at + 2)?, 16).ok());
        let bytes: Vec<String> = bytes.map(|byte| byte.to_string()).collect();
        let mut words: Vec<String> = vec![
            "RegisterMachineWithNetwork".into(),
            "sayssusai".into(),
            self.name.to_string(),
            bytes.len().to_string(),
        ];
        words.extend(bytes);
        words.extend([SERVICE.into(), "vm".into(), self.leader.to_string(), String::new()]);
        words.push(self.if_indices.len().to_string());
        words.extend(self.if_indices.iter().map(u32::to_string));
        words
    }

    /// Returns the UUID in the format of sd-id128(3).
    pub fn id(&self) -> String {
        self.uuid.chars().filter(char::is_ascii_hexdigit).collect()
    }

    /// Whether a machine of this name is this VM, from the output of `machinectl show`.
    pub fn is_shown(&self, shown: &str) -> bool {
        let has = |wanted: &str| shown.lines().any(|line| line == wanted);
        has(&format!("Service={SERVICE}")) && has(&format!("Id={}", self.id()))
    }

    /// Whether a machine of this name is this VM, from the reply of `io.systemd.Machine.List`.
    pub fn is_listed(&self, answer: &Value) -> bool {
        answer["service"] == SERVICE && answer["id"] == self.id()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn web(if_indices: &[u32]) -> Machine {
        Machine {
            name: "web".parse().unwrap(),
            uuid: "615aebfc-29b4-4c0f-b886-ca68b5dcc622".into(),
            leader: 4711,
            if_indices: if_indices.to_vec(),
        }
    }

    #[test]
    fn varlink_parameters() {
        let plain = json!({
            "name": "web", "id": "615aebfc29b44c0fb886ca68b5dcc622", "service": "qvm",
            "class": "vm", "leader": 4711,
        });
        assert_eq!(web(&[]).parameters(None), plain);
        let all = web(&[3, 7]).parameters(Some(Path::new("/run/qvm/web/control.sock")));
        assert_eq!(all["ifIndices"], json!([3, 7]));
        assert_eq!(all["controlAddress"], "/run/qvm/web/control.sock");
    }

    #[test]
    fn busctl_arguments() {
        assert_eq!(
            web(&[3, 7]).call().join(" "),
            "RegisterMachineWithNetwork sayssusai web 16 97 90 235 252 41 180 76 15 184 134 202 \
             104 181 220 198 34 qvm vm 4711  2 3 7"
        );
        assert!(web(&[]).call().join(" ").ends_with("qvm vm 4711  0"));
    }

    #[test]
    fn own_machine_has_our_service_and_id() {
        let id = web(&[]).id();
        assert!(web(&[]).is_shown(&format!("Id={id}\nService=qvm\n")));
        assert!(!web(&[]).is_shown(&format!("Id={id}\nService=systemd-nspawn\n")));
        assert!(!web(&[]).is_shown("Id=00\nService=qvm\n"));
        assert!(web(&[]).is_listed(&json!({ "service": "qvm", "id": id, "leader": { "pid": 7 } })));
        assert!(!web(&[]).is_listed(&json!({})));
    }
}
