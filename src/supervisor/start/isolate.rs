//! QEMU's sandbox, and its descriptors of the VM's files.

use std::{
    fs::OpenOptions,
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{MetadataExt, OpenOptionsExt, chown},
    },
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;

use super::prepare::Prepared;
use crate::supervisor::settings::Settings;
use crate::{
    control::isolation::{Isolation, Layer, Missing, Mode},
    machine::{
        argv,
        facts::{Accelerator, Qemu},
        fdset::{Access, PassedFile},
    },
    sandbox::file_access::{self, Right},
    sandbox::{
        confine::{Cell, Domain},
        spawn,
    },
    sys::file,
    systemd::unit::Scope,
    value::{ErrorCode, Explain, UidRange},
};

/// The device that QEMU opens itself for KVM.
const KVM: &str = "dev/kvm";

/// The start of a script (execve(2)).
const SCRIPT: &[u8] = b"#!";
const NOT_ROOT: &str = "only root can run QEMU as another user";
const NO_SANDBOX: &str = "this QEMU was built without it";

/// Errors of QEMU's sandbox.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be opened.
    #[error("cannot open `{path}` for QEMU")]
    Open {
        /// The file.
        path: PathBuf,
        /// Whether `O_DIRECT` was requested.
        direct: bool,
        /// The cause.
        source: io::Error,
    },
    /// QEMU does not run in its sandbox.
    #[error("`{}` does not run in its sandbox", .0.display())]
    Broken(PathBuf),
    /// The pipe for the sandbox report cannot be created.
    #[error("cannot create a pipe to the QEMU process")]
    Pipe(#[source] io::Error),
    /// The process cannot be started.
    #[error(transparent)]
    Spawn(#[from] spawn::Error),
    /// `isolation = "strict"`, and the host lacks a layer.
    #[error("`isolation = \"strict\"` ({at}), but the host does not support all layers: {lacks}")]
    Strict {
        /// The location of `isolation` in the VM file.
        at: String,
        /// The missing layers.
        lacks: String,
    },
}

impl Explain for Error {
    fn wrapped(&self) -> Option<&dyn Explain> {
        match self {
            Self::Spawn(error) => Some(error),
            _ => None,
        }
    }

    fn own_code(&self) -> Option<ErrorCode> {
        Some(match self {
            Self::Open { source, .. } => ErrorCode::of_io(source),
            Self::Broken(..) => ErrorCode::SandboxBroken,
            Self::Pipe(source) => ErrorCode::of_io(source),
            Self::Strict { .. } => ErrorCode::IsolationIncomplete,
            Self::Spawn(..) => return None,
        })
    }

    fn own_hint(&self) -> Option<String> {
        match self {
            Self::Open { direct: true, source, .. }
                if source.kind() == io::ErrorKind::InvalidInput =>
            {
                let hint = "its file system does not support O_DIRECT: set `cache = \"writeback\"`";
                Some(hint.into())
            }
            Self::Pipe(_) => Some("raise `ulimit -n` above 512; the usual value is 1024".into()),
            Self::Broken(_) => Some(
                "it may require files outside its own prefix and /usr; `isolation = \"off\"` \
                 disables the sandbox"
                    .into(),
            ),
            Self::Strict { .. } => Some(
                "`qvm doctor` lists the missing layers; `isolation = \"on\"` does not require \
                      them"
                    .into(),
            ),
            _ => None,
        }
    }

    fn is_own_host_fault(&self) -> bool {
        matches!(self, Self::Strict { .. } | Self::Pipe(_))
    }
}

/// The sandbox of a QEMU process, and the layers that are known to be missing.
pub(crate) struct Plan {
    mode: Mode,
    cell: Option<Cell>,
    missing: Vec<Missing>,
    at: String,
}

impl Plan {
    /// Creates the plan for a VM. `shut_off`: the supervisor is in an empty network namespace.
    ///
    /// # Errors
    /// `isolation = "strict"`, and a layer is known to be missing.
    pub(crate) fn of(
        settings: &Settings,
        prepared: &Prepared,
        shut_off: bool,
    ) -> Result<Self, Error> {
        let vm = &prepared.vm;
        let (mode, at) = (vm.isolation, vm.at("isolation"));
        if mode == Mode::Off {
            return Ok(Self { mode, cell: None, missing: vec![], at });
        }
        let mut missing = vec![];
        let mut lacks = |layer, why: String| missing.push(Missing { layer, why });
        let user_network = user_network(vm);
        let network = user_network.is_none();
        if let Some(why) = user_network {
            lacks(Layer::Network, why);
        }
        let uid = prepared.identity.uid.filter(|_| settings.scope == Scope::System);
        if uid.is_none() {
            lacks(Layer::Uid, NOT_ROOT.to_owned());
        }
        if !prepared.facts.qemu.sandbox {
            lacks(Layer::Seccomp, NO_SANDBOX.to_owned());
        }
        let firmware = prepared.firmware.as_ref().map(|chosen| chosen.code.as_path());
        let (binary, strict) = (&prepared.facts.qemu.binary, mode == Mode::Strict);
        let device = (prepared.accel == Accelerator::Kvm).then(|| settings.root.join(KVM));
        let cell =
            Cell { network: network && !shut_off, strict, ..cell(binary, firmware, uid, device) };
        let cell = match cell.domain {
            Some(domain) => Cell { domain: Some(Domain { tcp: !network, ..domain }), ..cell },
            None => cell,
        };
        let plan = Self { mode, cell: Some(cell), missing, at };
        plan.check(vec![])?;
        Ok(plan)
    }

    /// Whether QEMU gets `-sandbox`.
    pub(crate) fn sandbox(&self) -> bool {
        self.cell.is_some() && !self.missing.iter().any(|one| one.layer == Layer::Seccomp)
    }

    fn check(&self, mut more: Vec<Missing>) -> Result<(), Error> {
        more.splice(0..0, self.missing.clone());
        if self.mode != Mode::Strict || more.is_empty() {
            return Ok(());
        }
        let descriptions: Vec<String> =
            more.iter().map(|one| format!("no {}: {}", one.layer.word(), one.why)).collect();
        Err(Error::Strict { at: self.at.clone(), lacks: descriptions.join("; ") })
    }

    /// Returns the UID of QEMU; `None` for the supervisor's.
    pub(crate) fn uid(&self) -> Option<u32> {
        self.cell.as_ref()?.uid
    }

    /// Starts QEMU in its sandbox. Returns its pid and the layers. `known` gets the pid before the
    /// execution of QEMU.
    ///
    /// # Errors
    /// QEMU cannot be executed; or `isolation = "strict"`, and a layer is missing.
    pub(crate) fn spawn<E: From<Error> + From<spawn::Error>>(
        self,
        program: &Path,
        arguments: &[String],
        fds: Vec<(OwnedFd, i32)>,
        known: impl FnOnce(u32) -> Result<(), E>,
    ) -> Result<(u32, Isolation), E> {
        let Some(cell) = &self.cell else {
            // SAFETY: the closure does nothing.
            let pid = unsafe { spawn::spawn_known(program, arguments, fds, || Ok(()), known) }?;
            return Ok((pid, Isolation::without(self.mode, None, vec![])));
        };
        let (inside, report) = cell.prepare().map_err(Error::Pipe)?;
        // The supervisor's end of the pipe is closed in any case.
        let enter = move || inside.enter();
        // SAFETY: `Prepared::enter` makes only bare system calls, on memory allocated before the
        // fork.
        let spawned = unsafe { spawn::spawn_known(program, arguments, fds, enter, known) };
        let found = report.read();
        if spawned.is_err() {
            // The cause may be a missing layer.
            self.check(found.clone())?;
        }
        let pid = spawned?;
        let missing = self.missing.iter().cloned().chain(found).collect();
        Ok((pid, Isolation::without(self.mode, self.uid(), missing)))
    }
}

/// Returns the narrowest sandbox for QEMU.
fn cell(binary: &Path, firmware: Option<&Path>, uid: Option<u32>, device: Option<PathBuf>) -> Cell {
    let binary = binary.canonicalize().unwrap_or_else(|_| binary.to_owned());
    let mut open_to = file_access::open_to(&binary, firmware);
    let begin = file::read_at(&binary, 0, SCRIPT.len()).unwrap_or_default();
    if begin == SCRIPT {
        // A wrapper script may start programs of the host and of its directory.
        let beside = binary.parent().map(Path::to_owned);
        let bins = ["/bin", "/usr/bin"].map(PathBuf::from);
        open_to.extend(bins.into_iter().chain(beside).map(|path| (path, Right::Execute)));
    }
    Cell {
        uid,
        device,
        network: true,
        capabilities: true,
        no_new_privileges: true,
        domain: Some(Domain { open_to, tcp: false }),
        filter: true,
        strict: false,
    }
}

/// Runs `qemu -version` in the sandbox, with a UID of this range. Returns the result.
///
/// # Errors
/// QEMU cannot be executed, or fails.
pub fn probe(qemu: &Qemu, root: &Path, range: UidRange) -> Result<Isolation, Error> {
    let mut missing = vec![];
    let uid = rustix::process::geteuid().is_root().then(|| range.first());
    if uid.is_none() {
        missing.push(Missing { layer: Layer::Uid, why: NOT_ROOT.to_owned() });
    }
    let mut arguments = vec!["-version".to_owned()];
    if qemu.sandbox {
        arguments.splice(0..0, ["-sandbox".to_owned(), argv::SANDBOX.to_owned()]);
    } else {
        missing.push(Missing { layer: Layer::Seccomp, why: NO_SANDBOX.to_owned() });
    }
    let cell = cell(&qemu.binary, None, uid, Some(root.join(KVM)));
    let (inside, report) = cell.prepare().map_err(Error::Pipe)?;
    // SAFETY: `Prepared::enter` makes only bare system calls, on memory allocated before the fork.
    let pid = unsafe { spawn::spawn(&qemu.binary, &arguments, vec![], move || inside.enter()) }?;
    missing.extend(report.read());
    if !spawn::wait(pid) {
        return Err(Error::Broken(qemu.binary.clone()));
    }
    Ok(Isolation::without(Mode::On, uid, missing))
}

/// Opens the files for QEMU, at a start and for a hot-plugged disk, with the flags that QEMU
/// expects.
///
/// # Errors
/// A file cannot be opened.
pub(crate) fn open(files: &[PassedFile]) -> Result<Vec<(OwnedFd, i32)>, Error> {
    let open = |handed: &PassedFile| {
        let Access { write, direct } = handed.access;
        let flags = if direct { OFlags::DIRECT } else { OFlags::empty() };
        let opened = OpenOptions::new()
            .read(true)
            .write(write)
            .custom_flags(flags.bits().cast_signed())
            .open(&handed.path);
        let failed = |source| Error::Open { path: handed.path.clone(), direct, source };
        Ok((OwnedFd::from(opened.map_err(failed)?), handed.set))
    };
    files.iter().map(open).collect()
}

/// Changes the owner of the VM's files that QEMU writes. Best effort: QEMU has their descriptors.
pub(crate) fn give_to_user(files: &[PassedFile], state: &Path, uid: Option<u32>) {
    let Some(uid) = uid else { return };
    for handed in files.iter().filter(|one| one.access.write && one.path.starts_with(state)) {
        let is_its = file::metadata(&handed.path)
            .is_ok_and(|found| found.is_some_and(|found| found.uid() == uid || !found.is_file()));
        if is_its {
            continue;
        }
        if let Err(error) = chown(&handed.path, Some(uid), None) {
            let path = handed.path.display();
            tracing::debug!("cannot change the owner of `{path}` to {uid}: {error}");
        }
    }
}
/// Returns why QEMU must be in the host's network: a NIC in user mode.
fn user_network(vm: &crate::spec::Vm) -> Option<String> {
    let user = vm.nics.iter().find(|nic| matches!(nic.link, crate::spec::Link::User { .. }));
    user.map(|nic| format!("`{}` has a user-mode network", nic.name))
}

#[cfg(test)]
mod tests;
