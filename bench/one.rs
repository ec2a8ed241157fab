//! One VM: how long it takes to start and to be gone, beside the same QEMU without qvm.

use std::time::Duration;

use qvm::spec::Format;

use crate::{
    figure::{Figure, Outcome, Sample, time},
    libvirt::Libvirt,
    place::{Owned, Place, Watched},
    raw::{self, Raw},
};

const PAIRS: usize = 21;

pub(crate) fn measure() -> Outcome<Vec<Figure>> {
    let place = Place::new()?;
    place.vm("one", "boot.qcow2", "")?;
    // The disk, the identity and the facts of this host are there from now on.
    let disk = place.paths("one")?.disk(&"root".parse()?, Format::Qcow2);
    let words = raw::command_line(place.start("one")?.ready()?.0.qemu.pid, &disk)?;
    let (mut start, mut raw_start) = (Sample::default(), Sample::default());
    let (mut kill, mut raw_quit) = (Sample::default(), Sample::default());
    let mut exit = Sample::default();
    for _ in 0..PAIRS {
        let (vm, took) = place.start("one")?.ready()?;
        start.push(took);
        let supervisor = Watched::new(vm.supervisor.pid())?;
        let begun = std::time::Instant::now();
        let mut request = Owned(place.qvm(&["kill", "one"]).spawn()?);
        let gone = vm.qemu.gone()?;
        let exited = supervisor.gone()?;
        kill.push(gone - begun);
        exit.push(exited - gone);
        request.0.wait()?;
        drop(vm);

        let (qemu, took) = Raw::start(&words, place.path())?;
        raw_start.push(took);
        raw_quit.push(qemu.quit()?);
    }
    // Its daemon still tidies up when `virsh` has returned: not in turns with the others.
    let libvirt = Libvirt::new(&place, 1)?;
    let (mut create, mut destroy) = (Sample::default(), Sample::default());
    if let Some(libvirt) = &libvirt {
        for _ in 0..PAIRS {
            create.push(libvirt.start(0)?);
            destroy.push(Libvirt::destroy(0)?);
        }
    }
    let more = kill.median().saturating_sub(raw_quit.median());
    Ok(vec![
        Figure {
            libvirt: libvirt.as_ref().map(|_| create),
            ..Figure::times(
                "`qvm run` of a prepared VM, exec to ready",
                ("1.25 ×", 1.25),
                &start,
                ("raw QEMU, exec to `cont`", &raw_start),
            )
        },
        Figure {
            what: "`qvm kill`, request to QEMU gone",
            bound: "+ 15 ms",
            measured: kill.to_string(),
            beside: format!("QMP `quit` {raw_quit}"),
            over: format!("+ {}", time(more)),
            libvirt: libvirt.as_ref().map(|_| destroy),
            met: more <= Duration::from_millis(15),
        },
        Figure::alone(
            "QEMU gone to `qvm run` exited",
            "10 ms",
            exit.to_string(),
            exit.median() <= Duration::from_millis(10),
        ),
    ])
}
