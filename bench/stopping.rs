//! Twenty guests that take their time to stop: all at once, beside one alone.

use crate::{
    figure::{Figure, Outcome, Sample},
    place::{Place, places, timed},
};

const COUNT: usize = 20;

pub(crate) fn measure() -> Outcome<Vec<Figure>> {
    let places = places()?;
    let results = places.iter().map(stopped).collect::<Outcome<Vec<_>>>()?;
    let [(alone, together), before @ ..] = &results[..] else { return Err("no place".into()) };
    let figure = Figure::times(
        "stopping 20 guests of 5 s each",
        ("slowest + 2 %", 1.02),
        together,
        ("one alone", alone),
    );
    Ok(vec![figure.before(before.first().map(|(_, together)| together))])
}

/// The time to stop one guest, and all of them.
fn stopped(place: &Place) -> Outcome<(Sample, Sample)> {
    let names: Vec<String> = (0..COUNT).map(|nr| format!("vm{nr:02}")).collect();
    // These guests ignore the power button, so that each takes the whole time limit.
    for name in &names {
        place.vm(name, "boot-deaf.qcow2", "shutdownTimeoutSec = 5\n")?;
    }
    let (mut alone, mut together) = (Sample::default(), Sample::default());
    let first = place.start(&names[0])?.ready()?;
    alone.push(timed(&mut place.qvm(&["stop", &names[0]]))?);
    drop(first);
    let mut running = Vec::new();
    for some in names.chunks(4) {
        let starting: Vec<_> = some.iter().map(|name| place.start(name)).collect();
        for start in starting {
            running.push(start?.ready()?.0);
        }
    }
    let all: Vec<&str> = ["stop"].into_iter().chain(names.iter().map(String::as_str)).collect();
    together.push(timed(&mut place.qvm(&all))?);
    Ok((alone, together))
}
