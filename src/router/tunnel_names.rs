//! Names of the tunnels to nodes.
//!
//! The usual one is kube-router's, made of the node's address without separators, and 10.0.1.11 and 10.0.11.1 have one. Whose node comes second gets another name,
//! made of the whole address. What a tunnel is called it is called as long as its node is there: the kernel takes no second tunnel with the same two ends
//! (`EEXIST`), and before Linux 6.2 it renames no device that is up. So what an earlier run has made goes before the order in which nodes come.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use super::names::{other_tunnel, tunnel};
use crate::kernel::link::LinkName;

/// Who has which name.
#[derive(Default, Debug)]
pub struct TunnelNames {
    /// The addresses of other nodes, by the usual names of the tunnels to them.
    by_usual: BTreeSet<(LinkName, IpAddr)>,
    /// Those of them whose tunnels have other names.
    others: BTreeSet<IpAddr>,
    /// Where the tunnels of an earlier run end, and those with other names to nodes that are gone.
    found: BTreeMap<LinkName, IpAddr>,
}

impl TunnelNames {
    /// Adopts the tunnels that an earlier run has left, with the addresses where they end. Before any node is noted.
    pub fn adopt(&mut self, found: BTreeMap<LinkName, IpAddr>) {
        self.found = found;
    }

    /// Notes that an address is that of another node, or is so no longer.
    pub fn note(&mut self, address: IpAddr, is_there: bool) {
        let usual = tunnel(address);
        if !is_there {
            self.by_usual.remove(&(usual, address));
            // Its tunnel may be there when the node comes back.
            if self.others.remove(&address) {
                self.found.insert(other_tunnel(address), address);
            }
            return;
        }
        if !self.by_usual.insert((usual.clone(), address)) {
            return;
        }
        let is_taken = self.alike(&usual).any(|alike| alike != address && !self.others.contains(&alike));
        let of_others = self.found.get(&usual).is_some_and(|end| *end != address);
        if is_taken || of_others || self.found.get(&other_tunnel(address)) == Some(&address) {
            self.others.insert(address);
        }
    }

    /// Returns the name of the tunnel to a node.
    pub fn of(&self, address: IpAddr) -> LinkName {
        if self.others.contains(&address) { other_tunnel(address) } else { tunnel(address) }
    }

    fn alike(&self, usual: &LinkName) -> impl Iterator<Item = IpAddr> {
        let first = (usual.clone(), IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        self.by_usual.range(first..).take_while(move |(name, _)| name == usual).map(|(_, address)| *address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALIKE: [&str; 3] = ["10.0.1.112", "10.0.11.12", "10.0.111.2"];

    fn addresses() -> [IpAddr; 3] {
        ALIKE.map(|address| address.parse().expect("an address"))
    }

    fn noted(found: &[(LinkName, IpAddr)], order: &[IpAddr]) -> TunnelNames {
        let mut names = TunnelNames::default();
        names.adopt(found.iter().cloned().collect());
        order.iter().for_each(|address| names.note(*address, true));
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
        names.note(second, false);
        assert_eq!(names.of(first), other_tunnel(first), "nor does one that goes give one");
        names.note(second, true);
        assert_eq!(names.of(second), tunnel(second), "it is free again");
        names.note(second, true);
        assert_eq!(names.of(second), tunnel(second), "it is noted with each change");
        [first, second].into_iter().for_each(|one| names.note(one, false));
        names.note(first, true);
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
}
