//! Where the network namespaces of this node's pods may be, from all who know: the CNI plugins, the container runtime, and the
//! directory in which both keep namespaces. Pure; `driver` asks them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use crate::container_runtime::{PodName, Sandbox, Sought};
use crate::model::{ObjectName, PodUid};

/// Directories in which runtimes and CNI plugins keep namespaces. One is usually a link to the other.
pub const DIRECTORIES: [&str; 2] = ["/run/netns", "/var/run/netns"];

/// More pods than a node can have.
const MOST: usize = 4096;

/// A pod that started, as the CNI plugins told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Announced {
    pub pod: KnownPod,
    pub addresses: Vec<IpAddr>,
    /// `CNI_NETNS`.
    pub place: PathBuf,
}

/// Which pod it is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct KnownPod {
    pub name: ObjectName,
    /// `None` where it is not known, and of static pods, whose UID the kubelet and the API tell apart.
    pub uid: Option<PodUid>,
}

impl KnownPod {
    /// Returns whether both may be the same pod.
    pub fn agrees(&self, other: &KnownPod) -> bool {
        self.name == other.name && self.uid.zip(other.uid).is_none_or(|(one, other)| one == other)
    }
}

/// The pods that have an address, as the cluster tells: several while one ends and another begins. Without any, every pod may have it.
pub type KnownPods = BTreeMap<IpAddr, BTreeSet<KnownPod>>;

/// Returns whether this pod may have this address.
pub fn may_have(known: &KnownPods, address: IpAddr, pod: &KnownPod) -> bool {
    known.get(&address).is_none_or(|pods| pods.iter().any(|one| one.agrees(pod)))
}

/// The places that were announced, by the address that is there.
#[derive(Default, Debug)]
pub struct AnnouncedPlaces(BTreeMap<IpAddr, (KnownPod, PathBuf)>);

impl AnnouncedPlaces {
    /// Adds a pod that started. `is_there`: whether a place leads anywhere.
    pub fn add(&mut self, announced: &Announced, is_there: impl Fn(&PathBuf) -> bool) {
        let Announced { pod, addresses, place } = announced;
        if self.0.len() + addresses.len() > MOST {
            self.0.retain(|_, (_, place)| is_there(place));
        }
        if self.0.len() + addresses.len() <= MOST {
            self.0.extend(addresses.iter().map(|address| (*address, (pod.clone(), place.clone()))));
        }
    }

    /// Returns where an address is; `None` where the pod that was announced there cannot have it.
    pub fn place(&self, address: IpAddr, known: &KnownPods) -> Option<&PathBuf> {
        self.0.get(&address).filter(|(pod, _)| may_have(known, address, pod)).map(|(_, place)| place)
    }

    /// Forgets a place that did not have the address.
    pub fn forget(&mut self, address: IpAddr) {
        self.0.remove(&address);
    }

    pub fn all(&self) -> BTreeSet<PathBuf> {
        self.0.values().map(|(_, place)| place.clone()).collect()
    }
}

/// Returns which sandboxes are to be asked for, to find these addresses.
pub fn sought(addresses: &BTreeSet<IpAddr>, known: &KnownPods) -> Sought {
    let mut names = BTreeSet::new();
    for address in addresses {
        let Some(pods) = known.get(address) else { return Sought::All };
        names.extend(
            pods.iter().map(|pod| PodName {
                namespace: pod.name.namespace.as_str().into(),
                name: pod.name.name.as_str().into(),
            }),
        );
    }
    Sought::Of(names)
}

/// Returns the places of these addresses, as the runtimes tell of their sandboxes. Several sandboxes may tell of one address; one whose
/// pod cannot have it is passed over.
pub fn of_sandboxes(
    sandboxes: &[Sandbox],
    addresses: &BTreeSet<IpAddr>,
    known: &KnownPods,
) -> BTreeMap<IpAddr, Vec<PathBuf>> {
    let mut places: BTreeMap<IpAddr, Vec<PathBuf>> = BTreeMap::new();
    for sandbox in sandboxes.iter().filter(|sandbox| !sandbox.host_network) {
        let name = ObjectName::new(&sandbox.pod.namespace, &sandbox.pod.name);
        let pod = KnownPod { name, uid: PodUid::of(&sandbox.uid) };
        let its = sandbox.addresses.iter().filter(|address| addresses.contains(address));
        for address in its.filter(|address| may_have(known, **address, &pod)) {
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
            pod: PodName { namespace: "shop".into(), name: format!("web-{id}").into() },
            uid: format!("00000000-0000-0000-0000-00000000000{id}").into(),
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
        let found = |known: &KnownPods| -> Vec<String> {
            let found = of_sandboxes(&sandboxes, &addresses, known);
            found.iter().map(|(address, places)| format!("{address} {places:?}")).collect()
        };
        let expected = [r#"10.244.1.5 ["/run/netns/a", "/run/netns/b"]"#, r#"fd00:10:244:1::5 ["/run/netns/a"]"#];
        assert_eq!(found(&KnownPods::new()), expected);
        // One that took the address of another, or is what an earlier pod of the name left, is not looked at.
        let of_b = |uid| KnownPods::from([(address("10.244.1.5"), [pod("web-b", uid)].into())]);
        let expected = [r#"10.244.1.5 ["/run/netns/b"]"#, r#"fd00:10:244:1::5 ["/run/netns/a"]"#];
        assert_eq!(found(&of_b(None)), expected);
        assert_eq!(found(&of_b(PodUid::of("00000000-0000-0000-0000-00000000000b"))), expected);
        assert_eq!(found(&of_b(PodUid::of("00000000-0000-0000-0000-00000000000c"))), expected[1..]);
    }

    fn pod(name: &str, uid: Option<PodUid>) -> KnownPod {
        KnownPod { name: ObjectName::new("shop", name), uid }
    }

    #[test]
    fn sandboxes_are_asked_for_by_name_where_all_pods_are_known() {
        let addresses: BTreeSet<IpAddr> = ["10.244.1.5", "fd00:10:244:1::5"].map(address).into();
        let mut known = KnownPods::from([(address("10.244.1.5"), [pod("a", None), pod("b", None)].into())]);
        assert_eq!(sought(&addresses, &known), Sought::All);
        known.insert(address("fd00:10:244:1::5"), [pod("a", None)].into());
        let name = |name: &str| PodName { namespace: "shop".into(), name: name.into() };
        assert_eq!(sought(&addresses, &known), Sought::Of([name("a"), name("b")].into()));
    }

    #[test]
    fn announced_places_have_a_bound_and_those_that_are_gone_make_room() {
        let mut places = AnnouncedPlaces::default();
        let announced = |number: u32| Announced {
            pod: pod("web", PodUid::from_number(number + 1)),
            addresses: vec![IpAddr::from((0x0af4_0000 + number).to_be_bytes())],
            place: PathBuf::from(format!("/run/netns/{number}")),
        };
        for number in 0..5000 {
            places.add(&announced(number), |_| true);
        }
        assert_eq!(places.all().len(), MOST);
        places.add(&announced(5000), |place| place.ends_with("7"));
        assert_eq!(places.all().len(), 2);
        let last = address("10.244.19.136");
        let mut known = KnownPods::new();
        assert_eq!(places.place(last, &known), Some(&PathBuf::from("/run/netns/5000")));
        known.insert(last, [pod("web", PodUid::from_number(7))].into());
        assert_eq!(places.place(last, &known), None, "it is another pod's by now");
        places.forget(last);
        assert_eq!(places.place(last, &KnownPods::new()), None);
    }
}
