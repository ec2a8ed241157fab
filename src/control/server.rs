//! The supervisor's side of the control socket. Each connection is a task of its own, so that one which does not read,
//! or says nonsense, is nobody else's trouble; a method only posts a request to the loop and passes the answer on.
//!
//! zlink's own `Server` awaits one method, and the write of one reply, at a time for all its connections; so
//! it is its connections that are used here, and not its server.

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
    authorizer::{self, Need},
    connection_limit::ConnectionLimit,
    handle::ControlHandle,
    interface,
    method::{Method, Written},
    socket::{self, Calls, Replies},
    types::{Command, Event, Refusal, Request, State, Status},
    varlink_error::VarlinkError,
};
use crate::value::Peer;

/// How long who still listens has to take the last events, once the loop has ended.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Serves until the loop takes no more requests, and then until all events are told; connections end where it is dropped.
pub async fn serve(listener: StdListener, port: ControlHandle) {
    let listener = listener.set_nonblocking(true).and_then(|()| UnixListener::from_std(listener));
    let listener = match listener {
        Ok(listener) => listener,
        Err(error) => {
            warn!("the control socket cannot be served: {error}");
            return;
        }
    };
    let (mut connections, crowd) = (JoinSet::new(), ConnectionLimit::default());
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => match (port.peer)(stream.as_fd()) {
                    Ok(peer) => match crowd.place(peer.uid, port.grant.is_own(&peer)) {
                        Ok(place) => {
                            let connection = connection(stream, peer, port.clone());
                            connections.spawn(async move {
                                connection.await;
                                drop(place);
                            });
                        }
                        Err(full) => full.told.iter().for_each(|told| warn!("{told}")),
                    },
                    Err(error) => warn!("who is at the control socket cannot be told: {error}"),
                },
                Err(error) => {
                    // No more descriptors: others will close theirs.
                    warn!("a connection to the control socket was lost: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
            () = port.requests.closed() => break,
        }
    }
    drop((listener, port));
    let told = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(LAST_WORDS, told).await.is_err() {
        debug!("{} connections did not take the last events", connections.len());
    }
}

/// What a call comes to.
enum Answer {
    /// One reply.
    Done(Value),
    /// One reply, and a descriptor with it.
    Handed(Value, OwnedFd),
    /// Replies without an end.
    Events(Listener),
}

/// Who listens to events.
struct Listener {
    /// Only to these.
    filter: Option<Vec<String>>,
    /// Each with its time.
    with_time: bool,
    /// And with what the console said.
    console: bool,
}

async fn connection(stream: UnixStream, peer: Peer, port: ControlHandle) {
    let (mut calls, mut replies) = match socket::open(stream) {
        Ok(both) => both,
        Err(error) => return debug!("a connection to the control socket was lost: {error}"),
    };
    loop {
        let call = tokio::select! {
            call = calls.receive_call::<Written>() => call,
            // Nobody is left who could answer.
            () = port.requests.closed() => return,
        };
        let call = match call {
            Ok((call, _)) => call,
            Err(zlink::Error::UnexpectedEof) => return,
            Err(error) => return debug!("a connection to the control socket was closed: {error}"),
        };
        let (oneway, more) = (call.oneway(), call.more());
        let answer = answer(call, &port, &peer).await;
        if answer.as_ref().is_err_and(VarlinkError::is_gone)
            && port.replaced.load(Ordering::Acquire)
        {
            return;
        }
        if oneway {
            continue;
        }
        let sent = match answer {
            Ok(Answer::Events(_)) if !more => replies.send(&VarlinkError::EXPECTED_MORE, &[]).await,
            Ok(Answer::Events(listener)) => {
                return tell_events(calls, replies, port, listener).await;
            }
            Ok(Answer::Done(told)) => replies.send(&Reply::from(told), &[]).await,
            Ok(Answer::Handed(told, fd)) => replies.send(&Reply::from(told), &[fd]).await,
            Err(fault) => replies.send(&fault, &[]).await,
        };
        if sent.is_err() {
            return;
        }
    }
}

async fn answer(
    call: Call<Written>,
    port: &ControlHandle,
    peer: &Peer,
) -> Result<Answer, VarlinkError> {
    if call.upgrade() {
        return Err(VarlinkError::no_upgrade(&call.method().method));
    }
    // A call cannot be taken apart but by its parts' copies.
    let written = call.method().clone();
    let machine = written.is_machine();
    let done = act(written.read()?, port, peer).await;
    if machine { done.map_err(VarlinkError::for_machine) } else { done }
}

async fn act(method: Method, port: &ControlHandle, peer: &Peer) -> Result<Answer, VarlinkError> {
    if let Need::Operator(what) = authorizer::need(&method) {
        port.grant.check(peer, what).await.inspect_err(|denied| warn!("{denied}"))?;
        if !port.grant.is_own(peer) {
            info!("the operator with uid {} is to {what}", peer.uid);
        }
    }
    Ok(Answer::Done(match method {
        Method::Info => interface::info(),
        Method::Description { interface } => interface::description(&interface)?,
        Method::Command(command) => {
            self::command(port, command).await?;
            json!({})
        }
        Method::Describe { memory } => describe(&ask(port, Request::Status).await?, memory),
        Method::Status => {
            let status = ask(port, Request::Status).await?;
            json!({ "status": match port.grant.is_operator(peer).await {
                true => status,
                false => authorizer::without_console(status),
            } })
        }
        Method::Guest => json!({ "guest": ask(port, Request::Guest).await?? }),
        Method::Events { filter, with_time } => {
            let console = port.grant.is_operator(peer).await;
            return Ok(Answer::Events(Listener { filter, with_time, console }));
        }
        Method::RecentEvents => {
            let mut events = ask(port, Request::RecentEvents).await?;
            if !port.grant.is_operator(peer).await {
                events = events.into_iter().map(authorizer::event_without_console).collect();
            }
            json!({ "events": events })
        }
        Method::Statistics => json!({ "statistics": ask(port, Request::Statistics).await?? }),
        Method::Exec { argv, limit } => {
            let done = ask(port, |reply| Request::Exec { argv, limit, reply }).await??;
            json!(done)
        }
        Method::Agent { command, arguments, limit } => {
            let told = ask(port, |reply| Request::Agent { command, arguments, limit, reply });
            json!({ "result": told.await?? })
        }
        Method::Freeze { thaw_after } => {
            let frozen = ask(port, |reply| Request::Freeze { thaw_after, reply }).await??;
            json!({ "filesystems": frozen })
        }
        Method::Thaw => json!({ "filesystems": ask(port, Request::Thaw).await?? }),
        Method::Screenshot => {
            let picture = ask(port, Request::Screenshot).await??;
            return Ok(Answer::Handed(json!({ "fileDescriptorIndex": 0 }), picture));
        }
        Method::Press(chords) => {
            ask(port, |reply| Request::Press(chords, reply)).await??;
            json!({})
        }
        Method::Console { read_only, scrollback } => {
            let asked = |reply| Request::Console { read_only, scrollback, reply };
            let viewer = ask(port, asked).await??;
            return Ok(Answer::Handed(json!({ "fileDescriptorIndex": 0 }), viewer));
        }
    }))
}

/// Posts a request and waits for what the loop answers.
async fn ask<T>(
    port: &ControlHandle,
    request: impl FnOnce(oneshot::Sender<T>) -> Request,
) -> Result<T, VarlinkError> {
    let (reply, answer) = oneshot::channel();
    port.requests.send(request(reply)).await.map_err(|_| VarlinkError::gone())?;
    answer.await.map_err(|_| VarlinkError::gone())
}

async fn command(port: &ControlHandle, command: Command) -> Result<(), VarlinkError> {
    let taken: Result<(), Refusal> = ask(port, |reply| Request::Command(command, reply)).await?;
    Ok(taken?)
}

/// In the words of QEMU's `query-status`, as `io.systemd.MachineInstance` has them.
fn describe(status: &Status, memory: bool) -> Value {
    let word = match status.state {
        State::Running => "running",
        State::Paused => "paused",
        State::Starting => "prelaunch",
        State::Stopping | State::Stopped | State::Failed => "shutdown",
        State::Unknown => "unknown",
    };
    let mut told = json!({ "running": status.state == State::Running, "status": word });
    if memory {
        told["memory"] = json!({
            "configuredBytes": status.mem_bytes,
            "targetBytes": status.mem_target_bytes.unwrap_or(status.mem_bytes),
            "actualBytes": status.mem_actual_bytes,
        });
    }
    told
}

/// Tells what happens until the caller hangs up or the loop has ended. The first thing told, as by systemd's own
/// servers, is that it has begun: what the caller has done after that is not missed.
async fn tell_events(
    mut calls: Calls,
    mut replies: Replies,
    port: ControlHandle,
    listener: Listener,
) {
    let mut events = port.events.subscribe();
    let ControlHandle { requests, events: sender, .. } = port;
    // The loop may end while somebody listens: its end of the queue must not be held open from here.
    drop(sender);
    let ready = Event { at: None, event: "READY".to_owned(), data: None };
    if tell(&mut replies, ready).await.is_err() {
        return;
    }
    loop {
        let event = tokio::select! {
            biased;
            event = events.recv() => event,
            // It has hung up; or it calls again, and a stream has its connection to itself.
            _ = calls.receive_call::<Written>() => return,
            // All that was said before has been told: nothing is waiting.
            () = requests.closed() => return,
        };
        let event = match event {
            Ok(event) => {
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
        if tell(&mut replies, event).await.is_err() {
            return;
        }
    }
}

async fn tell(replies: &mut Replies, event: Event) -> zlink::Result<()> {
    replies.send(&Reply::from(event).set_continues(Some(true)), &[]).await
}
