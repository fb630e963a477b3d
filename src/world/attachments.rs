//! Pods' addresses as the container runtime announced them, put into the pods that the cluster tells of.
//!
//! A pod's object is known since it was scheduled; its addresses follow when the kubelet has written its status, some time after the
//! pod has begun to send. Until then what was announced counts like `status.podIPs`. An attachment counts nothing more when the status has
//! its addresses, when the pod has been attached anew, or is detached. It is kept until the last of these for the case that the object goes first ([`remaining`]). The end of the pod's object does not end it: the object may be
//! that of a former pod of this name (StatefulSets use names again), and the runtime was told of the new one first. Where both tell the
//! pod's UID, an attachment counts for the object of its own pod alone, and takes its addresses from the object of another. For a
//! finished pod and for one on another node it counts nothing. The number of attachments has a bound: those of pods that nobody knows make room, then those of pods that are gone.
//!
//! Pure: calls and pods in, pods out. `world` keeps the attachments on disk, so that a restart between the two loses none.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use compact_str::CompactString;

use crate::model::{Attachment, AttachmentChange, AttachmentId, ObjectName, Pod, Table};

use self::remaining::Remaining;

mod remaining;

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
    /// Those of which the cluster tells, or told before the pod was gone.
    remaining: Remaining,
    /// Pods that were gone and had to make room.
    displaced: Vec<ObjectName>,
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
        std::mem::take(&mut self.changed)
            .then(|| self.all.values().chain(self.remaining.attachments()).cloned().collect())
    }

    /// Returns the pods that are gone and of which the container runtime has not said that they have ended, which made room for others since the last call: they are not judged any more.
    pub fn take_displaced(&mut self) -> Vec<ObjectName> {
        std::mem::take(&mut self.displaced)
    }

    /// Notes that they could not be kept on disk.
    pub fn not_kept(&mut self) {
        self.changed = true;
    }

    /// Applies a call. Returns the pods that it concerns as they are now. `known`: the pods as published.
    pub fn apply(&mut self, change: AttachmentChange, known: &Table<ObjectName, Pod>) -> Vec<Shown> {
        let mut concerned = BTreeSet::new();
        let (has_ended, ended) = match change {
            AttachmentChange::Add(attachment) => {
                let (has_ended, mut ended) = self.remaining.displaced_by(&attachment);
                ended.extend(self.add(attachment, known, &mut concerned));
                (has_ended, ended)
            }
            AttachmentChange::Delete(id) => {
                self.remove(&id, &mut concerned);
                self.remaining.end(|one| one.id == id)
            }
            AttachmentChange::Retain { network, ids } => {
                let is_of = |one: &Attachment| {
                    [&one.network, &network].iter().any(|name| name.is_empty()) || one.network == network
                };
                let is_over = |one: &Attachment| is_of(one) && !ids.contains(&one.id);
                let gone = self.all.iter().filter(|(_, one)| is_over(one));
                let gone: Vec<AttachmentId> = gone.map(|(id, _)| id.clone()).collect();
                gone.iter().for_each(|id| self.remove(id, &mut concerned));
                self.remaining.end(is_over)
            }
        };
        self.changed |= has_ended;
        let mut shown = self.all_shown(concerned);
        shown.extend(ended);
        shown
    }

    /// Merges a pod as the cluster tells it, `None` where it is gone. Returns it as it is to be published, and those of which it tells no more and that go on.
    pub fn put(&mut self, name: &ObjectName, told: Option<Arc<Pod>>) -> Vec<Shown> {
        self.keep_unsettled(name, told.as_ref());
        let mut shown = self.remaining.told(name, told.as_ref(), &self.node);
        // A listing names no pod that goes on.
        let told = told.or_else(|| self.remaining.of_name(name));
        shown.push((name.clone(), self.merge(name, told)));
        shown
    }

    /// Keeps what is known to be of a pod that goes or is finished before its status had the addresses.
    fn keep_unsettled(&mut self, name: &ObjectName, told: Option<&Arc<Pod>>) {
        let Some(attached) = self.pods.get(name) else { return };
        let Some(before) =
            attached.told.as_ref().filter(|before| told.is_none_or(|pod| pod.uid != before.uid || pod.finished))
        else {
            return;
        };
        let its = attached.ids.iter().filter_map(|id| self.all.get(id));
        let its = its.filter(|one| one.uid.is_some() && one.uid == before.uid && attached.is_on(&self.node));
        let its: Vec<AttachmentId> =
            its.inspect(|one| self.remaining.keep(one, before)).map(|one| one.id.clone()).collect();
        for id in its {
            self.remove(&id, &mut BTreeSet::new());
        }
    }

    fn merge(&mut self, name: &ObjectName, told: Option<Arc<Pod>>) -> Option<Arc<Pod>> {
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
        let settled: Vec<AttachmentId> = attached.ids.iter().filter(is_told).cloned().collect();
        if let Some(pod) = attached.told.as_ref().filter(|_| attached.is_on(&self.node)) {
            settled.iter().filter_map(|id| self.all.get(id)).for_each(|one| self.remaining.keep(one, pod));
        }
        for id in settled {
            self.remove(&id, &mut BTreeSet::new());
        }
        self.shown(name).flatten()
    }

    /// Notes that all pods have been listed: what was announced to an earlier run of others is over, also of former pods of a
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

    /// Merges the pods of the last known state, which are in place. Returns those that it concerns. Nothing ends by them: they have
    /// been published with what had been announced, so their addresses are not proof of what the status says.
    pub fn recall(&mut self, known: &Table<ObjectName, Pod>) -> Vec<Shown> {
        let restored = self.restored.iter().filter_map(|id| self.all.get(id));
        let (found, left) = self.remaining.recall(known, restored);
        for id in found {
            self.remove(&id, &mut BTreeSet::new());
        }
        let unknown: Vec<ObjectName> =
            self.pods.iter().filter(|(_, pod)| pod.told.is_none()).map(|(name, _)| name.clone()).collect();
        let mut recalled: Vec<Shown> = left.into_iter().map(|name| (name, None)).collect();
        for name in unknown {
            let Some(pod) = known.get(&name) else { continue };
            if let Some(attached) = self.pods.get_mut(&name) {
                attached.told = Some(pod.clone());
            }
            recalled.extend(self.shown(&name).map(|pod| (name, pod)));
        }
        recalled
    }

    /// Adds an attachment. Returns the pod that is gone and had to make room for it.
    fn add(
        &mut self,
        attachment: Attachment,
        known: &Table<ObjectName, Pod>,
        concerned: &mut BTreeSet<ObjectName>,
    ) -> Option<Shown> {
        // A repeated call may name another pod or other addresses.
        self.remove(&attachment.id, concerned);
        let attached = self.pods.get(&attachment.pod);
        // One that is known to be of another pod of this name goes on until the cluster tells of that pod's end, or the runtime of its own: it gives no
        // address to two.
        let goes_on = |former: &Attachment| former.uid.zip(attachment.uid).is_some_and(|(one, other)| one != other);
        let is_former =
            |id: &&AttachmentId| id.interface == attachment.id.interface && !self.all.get(*id).is_some_and(goes_on);
        let its = attached.into_iter().flat_map(|pod| pod.ids.iter().filter(is_former).cloned());
        // Whoever had one of the addresses is over, of whatever pod: its DEL was lost, or else nobody would have been given it again.
        let shares =
            |former: &Attachment| former.addresses.iter().any(|address| attachment.addresses.contains(address));
        let before = self.all.iter().filter(|(_, former)| shares(former)).map(|(id, _)| id.clone());
        let formers: BTreeSet<AttachmentId> = its.chain(before).collect();
        formers.iter().for_each(|id| self.remove(id, concerned));
        let mut ended = None;
        if self.all.len() + self.remaining.len() >= MOST {
            let is_nobodys = |(_, one): &(&AttachmentId, &Attachment)| {
                self.pods.get(&one.pod).is_none_or(|pod| pod.is_unknown() || !pod.is_of(one))
            };
            // Of what is nobody's some may be told a moment later, so that pods that start together would push each other out.
            ended = self.remaining.end_oldest();
            if ended.is_none() {
                let unknown = self.all.iter().find(is_nobodys).map(|(id, _)| id.clone())?;
                self.remove(&unknown, concerned);
            }
            self.displaced.extend(ended.iter().map(|(name, _)| name.clone()));
        }
        let name = attachment.pod.clone();
        let is_new = !self.pods.contains_key(&name);
        self.insert(attachment);
        if let Some(attached) = self.pods.get_mut(&name).filter(|_| is_new) {
            attached.told = known.get(&name).cloned();
        }
        concerned.insert(name);
        ended
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
mod tests;
