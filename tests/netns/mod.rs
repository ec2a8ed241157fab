//! Tests in a new network namespace, as root or, with user namespaces, as any user.

use std::process::Command;

/// Set in the namespace.
const INSIDE: &str = "QVM_TEST_NETNS";

/// Runs `body` in a new network namespace with its loopback up.
///
/// `module` is the caller's `module_path!()` and `name` the calling test: unshare(1) executes the
/// test binary again for this test, because a process with threads can neither enter a user
/// namespace nor move all threads into a network namespace. Child processes of `body` are in the
/// namespace too.
///
/// If namespaces or taps are not allowed, the test is skipped with the reason; with
/// `QVM_TEST_REQUIRE=netns` it fails.
pub(crate) fn inside(module: &str, name: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        ip("link set lo up");
        return body();
    }
    let mut unshare = vec!["unshare", "--net"];
    if !nix::unistd::geteuid().is_root() {
        unshare.extend(["--user", "--map-root-user"]);
    }
    // udev creates /dev/net/tun with mode 0666; without udev it has mode 0600.
    let probe = Command::new(unshare[0])
        .args(&unshare[1..])
        .args(["sh", "-c", ": <>/dev/net/tun"])
        .output();
    let refusal = match probe {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(e) => Some(format!("unshare: {e}")),
    };
    if let Some(reason) = refusal {
        let required = std::env::var("QVM_TEST_REQUIRE").unwrap_or_default();
        assert!(
            !required.split(',').any(|r| r == "netns"),
            "no network namespace with taps: {reason}"
        );
        eprintln!("skipped: no network namespace with taps: {reason}");
        return;
    }
    // The test harness omits the name of the crate.
    let name = module.split_once("::").map_or(name.to_owned(), |(_, m)| format!("{m}::{name}"));
    let output = Command::new(unshare[0])
        .args(&unshare[1..])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &name, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    print!("{said}");
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("running 1 test"), "`{name}` is not this test's name");
    assert!(output.status.success(), "failed inside the namespace: {}", output.status);
}

/// Runs `ip ARGS`, which must succeed.
pub(crate) fn ip(args: &str) -> String {
    let output = Command::new("ip").args(args.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Returns an interface as printed by `ip -d link`; `None` if it does not exist.
#[allow(dead_code)] // Not used by every test binary.
pub(crate) fn interface(name: &str) -> Option<serde_json::Value> {
    let all: serde_json::Value = serde_json::from_str(&ip("-j -d link show")).unwrap();
    all.as_array().unwrap().iter().find(|i| i["ifname"] == name).cloned()
}
