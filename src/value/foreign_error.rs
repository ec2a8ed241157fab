//! Errors of other programs and libraries that only their text identifies: they have no code.
//! Every comparison with such a text is here, with the versions whose source has it.

/// Whether a refusal of `device_del` means that the guest was already asked to release the device
/// and has not answered. `qmp_device_del` (softmmu/qdev-monitor.c of QEMU 7.2,
/// system/qdev-monitor.c of 10.0) returns it with the class `GenericError`, like every other
/// refusal.
pub fn is_unplug_pending(description: &str) -> bool {
    description.contains("already in the process of unplug")
}

/// Whether a program that runs with `LC_ALL=C` failed because a file system is full: strerror(3) of
/// `ENOSPC`. qemu-img 7.2 and 10.0 print it and exit with 1.
pub fn is_no_space(printed: &str) -> bool {
    printed.contains("No space left on device")
}

/// Whether a TLS error means that the host has no certificate authorities: rustls-platform-verifier
/// 0.7 returns it as `rustls::Error::General`.
pub fn is_no_authorities(error: &str) -> bool {
    error.contains("No CA certificates were loaded")
}

/// The reason why the server's certificate is not accepted: ureq 3.5 wraps `rustls::Error` 0.23 in
/// an I/O error. `None` for another I/O error.
pub fn certificate_problem(error: &str) -> Option<&str> {
    error.contains("certificate").then(|| error.trim_start_matches("invalid peer certificate: "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificate_problem_has_no_prefix() {
        let expired = "invalid peer certificate: certificate expired";
        assert_eq!(certificate_problem(expired), Some("certificate expired"));
        assert_eq!(certificate_problem("connection reset"), None);
    }
}
