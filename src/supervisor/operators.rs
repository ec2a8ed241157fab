//! The effective `operators` of the VM file: accounts that may change the VM.

use tokio::sync::watch;

use crate::{
    control::authorizer::{self, Accounts, Authorizer},
    spec::Vm,
    sys::account,
    value::{Note, NoteCode, Operator},
};

/// The user and group databases of the host.
const ACCOUNTS: Accounts = Accounts { id: account::id, name: account::name };

/// The operators of a VM. Names are resolved when a client connects: an account may be created
/// later.
#[derive(Debug)]
pub(crate) struct Operators {
    list: watch::Sender<Vec<Operator>>,
    /// Operators that the host does not know.
    unknown: Vec<Operator>,
}

impl Operators {
    /// Creates an empty list.
    pub(crate) fn new() -> Self {
        Self { list: watch::Sender::new(vec![]), unknown: vec![] }
    }

    /// Returns the authorization rule of a VM, which follows the list.
    pub(crate) fn authorizer(&self, vm: &Vm) -> Authorizer {
        Authorizer {
            own: rustix::process::geteuid().as_raw(),
            operators: self.list.subscribe(),
            file: vm.file.clone(),
            accounts: ACCOUNTS,
        }
    }

    /// Applies the list. Returns a search for operators that the host does not know, if required.
    pub(crate) fn set(
        &mut self,
        operators: Vec<Operator>,
    ) -> Option<impl Future<Output = Vec<Operator>> + Send + use<>> {
        self.list.send_replace(operators.clone());
        self.unknown.clear();
        (!operators.is_empty()).then_some(async move {
            let look = move || authorizer::unknown(&operators, ACCOUNTS);
            tokio::task::spawn_blocking(look).await.unwrap_or_default()
        })
    }

    /// Notes which operators the host does not know.
    pub(crate) fn set_unknown(&mut self, names: Vec<Operator>) {
        self.unknown = names;
    }

    /// Returns the notes for the status.
    pub(crate) fn notes(&self) -> impl Iterator<Item = Note> + '_ {
        let note = |name: &Operator| {
            let text = format!("`operators`: `{name}` is not an account of this host");
            Note::new(NoteCode::UnknownOperator, text).key("operators")
        };
        self.unknown.iter().map(note)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::tests::vm;

    #[tokio::test]
    async fn grant_follows_the_list() {
        let mut operators = Operators::new();
        let authorizer = operators.authorizer(&vm("vcpu = 1\n"));
        assert!(authorizer.operators.borrow().is_empty());
        let root: Operator = "root".parse().unwrap();
        let search = operators.set(vec![root.clone()]).unwrap();
        assert_eq!(*authorizer.operators.borrow(), vec![root]);
        assert_eq!(search.await, []);
    }

    #[tokio::test]
    async fn unknown_operator_is_noted_until_the_list_changes() {
        let mut operators = Operators::new();
        let nobody: Operator = "@nosuchgroup-qvm".parse().unwrap();
        let unknown = operators.set(vec![nobody.clone()]).unwrap().await;
        assert_eq!(unknown, [nobody]);
        operators.set_unknown(unknown);
        let notes: Vec<Note> = operators.notes().collect();
        assert!(notes[0].text.contains("@nosuchgroup-qvm"), "{notes:?}");
        assert!(operators.set(vec![]).is_none());
        assert_eq!(operators.notes().count(), 0);
    }
}
