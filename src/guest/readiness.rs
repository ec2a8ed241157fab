//! Interprets the output of cloud-init and of QEMU's user-mode network to determine whether the
//! guest is ready.

/// The status of cloud-init.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CloudInit {
    /// Not done yet.
    Going,
    /// Done, without errors.
    Done,
    /// Done, with recoverable errors.
    Degraded,
    /// Failed permanently, with the reason.
    Failed(String),
}

/// Parses the first line of `cloud-init status`, `status: done`, and its exit code: 1 is an error,
/// 2 a recoverable error (cloud-init's documentation, "Reported status"; exit code 2 since 23.4).
pub fn cloud_init(out: &str, exit_code: i64) -> CloudInit {
    let says = out.lines().find_map(|line| line.strip_prefix("status:")).map(str::trim);
    match (says, exit_code) {
        (Some("done"), 2) | (Some("degraded done"), _) => CloudInit::Degraded,
        (Some("done"), _) => CloudInit::Done,
        (Some("error"), _) => CloudInit::Failed(
            "cloud-init failed: see `cloud-init status --long` in the guest".into(),
        ),
        (Some("disabled"), _) => CloudInit::Failed("cloud-init is disabled in the guest".into()),
        // `running`, `not run`, `not started`, and words of later versions: not done yet.
        (Some(_), _) | (None, 0..=2) => CloudInit::Going,
        (None, code) => {
            CloudInit::Failed(format!("`cloud-init status` fails in the guest with code {code}"))
        }
    }
}

/// Returns true if the guest accepted a connection to a forwarded port, from the output of HMP's
/// `info usernet`: QEMU accepts each connection itself before it connects to the guest (libslirp,
/// misc.c, `slirp_connection_info`).
pub fn is_accepted(table: &str, host: u16, guest: u16) -> bool {
    table.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        // Protocol[State] FD source port destination port received sent
        let [state, _, _, source, _, destination, ..] = words.as_slice() else { return false };
        let port = |text: &str| text.parse::<u16>().ok();
        *state == "TCP[ESTABLISHED]"
            && port(source) == Some(host)
            && port(destination) == Some(guest)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn cloud_init_status_is_parsed() {
        use CloudInit::{Degraded, Done, Going};
        for (out, code, expected) in [
            ("status: done\n", 0, Done),
            ("\nstatus: done\nextended_status: degraded done\n", 2, Degraded),
            ("status: running\n", 0, Going),
            ("status: running\n", 2, Going),
            ("....status: x\nstatus: not run\n", 0, Going),
            ("status: not started\n", 0, Going),
            ("", 0, Going),
            ("", 1, Going),
        ] {
            assert_eq!(cloud_init(out, code), expected, "{out:?}");
        }
        for (out, code, why) in [
            ("status: error\n", 1, "cloud-init failed: see"),
            ("status: disabled\n", 0, "cloud-init is disabled"),
            ("", 127, "`cloud-init status` fails in the guest with code 127"),
        ] {
            let CloudInit::Failed(expected) = cloud_init(out, code) else { panic!("{out}") };
            assert!(expected.starts_with(why), "{expected}");
        }
    }

    /// The output of QEMU 10.0.
    const TABLE: &str = "Hub -1 (net):\r
  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r
  TCP[ESTABLISHED]   31       127.0.0.1  2222       10.0.2.15    22     0     0\r
  TCP[SYN_SENT]      30       127.0.0.1  2207       10.0.2.15     7     0     0\r
  TCP[HOST_FORWARD]  14       127.0.0.1  8080       10.0.2.15    80     0     0\r
  UDP[236 sec]       33       10.0.2.15 68             0.0.0.0    67     0     0\r
";

    #[test]
    fn only_accepted_connections_count() {
        assert!(is_accepted(TABLE, 2222, 22));
        for (host, guest) in [(2207, 7), (8080, 80), (2222, 7), (2207, 22), (68, 67)] {
            assert!(!is_accepted(TABLE, host, guest), "{host} {guest}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(TCP\\[ESTABLISHED\\]|[0-9 \
            .:]|\\PC|\n){0,60}", code in any::<i64>()) {
            let _ = is_accepted(&text, 1, 1);
            let _ = cloud_init(&text, code);
        }
    }
}
