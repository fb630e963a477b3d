//! Where the network namespaces of this node's pods may be, from all who know: the CNI plugins, the container runtime, and the
//! directory in which both keep namespaces. Pure; `driver` asks them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use crate::container_runtime::Sandbox;

/// Directories in which runtimes and CNI plugins keep namespaces. One is usually a link to the other.
pub const DIRECTORIES: [&str; 2] = ["/run/netns", "/var/run/netns"];

/// More pods than a node can have.
const MOST: usize = 4096;

/// A pod that started, as the CNI plugins told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Announced {
    pub addresses: Vec<IpAddr>,
    /// `CNI_NETNS`.
    pub place: PathBuf,
}

/// The places that were announced, by the address that is there.
#[derive(Default, Debug)]
pub struct AnnouncedPlaces(BTreeMap<IpAddr, PathBuf>);

impl AnnouncedPlaces {
    /// Takes in a pod that started. `is_there`: whether a place leads anywhere.
    pub fn add(&mut self, announced: &Announced, is_there: impl Fn(&PathBuf) -> bool) {
        if self.0.len() + announced.addresses.len() > MOST {
            self.0.retain(|_, place| is_there(place));
        }
        if self.0.len() + announced.addresses.len() <= MOST {
            self.0.extend(announced.addresses.iter().map(|address| (*address, announced.place.clone())));
        }
    }

    pub fn place(&self, address: IpAddr) -> Option<&PathBuf> {
        self.0.get(&address)
    }

    /// Forgets a place that did not have the address.
    pub fn forget(&mut self, address: IpAddr) {
        self.0.remove(&address);
    }

    pub fn all(&self) -> BTreeSet<PathBuf> {
        self.0.values().cloned().collect()
    }
}

/// Returns the places of these addresses, as the runtime tells of its sandboxes. Several sandboxes may tell of one address.
pub fn of_sandboxes(sandboxes: &[Sandbox], addresses: &BTreeSet<IpAddr>) -> BTreeMap<IpAddr, Vec<PathBuf>> {
    let mut places: BTreeMap<IpAddr, Vec<PathBuf>> = BTreeMap::new();
    for sandbox in sandboxes.iter().filter(|sandbox| !sandbox.host_network) {
        for address in sandbox.addresses.iter().filter(|address| addresses.contains(address)) {
            places.entry(*address).or_default().extend(sandbox.places.iter().cloned());
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn sandbox(id: &str, addresses: &[&str], host_network: bool) -> Sandbox {
        Sandbox {
            id: id.into(),
            pod: "shop/web".into(),
            addresses: addresses.iter().map(|text| address(text)).collect(),
            host_network,
            places: vec![PathBuf::from(format!("/run/netns/{id}"))],
        }
    }

    #[test]
    fn sandboxes_lead_to_their_addresses_and_those_of_the_node_to_none() {
        let sandboxes = [
            sandbox("a", &["10.244.1.5", "fd00:10:244:1::5"], false),
            sandbox("b", &["10.244.1.5"], false),
            sandbox("c", &["192.0.2.1"], true),
            sandbox("d", &["10.244.1.9"], false),
        ];
        let addresses = ["10.244.1.5", "fd00:10:244:1::5", "192.0.2.1"].map(address).into();
        let found: Vec<String> = of_sandboxes(&sandboxes, &addresses)
            .iter()
            .map(|(address, places)| format!("{address} {places:?}"))
            .collect();
        let expected = [r#"10.244.1.5 ["/run/netns/a", "/run/netns/b"]"#, r#"fd00:10:244:1::5 ["/run/netns/a"]"#];
        assert_eq!(found, expected);
    }

    #[test]
    fn announced_places_have_a_bound_and_those_that_are_gone_make_room() {
        let mut places = AnnouncedPlaces::default();
        let pod = |number: u32| Announced {
            addresses: vec![IpAddr::from((0x0af4_0000 + number).to_be_bytes())],
            place: PathBuf::from(format!("/run/netns/{number}")),
        };
        for number in 0..5000 {
            places.add(&pod(number), |_| true);
        }
        assert_eq!(places.all().len(), MOST);
        places.add(&pod(5000), |place| place.ends_with("7"));
        assert_eq!(places.all().len(), 2);
        let last = address("10.244.19.136");
        assert_eq!(places.place(last), Some(&PathBuf::from("/run/netns/5000")));
        places.forget(last);
        assert_eq!(places.place(last), None);
    }
}
