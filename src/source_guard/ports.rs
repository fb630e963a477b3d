//! The guarded ports of this host: which pod's they are, and with which addresses it may send.
//!
//! A port is guarded from ADD until DEL, until a collection (GC) does not name its attachment, until another attachment has the port,
//! or until the link is gone. The cluster is not asked: an attachment ends with its sandbox.
//!
//! Ports that the kernel guards and the file that keeps the collection does not name are taken over as the kernel guards them. Whose they are is not known then: such a
//! port is guarded until its link is gone or another attachment has it. The same goes for ports that another agent guards which runs beside this one, as one of
//! two that replace each other does.
//!
//! Pure: calls in, keys that changed out. `driver` keeps the collection on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use compact_str::CompactString;

use crate::model::{AttachmentId, LinkAddress};

/// A port of a bridge, and what may come from it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GuardedPort {
    /// The attachment that it belongs to.
    pub id: AttachmentId,
    /// The name of the CNI network; empty where that is not known.
    pub network: CompactString,
    /// The link's name on this host.
    pub link: CompactString,
    /// Of the pod's own end.
    pub link_address: LinkAddress,
    /// Of either family.
    pub addresses: Box<[IpAddr]>,
}

/// All guarded ports, by the name of the link.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Ports(BTreeMap<CompactString, GuardedPort>);

impl GuardedPort {
    /// Returns whether it is known which attachment it belongs to: each has the name of a container.
    fn has_owner(&self) -> bool {
        !self.id.container.is_empty()
    }
}

/// More ports than a node can have pods.
const MOST: usize = 4096;

impl Ports {
    /// Those that an earlier run kept on disk.
    pub fn restored(all: Vec<GuardedPort>) -> Ports {
        Ports(all.into_iter().take(MOST).map(|port| (port.link.clone(), port)).collect())
    }

    pub fn iter(&self) -> impl Iterator<Item = &GuardedPort> {
        self.0.values()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether this link is guarded.
    pub fn has(&self, link: &str) -> bool {
        self.0.contains_key(link)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Guards a port. It takes the place of what the link or the attachment was before. Returns whether there is room.
    pub fn put(&mut self, port: GuardedPort) -> bool {
        self.remove(&port.id);
        if self.0.len() >= MOST && !self.0.contains_key(&port.link) {
            return false;
        }
        self.0.insert(port.link.clone(), port);
        true
    }

    /// Takes over a port that the kernel guards, unless it is known whose it is. There is always room: the kernel has room for it, and one that is not taken
    /// over would be opened.
    pub fn adopt(&mut self, port: GuardedPort) {
        self.0.entry(port.link.clone()).or_insert(port);
    }

    /// Ends an attachment.
    pub fn remove(&mut self, id: &AttachmentId) {
        self.0.retain(|_, port| port.id != *id);
    }

    /// Ends whatever these links were.
    pub fn vacate(&mut self, links: &[CompactString]) {
        links.iter().for_each(|link| drop(self.0.remove(link)));
    }

    /// Ends all attachments of a network but these. An empty name means all networks. A port that is not known to belong to one stays.
    pub fn retain(&mut self, network: &str, ids: &BTreeSet<AttachmentId>) {
        let is_of = |port: &GuardedPort| network.is_empty() || port.network.is_empty() || port.network == network;
        self.0.retain(|_, port| !is_of(port) || !port.has_owner() || ids.contains(&port.id));
    }

    /// Ends the ports whose links are gone.
    pub fn retain_links(&mut self, links: &BTreeSet<CompactString>) {
        self.0.retain(|link, _| links.contains(link));
    }

    /// Returns the addresses that some guarded port has.
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        self.0.values().flat_map(|port| port.addresses.iter().copied()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(container: &str) -> AttachmentId {
        AttachmentId { container: container.into(), interface: "eth0".into() }
    }

    fn port(container: &str, link: &str, address: &str) -> GuardedPort {
        GuardedPort {
            id: id(container),
            network: "mynet".into(),
            link: link.into(),
            link_address: LinkAddress([2, 0, 0, 0, 0, 1]),
            addresses: [address.parse().expect("an address")].into(),
        }
    }

    fn links(ports: &Ports) -> Vec<(&str, &str)> {
        ports.iter().map(|port| (port.link.as_str(), port.id.container.as_str())).collect()
    }

    #[test]
    fn a_port_is_the_newest_attachments_and_ends_with_it() {
        let mut ports = Ports::default();
        assert!(ports.put(port("a", "veth1", "10.244.1.7")) && ports.put(port("b", "veth2", "10.244.1.8")));
        assert!(ports.put(port("c", "veth1", "10.244.1.9")), "a link of the same name is another pod's");
        assert_eq!(links(&ports), [("veth1", "c"), ("veth2", "b")]);
        ports.remove(&id("a"));
        assert_eq!(ports.len(), 2, "a late call about the former sandbox says nothing of this one");
        assert!(ports.put(port("b", "veth3", "10.244.1.8")), "a call that is tried again may have another link");
        assert_eq!(links(&ports), [("veth1", "c"), ("veth3", "b")]);
        ports.remove(&id("c"));
        assert_eq!(ports.addresses(), ["10.244.1.8".parse().expect("an address")].into());
    }

    #[test]
    fn a_collection_concerns_its_own_network_and_links_that_are_gone_go() {
        let mut ports = Ports::restored(vec![port("a", "veth1", "10.244.1.7"), port("b", "veth2", "10.244.1.8")]);
        ports.retain("othernet", &BTreeSet::new());
        assert_eq!(ports.len(), 2);
        ports.retain("mynet", &[id("b")].into());
        assert_eq!(links(&ports), [("veth2", "b")]);
        ports.retain_links(&["veth9".into()].into());
        assert!(ports.is_empty());
    }

    #[test]
    fn a_port_of_nobody_known_stays_until_its_link_goes_or_is_anothers() {
        let mut ports = Ports::restored(vec![port("a", "veth1", "10.244.1.7")]);
        for link in ["veth1", "veth2", "veth3"] {
            ports.adopt(port("", link, "10.244.1.8"));
        }
        assert_eq!(links(&ports), [("veth1", "a"), ("veth2", ""), ("veth3", "")]);
        ports.retain("", &BTreeSet::new());
        assert_eq!(links(&ports), [("veth2", ""), ("veth3", "")]);
        assert!(ports.put(port("c", "veth3", "10.244.1.9")));
        ports.retain_links(&["veth3".into()].into());
        assert_eq!(links(&ports), [("veth3", "c")]);
    }

    #[test]
    fn there_is_a_bound() {
        let mut ports = Ports::default();
        for number in 0..MOST {
            assert!(ports.put(port(&number.to_string(), &format!("veth{number}"), "10.244.1.7")));
        }
        assert!(!ports.put(port("more", "vethmore", "10.244.1.7")));
        assert!(ports.put(port("more", "veth0", "10.244.1.7")) && ports.len() == MOST);
        ports.adopt(port("", "vethmore", "10.244.1.8"));
        assert!(ports.has("vethmore"), "what the kernel guards already is not opened for want of room");
        assert!(!ports.put(port("most", "vethmost", "10.244.1.7")));
    }
}
