//! The taps of a running guest on bridges of the kernel, in a network namespace of the test.

mod keeping;
mod opening;

use std::{os::fd::OwnedFd, time::Duration};

use crate::{
    net::{
        broker, tap,
        tap_spec::{Tap, taps},
    },
    supervisor::tests::{
        netns::{inside, interface},
        vm,
    },
};

/// The time limit of the kernel and the keeper, after which a test fails.
const LIMIT: Duration = Duration::from_secs(60);
/// A VM with one NIC, without the filter, which has other tests.
const TEXT: &str = "[nic.net]\nbridge = \"br0\"\nantiSpoof = false\n";

/// Runs a test in a new network namespace, with a runtime. `module` is the `module_path!()` of the
/// test, `name` its function.
fn on_kernel(module: &str, name: &str, test: impl Future<Output = ()>) {
    inside(module, name, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test);
    });
}

/// The tap of the VM file.
fn tap_of(text: &str) -> Tap {
    taps(&vm(text)).remove(0)
}

/// Creates the tap, which exists until the descriptor is closed, like that of QEMU.
fn create(tap: &Tap) -> OwnedFd {
    tap::open(&tap.name, broker::tun()).unwrap()
}

/// The name of the bridge that an interface is a port of.
fn controller(name: &str) -> Option<String> {
    interface(name)?["master"].as_str().map(str::to_owned)
}
