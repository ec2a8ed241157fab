//! Authorization of requests on the control socket: one table, and the reply to a client without
//! permission.
//!
//! | | the socket's group | operators | root, the supervisor's user |
//! |---|---|---|---|
//! | read the state of the VM: status, usage, pending changes | yes | yes | yes |
//! | read the output of the guest: console, screen | no | yes | yes |
//! | change the VM or the guest | no | yes | yes |
//!
//! The directory and the mode of the socket decide who can connect. Console and screen require an
//! operator because they may contain passwords or other secrets of the guest.

use std::path::PathBuf;

use tokio::sync::watch;

use super::{
    method::Method,
    types::{Command, Event, Status},
    varlink_error::VarlinkError,
};
use crate::value::{ErrorCode, Explain, Operator, Peer};

/// Looks up accounts; a directory service may make a lookup slow.
#[derive(Debug, Clone, Copy)]
pub struct Accounts {
    /// Returns the ID of a user or group.
    pub id: fn(&Operator) -> Option<u32>,
    /// Returns the name of a user.
    pub name: fn(u32) -> Option<String>,
}

/// The authorization of one VM.
#[derive(Debug, Clone)]
pub struct Authorizer {
    /// The UID of the supervisor.
    pub own: u32,
    /// The current value of `operators`.
    pub operators: watch::Receiver<Vec<Operator>>,
    /// The VM file, which the hint names.
    pub file: PathBuf,
    /// The accounts of the host.
    pub accounts: Accounts,
}

/// A client without permission.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("permission denied: only root and the VM's operators can {what}; the client is {who}")]
pub struct Denied {
    /// The user as `` `alice` (uid 1000) ``.
    pub who: String,
    /// The requested operation.
    pub what: &'static str,
    hint: String,
}

impl Explain for Denied {
    fn own_code(&self) -> Option<ErrorCode> {
        Some(ErrorCode::NotAllowed)
    }

    fn own_hint(&self) -> Option<String> {
        Some(self.hint.clone())
    }
}

impl Authorizer {
    /// Whether the client is root or the supervisor's own user.
    pub fn is_own(&self, peer: &Peer) -> bool {
        peer.uid == 0 || peer.uid == self.own
    }

    /// Whether the client may do what requires an operator.
    pub async fn is_operator(&self, peer: &Peer) -> bool {
        if self.is_own(peer) {
            return true;
        }
        let operators = self.operators.borrow().clone();
        if operators.is_empty() {
            return false;
        }
        let (peer, id) = (peer.clone(), self.accounts.id);
        // A user that cannot be looked up matches no operator.
        tokio::task::spawn_blocking(move || is_among(&operators, &peer, id)).await.unwrap_or(false)
    }

    /// Checks that the client may do `what`.
    ///
    /// # Errors
    /// The client is not an operator.
    pub async fn check(&self, peer: &Peer, what: &'static str) -> Result<(), Denied> {
        if self.is_operator(peer).await {
            return Ok(());
        }
        let (uid, name) = (peer.uid, self.accounts.name);
        let name = tokio::task::spawn_blocking(move || name(uid)).await.ok().flatten();
        let who = match &name {
            Some(name) => format!("`{name}` (uid {uid})"),
            None => format!("uid {uid}"),
        };
        let word = name.unwrap_or_else(|| uid.to_string());
        let file = self.file.display();
        let hint =
            format!("add `operators = [\"{word}\"]` to {file}, then run `qvm apply NAME` as root");
        Err(Denied { who, what, hint })
    }
}

/// Whether the client, or one of its groups, is among the operators.
fn is_among(operators: &[Operator], peer: &Peer, id: fn(&Operator) -> Option<u32>) -> bool {
    operators.iter().any(|operator| match operator {
        Operator::User(_) | Operator::Uid(_) => id(operator) == Some(peer.uid),
        Operator::Group(_) | Operator::Gid(_) => {
            id(operator).is_some_and(|gid| gid == peer.gid || peer.groups.contains(&gid))
        }
    })
}

/// Returns the operators that do not exist on the host.
pub fn unknown(operators: &[Operator], accounts: Accounts) -> Vec<Operator> {
    operators.iter().filter(|operator| (accounts.id)(operator).is_none()).cloned().collect()
}

/// The permission that a method requires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Permission {
    /// None.
    Anyone,
    /// An operator; the text is the operation for messages.
    Operator(&'static str),
}

/// Returns the permission that `method` requires.
pub(super) fn required_permission(method: &Method) -> Permission {
    use Permission::{Anyone, Operator};
    match method {
        Method::Info
        | Method::Description { .. }
        | Method::Describe { .. }
        | Method::Status
        // The guest's addresses, which other hosts on the network can see too.
        | Method::Guest
        | Method::Events { .. }
        | Method::RecentEvents
        | Method::Statistics => Anyone,
        Method::Command(command) => Operator(match command {
            Command::PowerOff { .. } => "shut the VM down",
            Command::Terminate => "force the VM off",
            Command::Reboot => "reboot the VM",
            Command::Reset => "reset the VM",
            Command::Pause => "pause the VM",
            Command::Resume => "resume the VM",
            Command::Suspend => "suspend the VM",
            Command::Reload => "apply the VM file",
            Command::SetMemory { .. } => "change the VM's memory",
        }),
        Method::Exec { .. } => Operator("run commands in the guest"),
        Method::Agent { .. } => Operator("use the guest agent"),
        Method::Freeze { .. } => Operator("freeze the guest's file systems"),
        Method::Thaw => Operator("thaw the guest's file systems"),
        Method::Screenshot => Operator(SCREEN),
        Method::Press(_) => Operator("type on the VM's keyboard"),
        Method::Console { read_only: true, .. } => Operator("read the VM's console"),
        Method::Console { read_only: false, .. } => Operator("use the VM's console"),
    }
}

/// The operation of a VNC client, for messages.
pub const SCREEN: &str = "view the VM's screen";

/// Removes the console output from a status.
pub(super) fn without_console(mut status: Status) -> Status {
    for end in status.last_stop.iter_mut().chain(&mut status.ends) {
        end.console.clear();
    }
    status
}

/// Removes the console output from an event: a failed end contains the last lines.
pub(super) fn event_without_console(mut event: Event) -> Event {
    if let Some(serde_json::Value::Object(data)) = &mut event.data {
        data.shift_remove("console");
    }
    event
}

impl From<Denied> for VarlinkError {
    fn from(denied: Denied) -> Self {
        Self::denied(denied.to_string(), denied.hint)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::control::types::End;

    /// `alice` is 1000, `@admins` is 27.
    const ACCOUNTS: Accounts = Accounts {
        id: |operator| match operator {
            Operator::Uid(id) | Operator::Gid(id) => Some(*id),
            Operator::User(name) => (name == "alice").then_some(1000),
            Operator::Group(name) => (name == "admins").then_some(27),
        },
        name: |uid| (uid == 1000).then(|| "alice".to_owned()),
    };

    fn peer(uid: u32, groups: &[u32]) -> Peer {
        Peer { uid, gid: uid, groups: groups.to_vec() }
    }

    fn authorizer(own: u32, operators: &[&str]) -> (watch::Sender<Vec<Operator>>, Authorizer) {
        let operators = operators.iter().map(|text| text.parse().unwrap()).collect();
        let (sender, operators) = watch::channel(operators);
        let file = "/etc/qvm/vms/web.toml".into();
        (sender, Authorizer { own, operators, file, accounts: ACCOUNTS })
    }

    #[tokio::test]
    async fn root_own_user_and_operators_are_permitted() {
        for (operators, uid, groups, is) in [
            (&[][..], 0, &[][..], true),
            (&[], 990, &[], true),
            (&[], 1000, &[27], false),
            (&["alice"], 1000, &[], true),
            (&["alice"], 1001, &[1000], false),
            (&["1001"], 1001, &[], true),
            (&["@admins"], 1001, &[5, 27], true),
            (&["@admins"], 27, &[], true),
            (&["@admins"], 1001, &[5], false),
            // A UID is not a GID, and an unknown name matches nothing.
            (&["27"], 1001, &[27], false),
            (&["@1001"], 1001, &[], true),
            (&["bob", "@nobodies"], 1001, &[], false),
        ] {
            let (_told, authorizer) = authorizer(990, operators);
            let found = authorizer.is_operator(&peer(uid, groups)).await;
            assert_eq!(found, is, "{operators:?} {uid} {groups:?}");
        }
    }

    #[tokio::test]
    async fn changed_operators_count_at_once() {
        let (sender, authorizer) = authorizer(0, &[]);
        let denied = authorizer.check(&peer(1000, &[]), "pause the VM").await.unwrap_err();
        assert_eq!(
            denied.to_string(),
            "permission denied: only root and the VM's operators can pause the VM; the client is \
             `alice` (uid 1000)"
        );
        assert_eq!(
            denied.hint().unwrap(),
            "add `operators = [\"alice\"]` to /etc/qvm/vms/web.toml, then run `qvm apply NAME` as \
             root"
        );
        sender.send_replace(vec!["alice".parse().unwrap()]);
        assert_eq!(authorizer.check(&peer(1000, &[]), "pause the VM").await, Ok(()));
        let denied = authorizer.check(&peer(7, &[]), "pause the VM").await.unwrap_err();
        assert!(denied.to_string().ends_with("the client is uid 7"), "{denied}");
        assert!(denied.hint().unwrap().contains("[\"7\"]"));
    }

    #[test]
    fn only_state_needs_no_operator() {
        let limit = Duration::from_secs(1);
        let look = [
            Method::Info,
            Method::Description { interface: String::new() },
            Method::Describe { memory: true },
            Method::Status,
            Method::Guest,
            Method::Events { filter: None, with_time: true },
            Method::RecentEvents,
            Method::Statistics,
        ];
        for method in look {
            assert_eq!(required_permission(&method), Permission::Anyone, "{method:?}");
        }
        let operate = [
            Method::Command(Command::PowerOff { timeout_sec: None }),
            Method::Command(Command::Terminate),
            Method::Command(Command::Reboot),
            Method::Command(Command::Reset),
            Method::Command(Command::Pause),
            Method::Command(Command::Resume),
            Method::Command(Command::Suspend),
            Method::Command(Command::Reload),
            Method::Command(Command::SetMemory { bytes: 1 }),
            Method::Exec { argv: vec![], limit },
            Method::Agent { command: String::new(), arguments: json!({}), limit },
            Method::Freeze { thaw_after: limit },
            Method::Thaw,
            Method::Screenshot,
            Method::Press(vec![]),
            Method::Console { read_only: true, scrollback: 0 },
            Method::Console { read_only: false, scrollback: 0 },
        ];
        for method in operate {
            assert!(matches!(required_permission(&method), Permission::Operator(_)), "{method:?}");
        }
    }

    #[test]
    fn console_is_removed_from_ends() {
        let end = End {
            reason: "qemu-signal".into(),
            at: String::new(),
            detail: "it died".into(),
            code: None,
            hint: None,
            failed: true,
            console: vec!["password: hunter2".into()],
        };
        let text = json!({
            "name": "web", "state": "failed", "vcpu": 1, "memBytes": 1, "cpuWeight": 1,
            "autostart": false, "pending": [], "notes": [], "ends": [end], "lastStop": end });
        let status: Status = serde_json::from_value(text).unwrap();
        assert!(json!(status).to_string().contains("hunter2"));
        let text = json!(without_console(status)).to_string();
        assert!(!text.contains("hunter2") && text.contains("it died"), "{text}");
        let event = Event { at: None, event: "QVM_END".into(), data: Some(json!(end)) };
        let text = json!(event_without_console(event)).to_string();
        assert!(!text.contains("hunter2") && text.contains("it died"), "{text}");
    }

    #[test]
    fn unknown_operators_are_listed() {
        let all: Vec<Operator> =
            ["alice", "bob", "77", "@admins", "@x"].map(|text| text.parse().unwrap()).into();
        let unknown: Vec<String> =
            unknown(&all, ACCOUNTS).iter().map(ToString::to_string).collect();
        assert_eq!(unknown, ["bob", "@x"]);
    }
}
