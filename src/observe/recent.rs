//! The last lines of the log, kept in memory for who asks on this host: what the program said before somebody looked.
//!
//! Bounded in lines and in bytes, so that a storm of long lines costs no more than a quiet year. A line costs one copy and a lock that is held for
//! that long.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// Most lines, most bytes of them together, and most bytes of one.
const LINES: usize = 2000;
const BYTES: usize = 1 << 20;
const LONGEST: usize = 4096;
/// Number of warnings that are kept apart, because other lines come faster.
const WARNINGS: usize = 5;

/// The last lines. Clones are the same.
#[derive(Clone, Default, Debug)]
pub struct Recent(Arc<Mutex<Lines>>);

#[derive(Default, Debug)]
struct Lines {
    all: VecDeque<Box<str>>,
    bytes: usize,
    /// Number of lines since the start that are not kept any more.
    gone: u64,
    warnings: Warnings,
}

/// The warnings and errors since the start.
#[derive(Clone, Default, Debug)]
pub struct Warnings {
    pub count: u64,
    /// The last ones, the newest last.
    pub latest: VecDeque<Box<str>>,
}

impl Recent {
    /// Adds a line.
    fn push(&self, line: &str, is_warning: bool) {
        let line = line.trim_end_matches('\n');
        let line: Box<str> = line.get(..line.floor_char_boundary(LONGEST)).unwrap_or_default().into();
        let mut lines = self.lines();
        if is_warning {
            lines.warnings.count += 1;
            lines.warnings.latest.push_back(line.clone());
            if lines.warnings.latest.len() > WARNINGS {
                lines.warnings.latest.pop_front();
            }
        }
        lines.bytes += line.len();
        lines.all.push_back(line);
        while lines.all.len() > LINES || lines.bytes > BYTES {
            let Some(oldest) = lines.all.pop_front() else { break };
            lines.bytes -= oldest.len();
            lines.gone += 1;
        }
    }

    /// Returns the lines, the oldest first; before them how many are not kept any more.
    pub fn text(&self) -> String {
        let lines = self.lines();
        let mut text = String::with_capacity(lines.bytes + lines.all.len() + 64);
        if lines.gone > 0 {
            text.push_str(&format!("({} lines before these are not kept)\n", lines.gone));
        }
        for line in &lines.all {
            text.push_str(line);
            text.push('\n');
        }
        text
    }

    /// Returns the warnings and errors since the start.
    pub fn warnings(&self) -> Warnings {
        self.lines().warnings.clone()
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        // Nothing here panics between two changes that belong together.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes lines to standard error, and keeps them.
#[derive(Clone, Debug)]
pub struct Kept<W>(pub Recent, pub W);

/// Writes one event.
#[derive(Debug)]
pub struct KeptLine<'a, W> {
    recent: &'a Recent,
    is_warning: bool,
    out: W,
}

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for Kept<W> {
    type Writer = KeptLine<'a, W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        KeptLine { recent: &self.0, is_warning: false, out: self.1.make_writer() }
    }

    fn make_writer_for(&'a self, event: &Metadata<'_>) -> Self::Writer {
        let is_warning = *event.level() <= Level::WARN;
        KeptLine { recent: &self.0, is_warning, out: self.1.make_writer_for(event) }
    }
}

impl<W: io::Write> io::Write for KeptLine<'_, W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.write_all(line)?;
        Ok(line.len())
    }

    /// An event is written by one call.
    fn write_all(&mut self, line: &[u8]) -> io::Result<()> {
        // First, because who reads standard error may be slow, or gone.
        self.recent.push(&String::from_utf8_lossy(line), self.is_warning);
        self.out.write_all(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_last_lines_are_kept_in_their_order_and_those_before_are_counted() {
        let recent = Recent::default();
        (0..LINES + 3).for_each(|number| recent.push(&format!("line {number}\n"), false));
        let text = recent.text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((lines.len(), lines[0], lines[1]), (LINES + 1, "(3 lines before these are not kept)", "line 3"));
        assert_eq!(lines.last(), Some(&&*format!("line {}", LINES + 2)));
    }

    #[test]
    fn long_lines_take_no_more_memory_than_short_ones() {
        let recent = Recent::default();
        (0..1000).for_each(|_| recent.push(&"ä".repeat(10_000), true));
        let lines = recent.lines();
        assert!(lines.bytes <= BYTES && lines.all.iter().all(|line| line.len() <= LONGEST));
        assert_eq!(lines.bytes, lines.all.iter().map(|line| line.len()).sum::<usize>());
        assert_eq!((lines.warnings.count, lines.warnings.latest.len()), (1000, WARNINGS));
    }

    #[test]
    fn a_warning_outlives_the_lines_that_follow_it_and_everything_goes_on_to_the_writer() {
        let (recent, mut out) = (Recent::default(), Vec::new());
        let mut write = |text: &str, is_warning| {
            KeptLine { recent: &recent, is_warning, out: &mut out }
                .write_all(text.as_bytes())
                .expect("a vector takes it");
        };
        write("W disk is full\n", true);
        (0..LINES).for_each(|_| write("I all is well\n", false));
        assert!(!recent.text().contains("disk"));
        let Warnings { count, latest } = recent.warnings();
        assert_eq!((count, latest.iter().map(|line| &**line).collect::<Vec<_>>()), (1, vec!["W disk is full"]));
        assert_eq!(String::from_utf8(out).expect("text").lines().count(), LINES + 1);
    }
}
