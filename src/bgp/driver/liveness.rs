//! BFD beside the speaker: its thread runs while some neighbour wants it.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use tokio::sync::mpsc::Receiver;

use super::super::rib::PeerId;
use super::super::speaker::{Input, Neighbour};
use super::Driver;
use super::news::{Event, Subject};
use crate::bfd::driver::{self, Handle, Report};
use crate::bfd::{Key, Request, Wanted};
use crate::kernel::Error;

/// Sessions of BFD, and the thread that has them.
#[derive(Default)]
pub(super) struct Watching {
    requests: BTreeMap<Key, Request>,
    /// Neighbours that the requests are for.
    neighbours: BTreeMap<Key, PeerId>,
    /// Number of the last request.
    last: u64,
    running: Option<(Handle, Receiver<Report>)>,
    /// Next try to start the thread, after one that failed.
    retry_at: Option<Instant>,
}

/// Time between two tries to start the thread.
const RETRY: Duration = Duration::from_secs(5);

impl Watching {
    /// Returns the next report, or `None` when the thread has died; never returns without a thread. Cancel-safe: nothing is lost.
    pub async fn next(&mut self) -> Option<Report> {
        match &mut self.running {
            Some((_, reports)) => reports.recv().await,
            None => std::future::pending().await,
        }
    }

    /// Sets the desired sessions, each with the neighbour that it is for. The thread ends with the last of them, when its neighbour has been
    /// told.
    fn want(&mut self, wanted: BTreeMap<Key, (Wanted, PeerId)>) {
        let mut requests = BTreeMap::new();
        for (key, (wanted, neighbour)) in &wanted {
            let known = self.requests.get(key).filter(|_| self.neighbours.get(key) == Some(neighbour));
            let number = known.map_or(self.last + 1, |known| known.number);
            self.last = self.last.max(number);
            requests.insert(*key, Request { wanted: *wanted, number });
        }
        if requests == self.requests {
            return;
        }
        self.neighbours = wanted.into_iter().map(|(key, (_, neighbour))| (key, neighbour)).collect();
        self.requests = requests;
        if self.requests.is_empty() {
            self.running = None;
        }
        if let Some((handle, _)) = &self.running {
            handle.want(self.requests.clone());
        }
    }

    /// Starts the thread where it is wanted, does not run, and was not tried a moment ago. Returns what there is to tell.
    fn start(&mut self, now: Instant, spawn: impl FnOnce() -> io::Result<(Handle, Receiver<Report>)>) -> Option<Event> {
        if self.running.is_some() || self.retry_at.is_some_and(|at| at > now) {
            return None;
        }
        if self.requests.is_empty() {
            return self.retry_at.take().map(|_| Event::Trouble(Subject::BfdThread, None));
        }
        match spawn() {
            Ok((handle, reports)) => {
                handle.want(self.requests.clone());
                self.running = Some((handle, reports));
                self.retry_at.take().map(|_| Event::Trouble(Subject::BfdThread, None))
            }
            Err(reason) => {
                let errno = Errno::from_io_error(&reason).unwrap_or(Errno::IO);
                let error = Error::errno("start the thread of", "BFD".to_owned(), errno);
                let is_new = self.retry_at.replace(now + RETRY).is_none();
                is_new.then_some(Event::Trouble(Subject::BfdThread, Some(error)))
            }
        }
    }
}

impl Driver {
    /// Watches the paths to the neighbours that want it.
    pub(super) fn set_liveness(&mut self) {
        let wanted = self.speaker.neighbours().filter_map(|(_, neighbour)| session(neighbour)).collect();
        self.liveness.want(wanted);
        self.keep_watching(Instant::now());
    }

    /// Starts the thread if there should be one; to be called every few seconds.
    pub(super) fn keep_watching(&mut self, now: Instant) {
        let told = self.liveness.start(now, driver::spawn);
        told.into_iter().for_each(|event| self.news.push(event));
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
            None => {
                self.liveness.running = None;
                self.step(Input::PathsUnknown);
            }
        }
    }
}

fn session(neighbour: &Neighbour) -> Option<(Key, (Wanted, PeerId))> {
    let wanted = neighbour.wanted();
    let (liveness, local) = (wanted.liveness?, wanted.transport.local?);
    Some((Key { remote: wanted.address, local, path: liveness.path }, (liveness.wanted, neighbour.id())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bfd::{Path, Settings};

    fn key(last: u8) -> Key {
        Key { remote: [127, 0, 3, last].into(), local: [127, 0, 3, 1].into(), path: Path::SingleHop }
    }

    fn wanted(all: &[(u8, u32)]) -> BTreeMap<Key, (Wanted, PeerId)> {
        let time = Duration::from_secs(1);
        let wanted = Wanted { settings: Settings { multiplier: 3, send: time, receive: time }, port: 3784 };
        all.iter().map(|(last, neighbour)| (key(*last), (wanted, PeerId(*neighbour)))).collect()
    }

    fn numbers(watching: &Watching) -> Vec<u64> {
        watching.requests.values().map(|request| request.number).collect()
    }

    #[test]
    fn a_neighbour_that_is_made_anew_asks_anew_and_the_others_do_not() {
        let mut watching = Watching::default();
        watching.want(wanted(&[(2, 20), (3, 30)]));
        let first = numbers(&watching);
        watching.want(wanted(&[(2, 20), (3, 31)]));
        let second = numbers(&watching);
        assert!(second[0] == first[0] && second[1] != first[1], "{first:?} {second:?}");
        watching.want(wanted(&[(3, 31)]));
        watching.want(wanted(&[(2, 20), (3, 31)]));
        let third = numbers(&watching);
        assert!(!first.contains(&third[0]) && third[1] == second[1], "{third:?}");
    }

    #[test]
    fn a_thread_that_cannot_be_had_is_tried_for_again_and_said_once() {
        let (mut watching, now) = (Watching::default(), Instant::now());
        let refused = || Err(io::Error::from_raw_os_error(libc::EAGAIN));
        assert!(watching.start(now, || panic!("nobody wants it")).is_none());
        watching.want(wanted(&[(2, 20)]));
        let told = watching.start(now, refused);
        assert!(matches!(told, Some(Event::Trouble(Subject::BfdThread, Some(_)))), "{told:?}");
        assert!(watching.start(now, || panic!("too early")).is_none());
        assert!(watching.start(now + RETRY, refused).is_none(), "it has been said");
        let told = watching.start(now + 2 * RETRY, driver::spawn);
        assert!(matches!(told, Some(Event::Trouble(Subject::BfdThread, None))), "{told:?}");
        assert!(watching.running.is_some() && watching.start(now + 3 * RETRY, || panic!("it runs")).is_none());
    }
}
