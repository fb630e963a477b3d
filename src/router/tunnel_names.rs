//! Names of the tunnels to nodes.
//!
//! The usual one is kube-router's, made of the node's address without separators, and 10.0.1.11 and 10.0.11.1 have one. Whose node comes second gets another name,
//! made of the whole address. What a tunnel is called it is called as long as its node is there: the kernel takes no second tunnel with the same two ends
//! (`EEXIST`), and before Linux 6.2 it renames no device that is up. So what an earlier run has made goes before the order in which nodes come.
//!
//! Both names are 44 bits of a hash, and who may write one Node can look for an address with a name of another node's tunnel. So no two tunnels have one name, usual
//! or not. Where both names of a tunnel are those of others, the order in which Nodes claim addresses (`nodes/claimants.rs`) decides and not who came first: an
//! older Node takes a name of a younger one, and who has none then has no tunnel until one of its names is free.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::names::{other_tunnel, tunnel};
use crate::kernel::link::LinkName;

/// Who has which name.
#[derive(Debug)]
pub struct TunnelNames {
    usual: fn(IpAddr) -> LinkName,
    other: fn(IpAddr) -> LinkName,
    /// The address of the other node to which the tunnel of each name leads.
    taken: BTreeMap<LinkName, IpAddr>,
    /// Those of them whose tunnels have other names.
    others: BTreeSet<IpAddr>,
    /// The addresses of other nodes both of whose names are taken.
    nameless: BTreeSet<IpAddr>,
    /// Where the tunnels of an earlier run end, and those with other names to nodes that are gone.
    found: BTreeMap<LinkName, IpAddr>,
}

impl Default for TunnelNames {
    fn default() -> TunnelNames {
        TunnelNames {
            usual: tunnel,
            other: other_tunnel,
            taken: BTreeMap::new(),
            others: BTreeSet::new(),
            nameless: BTreeSet::new(),
            found: BTreeMap::new(),
        }
    }
}

impl TunnelNames {
    /// The same with other names: nobody finds an address with the other name of a tunnel in the time that a test has.
    #[cfg(test)]
    pub fn told_by(usual: fn(IpAddr) -> LinkName, other: fn(IpAddr) -> LinkName) -> TunnelNames {
        TunnelNames { usual, other, ..TunnelNames::default() }
    }

    /// Adopts the tunnels that an earlier run has left, with the addresses where they end. Before any node is noted.
    pub fn adopt(&mut self, found: BTreeMap<LinkName, IpAddr>) {
        self.found = found;
    }

    /// Notes that an address is that of another node, or is so no longer. Returns the addresses that have another name than before, or none any more; one that is
    /// new is not among them.
    pub fn note(
        &mut self,
        address: IpAddr,
        is_there: bool,
        precedes: &dyn Fn(IpAddr, IpAddr) -> bool,
    ) -> BTreeSet<IpAddr> {
        let is_new = is_there && !self.has(address);
        if is_new {
            self.nameless.insert(address);
        } else if !is_there {
            self.forget(address);
        }
        let mut changed = self.name_all(precedes);
        if is_new {
            changed.remove(&address);
        }
        changed
    }

    /// Returns the name of the tunnel to a node. It is another one's where the node has [none](TunnelNames::is_nameless).
    pub fn of(&self, address: IpAddr) -> LinkName {
        if self.others.contains(&address) { (self.other)(address) } else { (self.usual)(address) }
    }

    /// Returns whether both names of the tunnel to a node are those of tunnels to others.
    pub fn is_nameless(&self, address: IpAddr) -> bool {
        self.nameless.contains(&address)
    }

    /// Returns the addresses of which that is so.
    pub fn nameless(&self) -> impl Iterator<Item = IpAddr> {
        self.nameless.iter().copied()
    }

    fn has(&self, address: IpAddr) -> bool {
        self.nameless.contains(&address) || self.taken.get(&self.of(address)) == Some(&address)
    }

    fn forget(&mut self, address: IpAddr) {
        self.nameless.remove(&address);
        let name = self.of(address);
        let had_other = self.others.remove(&address);
        if self.taken.get(&name) != Some(&address) {
            return;
        }
        self.taken.remove(&name);
        // Its tunnel may be there when the node comes back. Who has no name cannot wait for that.
        if self.is_awaited(&name) {
            self.found.remove(&name);
        } else if had_other {
            self.found.insert(name, address);
        }
    }

    fn is_awaited(&self, name: &LinkName) -> bool {
        self.nameless.iter().any(|address| [self.usual, self.other].iter().any(|of| of(*address) == *name))
    }

    /// Names those without a name, as far as there are names for them, the first ones first; returns those that got a name or lost one. There are hardly ever any:
    /// each takes an address that somebody has searched for.
    fn name_all(&mut self, precedes: &dyn Fn(IpAddr, IpAddr) -> bool) -> BTreeSet<IpAddr> {
        let mut changed = BTreeSet::new();
        loop {
            let open = self.nameless.iter().filter_map(|one| Some((*one, self.name_for(*one, precedes)?)));
            let first = open.reduce(|first, next| if precedes(next.0, first.0) { next } else { first });
            let Some((address, name)) = first else { return changed };
            self.nameless.remove(&address);
            changed.insert(address);
            if name != (self.usual)(address) {
                self.others.insert(address);
            }
            // Only one that comes after it has lost its name, so this ends.
            if let Some(beaten) = self.taken.insert(name, address) {
                self.others.remove(&beaten);
                self.nameless.insert(beaten);
                changed.insert(beaten);
            }
        }
    }

    /// Returns the name that the tunnel to a node can have: one that no other has, else that of one that comes after it.
    fn name_for(&self, address: IpAddr, precedes: &dyn Fn(IpAddr, IpAddr) -> bool) -> Option<LinkName> {
        let (usual, other) = ((self.usual)(address), (self.other)(address));
        let had_other = self.found.get(&other) == Some(&address);
        let names = if had_other { [other, usual] } else { [usual, other] };
        let is_free = |name: &&LinkName| {
            !self.taken.contains_key(*name) && self.found.get(*name).is_none_or(|end| *end == address)
        };
        let is_of_later = |name: &&LinkName| self.taken.get(*name).is_some_and(|holder| precedes(address, *holder));
        names.iter().find(is_free).or_else(|| names.iter().find(is_of_later)).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALIKE: [&str; 3] = ["10.0.1.112", "10.0.11.12", "10.0.111.2"];

    fn addresses() -> [IpAddr; 3] {
        ALIKE.map(|address| address.parse().expect("an address"))
    }

    fn precedes(one: IpAddr, other: IpAddr) -> bool {
        one < other
    }

    fn noted(found: &[(LinkName, IpAddr)], order: &[IpAddr]) -> TunnelNames {
        let mut names = TunnelNames::default();
        names.adopt(found.iter().cloned().collect());
        for address in order {
            names.note(*address, true, &precedes);
        }
        names
    }

    #[test]
    fn a_node_that_comes_takes_no_name_away() {
        let [first, second, third] = addresses();
        assert_eq!(tunnel(first), tunnel(second));
        let mut names = noted(&[], &[second, first, third]);
        assert_eq!(
            [first, second, third].map(|one| names.of(one)),
            [other_tunnel(first), tunnel(second), other_tunnel(third)]
        );
        names.note(second, false, &precedes);
        assert_eq!(names.of(first), other_tunnel(first), "nor does one that goes give one");
        names.note(second, true, &precedes);
        assert_eq!(names.of(second), tunnel(second), "it is free again");
        names.note(second, true, &precedes);
        assert_eq!(names.of(second), tunnel(second), "it is noted with each change");
        for one in [first, second] {
            names.note(one, false, &precedes);
        }
        names.note(first, true, &precedes);
        assert_eq!(names.of(first), other_tunnel(first), "its tunnel may still be there");
    }

    #[test]
    fn after_a_restart_tunnels_are_called_as_before() {
        let [first, second, third] = addresses();
        let found = [(tunnel(second), second), (other_tunnel(third), third)];
        for order in [[first, second, third], [third, second, first]] {
            let names = noted(&found, &order);
            assert_eq!(order.map(|one| names.of(one) == tunnel(one)), order.map(|one| one == second), "{order:?}");
        }
        let names = noted(&found[1..], &[third]);
        assert_eq!(names.of(third), other_tunnel(third), "whoever had the usual name is gone");
    }

    /// All have the same two names.
    fn of_two_names() -> TunnelNames {
        TunnelNames::told_by(|_| LinkName("tun-1".into()), |_| LinkName("tun-2".into()))
    }

    #[test]
    fn a_name_that_is_not_the_usual_one_is_one_tunnels_too_and_who_has_none_gets_the_first_that_is_free() {
        let [first, second, third] = addresses();
        let mut names = of_two_names();
        let nameless = |names: &TunnelNames| names.nameless().collect::<Vec<_>>();
        for address in [first, second, third] {
            assert_eq!(names.note(address, true, &precedes), BTreeSet::new());
        }
        assert_eq!([first, second].map(|one| names.of(one).0.to_string()), ["tun-1", "tun-2"]);
        assert_eq!((nameless(&names), names.is_nameless(third)), (vec![third], true));
        assert_eq!(names.note(third, true, &precedes), BTreeSet::new(), "it is noted with each change");
        assert_eq!(names.note(second, false, &precedes), BTreeSet::from([third]));
        assert_eq!((names.of(third).0.as_str(), nameless(&names)), ("tun-2", vec![]));
        assert_eq!(names.note(first, false, &precedes), BTreeSet::new());
        assert_eq!(names.of(third).0, "tun-2", "it keeps its name");
    }

    #[test]
    fn who_would_have_no_name_takes_that_of_one_that_comes_after_it_whoever_came_first_in_time() {
        let [first, second, third] = addresses();
        let mut names = of_two_names();
        for address in [third, second] {
            names.note(address, true, &precedes);
        }
        assert_eq!(names.note(first, true, &precedes), BTreeSet::from([third]));
        assert_eq!([first, second].map(|one| names.of(one).0.to_string()), ["tun-1", "tun-2"]);
        assert!(names.is_nameless(third) && !names.is_nameless(first));
        assert_eq!(names.note(third, false, &precedes), BTreeSet::new());
        assert_eq!(names.nameless().count(), 0);
    }

    #[test]
    fn the_name_of_a_tunnel_that_an_earlier_run_left_is_kept_for_its_node() {
        let [first, second, third] = addresses();
        let mut names = of_two_names();
        names.adopt(BTreeMap::from([(LinkName("tun-1".into()), second)]));
        for address in [first, second, third] {
            names.note(address, true, &precedes);
        }
        assert_eq!([first, second].map(|one| names.of(one).0.to_string()), ["tun-2", "tun-1"]);
        assert_eq!(names.nameless().collect::<Vec<_>>(), [third]);
    }
}
