//! Stable codes of the errors that users see.

use std::{fmt, io};

use serde::{Deserialize, Deserializer};

use super::{codes::codes, host_fault::is_host_fault};

codes! {
    /// What an error is about. The words are stable; docs/reference/errors.md lists them.
    pub enum ErrorCode {
        AlreadySupervised "already-supervised" "Another supervisor holds the lock of the VM.",
        ArchiveDamaged "archive-damaged" "An archive of `qvm export` is damaged or truncated.",
        ArchiveForeign "archive-foreign" "A file is not an archive of `qvm export`.",
        ArchiveInvalid "archive-invalid" "An archive contains what `qvm export` does not write.",
        ArchiveTooNew "archive-too-new" "An archive was written by a newer version.",
        BridgeMissing "bridge-missing" "A bridge does not exist.",
        BridgeRefused "bridge-refused" "A tap cannot be added to its bridge.",
        Canceled "canceled" "The operation was canceled.",
        CertificateInvalid "certificate-invalid" "The certificate of a server is not valid.",
        CgroupFailed "cgroup-failed" "A cgroup cannot be created, changed or removed.",
        CgroupNotV2 "cgroup-not-v2" "cgroup v2 is not mounted, or does not control the processor.",
        CharacterUnknown "character-unknown" "A character is not on a US keyboard.",
        ChecksumListInvalid "checksum-list-invalid"
            "The file of `checksums` is not a list of checksums.",
        ChecksumMissing "checksum-missing" "The file of `checksums` has no checksum of the image.",
        ChecksumWrong "checksum-wrong" "An image has another checksum than expected.",
        ConnectionFailed "connection-failed" "The connection to a server failed.",
        ControlDenied "control-denied" "The user may not connect to the control socket of the VM.",
        CwdMissing "cwd-missing"
            "The current directory does not exist, and a path is relative to it.",
        DirectoryUnknown "directory-unknown"
            "A directory cannot be determined, because `HOME` is not set.",
        DiskBackingUnexpected "disk-backing-unexpected"
            "A disk has another backing file than expected.",
        DiskBusy "disk-busy" "A device is mounted, or in use by another program or VM.",
        DiskCorrupt "disk-corrupt" "A disk is marked corrupt.",
        DiskDamaged "disk-damaged" "The header of a disk is damaged.",
        DiskDenied "disk-denied" "The user may not open a disk.",
        DiskIncomplete "disk-incomplete" "The file of a disk does not contain all of its data.",
        DiskLost "disk-lost" "A disk does not exist, but its snapshots do.",
        DiskMissing "disk-missing"
            "A disk does not exist, and there is no image to create it from.",
        DiskNotOwned "disk-not-owned"
            "A writable disk was not created by qvm, so it is not copied.",
        DiskUnknown "disk-unknown" "The VM has no disk of this name.",
        DiskWrongType "disk-wrong-type" "The file of a disk has another type than configured.",
        DownloadInsecure "download-insecure"
            "A server redirects a download to an address without TLS.",
        DownloadRefused "download-refused" "A server responded to a download with an error status.",
        DownloadStalled "download-stalled" "A server sends no data, or too slowly.",
        EditorFailed "editor-failed" "The editor failed.",
        EndUnexpected "end-unexpected" "The VM ended instead of reaching the awaited state.",
        FileError "file-error" "An operation on a file failed.",
        FileExists "file-exists" "A file that would be created exists.",
        FileMissing "file-missing" "A file or directory does not exist.",
        FileUnread "file-unread" "A VM file or the file of the host settings cannot be read.",
        FilterDenied "filter-denied" "The user may not filter the traffic of a tap.",
        FilterFailed "filter-failed" "The kernel refused the filter of a tap.",
        FilterUnsupported "filter-unsupported" "The kernel cannot filter the traffic of a tap.",
        FirmwareMissing "firmware-missing" "The host has no firmware for the VM.",
        GuestFailed "guest-failed" "An operation in the guest failed.",
        GuestFrozen "guest-frozen" "The guest's file systems are frozen.",
        GuestLimit "guest-limit" "The input or output of a command in the guest is too large.",
        GuestRefused "guest-refused" "The guest agent returned an error.",
        GuestReplyInvalid "guest-reply-invalid" "The reply of the guest agent cannot be parsed.",
        GuestSilent "guest-silent" "The guest agent does not answer.",
        GuestTimeout "guest-timeout" "A command in the guest did not exit in time.",
        HostNameUnresolved "host-name-unresolved" "The host name of a server cannot be resolved.",
        IdentityInvalid "identity-invalid" "The identity of a VM cannot be parsed.",
        IdentityLocked "identity-locked" "Another process holds the lock of the identities.",
        IdentityTaken "identity-taken" "Another VM has the same UUID or MAC address.",
        ImageAmbiguous "image-ambiguous" "Several images of the cache match.",
        ImageBusy "image-busy" "An image is being downloaded or cloned.",
        ImageCorrupt "image-corrupt" "An image is corrupt or truncated.",
        ImageDamaged "image-damaged"
            "An image cannot be decompressed, or was damaged in the cache.",
        ImageEmpty "image-empty" "An image is empty.",
        ImageFormat "image-format" "An image is neither qcow2 nor raw.",
        ImageInUse "image-in-use" "A disk has the image as its backing file.",
        ImageRefused "image-refused" "An image refers to other files, so it is not used.",
        ImageTooDemanding "image-too-demanding"
            "The decompression of an image needs too much memory.",
        ImageUnknown "image-unknown" "There is no such image in the cache or in a VM file.",
        InternalError "internal-error" "qvm has a fault.",
        Interrupted "interrupted" "A signal interrupted the operation.",
        InvalidFile "invalid-file" "A VM file or the file of the host settings is not valid.",
        IsolationIncomplete "isolation-incomplete"
            "The host lacks a layer that `isolation = \"strict\"` requires.",
        KeyUnknown "key-unknown" "A key is not on the keyboard.",
        KvmDenied "kvm-denied" "The user may not open /dev/kvm.",
        LockHeld "lock-held" "Another process holds a lock.",
        MachineIdMissing "machine-id-missing" "/etc/machine-id cannot be read.",
        MachineTypeUnsupported "machine-type-unsupported"
            "The machine type of a VM requires another QEMU.",
        MethodUnsupported "method-unsupported"
            "The supervisor does not support the request; its version may differ.",
        NameInUse "name-in-use" "Another process uses the name of a VM.",
        NetworkFailed "network-failed" "The kernel refused an operation on a network interface.",
        NeverRun "never-run" "The VM has never run.",
        NoAddress "no-address" "The address of the guest is unknown.",
        NoCertificateAuthorities "no-certificate-authorities"
            "The host has no certificate authorities.",
        NoFreeUid "no-free-uid" "All UIDs of `uidRange` are in use.",
        NoHotplugPort "no-hotplug-port" "The machine has no free port for another device.",
        NoKvm "no-kvm" "The host has no /dev/kvm.",
        NoMemory "no-memory" "The host has not enough memory left for the VM.",
        NoOutput "no-output" "The console of the VM has no output yet.",
        NoPublicKey "no-public-key" "A file contains no public key.",
        NoScreen "no-screen" "The VM has no screen.",
        NoSeed "no-seed" "The VM has no seed.",
        NoSpace "no-space" "A file system has not enough free space.",
        NoSupervisor "no-supervisor" "QEMU runs without a supervisor.",
        NoVmFiles "no-vm-files" "The directory of the VM files is empty.",
        NotABridge "not-a-bridge" "The interface of `bridge` is not a bridge.",
        NotAFile "not-a-file" "A path is not that of a regular file.",
        NotAllowed "not-allowed" "The operators of the VM do not include the user.",
        NotApplied "not-applied" "A change of the VM file could not be applied to the running VM.",
        NotConfirmed "not-confirmed" "The question was not answered with yes.",
        NotNow "not-now" "The state of the VM does not allow the operation.",
        NotReady "not-ready" "The guest was not ready in time.",
        NotRunning "not-running" "The VM is not running.",
        NotSuspended "not-suspended" "The guest's state could not be saved.",
        NothingToRemove "nothing-to-remove" "The VM has no data to remove.",
        Other "other" "The other side has no codes, or this version does not know the code.",
        OutOfResources "out-of-resources" "The host has no memory or no descriptor left.",
        OutputFailed "output-failed" "Standard output or a terminal cannot be written.",
        PathNeeded "path-needed" "A VM file refers to a path that would no longer exist.",
        PathUnreachable "path-unreachable" "The sandbox of the unit hides a path.",
        PathUnusable "path-unusable" "QEMU cannot use a path with these characters.",
        PermissionDenied "permission-denied" "The user may not access a file or device.",
        PortInUse "port-in-use" "Another program uses a port of the host.",
        PortUnusable "port-unusable" "An address or port of the host cannot be used.",
        ProgramFailed "program-failed" "A program of the host failed.",
        ProgramMissing "program-missing" "A program of the host does not exist.",
        ProgramTimeout "program-timeout" "A program of the host did not end in time.",
        ProxyInvalid "proxy-invalid"
            "A variable of the environment is not the URL of a usable proxy.",
        ProxyRefused "proxy-refused" "The proxy refuses the connection.",
        QemuDied "qemu-died" "QEMU exited without a request.",
        QemuExited "qemu-exited" "QEMU exited during the start.",
        QemuImgFailed "qemu-img-failed" "qemu-img failed.",
        QemuLeft "qemu-left" "A QEMU process may still be running.",
        QemuMissing "qemu-missing" "QEMU is not installed.",
        QemuNotEnded "qemu-not-ended" "QEMU has not exited after SIGKILL.",
        QemuNotExecuted "qemu-not-executed" "QEMU cannot be executed.",
        QemuNotKilled "qemu-not-killed" "QEMU cannot be killed.",
        QemuRefused "qemu-refused" "QEMU refused a command.",
        QemuReplyInvalid "qemu-reply-invalid" "A message of QEMU cannot be parsed.",
        QemuSilent "qemu-silent" "QEMU's monitor does not answer.",
        QemuTooOld "qemu-too-old" "QEMU is older than qvm supports.",
        QemuUnconfirmed "qemu-unconfirmed"
            "QEMU did not confirm a command, and may execute it later.",
        QemuUnreachable "qemu-unreachable" "The connection to QEMU's monitor was closed.",
        QemuVersionUnknown "qemu-version-unknown" "The output of QEMU cannot be parsed.",
        RestoreTimeout "restore-timeout" "QEMU did not restore the saved state in time.",
        ResultInvalid "result-invalid" "The VM file of the new name would not be valid.",
        SandboxBroken "sandbox-broken" "QEMU does not run in its sandbox.",
        SavedStateUnusable "saved-state-unusable" "The saved state cannot be used.",
        ScreenNotServed "screen-not-served" "The screen of the VM is not served by VNC.",
        SeedInvalid "seed-invalid" "The seed cannot be created from the VM file.",
        SnapshotExists "snapshot-exists" "A snapshot with this name exists.",
        SnapshotInUse "snapshot-in-use"
            "Several files are based on a snapshot, so it is not removed.",
        SnapshotIncomplete "snapshot-incomplete" "The removal of a snapshot was interrupted.",
        SnapshotMismatch "snapshot-mismatch"
            "The disks of the VM file are not those of the snapshot.",
        SnapshotNotFound "snapshot-not-found" "The VM has no snapshot of this name.",
        SnapshotPending "snapshot-pending"
            "A snapshot operation was interrupted, and is not yet completed.",
        SnapshotRecordInvalid "snapshot-record-invalid"
            "The record of a VM's snapshots cannot be used.",
        SnapshotRefused "snapshot-refused"
            "A disk of the VM, or its file system, does not permit snapshots.",
        SnapshotTooDeep "snapshot-too-deep" "A disk is based on the maximum number of snapshots.",
        SnapshotUnexpected "snapshot-unexpected"
            "The files are not as an interrupted snapshot operation leaves them.",
        SocketInUse "socket-in-use" "Another process listens on a socket.",
        SocketPathTaken "socket-path-taken" "Another file is at the path of a socket.",
        SocketPathTooLong "socket-path-too-long" "The path of a socket is too long.",
        StateDirLinked "state-dir-linked"
            "A file is a symbolic link into the VM's state directory.",
        StateUnknown "state-unknown" "The state of the VM cannot be determined.",
        StorageFault "storage-fault" "Storage of the host fails.",
        StorageSilent "storage-silent" "Storage of the host does not answer.",
        SupervisorBusy "supervisor-busy" "The supervisor closes connections without a reply.",
        SupervisorEnded "supervisor-ended" "The supervisor ended during the request.",
        SupervisorExited "supervisor-exited" "The supervisor ended during the start.",
        SupervisorReplyInvalid "supervisor-reply-invalid"
            "The reply of the supervisor cannot be parsed.",
        SupervisorSilent "supervisor-silent" "The supervisor does not answer in time.",
        SupervisorUnreachable "supervisor-unreachable" "The connection to the supervisor failed.",
        SystemctlFailed "systemctl-failed" "systemctl failed.",
        SystemdSilent "systemd-silent" "systemd does not answer.",
        TapDenied "tap-denied" "The user may not create a tap.",
        TapFailed "tap-failed" "A tap cannot be created.",
        TapInUse "tap-in-use" "Another process uses the name of a tap.",
        TapMissing "tap-missing" "A tap does not exist.",
        TapMultiQueue "tap-multi-queue" "An existing tap has several queues.",
        ThawedEarly "thawed-early" "The guest's file systems were thawed before the command ended.",
        TlsFailed "tls-failed" "The TLS handshake with a server failed.",
        TunMissing "tun-missing" "/dev/net/tun does not exist.",
        UidUnknown "uid-unknown"
            "The UID of another VM, which may be running, cannot be determined.",
        UrlInvalid "url-invalid" "The URL of an image cannot be used.",
        Usage "usage" "The arguments of the command are not valid.",
        UserDataExists "user-data-exists" "A user-data file with other content exists.",
        ValueInvalid "value-invalid" "A value is not in the allowed range.",
        VhostMissing "vhost-missing" "/dev/vhost-net cannot be opened.",
        VmDataExists "vm-data-exists" "Data of a VM with this name exists, without a VM file.",
        VmExists "vm-exists" "A VM with this name exists.",
        VmFileChanged "vm-file-changed" "Another process changed the VM file.",
        VmFileLinked "vm-file-linked" "The VM file is a symbolic link to a generated file.",
        VmFileMissing "vm-file-missing" "The VM file does not exist.",
        VmFileReadOnly "vm-file-read-only" "The VM file is in the Nix store, which is read-only.",
        VmNotFound "vm-not-found" "There is no VM of this name.",
        VmRunning "vm-running" "The VM is running.",
        VmStarting "vm-starting" "The VM is starting.",
        VmSuspended "vm-suspended" "The VM is suspended, not shut down.",
        VncPasswordInvalid "vnc-password-invalid" "The VNC password cannot be used.",
        VncPasswordMissing "vnc-password-missing" "The file of the VNC password does not exist.",
        WaitTimeout "wait-timeout" "The awaited state was not reached in time.",
    }
}

impl ErrorCode {
    /// The exit code of a verb that fails with this code. A host fault, which another attempt may
    /// solve, has exit code 75 instead.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::KeyUnknown | Self::Usage => 2,
            Self::DiskUnknown
            | Self::NeverRun
            | Self::NoAddress
            | Self::NoOutput
            | Self::NoSeed
            | Self::NotRunning
            | Self::NothingToRemove
            | Self::ScreenNotServed
            | Self::SnapshotNotFound
            | Self::VmFileMissing
            | Self::VmNotFound => 3,
            Self::NoMemory => 69,
            Self::QemuNotEnded => 70,
            Self::BridgeMissing
            | Self::BridgeRefused
            | Self::FileUnread
            | Self::IdentityLocked
            | Self::NetworkFailed
            | Self::NoSpace
            | Self::NotABridge
            | Self::OutOfResources
            | Self::PortInUse
            | Self::PortUnusable
            | Self::ProgramTimeout
            | Self::QemuLeft
            | Self::QemuSilent
            | Self::QemuUnconfirmed
            | Self::RestoreTimeout
            | Self::SnapshotRecordInvalid
            | Self::SnapshotUnexpected
            | Self::StateUnknown
            | Self::StorageFault
            | Self::StorageSilent
            | Self::SystemdSilent
            | Self::UidUnknown => 75,
            Self::InvalidFile | Self::ResultInvalid => 78,
            _ => 1,
        }
    }

    /// The code with this word; [`Other`](Self::Other) if there is none.
    pub fn from_word(word: &str) -> Self {
        let known = Self::ALL.iter().find(|(code, _)| code.word() == word);
        known.map_or(Self::Other, |(code, _)| *code)
    }

    /// The code of an I/O error.
    pub fn of_io(error: &io::Error) -> Self {
        use io::ErrorKind as Kind;
        match error.kind() {
            Kind::NotFound => Self::FileMissing,
            Kind::AlreadyExists => Self::FileExists,
            Kind::PermissionDenied => Self::PermissionDenied,
            Kind::StorageFull | Kind::QuotaExceeded => Self::NoSpace,
            Kind::TimedOut => Self::StorageSilent,
            Kind::OutOfMemory => Self::OutOfResources,
            _ if is_out_of_descriptors(error) => Self::OutOfResources,
            _ if is_host_fault(error) => Self::StorageFault,
            _ => Self::FileError,
        }
    }
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = error.raw_os_error();
    [Errno::MFILE, Errno::NFILE].iter().any(|known| errno == Some(known.raw_os_error()))
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl<'de> Deserialize<'de> for ErrorCode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::from_word(&String::deserialize(deserializer)?))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rustix::io::Errno;

    use super::*;

    #[test]
    fn words_are_unique_and_sorted() {
        let words: Vec<_> = ErrorCode::ALL.iter().map(|(code, _)| code.word()).collect();
        assert!(words.is_sorted());
        assert_eq!(words.iter().collect::<BTreeSet<_>>().len(), words.len());
        for (code, meaning) in ErrorCode::ALL {
            assert_eq!(ErrorCode::from_word(code.word()), *code);
            assert_eq!(serde_json::to_value(code).unwrap(), code.word());
            assert!(meaning.ends_with('.'), "{meaning}");
        }
    }

    #[test]
    fn unknown_word_is_other() {
        let newer: ErrorCode = serde_json::from_str("\"newer\"").unwrap();
        assert_eq!(newer, ErrorCode::Other);
    }

    #[test]
    fn io_errors_have_codes_of_their_kind() {
        for (errno, code) in [
            (Errno::NOENT, ErrorCode::FileMissing),
            (Errno::EXIST, ErrorCode::FileExists),
            (Errno::ACCESS, ErrorCode::PermissionDenied),
            (Errno::PERM, ErrorCode::PermissionDenied),
            (Errno::NOSPC, ErrorCode::NoSpace),
            (Errno::DQUOT, ErrorCode::NoSpace),
            (Errno::TIMEDOUT, ErrorCode::StorageSilent),
            (Errno::MFILE, ErrorCode::OutOfResources),
            (Errno::NOMEM, ErrorCode::OutOfResources),
            (Errno::IO, ErrorCode::StorageFault),
            (Errno::ROFS, ErrorCode::StorageFault),
            (Errno::NOTDIR, ErrorCode::FileError),
        ] {
            let error = io::Error::from_raw_os_error(errno.raw_os_error());
            assert_eq!(ErrorCode::of_io(&error), code, "{errno}");
        }
    }
}
