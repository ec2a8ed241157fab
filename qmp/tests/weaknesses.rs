//! What other clients of QMP were measured to get wrong, each with a test that this one does not.

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
async fn calls_are_not_serial_and_replies_find_their_callers_in_any_order() {
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
async fn a_call_after_a_timeout_works() {
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
async fn a_late_reply_ends_nothing_and_is_nobody_elses() {
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
async fn an_unknown_event_and_an_unknown_value_of_a_known_one_end_nothing() {
    let turns = vec![
        line(
            r#"{"event": "NEW_IN_QEMU_99", "data": {"a": 1}, "timestamp": {"seconds": 1, "microseconds": 2}}"#,
        ),
        line(
            r#"{"event": "SHUTDOWN", "data": {"guest": true, "reason": "new"}, "timestamp": {"seconds": 1, "microseconds": 2}}"#,
        ),
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
async fn a_closed_peer_is_reported_at_once_to_callers_and_listeners() {
    let mut session = session(vec![Turn::Expect("quit"), Turn::Close]).await;
    assert!(matches!(session.client.quit(Duration::from_secs(3600)).await, Err(Error::Closed)));
    assert_eq!(session.events.next().await, None);
    assert!(matches!(session.client.cont(LIMIT).await, Err(Error::Closed)));
}

#[tokio::test]
async fn a_flood_of_events_holds_up_no_reply_and_loses_nothing_that_matters() {
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
async fn a_refusal_carries_qemus_own_words() {
    let turns =
        vec![Turn::Expect("cont"), Turn::Refuse("GenericError", "not now"), Turn::AwaitClose];
    let error = session(turns).await.client.cont(LIMIT).await.unwrap_err();
    assert_eq!(error.to_string(), "`cont` was refused: not now");
}

#[tokio::test]
async fn whatever_is_not_qmp_is_said_so() {
    let (ours, theirs) = tokio::io::duplex(4096);
    tokio::spawn(play(theirs, vec![line("SSH-2.0-OpenSSH_9.2"), Turn::AwaitClose]));
    let error = qmp::over(ours, LIMIT).await.unwrap_err();
    assert!(matches!(&error, Error::NotQmp(start) if start.starts_with("SSH-2.0")), "{error}");
    let (ours, _silent) = tokio::io::duplex(4096);
    assert!(matches!(qmp::over(ours, SOON).await, Err(Error::Timeout { .. })));
}

#[tokio::test]
async fn a_line_without_an_end_is_given_up() {
    let mut session =
        session(vec![Turn::Say(vec![b'x'; qmp::MAX_LINE + 4096]), Turn::AwaitClose]).await;
    assert_eq!(session.events.next().await, None);
}

/// The lines of `count` events that must not be missed.
fn flood(count: usize) -> Turn {
    let event = |nth: usize| {
        let name = ["STOP", "RESUME", "DEVICE_DELETED"][nth % 3];
        format!("{{\"event\": \"{name}\", \"data\": {{\"device\": \"d{nth}\"}}}}\r\n")
    };
    Turn::Say((0..count).map(event).collect::<String>().into_bytes())
}

#[tokio::test]
async fn a_flood_of_events_nobody_takes_closes_the_connection() {
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
async fn a_flood_of_events_that_are_taken_loses_none() {
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
async fn commands_for_a_peer_that_reads_nothing_are_bounded() {
    // A stopped QEMU: its socket takes a few bytes more, and then nothing.
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
