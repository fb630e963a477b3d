//! The log: one line per event on standard error.
//!
//! Text, the default, has the header that tools for klog know, then the message and its fields:
//!
//! ```text
//! I1120 05:04:18.386132    1234 proxy/mod.rs:87] synced services=120 took_ms=14
//! ```
//!
//! `I` stands for information and everything finer, `W` for warnings, `E` for errors; the time is UTC; the number
//! is the process; the file is counted from the sources' root. A value that holds blanks, quotes or control
//! characters is written in quotes with escapes, so that an event is always one line, whoever chose the text.
//!
//! JSON, by `--log-format=json`, has one object per line: `timestamp level message target filename line_number`
//! and the event's own fields.
//!
//! `-v` keeps its meaning, "a higher number says at least as much": 0 is info, 1 and 2 are debug, 3 and higher
//! are trace. That is for our own code; libraries say warnings and worse until `-v 4`, debug until `-v 9`, then all.
//!
//! Spans are not printed: every event says all there is to say about it.

use std::fmt::{self, Write as _};
use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;

use super::recent::{Kept, Recent};

/// The form of a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LineFormat {
    Text,
    Json,
}

/// Starts the log of this process, on standard error. `verbosity` is the number of `-v`. Returns where its last lines are kept.
///
/// A second call changes nothing: the first log stays.
pub fn start(form: LineFormat, verbosity: u8) -> Recent {
    let recent = Recent::default();
    let _ = tracing::subscriber::set_global_default(log(form, verbosity, Kept(recent.clone(), io::stderr)));
    recent
}

/// A log that writes where it is told.
fn log<W>(form: LineFormat, verbosity: u8, out: W) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer().with_writer(out);
    let all = tracing_subscriber::registry().with(levels(verbosity));
    match form {
        LineFormat::Text => Box::new(all.with(lines.event_format(KlogLine { process: std::process::id() }))),
        LineFormat::Json => Box::new(
            all.with(
                lines
                    .json()
                    .flatten_event(true)
                    .with_current_span(false)
                    .with_span_list(false)
                    .with_file(true)
                    .with_line_number(true),
            ),
        ),
    }
}

fn levels(verbosity: u8) -> Targets {
    let ours = match verbosity {
        0 => LevelFilter::INFO,
        1..=2 => LevelFilter::DEBUG,
        3.. => LevelFilter::TRACE,
    };
    let libraries = match verbosity {
        0..=3 => LevelFilter::WARN,
        4..=8 => LevelFilter::DEBUG,
        9.. => LevelFilter::TRACE,
    };
    Targets::new().with_default(libraries).with_target("sluice", ours)
}

/// Writes an event as a line with a klog header.
struct KlogLine {
    process: u32,
}

impl<S, N> FormatEvent<S, N> for KlogLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        // A clock before 1970 is no reason to lose the event.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        out.write_str(&header(event.metadata(), now, self.process))?;
        let mut words = Words::default();
        event.record(&mut words);
        writeln!(out, "{}{}", words.message, words.fields)
    }
}

/// `Lmmdd hh:mm:ss.uuuuuu process file:line] `, with the time since 1970 in UTC.
fn header(event: &Metadata<'_>, now: Duration, process: u32) -> String {
    let severity = match *event.level() {
        Level::ERROR => 'E',
        Level::WARN => 'W',
        _ => 'I',
    };
    let seconds = now.as_secs();
    let (month, day) = month_and_day(seconds / 86400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let micros = now.subsec_micros();
    let file = event.file().unwrap_or("unknown");
    let file = file.rsplit_once("src/").map_or(file, |(_, below)| below);
    let line = event.line().unwrap_or(0);
    format!("{severity}{month:02}{day:02} {hour:02}:{minute:02}:{second:02}.{micros:06} {process:7} {file}:{line}] ")
}

/// The month and the day of the month, from the days since 1970-01-01 (Gregorian calendar).
fn month_and_day(days_since_1970: u64) -> (u64, u64) {
    // Counting years from March puts the leap day at the end; 719468 days lie between 0000-03-01 and 1970.
    let days = (days_since_1970 + 719_468) % 146_097;
    let year = (days - days / 1460 + days / 36524 - days / 146_096) / 365;
    let day_of_year = days - (365 * year + year / 4 - year / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (month, day)
}

/// The message and the fields of an event, ready to print.
#[derive(Default)]
struct Words {
    message: String,
    fields: String,
}

impl Words {
    fn add(&mut self, field: &Field, text: &str) {
        // Writing to a `String` cannot fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{}", OneLine(text)),
            name if needs_quotes(text) => write!(self.fields, " {name}={text:?}"),
            name => write!(self.fields, " {name}={text}"),
        };
    }
}

impl Visit for Words {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, &format!("{value:?}"));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.add(field, &value.to_string());
    }
}

fn needs_quotes(value: &str) -> bool {
    value.is_empty() || value.contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, '"' | '=' | '\\'))
}

/// A text with its control characters escaped.
struct OneLine<'a>(&'a str);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c.is_control() {
                true => write!(f, "{}", c.escape_default())?,
                false => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing::{debug, error, info, trace, warn};

    use super::*;

    /// Returns the log written while `speak` runs.
    fn logged(form: LineFormat, verbosity: u8, speak: impl FnOnce()) -> Vec<String> {
        let out = Arc::new(Mutex::new(Vec::new()));
        tracing::subscriber::with_default(log(form, verbosity, Captured(out.clone())), speak);
        let bytes = out.lock().expect("nobody panicked").clone();
        String::from_utf8(bytes).expect("the log is UTF-8").lines().map(str::to_owned).collect()
    }

    #[derive(Clone)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("nobody panicked").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Captured {
        type Writer = Captured;

        fn make_writer(&'a self) -> Captured {
            self.clone()
        }
    }

    /// A line without its header, after a check that the header has klog's shape.
    fn behind_header(line: &str) -> (char, &str) {
        let (header, words) = line.split_once("] ").expect("a header ends with a bracket");
        let parts: Vec<&str> = header.split_whitespace().collect();
        let [date, time, process, place] = parts.as_slice() else { panic!("{header}") };
        let shape = |text: &str| text.replace(|c: char| c.is_ascii_digit(), "9");
        assert_eq!(shape(date.get(1..).unwrap_or_default()), "9999", "{header}");
        assert_eq!(shape(time), "99:99:99.999999", "{header}");
        assert_eq!(*process, std::process::id().to_string());
        assert!(place.starts_with("observe/logging.rs:"), "{header}");
        (date.chars().next().expect("a date"), words)
    }

    fn texts(verbosity: u8, speak: impl FnOnce()) -> Vec<String> {
        let lines = logged(LineFormat::Text, verbosity, speak);
        lines.iter().map(|line| behind_header(line)).map(|(letter, words)| format!("{letter} {words}")).collect()
    }

    fn one_of_each() {
        error!("e");
        warn!("w");
        info!("i");
        debug!("d");
        trace!("t");
        warn!(target: "hyper", "lw");
        info!(target: "hyper", "li");
        debug!(target: "kube_client", "ld");
        trace!(target: "hyper", "lt");
    }

    #[test]
    fn a_higher_number_says_at_least_as_much() {
        let said = |verbosity| texts(verbosity, one_of_each).join(", ");
        assert_eq!(said(0), "E e, W w, I i, W lw");
        assert_eq!(said(1), "E e, W w, I i, I d, W lw");
        assert_eq!(said(2), said(1));
        assert_eq!(said(3), "E e, W w, I i, I d, I t, W lw");
        assert_eq!(said(4), "E e, W w, I i, I d, I t, W lw, I li, I ld");
        assert_eq!(said(8), said(4));
        assert_eq!(said(9), "E e, W w, I i, I d, I t, W lw, I li, I ld, I lt");
        assert_eq!(said(255), said(9));
    }

    #[test]
    fn fields_follow_the_message_and_are_quoted_where_they_must_be() {
        let lines = texts(0, || {
            info!(services = 120, took_ms = 14.5, ready = true, "synced");
            info!(service = %"default/web", error = %"no route to host", empty = "", quote = "a\"b", "two words");
            info!(chain = ?"KUBE", path = "a=b", none = ?None::<u8>, "kinds");
        });
        assert_eq!(
            lines,
            [
                "I synced services=120 took_ms=14.5 ready=true",
                "I two words service=default/web error=\"no route to host\" empty=\"\" quote=\"a\\\"b\"",
                "I kinds chain=\"\\\"KUBE\\\"\" path=\"a=b\" none=None",
            ]
        );
    }

    #[test]
    fn no_text_can_forge_a_second_line() {
        let evil = "x\nE0101 00:00:00.000000 1 f:1] forged\u{1b}[2J";
        let lines = texts(0, || info!(service = %evil, "{evil}"));
        let escaped = "x\\nE0101 00:00:00.000000 1 f:1] forged\\u{1b}[2J";
        assert_eq!(lines, [format!("I {escaped} service=\"{escaped}\"")]);
    }

    #[test]
    fn an_event_within_a_span_is_a_line_like_any_other() {
        let lines = texts(0, || tracing::info_span!("outer", peer = 1).in_scope(|| info!("inside")));
        assert_eq!(lines, ["I inside"]);
    }

    #[test]
    fn json_has_one_flat_object_for_each_event() {
        let lines = logged(LineFormat::Json, 0, || info!(services = 120, error = %"a\nb", "synced"));
        let [line] = lines.as_slice() else { panic!("{lines:?}") };
        let object: serde_json::Value = serde_json::from_str(line).expect("a line is JSON");
        for (key, value) in [("level", "INFO"), ("message", "synced"), ("error", "a\nb")] {
            assert_eq!(object.get(key).and_then(|value| value.as_str()), Some(value), "{line}");
        }
        assert_eq!(object.get("services").and_then(serde_json::Value::as_u64), Some(120));
        for key in ["timestamp", "target", "filename", "line_number"] {
            assert!(object.get(key).is_some(), "{key} in {line}");
        }
    }

    #[test]
    fn days_have_their_dates() {
        let cases = [(0, (1, 1)), (58, (2, 28)), (59, (3, 1)), (364, (12, 31)), (789, (2, 29)), (790, (3, 1))];
        for (days, date) in cases {
            assert_eq!(month_and_day(days), date, "{days} days after 1970-01-01");
        }
        // 2000 was a leap year, 2100 is none.
        assert_eq!(month_and_day(11016), (2, 29));
        assert_eq!(month_and_day(47540), (2, 28));
        assert_eq!(month_and_day(47541), (3, 1));
        assert_eq!(month_and_day(20777), (11, 20));
    }
}
