//! Fixtures for tests of what is logged.

use std::io::Write;
use std::sync::{Arc, LazyLock, Mutex};

use tracing::Dispatch;
use tracing::subscriber::NoSubscriber;

/// One that stays and takes nothing. Where a log is the only one, whichever thread comes first to a place that logs decides for all whether it does, also one that
/// has no log; where there are two, all are asked.
static SECOND: LazyLock<Dispatch> = LazyLock::new(|| Dispatch::new(NoSubscriber::new()));

/// The log of this thread, from its creation on.
#[derive(Clone, Default)]
pub struct Logged(Arc<Mutex<Vec<u8>>>);

impl Logged {
    pub fn text(&self) -> String {
        let bytes = self.0.lock().expect("nobody panics with it");
        String::from_utf8(bytes.clone()).expect("the log is text")
    }

    /// Number of lines with this text.
    pub fn lines_with(&self, text: &str) -> usize {
        self.text().lines().filter(|line| line.contains(text)).count()
    }
}

impl Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("nobody panics with it").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Keeps what this thread logs, until the second one goes.
pub fn logged() -> (Logged, tracing::subscriber::DefaultGuard) {
    LazyLock::force(&SECOND);
    let logged = Logged::default();
    let out = logged.clone();
    let log = tracing_subscriber::fmt().with_ansi(false).with_writer(move || out.clone()).finish();
    (logged, tracing::subscriber::set_default(log))
}
