//! All wanted links.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use compact_str::CompactString;

use super::link::Link;
use super::packet::{Heard, Packet};
use super::{Seen, Standings, WantedLinks};

/// All wanted links, by name.
#[derive(Default, Debug)]
pub(super) struct Links(BTreeMap<CompactString, Link>);

impl Links {
    /// Sets the wanted links in place of all others.
    pub fn want(&mut self, wanted: &WantedLinks) {
        self.0.retain(|name, _| wanted.contains_key(name));
        for (name, wanted) in wanted {
            self.0.entry(name.clone()).or_default().heed(*wanted);
        }
    }

    pub fn names(&self) -> Vec<CompactString> {
        self.0.keys().cloned().collect()
    }

    /// Indexes of the links that there are.
    pub fn indexes(&self) -> BTreeSet<u32> {
        self.0.values().filter_map(Link::index).collect()
    }

    pub fn see(&mut self, now: Instant, name: &str, seen: Option<Seen>) {
        if let Some(link) = self.0.get_mut(name) {
            link.see(now, seen);
        }
    }

    /// Takes a packet that has come over the link of this index.
    pub fn hear(&mut self, now: Instant, index: u32, heard: Heard) {
        let Some(link) = self.0.values_mut().find(|link| link.index() == Some(index)) else { return };
        match heard {
            Heard::Solicitation => link.solicited(now),
            Heard::Advertisement(router) => link.advertised(now, router),
        }
    }

    /// Returns the packets that are due, with the links over which they go.
    pub fn tick(&mut self, now: Instant) -> Vec<(u32, Packet)> {
        let mut due = Vec::new();
        for link in self.0.values_mut() {
            let packets = link.tick(now);
            let index = link.index();
            due.extend(packets.into_iter().filter_map(|packet| Some((index?, packet))));
        }
        due
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.0.values().filter_map(Link::deadline).min()
    }

    /// Returns whether packets are sent and received on all of them.
    pub fn are_ready(&self) -> bool {
        self.0.values().all(Link::is_ready)
    }

    pub fn standings(&self) -> Standings {
        self.0.iter().map(|(name, link)| (name.clone(), link.standing())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Standing, State, Wanted};
    use super::*;

    #[test]
    fn a_packet_belongs_to_the_link_over_which_it_came() {
        let (mut links, now) = (Links::default(), Instant::now());
        let wanted = |name: &str| (name.into(), Wanted::default());
        links.want(&[wanted("eth1"), wanted("eth2")].into());
        for (name, link) in [("eth1", 7), ("eth2", 8), ("eth3", 9)] {
            let own = Some("fe80::1".parse().unwrap());
            links.see(now, name, Some(Seen { link, up: true, carrier: true, own }));
        }
        assert_eq!(links.indexes(), [7, 8].into());
        let router = Heard::Advertisement("fe80::2".parse().unwrap());
        links.hear(now, 8, router);
        links.hear(now, 9, router);
        let state = |links: &Links, name: &str| links.standings()[name].state;
        assert_eq!(state(&links, "eth1"), State::Silent);
        assert!(matches!(state(&links, "eth2"), State::Found(found) if found.link == 8));
        assert_eq!(links.tick(now).len(), 3, "one has no neighbour to ask for");
        links.want(&[wanted("eth1")].into());
        assert_eq!(links.standings(), [("eth1".into(), Standing { state: State::Silent, beside: None })].into());
    }
}
