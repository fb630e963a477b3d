//! Notices that wait: to be sent as Events, one a second, and to be written to the log. Without I/O.
//!
//! Whoever may write Services can have very many. So of each Service the newest notice of each subject waits, namespaces have their turns one after the other, what
//! is no longer so is left out, and the log has one line for each subject of a Service in each period.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;
use std::time::{Duration, Instant};

use compact_str::CompactString;

use super::notice::{Matter, Notice, Problem, Subject};
use crate::model::ObjectName;

/// How many notices of each lane may wait; the newest of the namespace that has most of them goes then.
pub const MOST_WAITING: usize = 4096;
/// How many warnings are sent before good news has a turn: they may come without an end, and one Event a second is sent.
pub const IN_A_ROW: usize = 3;
/// The time in which the log has one line for a subject of a Service.
pub const PERIOD: Duration = Duration::from_secs(60);

type Key = (ObjectName, Subject);

/// Notices that wait to be sent. Warnings have a lane of their own: where very many addresses are given at once those who lack one hear so at once.
#[derive(Default, Debug)]
pub struct Outbox {
    warnings: Lane,
    news: Lane,
    /// Warnings since the last good news.
    in_a_row: usize,
}

impl Outbox {
    /// Adds a notice, in place of an earlier one of the same Service and subject. That an address was given is not said any more once it was taken away.
    pub fn push(&mut self, notice: Notice) {
        if let Matter::TakenAway(address, _) = notice.matter {
            self.news.remove_if(&key_of_given(&notice.service, address), |waiting| gives(waiting, address));
        }
        let lane = if notice.matter.is_warning() { &mut self.warnings } else { &mut self.news };
        lane.push(notice);
    }

    /// Leaves out a warning about a problem that is over.
    pub fn is_over(&mut self, service: &ObjectName, problem: &Problem) {
        let matter = Matter::Wanting(problem.clone());
        let key = (service.clone(), matter.subject());
        self.warnings.remove_if(&key, |waiting| waiting.matter == matter);
    }

    /// Leaves out all warnings: whoever gives addresses next finds what is so then.
    pub fn end(&mut self) {
        self.warnings = Lane::default();
    }

    /// Takes out the notice to send next: a warning where there is one, but that good news has a turn after so many.
    pub fn take(&mut self) -> Option<Notice> {
        let is_turn = self.in_a_row >= IN_A_ROW;
        let news = if is_turn { self.news.next() } else { None };
        let next = news.or_else(|| self.warnings.next()).or_else(|| self.news.next())?;
        self.in_a_row = if next.matter.is_warning() { self.in_a_row + 1 } else { 0 };
        Some(next)
    }
}

/// Notices of one kind, by namespace, each with its place in the order of the namespace.
#[derive(Default, Debug)]
struct Lane {
    namespaces: BTreeMap<CompactString, BTreeMap<u64, Notice>>,
    places: BTreeMap<Key, u64>,
    /// The last place that was given away.
    place: u64,
    /// The namespace that had the last turn.
    last: CompactString,
}

impl Lane {
    fn push(&mut self, notice: Notice) {
        let key = (notice.service.clone(), notice.matter.subject());
        if !self.places.contains_key(&key) && self.places.len() >= MOST_WAITING && !self.make_room(&key.0) {
            return;
        }
        self.place += 1;
        let place = *self.places.entry(key).or_insert(self.place);
        let namespace = (*notice.service.namespace).clone();
        self.namespaces.entry(namespace).or_default().insert(place, notice);
    }

    /// Takes out the newest notice of the namespace that has most of them. Returns whether it is another one than that of a Service.
    fn make_room(&mut self, service: &ObjectName) -> bool {
        let most = self.namespaces.iter().max_by_key(|(_, waiting)| waiting.len());
        let Some(namespace) = most.map(|(namespace, _)| namespace.clone()) else { return false };
        if *service.namespace == namespace {
            return false;
        }
        let newest = self.namespaces.get(&namespace).and_then(|waiting| waiting.keys().next_back().copied());
        newest.and_then(|place| self.take(&namespace, place)).is_some()
    }

    fn remove_if(&mut self, key: &Key, is_meant: impl FnOnce(&Notice) -> bool) {
        let Some(place) = self.places.get(key).copied() else { return };
        let namespace = (*key.0.namespace).clone();
        let waiting = self.namespaces.get(&namespace).and_then(|waiting| waiting.get(&place));
        if waiting.is_some_and(is_meant) {
            self.take(&namespace, place);
        }
    }

    fn next(&mut self) -> Option<Notice> {
        let behind = self.namespaces.range((Bound::Excluded(self.last.clone()), Bound::Unbounded)).next();
        let (namespace, waiting) = behind.or_else(|| self.namespaces.first_key_value())?;
        let (namespace, place) = (namespace.clone(), *waiting.first_key_value()?.0);
        self.last.clone_from(&namespace);
        self.take(&namespace, place)
    }

    fn take(&mut self, namespace: &CompactString, place: u64) -> Option<Notice> {
        let waiting = self.namespaces.get_mut(namespace)?;
        let notice = waiting.remove(&place)?;
        if waiting.is_empty() {
            self.namespaces.remove(namespace);
        }
        self.places.remove(&(notice.service.clone(), notice.matter.subject()));
        Some(notice)
    }
}

/// Returns the key of a notice that an address was given to a Service.
fn key_of_given(service: &ObjectName, address: IpAddr) -> Key {
    (service.clone(), Matter::Given { address, pool: CompactString::default() }.subject())
}

fn gives(notice: &Notice, address: IpAddr) -> bool {
    matches!(&notice.matter, Matter::Given { address: its, .. } if *its == address)
}

/// Lines of the log.
#[derive(Default, Debug)]
pub struct Lines {
    /// When the period of each subject ends that the log had, and the newest notice since, which it has not.
    of: BTreeMap<Key, (Instant, Option<Notice>)>,
    ends: BTreeSet<(Instant, Key)>,
}

impl Lines {
    /// Returns whether the log is to have a notice now. One that it is not to have waits for the end of the period.
    pub fn is_due(&mut self, notice: &Notice, now: Instant) -> bool {
        if let Matter::TakenAway(address, _) = notice.matter
            && let Some((_, waiting)) = self.of.get_mut(&key_of_given(&notice.service, address))
        {
            waiting.take_if(|waiting| gives(waiting, address));
        }
        let key = (notice.service.clone(), notice.matter.subject());
        if let Some((_, waiting)) = self.of.get_mut(&key) {
            *waiting = Some(notice.clone());
            return false;
        }
        self.begin(key, now);
        true
    }

    /// Leaves out a warning about a problem that is over.
    pub fn is_over(&mut self, service: &ObjectName, problem: &Problem) {
        let matter = Matter::Wanting(problem.clone());
        if let Some((_, waiting)) = self.of.get_mut(&(service.clone(), matter.subject())) {
            waiting.take_if(|waiting| waiting.matter == matter);
        }
    }

    /// The notices that waited for the end of their period, which is over.
    pub fn due(&mut self, now: Instant) -> Vec<Notice> {
        let mut due = Vec::new();
        while self.ends.first().is_some_and(|(end, _)| *end <= now) {
            let Some((_, key)) = self.ends.pop_first() else { break };
            if let Some((_, Some(notice))) = self.of.remove(&key) {
                self.begin(key, now);
                due.push(notice);
            }
        }
        due
    }

    fn begin(&mut self, key: Key, now: Instant) {
        self.of.insert(key.clone(), (now + PERIOD, None));
        self.ends.insert((now + PERIOD, key));
    }
}

#[cfg(test)]
mod tests {
    use super::super::notice::Loss;
    use super::*;
    use crate::net::Family;

    fn notice(service: &str, matter: Matter) -> Notice {
        let (namespace, name) = service.split_once('/').expect("a namespace");
        Notice { service: ObjectName::new(namespace, name), uid: "uid".into(), at: Instant::now(), matter }
    }

    fn lacking(family: Family) -> Matter {
        Matter::Wanting(Problem::Exhausted(family))
    }

    fn given(host: u8) -> Matter {
        Matter::Given { address: IpAddr::from([203, 0, 113, host]), pool: "default".into() }
    }

    fn all(outbox: &mut Outbox) -> Vec<String> {
        let next = std::iter::from_fn(|| outbox.take());
        next.map(|notice| format!("{} {}", notice.service, notice.matter.reason())).collect()
    }

    #[test]
    fn an_address_that_was_taken_away_is_not_said_to_be_given_afterwards() {
        let taken = |host: u8| Matter::TakenAway(IpAddr::from([203, 0, 113, host]), Loss::OfNoPool);
        let mut outbox = Outbox::default();
        outbox.push(notice("shop/web", given(1)));
        outbox.push(notice("shop/db", given(2)));
        outbox.push(notice("shop/web", taken(1)));
        outbox.push(notice("shop/db", taken(3)));
        let expected = [
            "shop/db LoadBalancerAddressGiven",
            "shop/db LoadBalancerAddressTakenAway",
            "shop/web LoadBalancerAddressTakenAway",
        ];
        let mut sent = all(&mut outbox);
        sent.sort();
        assert_eq!(sent, expected);
    }

    #[test]
    fn namespaces_have_their_turns_however_many_notices_one_of_them_has() {
        let mut outbox = Outbox::default();
        for number in 0..MOST_WAITING * 2 {
            outbox.push(notice(&format!("flood/s{number}"), lacking(Family::V4)));
        }
        outbox.push(notice("shop/web", lacking(Family::V6)));
        outbox.push(notice("bank/web", lacking(Family::V4)));
        let told = all(&mut outbox);
        assert_eq!(told.len(), MOST_WAITING);
        assert!(told[..3].iter().any(|text| text.starts_with("shop/web")), "{:?}", &told[..3]);
        assert!(told[..3].iter().any(|text| text.starts_with("bank/web")), "{:?}", &told[..3]);
    }

    #[test]
    fn of_each_service_the_newest_notice_of_a_subject_is_sent_in_the_place_of_the_first() {
        let mut outbox = Outbox::default();
        for text in ["first", "second", "third"] {
            outbox.push(notice("shop/a", Matter::Misspelt(text.to_owned())));
            outbox.push(notice("shop/b", lacking(Family::V4)));
            outbox.push(notice("shop/b", lacking(Family::V6)));
        }
        let told: Vec<Matter> = std::iter::from_fn(|| outbox.take()).map(|notice| notice.matter).collect();
        assert_eq!(told, [Matter::Misspelt("third".to_owned()), lacking(Family::V4), lacking(Family::V6)]);
        assert!(outbox.warnings.places.is_empty() && outbox.warnings.namespaces.is_empty());
    }

    #[test]
    fn what_is_no_longer_so_is_not_sent_and_no_warning_outlives_the_tenure() {
        let mut outbox = Outbox::default();
        outbox.push(notice("shop/a", lacking(Family::V4)));
        outbox.push(notice("shop/a", lacking(Family::V6)));
        let service = ObjectName::new("shop", "a");
        outbox.is_over(&service, &Problem::NoPool(Family::V4));
        outbox.is_over(&service, &Problem::Exhausted(Family::V6));
        outbox.push(notice("shop/b", given(1)));
        assert_eq!(all(&mut outbox), ["shop/a AddressPoolExhausted", "shop/b LoadBalancerAddressGiven"]);
        outbox.push(notice("shop/a", lacking(Family::V4)));
        outbox.push(notice("shop/b", given(1)));
        outbox.end();
        assert_eq!(all(&mut outbox), ["shop/b LoadBalancerAddressGiven"]);
    }

    #[test]
    fn warnings_go_first_and_good_news_has_a_turn_although_they_come_without_an_end() {
        let mut outbox = Outbox::default();
        (0..2).for_each(|number| outbox.push(notice(&format!("shop/given{number}"), given(number))));
        (0..20).for_each(|number| outbox.push(notice(&format!("shop/s{number}"), lacking(Family::V4))));
        let told: Vec<bool> = std::iter::from_fn(|| outbox.take()).map(|notice| notice.matter.is_warning()).collect();
        let in_a_row: Vec<usize> = told.split(|is_warning| !is_warning).map(<[bool]>::len).collect();
        assert_eq!(in_a_row, [IN_A_ROW, IN_A_ROW, 20 - 2 * IN_A_ROW]);
    }

    #[test]
    fn the_log_has_one_line_for_each_subject_of_a_service_and_period_and_the_newest_at_its_end() {
        let begun = Instant::now();
        let mut lines = Lines::default();
        let misspelt = |text: &str| notice("shop/a", Matter::Misspelt(text.to_owned()));
        assert!(lines.is_due(&misspelt("first"), begun));
        for number in 0..1000 {
            assert!(!lines.is_due(&misspelt(&format!("{number}")), begun + PERIOD / 2));
        }
        assert!(lines.is_due(&notice("shop/a", lacking(Family::V4)), begun), "another subject");
        assert!(!lines.is_due(&notice("shop/a", lacking(Family::V4)), begun), "it is there already");
        lines.is_over(&ObjectName::new("shop", "a"), &Problem::Exhausted(Family::V4));
        assert_eq!(lines.due(begun + PERIOD / 2), []);
        let due: Vec<Matter> = lines.due(begun + PERIOD).into_iter().map(|notice| notice.matter).collect();
        assert_eq!(due, [Matter::Misspelt("999".to_owned())]);
        assert!(!lines.is_due(&misspelt("another"), begun + PERIOD), "its next period has begun");
        assert_eq!(lines.due(begun + PERIOD * 3).len(), 1);
        lines.due(begun + PERIOD * 9);
        assert!(lines.of.is_empty() && lines.ends.is_empty());
    }
}
