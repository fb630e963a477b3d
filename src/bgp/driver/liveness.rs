//! BFD beside the speaker: its thread runs while some neighbour wants it.

use std::collections::BTreeMap;

use tokio::sync::mpsc::Receiver;
use tracing::error;

use super::super::speaker::{Input, Neighbour};
use super::Driver;
use super::news::{Event, Subject};
use crate::bfd::driver::{self, Handle, Report};
use crate::bfd::{Key, Wanted};

/// Sessions of BFD, and the thread that has them.
#[derive(Default)]
pub(super) struct Watching {
    wanted: BTreeMap<Key, Wanted>,
    running: Option<(Handle, Receiver<Report>)>,
}

impl Watching {
    /// Returns the next report, or `None` when the thread has died; never returns without a thread. Cancel-safe: nothing is lost.
    pub async fn next(&mut self) -> Option<Report> {
        match &mut self.running {
            Some((_, reports)) => reports.recv().await,
            None => std::future::pending().await,
        }
    }

    /// Sets the desired sessions. The thread ends with the last of them, when its neighbour has been told.
    fn want(&mut self, wanted: BTreeMap<Key, Wanted>) {
        if self.wanted == wanted && (self.running.is_some() || wanted.is_empty()) {
            return;
        }
        if wanted.is_empty() {
            self.running = None;
        } else if self.running.is_none() {
            self.running = driver::spawn().map_err(|reason| error!(%reason, "Starting BFD failed")).ok();
        }
        if let Some((handle, _)) = &self.running {
            handle.want(wanted.clone());
        }
        self.wanted = wanted;
    }
}

impl Driver {
    /// Watches the paths to the neighbours that want it.
    pub(super) fn set_liveness(&mut self) {
        let wanted = self.speaker.neighbours().filter_map(|(_, neighbour)| session(neighbour)).collect();
        self.liveness.want(wanted);
    }

    pub(super) fn reported(&mut self, report: Option<Report>) {
        match report {
            Some(Report::Changed(key, status)) => {
                // It may be of a session that is not wanted any more.
                let neighbour = self.speaker.neighbour(key.remote);
                if neighbour.and_then(session).is_some_and(|(wanted, _)| wanted == key) {
                    self.step(Input::Path(key.remote, status));
                }
            }
            Some(Report::Trouble(on, error)) => self.news.push(Event::Trouble(Subject::Bfd(on), error)),
            // It is started again with the next order.
            None => self.liveness.running = None,
        }
    }
}

fn session(neighbour: &Neighbour) -> Option<(Key, Wanted)> {
    let wanted = neighbour.wanted();
    let (liveness, local) = (wanted.liveness?, wanted.transport.local?);
    Some((Key { remote: wanted.address, local, path: liveness.path }, liveness.wanted))
}
