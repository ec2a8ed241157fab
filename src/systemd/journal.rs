//! Log lines for the systemd journal, with their priority (sd-daemon(3)).

use std::{ffi::OsStr, fmt};

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::{
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    registry::LookupSpan,
};

/// Whether standard error is the journal, by the device and inode in `JOURNAL_STREAM`
/// (systemd.exec(5)). A child process with another standard error inherits the variable.
pub fn is_standard_error(stream: Option<&OsStr>) -> bool {
    let wanted = stream.and_then(OsStr::to_str).and_then(|text| {
        let (device, inode) = text.split_once(':')?;
        Some((device.parse::<u64>().ok()?, inode.parse::<u64>().ok()?))
    });
    let stat = rustix::fs::fstat(std::io::stderr());
    wanted.is_some() && stat.ok().map(|stat| (stat.st_dev, stat.st_ino)) == wanted
}

/// Prefixes each line, such as `<3>` for an error: the journal handles lines separately.
pub fn prioritised(text: &str, level: Level) -> String {
    let priority = match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    };
    text.lines().map(|line| format!("<{priority}>{line}\n")).collect()
}

/// Formats events for the journal, which adds the time and the level itself.
#[derive(Debug, Clone, Copy)]
pub struct Lines;

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut text = String::new();
        context.field_format().format_fields(Writer::new(&mut text), event)?;
        writer.write_str(&prioritised(&text, *event.metadata().level()))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use super::*;

    #[test]
    fn each_line_has_its_priority() {
        assert_eq!(prioritised("error: no\nhint: so", Level::ERROR), "<3>error: no\n<3>hint: so\n");
        assert_eq!(prioritised("x\n", Level::WARN), "<4>x\n");
    }

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn events_have_their_fields() {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let log = tracing_subscriber::fmt().event_format(Lines).with_writer(move || writer.clone());
        tracing::subscriber::with_default(log.finish(), || {
            tracing::info!("QEMU {} started", "10.0");
            tracing::error!(pid = 7, "first\nsecond");
        });
        let text = String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text, "<6>QEMU 10.0 started\n<3>first\n<3>second pid=7\n");
    }

    #[test]
    fn other_streams_are_not_the_journal() {
        for stream in [None, Some(""), Some("1"), Some("x:y"), Some("0:0")] {
            assert!(!is_standard_error(stream.map(OsStr::new)), "{stream:?}");
        }
        let stat = rustix::fs::fstat(std::io::stderr()).unwrap();
        let own = format!("{}:{}", stat.st_dev, stat.st_ino);
        assert!(is_standard_error(Some(OsStr::new(&own))));
    }
}
