//! Link addresses of nodes on the device of `vxlan` for IPv6: who has one that several would have.
//!
//! One is forty bits of a hash of the node's address ([`link_address`]), and so are the gateways that are made of it. Who may write one Node can look for an address
//! with the forty bits of another node's, and the kernel sends all that is for a link address to one place. So of the addresses with one link address the first
//! one alone has it, in the order in which Nodes claim addresses (`nodes/claimants.rs`), with ours before all of them: the device has it. No tunnel leads to the
//! others until it goes. That of an IPv4 address holds the whole address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use crate::kernel::vxlan::link_address;
use crate::net::LinkAddress;

/// The link addresses of all nodes, ours too.
#[derive(Debug)]
pub struct LinkAddresses {
    of: fn(IpAddr) -> LinkAddress,
    addresses: BTreeSet<(LinkAddress, IpAddr)>,
    /// The addresses whose link address another one has, with that one.
    beaten: BTreeMap<IpAddr, IpAddr>,
}

impl Default for LinkAddresses {
    fn default() -> LinkAddresses {
        LinkAddresses { of: link_address, addresses: BTreeSet::new(), beaten: BTreeMap::new() }
    }
}

impl LinkAddresses {
    /// The same with other link addresses: nobody finds two addresses with one in the time that a test has.
    #[cfg(test)]
    pub fn told_by(of: fn(IpAddr) -> LinkAddress) -> LinkAddresses {
        LinkAddresses { of, ..LinkAddresses::default() }
    }

    /// Notes that an address is that of a node, or is so no longer, or comes at another place among the others. Returns the addresses that came to have their link
    /// address, or to have it no longer.
    pub fn note(
        &mut self,
        address: IpAddr,
        is_there: bool,
        precedes: &dyn Fn(IpAddr, IpAddr) -> bool,
    ) -> BTreeSet<IpAddr> {
        let mut changed = BTreeSet::new();
        if address.is_ipv4() {
            return changed;
        }
        let link = (self.of)(address);
        if is_there {
            self.addresses.insert((link, address));
        } else {
            self.addresses.remove(&(link, address));
            if self.beaten.remove(&address).is_some() {
                changed.insert(address);
            }
        }
        let alike: Vec<IpAddr> = self.with(link).collect();
        let first = alike.iter().copied().reduce(|first, next| if precedes(next, first) { next } else { first });
        for one in alike {
            let before = match first.filter(|first| *first != one) {
                Some(first) => self.beaten.insert(one, first).is_some(),
                None => self.beaten.remove(&one).is_some(),
            };
            if before != self.beaten.contains_key(&one) {
                changed.insert(one);
            }
        }
        changed
    }

    /// Returns whether the link address of a node's address is that of another one, which comes first.
    pub fn is_beaten(&self, address: IpAddr) -> bool {
        self.beaten.contains_key(&address)
    }

    /// Returns the addresses of which that is so, with those that come first.
    pub fn beaten(&self) -> impl Iterator<Item = (IpAddr, IpAddr)> {
        self.beaten.iter().map(|(address, first)| (*address, *first))
    }

    fn with(&self, link: LinkAddress) -> impl Iterator<Item = IpAddr> {
        let first = (link, IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        self.addresses.range(first..).take_while(move |(other, _)| *other == link).map(|(_, address)| *address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses() -> [IpAddr; 4] {
        ["2001:db8::1", "2001:db8::2", "2001:db8::3", "192.0.2.1"].map(|address| address.parse().expect("an address"))
    }

    fn all_alike() -> LinkAddresses {
        LinkAddresses::told_by(|_| LinkAddress([6; 6]))
    }

    #[test]
    fn a_link_address_is_that_of_the_first_who_want_it_whoever_came_first_in_time() {
        let [first, second, third, _] = addresses();
        let precedes = |one: IpAddr, other: IpAddr| one < other;
        for order in [[first, second, third], [third, second, first], [second, third, first]] {
            let mut links = all_alike();
            for address in order {
                links.note(address, true, &precedes);
            }
            assert_eq!(links.beaten().collect::<Vec<_>>(), [(second, first), (third, first)], "{order:?}");
        }
    }

    #[test]
    fn when_the_first_goes_the_next_one_has_its_link_address_and_is_told() {
        let [first, second, third, _] = addresses();
        let precedes = |one: IpAddr, other: IpAddr| one < other;
        let mut links = all_alike();
        assert_eq!(links.note(second, true, &precedes), BTreeSet::new());
        assert_eq!(links.note(third, true, &precedes), BTreeSet::from([third]));
        assert_eq!(links.note(first, true, &precedes), BTreeSet::from([second]));
        assert_eq!(links.note(first, true, &precedes), BTreeSet::new(), "it is noted with each change");
        assert_eq!(links.note(first, false, &precedes), BTreeSet::from([second]));
        assert_eq!([second, third].map(|one| links.is_beaten(one)), [false, true]);
        assert_eq!(
            links.note(second, true, &|one, other| one > other),
            BTreeSet::from([second, third]),
            "another order"
        );
        assert_eq!(links.note(second, false, &precedes), BTreeSet::from([second]));
        assert_eq!(links.note(third, false, &precedes), BTreeSet::new());
        assert_eq!((links.addresses.len(), links.beaten().count()), (0, 0));
    }

    #[test]
    fn addresses_with_different_link_addresses_and_those_of_ipv4_have_nothing_to_do_with_each_other() {
        let mut links = LinkAddresses::default();
        for address in addresses() {
            links.note(address, true, &|one, other| one < other);
        }
        assert_eq!((links.addresses.len(), links.beaten().count()), (3, 0));
    }
}
