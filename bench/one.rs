//! One VM: the time to start it and to force it off, compared with the same QEMU without qvm.

use std::time::{Duration, Instant};

use qvm::spec::Format;

use crate::{
    exec,
    figure::{Figure, Outcome, Sample, time},
    libvirt::Libvirt,
    place::{Owned, Place, Watched, in_turns, places},
    raw::{self, Raw},
};

const PAIRS: usize = 21;

/// The times of one program.
#[derive(Debug, Default)]
struct Times {
    start: Sample,
    kill: Sample,
    exit: Sample,
    exec: Sample,
}

impl Times {
    fn start_and_kill(&mut self, place: &Place) -> Outcome<()> {
        let (vm, took) = place.start("one")?.ready()?;
        self.start.push(took);
        let supervisor = Watched::new(vm.supervisor.pid())?;
        let begun = Instant::now();
        let mut request = Owned(place.qvm(&["kill", "one"]).spawn()?);
        let gone = vm.qemu.gone()?;
        let exited = supervisor.gone()?;
        self.kill.push(gone - begun);
        self.exit.push(exited - gone);
        request.0.wait()?;
        Ok(())
    }
}

pub(crate) fn measure() -> Outcome<Vec<Figure>> {
    let places = places()?;
    let place = places.first().ok_or("no place")?;
    // The first start creates the disk, the identity and the cache of host facts.
    for place in &places {
        place.vm("one", "boot.qcow2", "")?;
        drop(place.start("one")?.ready()?);
    }
    let disk = place.paths("one")?.disk(&"root".parse()?, Format::Qcow2);
    let same = raw::command_line(place.start("one")?.ready()?.0.qemu.pid, &disk)?;
    let by_hand = raw::by_hand(&disk);
    let mut times: Vec<Times> = places.iter().map(|_| Times::default()).collect();
    let (mut hand_start, mut same_start) = (Sample::default(), Sample::default());
    let mut quit = Sample::default();
    for round in 0..PAIRS {
        for (nr, place) in in_turns(&places, round) {
            times[nr].start_and_kill(place)?;
        }
        let (qemu, took) = Raw::start(&by_hand, place.path())?;
        hand_start.push(took);
        quit.push(qemu.quit()?);
        let (qemu, took) = Raw::start(&same, place.path())?;
        same_start.push(took);
        qemu.quit()?;
    }
    for round in 0..PAIRS {
        for (nr, place) in in_turns(&places, round) {
            times[nr].exec.push(exec::to_qemu(place.qvm(&["run", "one"]))?);
            // The run record of the killed QEMU process goes with the next run.
            let (vm, _) = place.start("one")?.ready()?;
            let mut request = Owned(place.qvm(&["kill", "one"]).spawn()?);
            vm.qemu.gone()?;
            request.0.wait()?;
            Watched::new(vm.supervisor.pid())?.gone()?;
        }
    }
    // Not alternated with the others: the daemon of libvirt continues its cleanup after `virsh` has
    // returned.
    let libvirt = Libvirt::new(place, 1)?;
    let (mut create, mut destroy) = (Sample::default(), Sample::default());
    if let Some(libvirt) = &libvirt {
        for _ in 0..PAIRS {
            create.push(libvirt.start(0)?);
            destroy.push(libvirt.destroy(0)?);
        }
    }
    let [now, before @ ..] = &times[..] else { return Err("no place".into()) };
    let before = before.first();
    let more = now.kill.median().saturating_sub(quit.median());
    let libvirt = libvirt.is_some();
    Ok(vec![
        Figure {
            libvirt: libvirt.then_some(create),
            ..Figure::times(
                "`qvm run` of a prepared VM, exec to ready",
                ("1.15 ×", 1.15),
                &now.start,
                ("QEMU by hand, exec to `cont`", &hand_start),
            )
            .before(before.map(|times| &times.start))
        },
        Figure {
            beside: format!("QMP `quit` {quit}"),
            over: format!("+ {}", time(more)),
            libvirt: libvirt.then_some(destroy),
            ..Figure::alone(
                "`qvm kill`, request to QEMU gone",
                "+ 10 ms",
                now.kill.to_string(),
                more <= Duration::from_millis(10),
            )
            .before(before.map(|times| &times.kill))
        },
        Figure::times(
            "the same start over QEMU with the options of qvm",
            ("1.25 ×", 1.25),
            &now.start,
            ("same options, exec to `cont`", &same_start),
        )
        .before(before.map(|times| &times.start))
        .extra(),
        within("exec of `qvm run` to exec of QEMU", &now.exec)
            .before(before.map(|times| &times.exec)),
        within("QEMU gone to `qvm run` exited", &now.exit).before(before.map(|times| &times.exit)),
    ])
}

fn within(what: &'static str, sample: &Sample) -> Figure {
    let met = sample.median() <= Duration::from_millis(10);
    Figure::alone(what, "10 ms", sample.to_string(), met).extra()
}
