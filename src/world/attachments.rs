//! Pods' addresses as the container runtime announced them, put into the pods that the cluster tells of.
//!
//! A pod's object is known since it was scheduled; its addresses follow when the kubelet has written its status, some time after the
//! pod has begun to send. Until then what was announced counts like `status.podIPs`. An attachment is forgotten when the status has
//! its addresses, when the pod has been attached anew, or is detached. The end of the pod's object does not end it: the object may be
//! that of a former pod of this name (StatefulSets use names again), and the runtime was told of the new one first. Where both tell the
//! pod's UID, an attachment counts for the object of its own pod alone, and takes its addresses from the object of another. For a
//! finished pod and for one on another node it counts nothing. The number of attachments has a bound: those of pods that nobody knows make room.
//!
//! Pure: calls and pods in, pods out. `world` keeps the attachments on disk, so that a restart between the two loses none.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use compact_str::CompactString;

use crate::model::{Attachment, AttachmentChange, AttachmentId, ObjectName, Pod, Table};

/// More pods than a node can have.
const MOST: usize = 4096;

/// The attachments of which the cluster does not tell yet.
#[derive(Default)]
pub struct Attachments {
    all: BTreeMap<AttachmentId, Attachment>,
    /// The pods that have any.
    pods: HashMap<ObjectName, Attached>,
    /// The name of this host's Node.
    node: CompactString,
    /// Those that were announced to an earlier run: a listing that does not name their pod proves that it is gone.
    restored: BTreeSet<AttachmentId>,
    changed: bool,
}

/// A pod as it is to be published; `None` where it is not known.
type Shown = (ObjectName, Option<Arc<Pod>>);

/// A pod with attachments.
#[derive(Default)]
struct Attached {
    ids: BTreeSet<AttachmentId>,
    /// As the cluster tells it; `None` while it does not.
    told: Option<Arc<Pod>>,
}

impl Attached {
    /// Returns whether the cluster has no pod of this name that could have the attachments.
    fn is_unknown(&self) -> bool {
        self.told.as_ref().is_none_or(|pod| pod.finished)
    }

    /// Returns whether an attachment is that of the pod of which the cluster tells, as far as their UIDs say: the cluster may tell
    /// of a former pod of this name still, or of the next one already.
    fn is_of(&self, attachment: &Attachment) -> bool {
        let uids = attachment.uid.zip(self.told.as_ref().and_then(|pod| pod.uid));
        uids.is_none_or(|(announced, told)| announced == told)
    }

    /// Returns whether the pod runs on this node, as far as the cluster tells.
    fn is_on(&self, node: &CompactString) -> bool {
        let of = |pod: &Arc<Pod>| !pod.finished && pod.node.as_ref().is_none_or(|other| **other == **node);
        self.told.as_ref().is_some_and(of)
    }
}

impl Attachments {
    /// Those that an earlier run kept on disk.
    pub fn restored(all: Vec<Attachment>) -> Attachments {
        let mut attachments = Attachments::default();
        for attachment in all.into_iter().take(MOST) {
            attachments.insert(attachment);
        }
        attachments.restored = attachments.all.keys().cloned().collect();
        attachments.changed = false;
        attachments
    }

    /// Sets the name of this host's Node: what is announced here concerns its pods alone.
    pub fn set_node(&mut self, node: CompactString) {
        self.node = node;
    }

    /// Those to be kept on disk, if they have changed since the last call.
    pub fn take_changed(&mut self) -> Option<Vec<Attachment>> {
        std::mem::take(&mut self.changed).then(|| self.all.values().cloned().collect())
    }

    /// Takes in that they could not be kept on disk.
    pub fn not_kept(&mut self) {
        self.changed = true;
    }

    /// Takes in a call. Returns the pods that it concerns as they are now. `known`: the pods as published.
    pub fn apply(&mut self, change: AttachmentChange, known: &Table<ObjectName, Pod>) -> Vec<Shown> {
        let mut concerned = BTreeSet::new();
        match change {
            AttachmentChange::Add(attachment) => self.add(attachment, known, &mut concerned),
            AttachmentChange::Delete(id) => self.remove(&id, &mut concerned),
            AttachmentChange::Retain { network, ids } => {
                let is_of = |one: &Attachment| {
                    [&one.network, &network].iter().any(|name| name.is_empty()) || one.network == network
                };
                let gone = self.all.iter().filter(|(id, one)| is_of(one) && !ids.contains(*id));
                let gone: Vec<AttachmentId> = gone.map(|(id, _)| id.clone()).collect();
                gone.iter().for_each(|id| self.remove(id, &mut concerned));
            }
        }
        self.all_shown(concerned)
    }

    /// Takes in a pod as the cluster tells it, `None` where it is gone. Returns it as it is to be published.
    pub fn put(&mut self, name: &ObjectName, told: Option<Arc<Pod>>) -> Option<Arc<Pod>> {
        let Some(attached) = self.pods.get_mut(name) else { return told };
        attached.told = told;
        let addresses: &[IpAddr] = match &attached.told {
            Some(pod) if !pod.finished => &pod.addresses,
            _ => &[],
        };
        let is_told = |id: &&AttachmentId| {
            let has_all = |one: &Attachment| one.addresses.iter().all(|address| addresses.contains(address));
            self.all.get(*id).is_none_or(|one| attached.is_of(one) && has_all(one))
        };
        for id in attached.ids.iter().filter(is_told).cloned().collect::<Vec<_>>() {
            self.remove(&id, &mut BTreeSet::new());
        }
        self.shown(name).flatten()
    }

    /// Takes in that all pods have been listed: what was announced to an earlier run of others is over, also of former pods of a
    /// name that is there. Returns the pods that it concerns.
    pub fn listed(&mut self) -> Vec<Shown> {
        let mut concerned = BTreeSet::new();
        for id in std::mem::take(&mut self.restored) {
            let is_there =
                |one: &Attachment| self.pods.get(&one.pod).is_some_and(|pod| !pod.is_unknown() && pod.is_of(one));
            if !self.all.get(&id).is_some_and(is_there) {
                self.remove(&id, &mut concerned);
            }
        }
        self.all_shown(concerned)
    }

    fn all_shown(&mut self, concerned: BTreeSet<ObjectName>) -> Vec<Shown> {
        concerned.into_iter().filter_map(|name| Some((name.clone(), self.shown(&name)?))).collect()
    }

    /// Takes in the pods of the last known state, which are in place. Returns those that it concerns. Nothing ends by them: they have
    /// been published with what had been announced, so their addresses are not proof of what the status says.
    pub fn recall(&mut self, known: &Table<ObjectName, Pod>) -> Vec<Shown> {
        let unknown: Vec<ObjectName> =
            self.pods.iter().filter(|(_, pod)| pod.told.is_none()).map(|(name, _)| name.clone()).collect();
        let mut recalled = Vec::new();
        for name in unknown {
            let Some(pod) = known.get(&name) else { continue };
            if let Some(attached) = self.pods.get_mut(&name) {
                attached.told = Some(pod.clone());
            }
            recalled.extend(self.shown(&name).map(|pod| (name, pod)));
        }
        recalled
    }

    fn add(&mut self, attachment: Attachment, known: &Table<ObjectName, Pod>, concerned: &mut BTreeSet<ObjectName>) {
        // A repeated call may name another pod or other addresses.
        self.remove(&attachment.id, concerned);
        let attached = self.pods.get(&attachment.pod);
        let is_former = |id: &&AttachmentId| id.interface == attachment.id.interface;
        let formers: Vec<AttachmentId> =
            attached.into_iter().flat_map(|pod| pod.ids.iter().filter(is_former).cloned()).collect();
        formers.iter().for_each(|id| self.remove(id, concerned));
        if self.all.len() >= MOST {
            let unknown = self.pods.values().find(|pod| pod.is_unknown());
            let Some(unknown) = unknown.and_then(|pod| pod.ids.first().cloned()) else { return };
            self.remove(&unknown, concerned);
        }
        let name = attachment.pod.clone();
        let is_new = !self.pods.contains_key(&name);
        self.insert(attachment);
        if let Some(attached) = self.pods.get_mut(&name).filter(|_| is_new) {
            attached.told = known.get(&name).cloned();
        }
        concerned.insert(name);
    }

    fn insert(&mut self, attachment: Attachment) {
        self.changed = true;
        let attached = self.pods.entry(attachment.pod.clone()).or_default();
        attached.ids.insert(attachment.id.clone());
        self.all.insert(attachment.id.clone(), attachment);
    }

    fn remove(&mut self, id: &AttachmentId, concerned: &mut BTreeSet<ObjectName>) {
        let Some(attachment) = self.all.remove(id) else { return };
        self.restored.remove(id);
        self.changed = true;
        if let Some(attached) = self.pods.get_mut(&attachment.pod) {
            attached.ids.remove(id);
        }
        concerned.insert(attachment.pod);
    }

    /// Returns a pod as it is to be published, the inner `None` where it is not known; the outer one where it has had no
    /// attachment. Forgets a pod that has none any more.
    fn shown(&mut self, name: &ObjectName) -> Option<Option<Arc<Pod>>> {
        let attached = self.pods.get(name)?;
        let announced = || attached.ids.iter().filter_map(|id| self.all.get(id));
        let is_anothers =
            |address: &IpAddr| announced().any(|one| !attached.is_of(one) && one.addresses.contains(address));
        let told = attached.told.iter().flat_map(|pod| pod.addresses.iter().copied());
        let mut addresses: Vec<IpAddr> = told.filter(|address| !is_anothers(address)).collect();
        let own = announced().filter(|one| attached.is_on(&self.node) && attached.is_of(one));
        for address in own.flat_map(|one| one.addresses.iter()) {
            if !addresses.contains(address) {
                addresses.push(*address);
            }
        }
        let pod = attached.told.clone().map(|pod| match *addresses != *pod.addresses {
            true => Arc::new(Pod { addresses: addresses.into(), ..(*pod).clone() }),
            false => pod,
        });
        if attached.ids.is_empty() {
            self.pods.remove(name);
        }
        Some(pod)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::model::PodUid;

    const BOTH: [&str; 2] = ["10.244.1.7", "fd00:10:244:1::7"];

    fn name(pod: &str) -> ObjectName {
        ObjectName::new("shop", pod)
    }

    fn pod(addresses: &[&str]) -> Pod {
        Pod {
            uid: None,
            labels: [("app", "web")].into_iter().collect(),
            addresses: addresses.iter().map(|text| text.parse().expect("an address")).collect(),
            node: Some("node-1".into()),
            host_network: false,
            finished: false,
            ports: [].into(),
        }
    }

    fn id(container: &str) -> AttachmentId {
        AttachmentId { container: container.into(), interface: "eth0".into() }
    }

    fn add(container: &str, pod: &str, addresses: &[&str]) -> AttachmentChange {
        add_of(None, container, pod, addresses)
    }

    fn add_of(uid: Option<PodUid>, container: &str, pod: &str, addresses: &[&str]) -> AttachmentChange {
        let addresses = addresses.iter().map(|text| text.parse().expect("an address")).collect();
        AttachmentChange::Add(Attachment { id: id(container), network: "mynet".into(), pod: name(pod), uid, addresses })
    }

    fn retain(network: &str, containers: &[&str]) -> AttachmentChange {
        AttachmentChange::Retain { network: network.into(), ids: containers.iter().map(|one| id(one)).collect() }
    }

    /// The tables of one node: calls and messages of the cluster go in.
    struct Node {
        attachments: Attachments,
        pods: Table<ObjectName, Pod>,
    }

    impl Default for Node {
        fn default() -> Node {
            Node::with(Attachments::default())
        }
    }

    impl Node {
        fn with(mut attachments: Attachments) -> Node {
            attachments.set_node("node-1".into());
            Node { attachments, pods: Table::default() }
        }

        fn call(&mut self, change: AttachmentChange) {
            for (name, pod) in self.attachments.apply(change, &self.pods) {
                self.publish(name, pod);
            }
        }

        fn told(&mut self, of: &str, pod: Option<Pod>) {
            let shown = self.attachments.put(&name(of), pod.map(Arc::new));
            self.publish(name(of), shown);
        }

        fn listed(&mut self) {
            for (name, pod) in self.attachments.listed() {
                self.publish(name, pod);
            }
        }

        fn publish(&mut self, name: ObjectName, pod: Option<Arc<Pod>>) {
            match pod {
                Some(pod) => drop(self.pods.insert_shared(name, pod)),
                None => drop(self.pods.remove(&name)),
            }
        }

        fn addresses(&self, of: &str) -> Vec<String> {
            let pod = self.pods.get(&name(of));
            pod.into_iter().flat_map(|pod| pod.addresses.iter().map(ToString::to_string)).collect()
        }

        fn kept(&self) -> usize {
            self.attachments.all.len()
        }
    }

    #[test]
    fn an_announced_address_counts_until_the_status_has_it() {
        let mut node = Node::default();
        node.told("web", Some(pod(&[])));
        node.call(add("a", "web", &BOTH));
        assert_eq!(node.addresses("web"), BOTH);
        // A change of something else, and a status that has one of two.
        node.told("web", Some(pod(&BOTH[..1])));
        assert_eq!((node.addresses("web").len(), node.kept()), (2, 1));
        node.told("web", Some(pod(&BOTH)));
        assert_eq!((node.addresses("web").len(), node.kept()), (2, 0));
        node.told("web", Some(pod(&["10.244.1.9"])));
        assert_eq!(node.addresses("web"), ["10.244.1.9"], "from now on the status alone tells");
    }

    #[test]
    fn a_pod_that_is_announced_before_it_is_known_has_the_address_as_soon_as_it_is() {
        let mut node = Node::default();
        node.call(add("a", "web", &BOTH));
        node.told("web", None);
        assert!(node.addresses("web").is_empty() && node.kept() == 1);
        node.told("web", Some(pod(&[])));
        assert_eq!(node.addresses("web"), BOTH);
    }

    #[test]
    fn what_was_announced_goes_with_its_sandbox_and_counts_for_no_pod_that_is_gone() {
        let mut node = Node::default();
        for gone in ["detached", "deleted", "finished", "collected"] {
            node.told("web", Some(pod(&[])));
            node.call(add("a", "web", &BOTH));
            match gone {
                "detached" => node.call(AttachmentChange::Delete(id("a"))),
                "deleted" => node.told("web", None),
                "collected" => node.call(retain("mynet", &["b"])),
                _ => node.told("web", Some(Pod { finished: true, ..pod(&[]) })),
            }
            assert!(node.addresses("web").is_empty(), "{gone}");
            node.call(AttachmentChange::Delete(id("a")));
            assert_eq!(node.pods.get(&name("web")).is_some(), gone != "deleted", "{gone}");
            assert!(node.kept() == 0 && node.attachments.pods.is_empty(), "{gone}");
        }
    }

    #[test]
    fn a_pod_of_the_same_name_has_its_announced_address_although_the_end_of_the_former_is_told_later() {
        for end in [None, Some(Pod { finished: true, ..pod(&["10.244.1.3"]) })] {
            let mut node = Node::default();
            node.told("web-0", Some(pod(&["10.244.1.3"])));
            node.call(add("new", "web-0", &BOTH));
            node.told("web-0", end.clone());
            assert!(!node.addresses("web-0").contains(&BOTH[0].to_owned()), "{end:?}");
            node.told("web-0", None);
            node.told("web-0", Some(pod(&[])));
            assert_eq!(node.addresses("web-0"), BOTH, "{end:?}");
        }
    }

    #[test]
    fn a_pod_that_is_made_anew_waits_for_its_own_object_and_takes_its_address_from_the_former_one() {
        let [old, new] = [1, 2].map(PodUid::from_number);
        for former in [&["10.244.1.3"][..], &BOTH] {
            let mut node = Node::default();
            node.told("web-0", Some(Pod { uid: old, ..pod(former) }));
            node.call(add_of(new, "b", "web-0", &BOTH));
            let kept: Vec<String> =
                former.iter().filter(|one| !BOTH.contains(one)).map(|one| (*one).to_owned()).collect();
            assert_eq!(node.addresses("web-0"), kept, "the labels are those of the former pod");
            // A late status of the former pod says nothing of the new one, and neither does its end.
            node.told("web-0", Some(Pod { uid: old, finished: true, ..pod(former) }));
            node.told("web-0", Some(Pod { uid: old, ..pod(former) }));
            assert_eq!((node.addresses("web-0"), node.kept()), (kept, 1));
            node.told("web-0", None);
            node.told("web-0", Some(Pod { uid: new, ..pod(&[]) }));
            assert_eq!(node.addresses("web-0"), BOTH);
            node.told("web-0", Some(Pod { uid: new, ..pod(&BOTH) }));
            assert_eq!((node.addresses("web-0").len(), node.kept()), (2, 0));
        }
    }

    #[test]
    fn an_attachment_of_a_former_pod_counts_nothing_for_the_next_one() {
        let [old, new] = [1, 2].map(PodUid::from_number);
        let mut node = Node::default();
        node.told("web-0", Some(Pod { uid: old, ..pod(&[]) }));
        node.call(add_of(old, "a", "web-0", &BOTH));
        assert_eq!(node.addresses("web-0"), BOTH);
        node.told("web-0", Some(Pod { uid: new, ..pod(&[]) }));
        assert!(node.addresses("web-0").is_empty());
        node.call(add_of(new, "b", "web-0", &["10.244.1.9"]));
        assert_eq!((node.addresses("web-0"), node.kept()), (vec!["10.244.1.9".to_owned()], 1));
    }

    #[test]
    fn a_collection_concerns_its_own_network_alone() {
        let mut node = Node::default();
        node.told("web", Some(pod(&[])));
        node.call(add("a", "web", &BOTH));
        node.call(retain("othernet", &[]));
        assert_eq!(node.addresses("web"), BOTH);
        node.call(retain("mynet", &["a"]));
        assert_eq!(node.addresses("web"), BOTH);
        node.call(retain("", &[]));
        assert!(node.addresses("web").is_empty(), "a plugin of an earlier release does not name the network");
    }

    #[test]
    fn a_pod_of_the_same_name_on_another_node_has_nothing_of_what_was_announced_here() {
        let mut node = Node::default();
        node.call(add("a", "web-0", &BOTH));
        node.told("web-0", Some(Pod { node: Some("node-2".into()), ..pod(&[]) }));
        assert!(node.addresses("web-0").is_empty());
        node.told("web-0", Some(pod(&[])));
        assert_eq!(node.addresses("web-0"), BOTH);
    }

    #[test]
    fn an_address_that_passes_from_pod_to_pod_is_the_new_ones_although_the_old_one_is_detached_late() {
        let mut node = Node::default();
        node.told("old", Some(pod(&[])));
        node.told("new", Some(pod(&[])));
        node.call(add("a", "old", &BOTH));
        node.call(add("b", "new", &BOTH));
        node.call(AttachmentChange::Delete(id("a")));
        assert!(node.addresses("old").is_empty());
        assert_eq!(node.addresses("new"), BOTH);
    }

    #[test]
    fn a_new_sandbox_of_a_pod_takes_the_place_of_the_former_and_a_second_interface_does_not() {
        let mut node = Node::default();
        node.told("web", Some(pod(&[])));
        node.call(add("a", "web", &BOTH[..1]));
        node.call(add("a", "web", &BOTH[..1]));
        let AttachmentChange::Add(mut second) = add("a", "web", &["10.9.9.9"]) else { return };
        second.id.interface = "net1".into();
        node.call(AttachmentChange::Add(second));
        assert_eq!(node.addresses("web"), [BOTH[0], "10.9.9.9"]);
        node.call(add("b", "web", &["10.244.1.8"]));
        assert_eq!(node.addresses("web"), ["10.9.9.9", "10.244.1.8"]);
        node.call(AttachmentChange::Delete(id("a")));
        assert_eq!(node.addresses("web").len(), 2, "a late call about the former sandbox says nothing of this one");
    }

    #[test]
    fn a_pod_with_the_address_in_its_status_already_keeps_it() {
        let mut node = Node::default();
        node.told("web", Some(pod(&BOTH)));
        node.call(add("a", "web", &BOTH));
        assert_eq!(node.addresses("web"), BOTH);
        node.call(AttachmentChange::Delete(id("a")));
        assert_eq!(node.addresses("web"), BOTH, "what the status says is the cluster's");
    }

    #[test]
    fn a_restart_loses_nothing_of_pods_that_are_there_and_keeps_nothing_of_those_that_are_gone() {
        let mut before = Node::default();
        before.told("web", Some(pod(&[])));
        before.call(add("a", "web", &BOTH));
        before.call(add("b", "gone", &["10.244.1.9"]));
        let kept = before.attachments.take_changed().expect("there is news");
        assert_eq!((kept.len(), before.attachments.take_changed()), (2, None));
        let mut node = Node::with(Attachments::restored(kept));
        node.told("web", Some(pod(&[])));
        assert_eq!(node.addresses("web"), BOTH);
        node.listed();
        assert_eq!((node.kept(), node.attachments.pods.len()), (1, 1));
        node.call(add("c", "late", &["10.244.1.10"]));
        node.listed();
        assert_eq!(node.kept(), 2, "a pod that is announced now may come after the listing");
    }

    #[test]
    fn what_a_former_pod_of_a_name_had_takes_no_address_from_the_next_one_after_a_restart() {
        let [old, new] = [1, 2].map(PodUid::from_number);
        let mut before = Node::default();
        before.call(add_of(old, "a", "web-0", &BOTH));
        let kept = before.attachments.take_changed().expect("there is news");
        let mut node = Node::with(Attachments::restored(kept.clone()));
        node.told("web-0", Some(Pod { uid: new, ..pod(&BOTH) }));
        node.listed();
        assert_eq!((node.addresses("web-0").len(), node.kept()), (2, 0), "the sandbox of the former pod is gone");
        // What is announced to this run is no matter of the listing: the cluster may tell of its pod later.
        let mut node = Node::with(Attachments::restored(kept));
        node.told("web-0", Some(Pod { uid: old, ..pod(&[]) }));
        node.call(add_of(new, "b", "web-0", &BOTH));
        node.listed();
        assert_eq!((node.addresses("web-0").len(), node.kept()), (0, 1));
    }

    #[test]
    fn a_pod_of_the_last_known_state_has_its_announced_address() {
        let mut node = Node::default();
        node.call(add("a", "web", &BOTH));
        node.pods.insert(name("web"), pod(&[]));
        for (name, pod) in node.attachments.recall(&node.pods.clone()) {
            node.publish(name, pod);
        }
        assert_eq!(node.addresses("web"), BOTH);
        node.told("web", Some(pod(&[])));
        assert_eq!(node.addresses("web"), BOTH);
    }

    #[test]
    fn however_many_are_announced_there_is_a_bound_and_known_pods_are_kept() {
        let mut node = Node::default();
        node.told("web", Some(pod(&[])));
        node.call(add("a", "web", &BOTH));
        for number in 0..MOST + 10 {
            node.call(add(&format!("unknown-{number}"), &format!("pod-{number}"), &["10.244.1.9"]));
        }
        assert_eq!((node.kept(), node.addresses("web").len()), (MOST, 2));
    }
}
