//! The server of the control socket. Each connection has its own task, so that a client that does
//! not read, or sends invalid data, does not affect others. A method only sends a request to the
//! loop and returns the reply.
//!
//! This file uses the connections of zlink and not its `Server`, which serves one method, and the
//! write of one reply, at a time for all connections.

use std::{
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixListener as StdListener,
    },
    sync::atomic::Ordering,
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{broadcast, oneshot},
    task::JoinSet,
};
use tracing::{debug, info, warn};
use zlink::{Call, Reply};

use super::{
    authorizer::{self, Permission},
    connection_limit::ConnectionLimit,
    handle::ControlHandle,
    interface,
    method::{Method, RawCall},
    socket::{self, Calls, Replies},
    types::{Command, Event, Refusal, Request, State, Status},
    varlink_error::VarlinkError,
};
use crate::value::Peer;

/// The time for clients to read the last events after the end of the loop.
const DRAIN_LIMIT: Duration = Duration::from_millis(200);

/// Serves until the loop accepts no more requests and all events are sent. Dropping the future
/// closes all connections.
pub async fn serve(listener: StdListener, handle: ControlHandle) {
    let listener = listener.set_nonblocking(true).and_then(|()| UnixListener::from_std(listener));
    let listener = match listener {
        Ok(listener) => listener,
        Err(error) => {
            warn!("cannot serve the control socket: {error}");
            return;
        }
    };
    let (mut connections, limit) = (JoinSet::new(), ConnectionLimit::default());
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => match (handle.peer)(stream.as_fd()) {
                    Ok(peer) => match limit.acquire(peer.uid, handle.authorizer.is_own(&peer)) {
                        Ok(permit) => {
                            let connection = connection(stream, peer, handle.clone());
                            connections.spawn(async move {
                                connection.await;
                                drop(permit);
                            });
                        }
                        Err(full) => full.message.iter().for_each(|message| warn!("{message}")),
                    },
                    Err(error) => warn!("cannot get peer credentials of the control socket \
                         client: {error}"),
                },
                Err(error) => {
                    // Possibly EMFILE: other connections will be closed.
                    warn!("cannot accept a connection to the control socket: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
            () = handle.requests.closed() => break,
        }
    }
    drop((listener, handle));
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN_LIMIT, drained).await.is_err() {
        debug!("{} clients did not read the last events", connections.len());
    }
}

/// The reply of a call.
enum Answer {
    /// One reply.
    Done(Value),
    /// One reply with a descriptor.
    Descriptor(Value, OwnedFd),
    /// A stream of replies.
    Events(EventStream),
}

/// The options of an event stream.
struct EventStream {
    /// The names of the wanted events; `None` is all.
    filter: Option<Vec<String>>,
    /// Whether each event has its time.
    with_time: bool,
    /// Whether events include console output.
    console: bool,
}

async fn connection(stream: UnixStream, peer: Peer, handle: ControlHandle) {
    let (mut calls, mut replies) = match socket::open(stream) {
        Ok(both) => both,
        Err(error) => return debug!("a connection to the control socket was lost: {error}"),
    };
    loop {
        let call = tokio::select! {
            call = calls.receive_call::<RawCall>() => call,
            // The loop has ended.
            () = handle.requests.closed() => return,
        };
        let call = match call {
            Ok((call, _)) => call,
            Err(zlink::Error::UnexpectedEof) => return,
            Err(error) => return debug!("a connection to the control socket was closed: {error}"),
        };
        let (oneway, more) = (call.oneway(), call.more());
        let answer = answer(call, &handle, &peer).await;
        if answer.as_ref().is_err_and(VarlinkError::is_loop_ended)
            && handle.replaced.load(Ordering::Acquire)
        {
            return;
        }
        if oneway {
            continue;
        }
        let sent = match answer {
            Ok(Answer::Events(_)) if !more => replies.send(&VarlinkError::EXPECTED_MORE, &[]).await,
            Ok(Answer::Events(listener)) => {
                return send_events(calls, replies, handle, listener).await;
            }
            Ok(Answer::Done(reply)) => replies.send(&Reply::from(reply), &[]).await,
            Ok(Answer::Descriptor(reply, fd)) => replies.send(&Reply::from(reply), &[fd]).await,
            Err(fault) => replies.send(&fault, &[]).await,
        };
        if sent.is_err() {
            return;
        }
    }
}

async fn answer(
    call: Call<RawCall>,
    handle: &ControlHandle,
    peer: &Peer,
) -> Result<Answer, VarlinkError> {
    if call.upgrade() {
        return Err(VarlinkError::no_upgrade(&call.method().method));
    }
    // zlink's `Call` gives no ownership of its parts.
    let call = call.method().clone();
    let machine = call.is_machine();
    let done = dispatch(call.parse()?, handle, peer).await;
    if machine { done.map_err(VarlinkError::for_machine) } else { done }
}

async fn dispatch(
    method: Method,
    handle: &ControlHandle,
    peer: &Peer,
) -> Result<Answer, VarlinkError> {
    if let Permission::Operator(what) = authorizer::required_permission(&method) {
        handle.authorizer.check(peer, what).await.inspect_err(|denied| warn!("{denied}"))?;
        if !handle.authorizer.is_own(peer) {
            info!("request of the operator with uid {}: {what}", peer.uid);
        }
    }
    Ok(Answer::Done(match method {
        Method::Info => interface::info(),
        Method::Description { interface } => interface::description(&interface)?,
        Method::Command(command) => {
            self::command(handle, command).await?;
            json!({})
        }
        Method::Describe { memory } => describe(&ask(handle, Request::Status).await?, memory),
        Method::Status => {
            let status = ask(handle, Request::Status).await?;
            json!({ "status": match handle.authorizer.is_operator(peer).await {
                true => status,
                false => authorizer::without_console(status),
            } })
        }
        Method::Guest => json!({ "guest": ask(handle, Request::Guest).await?? }),
        Method::Events { filter, with_time } => {
            let console = handle.authorizer.is_operator(peer).await;
            return Ok(Answer::Events(EventStream { filter, with_time, console }));
        }
        Method::RecentEvents => {
            let mut events = ask(handle, Request::RecentEvents).await?;
            if !handle.authorizer.is_operator(peer).await {
                events = events.into_iter().map(authorizer::event_without_console).collect();
            }
            json!({ "events": events })
        }
        Method::Statistics => json!({ "statistics": ask(handle, Request::Statistics).await?? }),
        Method::Exec { argv, limit } => {
            let done = ask(handle, |reply| Request::Exec { argv, limit, reply }).await??;
            json!(done)
        }
        Method::Agent { command, arguments, limit } => {
            let reply = ask(handle, |reply| Request::Agent { command, arguments, limit, reply });
            json!({ "result": reply.await?? })
        }
        Method::Freeze { thaw_after } => {
            let frozen = ask(handle, |reply| Request::Freeze { thaw_after, reply }).await??;
            json!({ "filesystems": frozen })
        }
        Method::Thaw => json!({ "filesystems": ask(handle, Request::Thaw).await?? }),
        Method::Screenshot => {
            let picture = ask(handle, Request::Screenshot).await??;
            return Ok(Answer::Descriptor(json!({ "fileDescriptorIndex": 0 }), picture));
        }
        Method::Press(chords) => {
            ask(handle, |reply| Request::Press(chords, reply)).await??;
            json!({})
        }
        Method::Console { read_only, scrollback } => {
            let asked = |reply| Request::Console { read_only, scrollback, reply };
            let viewer = ask(handle, asked).await??;
            return Ok(Answer::Descriptor(json!({ "fileDescriptorIndex": 0 }), viewer));
        }
    }))
}

/// Sends a request to the loop and waits for its reply.
async fn ask<T>(
    handle: &ControlHandle,
    request: impl FnOnce(oneshot::Sender<T>) -> Request,
) -> Result<T, VarlinkError> {
    let (reply, answer) = oneshot::channel();
    handle.requests.send(request(reply)).await.map_err(|_| VarlinkError::loop_ended())?;
    answer.await.map_err(|_| VarlinkError::loop_ended())
}

async fn command(handle: &ControlHandle, command: Command) -> Result<(), VarlinkError> {
    let taken: Result<(), Refusal> = ask(handle, |reply| Request::Command(command, reply)).await?;
    Ok(taken?)
}

/// In the words of QEMU's `query-status`, which `io.systemd.MachineInstance` uses.
fn describe(status: &Status, memory: bool) -> Value {
    let word = match status.state {
        State::Running => "running",
        State::Paused => "paused",
        State::Starting => "prelaunch",
        State::Stopping | State::Stopped | State::Failed => "shutdown",
        State::Unknown => "unknown",
    };
    let mut description = json!({ "running": status.state == State::Running, "status": word });
    if memory {
        description["memory"] = json!({
            "configuredBytes": status.mem_bytes,
            "targetBytes": status.mem_target_bytes.unwrap_or(status.mem_bytes),
            "actualBytes": status.mem_actual_bytes,
        });
    }
    description
}

/// Sends events until the client closes the connection or the loop ends. The first event, as in
/// systemd's own servers, is the start of the stream: later events are not missed.
async fn send_events(
    mut calls: Calls,
    mut replies: Replies,
    handle: ControlHandle,
    listener: EventStream,
) {
    let mut events = handle.events.subscribe();
    let ControlHandle { requests, events: sender, .. } = handle;
    // A sender kept here would keep the loop's queue open after its end.
    drop(sender);
    let ready = Event { at: None, event: "READY".to_owned(), data: None };
    if send_event(&mut replies, ready).await.is_err() {
        return;
    }
    loop {
        let event = tokio::select! {
            biased;
            event = events.recv() => event,
            // The client has closed the connection, or sends another call, which a stream does not
            // allow.
            _ = calls.receive_call::<RawCall>() => return,
            // All earlier events have been sent.
            () = requests.closed() => return,
        };
        let event = match event {
            Ok(event) => {
                let event = Event::clone(&event);
                let event = match listener.console {
                    true => event,
                    false => authorizer::event_without_console(event),
                };
                Event { at: event.at.filter(|_| listener.with_time), ..event }
            }
            Err(broadcast::error::RecvError::Lagged(lost)) => {
                let data = Some(json!({ "count": lost }));
                Event { at: None, event: "QVM_LOST".to_owned(), data }
            }
            Err(broadcast::error::RecvError::Closed) => return,
        };
        if listener.filter.as_ref().is_some_and(|names| !names.contains(&event.event)) {
            continue;
        }
        if send_event(&mut replies, event).await.is_err() {
            return;
        }
    }
}

async fn send_event(replies: &mut Replies, event: Event) -> zlink::Result<()> {
    replies.send(&Reply::from(event).set_continues(Some(true)), &[]).await
}
