//! `qvm events`: past and new events of VMs.

use std::cmp::Reverse;

use jiff::{Timestamp, tz::TimeZone};
use serde_json::{Value, json};
use tokio::{sync::mpsc, task::JoinSet};

use crate::{
    cli::exit::Failure,
    control::types::Event,
    fleet::inventory::inventory,
    store::layout::Layout,
    sys::storage_reader::StorageReader,
    value::{VmName, plain},
};

/// The arguments of `qvm events`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Names of VMs; without names, all running VMs
    #[arg(value_name = "NAME")]
    names: Vec<VmName>,
    /// Print new events until the VMs are stopped
    #[arg(short, long)]
    follow: bool,
    /// Print one JSON object per line; after the object `READY` no event is missed
    #[arg(long)]
    json: bool,
}

/// Prints the last events, the oldest first, and with `-f` also new ones.
///
/// # Errors
/// A VM in `names` is not running.
pub async fn run(args: &Args, layout: &Layout, zone: TimeZone) -> Result<(), Failure> {
    let names = match args.names.is_empty() {
        false => args.names.clone(),
        true => {
            let all = inventory(&StorageReader::default(), layout, &[]).await;
            let running = all.iter().filter(|entry| entry.answers);
            running.filter_map(|entry| entry.name.parse().ok()).collect()
        }
    };
    let (coming, mut come) = mpsc::channel(64);
    let mut past: Vec<(VmName, Event)> = vec![];
    let mut ready = vec![];
    let mut watching = JoinSet::new();
    for name in &names {
        // The subscription comes before the query, and events in both are printed once.
        let watch = match args.follow {
            true => {
                let watch = super::connect(layout, name).await?.watch().await;
                Some(super::or_refused(watch, layout, name).await?)
            }
            false => None,
        };
        let recent = super::connect(layout, name).await?.recent_events().await;
        let recent = super::or_refused(recent, layout, name).await?;
        past.extend(recent.iter().map(|event| (name.clone(), event.clone())));
        let Some(mut watch) = watch else { continue };
        ready.push(name.clone());
        let (coming, name) = (coming.clone(), name.clone());
        watching.spawn(async move {
            while let Some(event) = watch.next().await {
                if !recent.contains(&event) && coming.send((name.clone(), event)).await.is_err() {
                    return;
                }
            }
        });
    }
    drop(coming);
    past.sort_by_key(|(_, event)| Reverse(time(event)));
    let print = |(name, event): &(VmName, Event)| {
        super::print(&match args.json {
            true => format!("{}\n", to_json(name, event)),
            false => line(name, event, &zone),
        })
    };
    past.iter().rev().try_for_each(print)?;
    if args.json {
        // After `READY` no event is missed; a reader may act then.
        let first = |name: &VmName| {
            let event = Event { at: None, event: "READY".into(), data: None };
            print(&(name.clone(), event))
        };
        ready.iter().try_for_each(first)?;
    }
    if !args.follow {
        return Ok(());
    }
    super::shown(async {
        while let Some(event) = come.recv().await {
            print(&event)?;
        }
        Ok(())
    })
    .await
}

fn time(event: &Event) -> Option<Timestamp> {
    event.at.as_ref()?.parse().ok()
}

/// Returns the JSON object of a line.
fn to_json(name: &VmName, event: &Event) -> Value {
    json!({ "vm": name.as_str(), "at": event.at, "event": event.event, "data": event.data })
}

/// `2026-01-02 03:04:05  web  RESET  guest=true reason=guest-reset`.
fn line(name: &VmName, event: &Event, zone: &TimeZone) -> String {
    let time = time(event)
        .map(|time| time.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S").to_string());
    let data: Vec<String> = match &event.data {
        Some(Value::Object(data)) => {
            data.iter().map(|(key, value)| value_text(key, value)).collect()
        }
        _ => vec![],
    };
    let text =
        format!("{:19}  {name}  {}  {}", time.unwrap_or_default(), event.event, data.join(" "));
    format!("{}\n", plain(text.trim_end()))
}

/// Returns a value without quotes if it is a single word.
fn value_text(key: &str, value: &Value) -> String {
    match value {
        Value::String(text) if text.chars().all(|c| c.is_ascii_graphic()) => {
            format!("{key}={text}")
        }
        value => format!("{key}={value}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_is_one_line() {
        let event = Event {
            at: Some("2026-01-02T03:04:05.5Z".into()),
            event: "RESET".into(),
            data: Some(json!({ "guest": true, "reason": "guest-reset", "text": "a\nb" })),
        };
        assert_eq!(
            line(&"web".parse().unwrap(), &event, &TimeZone::UTC),
            "2026-01-02 03:04:05  web  RESET  guest=true reason=guest-reset text=\"a\\nb\"\n"
        );
        // A compromised QEMU sends arbitrary text.
        let data = Some(json!({ "\u{1b}c": "\u{9b}2J" }));
        let event = Event { at: None, event: "X\u{1b}[2J".into(), data };
        let shown = "                     web  X\\u{1b}[2J  \\u{1b}c=\"\\u{9b}2J\"\n";
        assert_eq!(line(&"web".parse().unwrap(), &event, &TimeZone::UTC), shown);
    }
}
