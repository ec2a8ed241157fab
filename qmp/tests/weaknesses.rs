//! Tests for measured defects of other QMP clients.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::time::Duration;

use qmp::{
    Error, Kind, Session,
    fake::{Turn, greeted, line, play},
};
use serde_json::json;
use tokio::io::DuplexStream;

const LIMIT: Duration = Duration::from_secs(20);
const SOON: Duration = Duration::from_millis(30);

fn peer(turns: Vec<Turn>) -> DuplexStream {
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let script = greeted().into_iter().chain(turns).collect();
    tokio::spawn(play(theirs, script));
    ours
}

async fn session(turns: Vec<Turn>) -> Session {
    qmp::over(peer(turns), LIMIT).await.unwrap()
}

#[tokio::test]
async fn replies_can_arrive_in_any_order() {
    let turns = vec![
        Turn::Expect("first"),
        Turn::Expect("second"),
        Turn::ReturnLate(0, json!("two")),
        Turn::ReturnLate(1, json!("one")),
        Turn::AwaitClose,
    ];
    let client = session(turns).await.client;
    let (one, two) =
        tokio::join!(client.raw("first", json!({}), LIMIT), client.raw("second", json!({}), LIMIT));
    assert_eq!((one.unwrap(), two.unwrap()), (json!("one"), json!("two")));
}

#[tokio::test]
async fn call_after_a_timeout_works() {
    let turns = vec![
        Turn::Expect("slow"),
        Turn::Expect("query-status"),
        Turn::Return(json!({"status": "running"})),
        Turn::AwaitClose,
    ];
    let client = session(turns).await.client;
    let error = client.raw("slow", json!({}), SOON).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    assert_eq!(client.query_status(LIMIT).await.unwrap(), "running");
}

#[tokio::test]
async fn late_reply_is_discarded() {
    let turns = vec![
        Turn::Expect("slow"),
        Turn::Expect("query-status"),
        Turn::ReturnLate(1, json!({"status": "late"})),
        Turn::Return(json!({"status": "running"})),
        Turn::Expect("again"),
        Turn::Return(json!(1)),
        Turn::AwaitClose,
    ];
    let client = session(turns).await.client;
    client.raw("slow", json!({}), SOON).await.unwrap_err();
    assert_eq!(client.query_status(LIMIT).await.unwrap(), "running");
    assert_eq!(client.raw("again", json!({}), LIMIT).await.unwrap(), json!(1));
}

#[tokio::test]
async fn unknown_events_and_values_are_kept() {
    let turns = vec![
        line(r#"{"event": "NEW_IN_QEMU_99", "data": {"a": 1}, "timestamp": {"seconds": 1}}"#),
        line(r#"{"event": "SHUTDOWN", "data": {"guest": true, "reason": "new"}}"#),
        line("this is not JSON"),
        Turn::Expect("query-status"),
        Turn::Return(json!({"status": "a-state-of-qemu-99"})),
        Turn::AwaitClose,
    ];
    let mut session = session(turns).await;
    assert_eq!(session.client.query_status(LIMIT).await.unwrap(), "a-state-of-qemu-99");
    assert_eq!(session.events.next().await.unwrap().name, "NEW_IN_QEMU_99");
    assert!(matches!(
        session.events.next().await.unwrap().kind(),
        Kind::Shutdown { guest: true, .. }
    ));
}

#[tokio::test]
async fn closed_peer_is_reported_immediately() {
    let mut session = session(vec![Turn::Expect("quit"), Turn::Close]).await;
    assert!(matches!(session.client.quit(Duration::from_secs(3600)).await, Err(Error::Closed)));
    assert_eq!(session.events.next().await, None);
    assert!(matches!(session.client.cont(LIMIT).await, Err(Error::Closed)));
}

#[tokio::test]
async fn event_flood_delays_no_reply() {
    let mut turns: Vec<Turn> = (0..5000)
        .map(|n| line(&format!(r#"{{"event": "RTC_CHANGE", "data": {{"offset": {n}}}}}"#)))
        .collect();
    turns.extend([
        line(r#"{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}"#),
        Turn::Expect("query-status"),
        Turn::Return(json!({"status": "shutdown"})),
        Turn::Close,
    ]);
    let mut session = session(turns).await;
    assert_eq!(session.client.query_status(LIMIT).await.unwrap(), "shutdown");
    let mut names = vec![];
    while let Some(event) = session.events.next().await {
        names.push(event.name);
    }
    assert_eq!(names.last().unwrap(), "SHUTDOWN");
    assert!(names.len() < 2000, "{} events were kept", names.len());
}

#[tokio::test]
async fn refusal_has_qemus_description() {
    let refused = || [Turn::Expect("cont"), Turn::Refuse("GenericError", "not now")];
    let state = [Turn::Expect("query-status"), Turn::Return(json!({"status": "paused"}))];
    let turns = refused().into_iter().chain(state).chain(refused()).chain([Turn::AwaitClose]);
    let turns = turns.collect();
    let error = session(turns).await.client.cont(LIMIT).await.unwrap_err();
    assert_eq!(error.to_string(), "`cont` was refused: not now");
}

#[tokio::test]
async fn other_protocols_are_reported() {
    let (ours, theirs) = tokio::io::duplex(4096);
    tokio::spawn(play(theirs, vec![line("SSH-2.0-OpenSSH_9.2"), Turn::AwaitClose]));
    let error = qmp::over(ours, LIMIT).await.unwrap_err();
    assert!(matches!(&error, Error::NotQmp(start) if start.starts_with("SSH-2.0")), "{error}");
    let (ours, _silent) = tokio::io::duplex(4096);
    assert!(matches!(qmp::over(ours, SOON).await, Err(Error::Timeout { .. })));
}

#[tokio::test]
async fn endless_line_closes_the_connection() {
    let mut session =
        session(vec![Turn::Say(vec![b'x'; qmp::MAX_LINE + 4096]), Turn::AwaitClose]).await;
    assert_eq!(session.events.next().await, None);
}

/// The lines of `count` events that must not be lost.
fn flood(count: usize) -> Turn {
    let event = |nth: usize| {
        let name = ["STOP", "RESUME", "DEVICE_DELETED"][nth % 3];
        format!("{{\"event\": \"{name}\", \"data\": {{\"device\": \"d{nth}\"}}}}\r\n")
    };
    Turn::Say((0..count).map(event).collect::<String>().into_bytes())
}

#[tokio::test]
async fn unread_event_flood_closes_the_connection() {
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let script = greeted().into_iter().chain([flood(1_000_000), Turn::AwaitClose]).collect();
    // The peer sees the end although a client still exists.
    let peer = tokio::spawn(play(theirs, script));
    let mut session = qmp::over(ours, LIMIT).await.unwrap();
    tokio::time::timeout(LIMIT, peer).await.unwrap().unwrap();
    let mut taken = 0;
    while session.events.next().await.is_some() {
        taken += 1;
    }
    assert_eq!(taken, qmp::EVENT_QUEUE);
    assert!(matches!(session.client.query_status(LIMIT).await, Err(Error::Closed)));
}

#[tokio::test]
async fn read_event_flood_loses_nothing() {
    let count = 100_000;
    let mut session = session(vec![
        flood(count),
        Turn::Expect("query-status"),
        Turn::Return(json!({"status": "running"})),
        Turn::AwaitClose,
    ])
    .await;
    for nth in 0..count {
        let event = session.events.next().await.unwrap();
        assert_eq!(event.data["device"], format!("d{nth}"));
    }
    assert_eq!(session.client.query_status(LIMIT).await.unwrap(), "running");
}

#[tokio::test(start_paused = true)]
async fn commands_for_a_stuck_peer_are_bounded() {
    // Like a stopped QEMU, the peer's buffer accepts a few bytes and then no more.
    let (ours, theirs) = tokio::io::duplex(256);
    let greets = greeted();
    let (mut reading, writing) = tokio::io::split(theirs);
    let joined = tokio::io::join(&mut reading, writing);
    let peer = async { play(joined, greets).await };
    let (session, _) = tokio::join!(qmp::over(ours, LIMIT), peer);
    let client = session.unwrap().client;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..10_000 {
        let client = client.clone();
        calls.spawn(async move { client.raw("query-status", json!({}), LIMIT).await });
    }
    let (mut full, mut late) = (0, 0);
    while let Some(call) = calls.join_next().await {
        match call.unwrap() {
            Err(Error::QueueFull { .. }) => full += 1,
            Err(Error::Timeout { .. }) => late += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(late <= qmp::COMMAND_QUEUE + 8, "{late} commands were queued");
    assert_eq!(full + late, 10_000);
}
