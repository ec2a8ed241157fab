//! Any bytes from a guest's serial line: the log keeps all of them, times are only separate
//! columns, and quoted lines in reports do not control a terminal. Any bytes as the file of times,
//! which a bad disk may have changed.

use std::fs;

use jiff::tz::TimeZone;
use qvm::{
    cli::verb::console::keys,
    supervisor::running::console::Console,
    sys::log::times_of_log,
    sys::log::{
        file::LogFile,
        reader::LogReader,
        text::{LogFormatter, Part, times},
    },
};
use tokio::{io::AsyncWriteExt, net::UnixStream};

use super::Cut;

/// The first byte: 1 selects damaged times, which come next; the rest is console output, in pieces.
pub fn check(bytes: &[u8]) {
    let mut cut = Cut(bytes);
    let choice = cut.byte();
    let bad_times = (choice & 1 == 1).then(|| cut.long());
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("console.log");
    let (mut log, mut said, mut second) = (LogFile::new(path.clone()), Vec::new(), 1_767_225_600);
    while !cut.is_empty() {
        let (step, piece) = (cut.byte(), cut.short());
        second += i64::from(step >> 1);
        if step & 1 == 1 {
            log.mark_boot(second).expect("a log");
        }
        log.append(piece, second).expect("a log");
        said.extend_from_slice(piece);
    }
    let tail = log.tail(64);
    assert!(said.ends_with(&tail), "the tail is no end");
    drop(log);
    if let (Some(bad), Ok(text)) = (bad_times, fs::read(times_of_log(&path))) {
        // With the first line of this log, so that the file is not ignored.
        let head = text.split_inclusive(|byte| *byte == b'\n').next().unwrap_or_default();
        fs::write(times_of_log(&path), [head, bad].concat()).expect("a file");
        let _ = times(&String::from_utf8_lossy(bad), 1);
    }
    let part = LogReader::new(path).read().expect("a log");
    assert_eq!(part.bytes, said);
    assert!(part.stamps.iter().all(|stamp| stamp.at <= said.len()), "a time behind the end");
    shown(&part, &said);
    let (typed, left) = keys(&said, true);
    assert!(said.starts_with(typed) && !typed.contains(&0x1d) && left == said.contains(&0x1d));
    assert_eq!(keys(&said, false), (&said[..], false));
    if choice & 2 == 2 {
        cited(&said, dir.path().join("second.log"));
    }
}

fn shown(part: &Part, said: &[u8]) {
    let text = LogFormatter::new(Some(TimeZone::UTC)).text(part.clone());
    let mut bare = Vec::new();
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let (time, line) = line.split_at_checked(21).expect("a time before each line");
        assert!(time.is_ascii() && time.ends_with(b"  "), "{time:?}");
        bare.extend_from_slice(line);
    }
    assert_eq!(bare, said, "the text differs with times");
    assert_eq!(LogFormatter::new(None).text(part.clone()), said);
    assert!(said.ends_with(&part.clone().since_boot().bytes));
    for lines in 0..4 {
        let last = part.clone().last(lines);
        assert!(said.ends_with(&last.bytes), "{lines}");
        let found = last.bytes.split_inclusive(|byte| *byte == b'\n').count();
        assert!(found <= lines, "{found} lines, not {lines}");
        let whole = said.split_inclusive(|byte| *byte == b'\n').count();
        assert_eq!(found, lines.min(whole));
    }
}

/// Checks the console lines in `qvm status` after a guest died.
fn cited(said: &[u8], path: std::path::PathBuf) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let console = Console::new(path.clone(), || jiff::Timestamp::UNIX_EPOCH);
        let (mut guest, ours) = UnixStream::pair().expect("a socket");
        console.attach(ours);
        let say = async {
            guest.write_all(said).await.expect("a reader");
            drop(guest);
            while fs::metadata(&path).map_or(0, |file| file.len()) < said.len() as u64 {
                tokio::task::yield_now().await;
            }
        };
        say.await;
        let lines = console.last_lines(5);
        assert!(lines.len() <= 5);
        assert!(!lines.concat().chars().any(char::is_control), "{lines:?}");
    });
}
