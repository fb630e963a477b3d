//! Service addresses that neighbours may still send traffic for: announced, or withdrawn and not yet sent to all.
//!
//! Kubernetes: nothing; this makes "withdraw first, close after" possible. An address that is no longer announced stays
//! here until the sockets of all neighbours have taken the withdrawal. The service proxy, which learns of the same
//! change at the same time, looks here before it closes an address.
//!
//! An address that is not here is safe to close: it is not announced, or all neighbours have been told.
//!
//! Neighbours that kept routes of an earlier speaker (RFC 4724) lose those that the present one does not announce when it tells them that it has said all. Nothing
//! counts as told before that is written: not what goes meanwhile, and not what has gone between the two.
//!
//! A state machine: its owner asks the speaker, and calls [`Withdrawals::written`] with the number that it was given.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::Table;
use crate::net::Family;

/// Announced and recently withdrawn addresses.
#[derive(Default)]
pub struct Withdrawals {
    believed: Table<IpAddr, ()>,
    /// Withdrawn addresses, with the number of the last question about them.
    leaving: BTreeMap<IpAddr, u64>,
    asked: u64,
    /// Neighbours may have routes of an earlier speaker, which has not been followed by the End-of-RIB of this one.
    is_held: bool,
    /// The question whether that End-of-RIB is written.
    ending: Option<u64>,
}

impl Withdrawals {
    /// Returns the addresses; cheap to clone.
    pub fn believed(&self) -> &Table<IpAddr, ()> {
        &self.believed
    }

    /// Returns whether neighbours have been told of all withdrawals.
    pub fn are_told(&self) -> bool {
        self.leaving.is_empty() && !self.is_held && self.ending.is_none()
    }

    /// Holds questions back from the start of a speaker to [`Withdrawals::release`].
    pub fn hold(&mut self) {
        self.is_held = true;
    }

    /// Ends that, when the speaker has told all neighbours that it has said all. Returns a number if it was not ended before: to be passed to `written` once
    /// everything ordered until now is written.
    pub fn release(&mut self) -> Option<u64> {
        if !std::mem::take(&mut self.is_held) {
            return None;
        }
        self.asked += 1;
        self.ending = Some(self.asked);
        self.leaving.values_mut().for_each(|asked| *asked = self.asked);
        self.ending
    }

    /// Updates which of some prefixes are announced. Returns a number if something was withdrawn, unless questions are held back: to be passed to
    /// `written` once everything ordered until now is written.
    pub fn update(&mut self, prefixes: impl IntoIterator<Item = (IpNet, bool)>) -> Option<u64> {
        let mut leaving = Vec::new();
        for (prefix, is_announced) in prefixes {
            let address = prefix.addr();
            if prefix.prefix_len() != Family::from(prefix).host_bits() {
                continue;
            }
            if is_announced {
                self.leaving.remove(&address);
                self.believed.insert(address, ());
            } else if self.believed.get(&address).is_some() {
                leaving.push(address);
            }
        }
        if leaving.is_empty() {
            return None;
        }
        self.asked += 1;
        self.leaving.extend(leaving.into_iter().map(|address| (address, self.asked)));
        (!self.is_held).then_some(self.asked)
    }

    /// Handles that everything ordered before this number was given is written.
    pub fn written(&mut self, number: u64) {
        self.ending = self.ending.filter(|asked| *asked > number);
        let over: Vec<IpAddr> =
            self.leaving.iter().filter(|(_, asked)| **asked <= number).map(|(address, _)| *address).collect();
        for address in over {
            self.leaving.remove(&address);
            self.believed.remove(&address);
        }
    }

    /// Forgets all withdrawals: the speaker is gone, and with it all sessions, so no neighbour can be told.
    pub fn end(&mut self) {
        self.leaving.clear();
        self.believed = Table::default();
        (self.is_held, self.ending) = (false, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    fn believed(withdrawals: &Withdrawals) -> String {
        withdrawals.believed().iter().map(|(address, _)| address.to_string()).collect::<Vec<_>>().join(" ")
    }

    const A: &str = "10.96.0.1/32";
    const B: &str = "fd00:10:96::1/128";

    #[test]
    fn an_address_stays_until_everybody_has_been_told_that_it_is_withdrawn() {
        let mut withdrawals = Withdrawals::default();
        assert_eq!(withdrawals.update([(prefix(A), true), (prefix(B), true)]), None);
        let number = withdrawals.update([(prefix(A), false)]).expect("something is withdrawn");
        assert_eq!(believed(&withdrawals), "10.96.0.1 fd00:10:96::1");
        withdrawals.written(number);
        assert_eq!(believed(&withdrawals), "fd00:10:96::1");
        assert_eq!(withdrawals.update([(prefix(A), false)]), None, "nobody believes in it any more");
    }

    #[test]
    fn an_earlier_answer_says_nothing_of_a_later_withdrawal() {
        let mut withdrawals = Withdrawals::default();
        withdrawals.update([(prefix(A), true), (prefix(B), true)]);
        let first = withdrawals.update([(prefix(A), false)]).expect("a question");
        let second = withdrawals.update([(prefix(B), false)]).expect("a question");
        withdrawals.written(first);
        assert_eq!(believed(&withdrawals), "fd00:10:96::1");
        withdrawals.written(second);
        assert_eq!(believed(&withdrawals), "");
    }

    #[test]
    fn an_address_that_is_announced_again_meanwhile_stays() {
        let mut withdrawals = Withdrawals::default();
        withdrawals.update([(prefix(A), true)]);
        let first = withdrawals.update([(prefix(A), false)]).expect("a question");
        withdrawals.update([(prefix(A), true)]);
        withdrawals.written(first);
        assert_eq!(believed(&withdrawals), "10.96.0.1");
        let second = withdrawals.update([(prefix(A), false)]).expect("a question");
        withdrawals.written(first);
        assert_eq!(believed(&withdrawals), "10.96.0.1", "that was the answer to an older question");
        withdrawals.written(second);
        assert_eq!(believed(&withdrawals), "");
    }

    #[test]
    fn nothing_is_told_before_neighbours_that_kept_routes_of_an_earlier_speaker_have_been_sent_that_these_are_all() {
        let mut withdrawals = Withdrawals::default();
        assert!(withdrawals.are_told() && withdrawals.release().is_none());
        withdrawals.update([(prefix(A), true), (prefix(B), true)]);
        withdrawals.hold();
        assert_eq!(withdrawals.update([(prefix(A), false)]), None, "the speaker has announced nothing yet");
        assert_eq!((believed(&withdrawals).as_str(), withdrawals.are_told()), ("10.96.0.1 fd00:10:96::1", false));
        let end = withdrawals.release().expect("a question");
        assert!(withdrawals.release().is_none() && !withdrawals.are_told());
        let later = withdrawals.update([(prefix(B), false)]).expect("a question");
        withdrawals.written(end);
        assert_eq!((believed(&withdrawals).as_str(), withdrawals.are_told()), ("fd00:10:96::1", false));
        withdrawals.written(later);
        assert_eq!((believed(&withdrawals).as_str(), withdrawals.are_told()), ("", true));
        // Also where nothing is withdrawn meanwhile, and not beyond the end of the speaker.
        withdrawals.hold();
        let end = withdrawals.release().expect("a question");
        assert!(!withdrawals.are_told());
        withdrawals.written(end);
        assert!(withdrawals.are_told());
        withdrawals.hold();
        withdrawals.end();
        assert!(withdrawals.are_told());
    }

    #[test]
    fn ranges_of_pods_are_no_addresses_and_the_end_of_the_speaker_ends_all() {
        let mut withdrawals = Withdrawals::default();
        withdrawals.update([(prefix("10.244.1.0/24"), true), (prefix(A), true)]);
        assert_eq!(believed(&withdrawals), "10.96.0.1");
        assert_eq!(withdrawals.update([(prefix("10.244.1.0/24"), false)]), None);
        withdrawals.end();
        assert_eq!(believed(&withdrawals), "");
    }
}
