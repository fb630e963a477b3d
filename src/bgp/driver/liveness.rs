//! BFD beside the speaker: its thread runs while some neighbour wants it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use tokio::sync::mpsc::Receiver;

use super::super::rib::PeerId;
use super::super::speaker::{Fact, Input, Neighbour};
use super::Driver;
use super::news::{Event, Subject};
use crate::bfd::driver::{self, Handle, Report};
use crate::bfd::{Key, Request, State, Wanted};
use crate::kernel::Error;

/// Sessions of BFD, and the thread that has them.
#[derive(Default)]
pub(super) struct Watching {
    requests: BTreeMap<Key, Request>,
    /// Neighbours that the requests are for.
    neighbours: BTreeMap<Key, PeerId>,
    /// Sessions that have not been up since they were asked for, and when that was.
    unseen: BTreeMap<Key, Instant>,
    /// Number of the last request.
    last: u64,
    running: Option<(Handle, Receiver<Report>)>,
    /// Troubles of the thread of which the end was not told.
    troubles: BTreeSet<Subject>,
    /// Next try to start the thread, after one that failed.
    retry_at: Option<Instant>,
    /// Next look at what does not come up.
    look_at: Option<Instant>,
    /// Next look at the neighbours that nobody expects: one has come, or is watched and may be so no longer.
    pub(super) unexpected_due: Option<Instant>,
    /// The last one.
    unexpected_at: Option<Instant>,
}

/// Time between two tries to start the thread, and between two looks at what does not come up.
const RETRY: Duration = Duration::from_secs(5);
/// Time between two looks at neighbours that nobody expects, where one of them is watched, and where others come.
const UNEXPECTED: Duration = Duration::from_secs(10);
const UNEXPECTED_APART: Duration = Duration::from_secs(1);
/// Time after which a session that has not come up deserves a line in the log.
const OVERDUE: Duration = Duration::from_secs(60);

impl Watching {
    /// Returns the next report, or `None` when the thread has died; never returns without a thread. Cancel-safe: nothing is lost.
    pub async fn next(&mut self) -> Option<Report> {
        match &mut self.running {
            Some((_, reports)) => reports.recv().await,
            None => std::future::pending().await,
        }
    }

    /// Sets the desired sessions, each with the neighbour that it is for. The thread ends with the last of them, when its neighbour has been
    /// told. Returns what there is to tell.
    fn want(&mut self, now: Instant, wanted: BTreeMap<Key, (Wanted, PeerId)>) -> Vec<Event> {
        let mut requests = BTreeMap::new();
        for (key, (wanted, neighbour)) in &wanted {
            let known = self.requests.get(key).filter(|_| self.neighbours.get(key) == Some(neighbour));
            let number = known.map_or(self.last + 1, |known| known.number);
            self.last = self.last.max(number);
            if known.is_none() {
                self.unseen.insert(*key, now);
            }
            requests.insert(*key, Request { wanted: *wanted, number });
        }
        if requests == self.requests {
            return Vec::new();
        }
        self.neighbours = wanted.into_iter().map(|(key, (_, neighbour))| (key, neighbour)).collect();
        self.unseen.retain(|key, _| requests.contains_key(key));
        self.requests = requests;
        if let Some((handle, _)) = self.running.as_ref().filter(|_| !self.requests.is_empty()) {
            handle.want(self.requests.clone());
            return Vec::new();
        }
        self.stop()
    }

    /// Ends the thread, and with it what troubles it, which is returned.
    fn stop(&mut self) -> Vec<Event> {
        self.running = None;
        std::mem::take(&mut self.troubles).into_iter().map(|subject| Event::Trouble(subject, None)).collect()
    }

    /// Returns the trouble of the thread, or its end, as news.
    fn trouble(&mut self, subject: Subject, error: Option<Error>) -> Event {
        if error.is_some() {
            self.troubles.insert(subject);
        } else {
            self.troubles.remove(&subject);
        }
        Event::Trouble(subject, error)
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

    /// Returns the neighbours whose sessions have not come up for long, each once. Who has no BGP session is told in other ways.
    fn overdue(&mut self, now: Instant, has_session: impl Fn(IpAddr) -> bool) -> Vec<IpAddr> {
        if self.look_at.is_some_and(|at| at > now) {
            return Vec::new();
        }
        self.look_at = Some(now + RETRY);
        let is_over = |key: &Key, since: &mut Instant| {
            now.saturating_duration_since(*since) >= OVERDUE && has_session(key.remote)
        };
        self.unseen.extract_if(.., is_over).map(|(key, _)| key.remote).collect()
    }
}

impl Driver {
    /// Watches the paths to the neighbours that want it.
    pub(super) fn set_liveness(&mut self) {
        let watched = self.speaker.neighbours().filter(|(_, neighbour)| neighbour.is_watched());
        let wanted = watched.filter_map(|(_, neighbour)| session(neighbour)).collect();
        let told = self.liveness.want(Instant::now(), wanted);
        told.into_iter().for_each(|event| self.news.push(event));
        self.keep_watching(Instant::now());
    }

    /// Records that a neighbour has a session that nobody expected. Thousands may come within a moment, and each look goes through all neighbours.
    pub(super) fn unexpected_came(&mut self) {
        let (now, liveness) = (Instant::now(), &mut self.liveness);
        let due = liveness.unexpected_at.map_or(now, |last| now.max(last + UNEXPECTED_APART));
        liveness.unexpected_due = Some(liveness.unexpected_due.map_or(due, |at| at.min(due)));
    }

    /// Watches the neighbours that nobody expects and that have come, and no longer those that are gone for good.
    pub(super) fn look_at_unexpected(&mut self, now: Instant) {
        if self.liveness.unexpected_due.is_none_or(|at| at > now) {
            return;
        }
        self.set_liveness();
        let is_watched = |(_, one): (IpAddr, &Neighbour)| is_at_times(one) && one.is_watched();
        self.liveness.unexpected_due = self.speaker.neighbours().any(is_watched).then(|| now + UNEXPECTED);
        self.liveness.unexpected_at = Some(now);
    }

    /// Starts the thread if there should be one, and tells what does not come up; to be called every few seconds.
    pub(super) fn keep_watching(&mut self, now: Instant) {
        let told = self.liveness.start(now, driver::spawn);
        told.into_iter().for_each(|event| self.news.push(event));
        let has_session = |address| self.speaker.neighbour(address).is_some_and(|one| one.peer().session().is_some());
        for address in self.liveness.overdue(now, has_session) {
            let liveness = self.speaker.neighbour(address).and_then(|neighbour| neighbour.wanted().liveness);
            liveness.into_iter().for_each(|liveness| self.news.push(Event::Fact(address, Fact::PathMissing(liveness))));
        }
    }

    pub(super) fn reported(&mut self, report: Option<Report>) {
        match report {
            Some(Report::Changed(key, status)) => {
                // It may be of a session that is not wanted any more.
                let neighbour = self.speaker.neighbour(key.remote);
                if neighbour.and_then(session).is_some_and(|(wanted, _)| wanted == key) {
                    if status.state == State::Up {
                        self.liveness.unseen.remove(&key);
                    }
                    self.step(Input::Path(key.remote, status));
                }
            }
            Some(Report::Trouble(on, error)) => self.news.push(self.liveness.trouble(Subject::Bfd(on), error)),
            Some(Report::Unsent(to, error)) => self.news.push(self.liveness.trouble(Subject::BfdTo(to), error)),
            Some(Report::Ignored(counts)) => self.news.push(Event::Ignored(counts)),
            None => {
                // One that dies again and again must not take all of a processor.
                self.liveness.stop().into_iter().for_each(|event| self.news.push(event));
                self.liveness.retry_at = Some(Instant::now() + RETRY);
                let error = Error::errno("run the thread of", "BFD".to_owned(), Errno::IO);
                self.news.push(Event::Trouble(Subject::BfdThread, Some(error)));
                self.step(Input::PathsUnknown);
            }
        }
    }
}

/// Returns whether a neighbour is watched at times alone: nobody expects it.
pub(super) fn is_at_times(neighbour: &Neighbour) -> bool {
    !neighbour.wanted().expected && neighbour.wanted().liveness.is_some()
}

fn session(neighbour: &Neighbour) -> Option<(Key, (Wanted, PeerId))> {
    let wanted = neighbour.wanted();
    let (liveness, local) = (wanted.liveness?, wanted.transport.local?);
    Some((Key { remote: wanted.address, local, path: liveness.path }, (liveness.wanted, neighbour.id())))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::bfd::{Path, Settings};

    fn key(last: u8) -> Key {
        Key { remote: [127, 0, 3, last].into(), local: [127, 0, 3, 1].into(), path: Path::SingleHop }
    }

    fn wanted(all: &[(u8, u32)]) -> BTreeMap<Key, (Wanted, PeerId)> {
        let time = Duration::from_secs(1);
        let wanted = Wanted { settings: Settings { multiplier: 3, send: time, receive: time }, port: 3784, hops: None };
        all.iter().map(|(last, neighbour)| (key(*last), (wanted, PeerId(*neighbour)))).collect()
    }

    fn numbers(watching: &Watching) -> Vec<u64> {
        watching.requests.values().map(|request| request.number).collect()
    }

    #[test]
    fn a_neighbour_that_is_made_anew_asks_anew_and_the_others_do_not() {
        let (mut watching, now) = (Watching::default(), Instant::now());
        watching.want(now, wanted(&[(2, 20), (3, 30)]));
        let first = numbers(&watching);
        watching.want(now, wanted(&[(2, 20), (3, 31)]));
        let second = numbers(&watching);
        assert!(second[0] == first[0] && second[1] != first[1], "{first:?} {second:?}");
        watching.want(now, wanted(&[(3, 31)]));
        watching.want(now, wanted(&[(2, 20), (3, 31)]));
        let third = numbers(&watching);
        assert!(!first.contains(&third[0]) && third[1] == second[1], "{third:?}");
    }

    #[test]
    fn a_thread_that_cannot_be_had_is_tried_for_again_and_said_once() {
        let (mut watching, now) = (Watching::default(), Instant::now());
        let refused = || Err(io::Error::from_raw_os_error(libc::EAGAIN));
        assert!(watching.start(now, || panic!("nobody wants it")).is_none());
        watching.want(now, wanted(&[(2, 20)]));
        let told = watching.start(now, refused);
        assert!(matches!(told, Some(Event::Trouble(Subject::BfdThread, Some(_)))), "{told:?}");
        assert!(watching.start(now, || panic!("too early")).is_none());
        assert!(watching.start(now + RETRY, refused).is_none(), "it has been said");
        let told = watching.start(now + 2 * RETRY, driver::spawn);
        assert!(matches!(told, Some(Event::Trouble(Subject::BfdThread, None))), "{told:?}");
        assert!(watching.running.is_some() && watching.start(now + 3 * RETRY, || panic!("it runs")).is_none());
    }

    #[test]
    fn troubles_of_the_thread_end_with_it_and_others_have_ended_before() {
        let (mut watching, now) = (Watching::default(), Instant::now());
        watching.want(now, wanted(&[(2, 20), (3, 30)]));
        let to = |last| Subject::BfdTo(SocketAddr::new(key(last).remote, 3784));
        let error = || Some(Error::errno("send UDP to", "127.0.3.2".to_owned(), Errno::NETUNREACH));
        for (subject, error) in [(to(2), error()), (to(3), error()), (to(3), None)] {
            assert!(
                matches!(watching.trouble(subject, error.clone()), Event::Trouble(one, told) if one == subject && told.is_some() == error.is_some())
            );
        }
        let ended = watching.want(now, BTreeMap::new());
        assert!(matches!(ended[..], [Event::Trouble(subject, None)] if subject == to(2)), "{ended:?}");
        assert!(watching.want(now, wanted(&[(2, 20)])).is_empty() && watching.stop().is_empty(), "it is told once");
    }

    #[test]
    fn a_session_that_does_not_come_up_is_told_once() {
        let (mut watching, now) = (Watching::default(), Instant::now());
        watching.want(now, wanted(&[(2, 20), (3, 30)]));
        watching.unseen.remove(&key(3));
        let second = Duration::from_secs(1);
        assert!(watching.overdue(now + OVERDUE - 10 * second, |_| true).is_empty());
        assert!(watching.overdue(now + OVERDUE, |_| false).is_empty(), "it has no session of BGP either");
        assert_eq!(watching.overdue(now + OVERDUE + 10 * second, |_| true), [key(2).remote]);
        assert!(watching.overdue(now + 2 * OVERDUE, |_| true).is_empty());
    }
}
