//! Who may do what over the control socket: one table, and what is said to who may not.
//!
//! | | the socket's group | operators | root, the supervisor's own user |
//! |---|---|---|---|
//! | the state of the VM: what it is, does, uses, and what is pending | yes | yes | yes |
//! | what the guest says and shows: its console, its screen | no | yes | yes |
//! | whatever changes the VM or the guest | no | yes | yes |
//!
//! Who can connect at all is the matter of the socket's directory and mode. Everything but the state is an operator's: a console,
//! even one that is only read, shows what is typed at it, and what a guest prints there is nobody's to foresee.

use std::path::PathBuf;

use tokio::sync::watch;

use super::{
    method::Method,
    types::{Command, Event, Status},
    varlink_error::VarlinkError,
};
use crate::value::{Explain, Operator, Peer};

/// What the host knows of accounts; looking one up may take as long as a directory service takes.
#[derive(Debug, Clone, Copy)]
pub struct Accounts {
    /// The number of a user or group.
    pub id: fn(&Operator) -> Option<u32>,
    /// What a user is called.
    pub name: fn(u32) -> Option<String>,
}

/// The rule of one VM.
#[derive(Debug, Clone)]
pub struct Authorizer {
    /// The supervisor's own user.
    pub own: u32,
    /// `operators`, as it is now.
    pub operators: watch::Receiver<Vec<Operator>>,
    /// The VM file, for who asks how to become one.
    pub file: PathBuf,
    /// Who is who.
    pub accounts: Accounts,
}

/// Who is not let.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{who} may not {what}: that is for root and the VM's operators")]
pub struct Denied {
    /// `` `alice` (uid 1000) ``.
    pub who: String,
    /// What was asked for.
    pub what: &'static str,
    hint: String,
}

impl Explain for Denied {
    fn own_hint(&self) -> Option<String> {
        Some(self.hint.clone())
    }
}

impl Authorizer {
    /// Whether the peer is root or the supervisor's own user.
    pub fn is_own(&self, peer: &Peer) -> bool {
        peer.uid == 0 || peer.uid == self.own
    }

    /// Whether the peer may do what is not everybody's.
    pub async fn is_operator(&self, peer: &Peer) -> bool {
        if self.is_own(peer) {
            return true;
        }
        let operators = self.operators.borrow().clone();
        if operators.is_empty() {
            return false;
        }
        let (peer, id) = (peer.clone(), self.accounts.id);
        // Whoever cannot be looked up is nobody.
        tokio::task::spawn_blocking(move || is_among(&operators, &peer, id)).await.unwrap_or(false)
    }

    /// Lets an operator do `what`.
    ///
    /// # Errors
    /// The peer is none.
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
        let hint = format!(
            "`operators = [\"{word}\"]` in {file} lets it, once root has said `qvm apply NAME`"
        );
        Err(Denied { who, what, hint })
    }
}

/// Whether one of the operators is the peer, or a group of its.
fn is_among(operators: &[Operator], peer: &Peer, id: fn(&Operator) -> Option<u32>) -> bool {
    operators.iter().any(|operator| match operator {
        Operator::User(_) | Operator::Uid(_) => id(operator) == Some(peer.uid),
        Operator::Group(_) | Operator::Gid(_) => {
            id(operator).is_some_and(|gid| gid == peer.gid || peer.groups.contains(&gid))
        }
    })
}

/// The names among the operators that the host does not know.
pub fn unknown(operators: &[Operator], accounts: Accounts) -> Vec<Operator> {
    operators.iter().filter(|operator| (accounts.id)(operator).is_none()).cloned().collect()
}

/// What a method needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// Nothing but to be connected.
    Nothing,
    /// To be an operator, for doing this.
    Operator(&'static str),
}

/// The table.
pub(super) fn need(method: &Method) -> Need {
    use Need::{Nothing, Operator};
    match method {
        Method::Info
        | Method::Description { .. }
        | Method::Describe { .. }
        | Method::Status
        // Its addresses, which its neighbours on the network see as well.
        | Method::Guest
        | Method::Events { .. }
        | Method::RecentEvents
        | Method::Statistics => Nothing,
        Method::Command(command) => Operator(match command {
            Command::PowerOff { .. } => "shut it down",
            Command::Terminate => "force it off",
            Command::Reboot => "reboot it",
            Command::Reset => "reset it",
            Command::Pause => "pause it",
            Command::Resume => "resume it",
            Command::Suspend => "suspend it",
            Command::Reload => "apply its VM file",
            Command::SetMemory { .. } => "change its memory",
        }),
        Method::Exec { .. } => Operator("run commands in its guest"),
        Method::Agent { .. } => Operator("command its guest agent"),
        Method::Freeze { .. } => Operator("freeze its guest's file systems"),
        Method::Thaw => Operator("thaw its guest's file systems"),
        Method::Screenshot => Operator(SCREEN),
        Method::Press(_) => Operator("type at its keyboard"),
        Method::Console { read_only: true, .. } => Operator("read its console"),
        Method::Console { read_only: false, .. } => Operator("use its console"),
    }
}

/// What a viewer of the screen asks for.
pub const SCREEN: &str = "look at its screen";

/// Takes out what the guest's console said.
pub(super) fn without_console(mut status: Status) -> Status {
    for end in status.last_stop.iter_mut().chain(&mut status.ends) {
        end.console.clear();
    }
    status
}

/// The same of an event: an end that failed has the last lines with it.
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

    fn grant(own: u32, operators: &[&str]) -> (watch::Sender<Vec<Operator>>, Authorizer) {
        let operators = operators.iter().map(|text| text.parse().unwrap()).collect();
        let (told, operators) = watch::channel(operators);
        let file = "/etc/qvm/vms/web.toml".into();
        (told, Authorizer { own, operators, file, accounts: ACCOUNTS })
    }

    #[tokio::test]
    async fn root_its_own_user_and_who_is_named_are_operators() {
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
            // A number of a user is none of a group, and a name that nobody has is nobody's.
            (&["27"], 1001, &[27], false),
            (&["@1001"], 1001, &[], true),
            (&["bob", "@nobodies"], 1001, &[], false),
        ] {
            let (_told, grant) = grant(990, operators);
            let found = grant.is_operator(&peer(uid, groups)).await;
            assert_eq!(found, is, "{operators:?} {uid} {groups:?}");
        }
    }

    #[tokio::test]
    async fn a_changed_list_counts_at_once() {
        let (told, grant) = grant(0, &[]);
        let denied = grant.check(&peer(1000, &[]), "pause it").await.unwrap_err();
        assert_eq!(
            denied.to_string(),
            "`alice` (uid 1000) may not pause it: that is for root and the VM's operators"
        );
        assert_eq!(
            denied.hint().unwrap(),
            "`operators = [\"alice\"]` in /etc/qvm/vms/web.toml lets it, once root has said `qvm apply NAME`"
        );
        told.send_replace(vec!["alice".parse().unwrap()]);
        assert_eq!(grant.check(&peer(1000, &[]), "pause it").await, Ok(()));
        let denied = grant.check(&peer(7, &[]), "pause it").await.unwrap_err();
        assert!(denied.to_string().starts_with("uid 7 may not pause it"), "{denied}");
        assert!(denied.hint().unwrap().contains("[\"7\"]"));
    }

    #[test]
    fn the_state_is_for_all_and_nothing_else_is() {
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
            assert_eq!(need(&method), Need::Nothing, "{method:?}");
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
            assert!(matches!(need(&method), Need::Operator(_)), "{method:?}");
        }
    }

    #[test]
    fn who_may_not_see_the_console_sees_nothing_of_it_beside_an_end() {
        let end = End {
            reason: "qemu-signal".into(),
            at: String::new(),
            detail: "it died".into(),
            failed: true,
            console: vec!["password: hunter2".into()],
        };
        let text = json!({ "name": "web", "state": "failed", "vcpu": 1, "memBytes": 1, "cpuWeight": 1,
            "autostart": false, "pending": [], "notes": [], "ends": [end], "lastStop": end });
        let status: Status = serde_json::from_value(text).unwrap();
        assert!(json!(status).to_string().contains("hunter2"));
        let told = json!(without_console(status)).to_string();
        assert!(!told.contains("hunter2") && told.contains("it died"), "{told}");
        let event = Event { at: None, event: "QVM_END".into(), data: Some(json!(end)) };
        let told = json!(event_without_console(event)).to_string();
        assert!(!told.contains("hunter2") && told.contains("it died"), "{told}");
    }

    #[test]
    fn names_that_the_host_does_not_know_are_told() {
        let all: Vec<Operator> =
            ["alice", "bob", "77", "@admins", "@x"].map(|text| text.parse().unwrap()).into();
        let unknown: Vec<String> =
            unknown(&all, ACCOUNTS).iter().map(ToString::to_string).collect();
        assert_eq!(unknown, ["bob", "@x"]);
    }
}
