//! A seccomp filter for system calls and ioctl requests that QEMU does not need and its own filter
//! (`-sandbox`, a deny list) allows.
//!
//! Refused calls fail with EPERM, like a missing privilege, so QEMU does not exit. QEMU adds its
//! own filter.

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// The bit of system call numbers of the x32 ABI, which is another way to call the same functions
/// (syscall(2)).
#[cfg(target_arch = "x86_64")]
const X32: i64 = 0x4000_0000;
/// `ioctl` has a separate number in x32 (arch/x86/entry/syscalls/syscall_64.tbl).
#[cfg(target_arch = "x86_64")]
const X32_IOCTL: i64 = X32 + 514;

/// Other processes, keys, kernel internals, mounts and namespaces, the clock and the host name.
const CALLS: &[i64] = &[
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_kcmp,
    libc::SYS_pidfd_getfd,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    // Only for background snapshots and postcopy, which qvm does not use.
    libc::SYS_userfaultfd,
    libc::SYS_fanotify_init,
    libc::SYS_open_by_handle_at,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_syslog,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
];

/// Requests of ioctl(2) on descriptors of QEMU. Tap requests need no privilege except the
/// descriptor (drivers/net/tun.c): with another tap address QEMU could receive frames for other
/// guests from the bridge, and a persistent tap would outlive QEMU.
const REQUESTS: &[u32] = &[
    0x8924,      // SIOCSIFHWADDR
    0x4004_54ca, // TUNSETIFF
    0x4004_54cb, // TUNSETPERSIST
    0x4004_54cc, // TUNSETOWNER
    0x4004_54cd, // TUNSETLINK
    0x4004_54ce, // TUNSETGROUP
    0x4004_54d1, // TUNSETTXFILTER
    0x4010_54d5, // TUNATTACHFILTER
    0x4010_54d6, // TUNDETACHFILTER
    0x8004_54e0, // TUNSETSTEERINGEBPF
    0x8004_54e1, // TUNSETFILTEREBPF
    0x4004_54e2, // TUNSETCARRIER
    0x5412,      // TIOCSTI, ioctl_tty(2)
];

/// Returns the program for the kernel (seccomp(2)).
///
/// # Errors
/// The architecture is not supported.
pub(crate) fn program() -> Result<BpfProgram, seccompiler::BackendError> {
    let request = |request: &u32| {
        // The kernel uses an `unsigned int`, so the upper half of the register is ignored.
        let (at, is) = (SeccompCmpArgLen::Dword, SeccompCmpOp::Eq);
        SeccompRule::new(vec![SeccompCondition::new(1, at, is, (*request).into())?])
    };
    let requests = || REQUESTS.iter().map(request).collect::<Result<Vec<_>, _>>();
    let mut rules: std::collections::BTreeMap<i64, Vec<SeccompRule>> =
        CALLS.iter().map(|call| (*call, vec![])).collect();
    #[cfg(target_arch = "x86_64")]
    rules.extend(rules.clone().into_keys().map(|call| (call + X32, vec![])));
    rules.insert(libc::SYS_ioctl, requests()?);
    #[cfg(target_arch = "x86_64")]
    rules.insert(X32_IOCTL, requests()?);
    let refused = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    let arch = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, SeccompAction::Allow, refused, arch)?.try_into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_is_short_enough() {
        let program = program().unwrap();
        // The kernel allows BPF_MAXINSNS (linux/bpf_common.h); each instruction costs time at every
        // system call.
        assert!(program.len() < 1000, "{}", program.len());
    }
}
