//! Compares the installed QEMU with the running one.

use tracing::warn;

use super::{event::VmEvent, qemu::Qemu};
use crate::{
    supervisor::{context::Context, start::prepare},
    sys::file::FileId,
};

/// The installed QEMU.
#[derive(Debug, Default)]
pub(crate) struct InstalledQemu {
    /// Its version if it differs from the running QEMU.
    version: Option<String>,
    /// The program whose version is being queried.
    asking: Option<FileId>,
}

impl InstalledQemu {
    /// Returns the version of the installed QEMU if it differs from the running one.
    pub(crate) fn version(&self) -> Option<&str> {
        self.version.as_deref()
    }

    /// Compares the program with the running one; a task queries its version.
    pub(crate) fn compare(&mut self, installed: Option<FileId>, qemu: &mut Qemu, ctx: &Context) {
        let (Some(runs), Some(installed)) = (qemu.record().binary_id, installed) else { return };
        if runs == installed {
            self.version = None;
            return;
        }
        if self.version.is_some() || self.asking == Some(installed) {
            return;
        }
        self.asking = Some(installed);
        let (settings, reports) = (ctx.settings().clone(), qemu.tasks().sender());
        let own = qemu.record().qemu_version.clone();
        // Another thread, because the program may hang.
        let asked = std::thread::Builder::new().name("installed".into()).spawn(move || {
            let Ok(found) = prepare::facts_of(&settings) else { return };
            let version = match found.qemu.version.to_string() {
                same if same == own => format!("{same}, another build"),
                other => other,
            };
            let _ = reports.blocking_send(VmEvent::InstalledQemu(version));
        });
        if let Err(error) = asked {
            warn!("cannot get the version of the installed QEMU: {error}");
        }
    }

    /// Handles the version.
    pub(crate) fn handle(&mut self, version: String) {
        self.version = Some(version);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        store::record::Record,
        supervisor::tests::{FakeQemu, Host, record},
    };

    const RUNS: FileId = (1, 2, 3);
    const OTHER: FileId = (1, 2, 4);

    async fn fake(host: &Host) -> FakeQemu {
        FakeQemu::of(host, Record { binary_id: Some(RUNS), ..record() }).await
    }

    #[tokio::test]
    async fn same_program_has_no_other_version() {
        let host = Host::new();
        let mut fake = fake(&host).await;
        let mut installed = InstalledQemu::default();
        installed.handle("99.0".into());
        installed.compare(Some(RUNS), &mut fake.qemu, &host.ctx);
        assert_eq!(installed.version(), None);
        // Its version is unknown.
        installed.compare(None, &mut fake.qemu, &host.ctx);
        assert!(installed.asking.is_none());
    }

    #[tokio::test]
    async fn other_program_is_asked_once() {
        let host = Host::new();
        let mut fake = fake(&host).await;
        let mut installed = InstalledQemu::default();
        installed.compare(Some(OTHER), &mut fake.qemu, &host.ctx);
        assert_eq!(installed.asking, Some(OTHER));
        installed.compare(Some(OTHER), &mut fake.qemu, &host.ctx);
        installed.handle("99.0".into());
        assert_eq!(installed.version(), Some("99.0"));
        installed.compare(Some(OTHER), &mut fake.qemu, &host.ctx);
        assert_eq!(installed.version(), Some("99.0"));
    }
}
