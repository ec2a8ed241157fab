//! Who may change the VM: `operators` of its VM file as it counts, and which of them the host does not know.

use tokio::sync::watch;

use crate::supervisor::{Supervisor, input::Fact};
use crate::{
    control::grant::{self, Accounts, Grant},
    spec::Vm,
    sys::account,
    value::Operator,
};

/// As the host's databases have them.
const ACCOUNTS: Accounts = Accounts { id: account::id, name: account::name };

/// The list, for whoever judges by it, and what is odd about it.
#[derive(Debug)]
pub(crate) struct Operators {
    told: watch::Sender<Vec<Operator>>,
    /// Named, but not known to the host.
    pub(crate) unknown: Vec<Operator>,
}

impl Operators {
    /// The list is empty until it is told.
    pub(crate) fn new() -> Self {
        Self { told: watch::Sender::new(vec![]), unknown: vec![] }
    }

    /// The rule of a VM, which follows the list.
    pub(crate) fn grant(&self, vm: &Vm) -> Grant {
        Grant {
            own: rustix::process::geteuid().as_raw(),
            operators: self.told.subscribe(),
            file: vm.file.clone(),
            accounts: ACCOUNTS,
        }
    }
}

impl Supervisor {
    /// Takes the list as it counts now. Who is who is looked up when somebody comes, so that an account made later needs nothing done;
    /// here only to tell of names that mean nobody.
    pub(crate) fn tell_operators(&mut self) {
        let operators = self.vm.operators.clone();
        self.operators.told.send_replace(operators.clone());
        self.operators.unknown.clear();
        if operators.is_empty() {
            return;
        }
        let facts = self.facts.clone();
        self.tasks.spawn(async move {
            let look = move || grant::unknown(&operators, ACCOUNTS);
            if let Ok(unknown) = tokio::task::spawn_blocking(look).await {
                let _ = facts.send(Fact::UnknownOperators(unknown)).await;
            }
        });
    }

    /// What an operator should know of it.
    pub(crate) fn operator_notes(&self) -> impl Iterator<Item = String> {
        let note = |name: &Operator| {
            format!("`operators`: this host does not know `{name}`, so it is nobody")
        };
        self.operators.unknown.iter().map(note)
    }
}
