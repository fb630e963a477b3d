//! Pods that are gone from the cluster while their sandboxes are there.
//!
//! Who may delete a pod may do so by force (`--force --grace-period=0`): the API server forgets it at once, and the kubelet gives its containers the grace period of the
//! pod's own spec, up to days. The same follows where a Node object is deleted: the garbage collection of pods then writes the phase `Failed` into a pod's status first and deletes the pod after that,
//! while the kubelet, which does not read the phase, goes on. Policies have to hold for as long as the pod sends, which the
//! container runtime knows: until DEL, or a collection (GC) that does not name the attachment. Until then a pod that is gone or finished is published as the cluster told it last, under a name that no
//! object can have, because the next pod may have its name already. Of a pod whose containers have ended the kubelet stops the sandbox within seconds.
//!
//! Only where the UIDs say that the attachment is that pod's. What an attachment was of is on disk only with the last known state (`recall`): a pod that was gone before this run began is
//! else not known.
//!
//! A DEL that is lost leaves one that nobody ends before its address is used again: when there are too many, the one that was kept first makes room.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::model::{Attachment, AttachmentId, ObjectName, Pod, Table};

use super::Shown;

/// Number of letters that are shown of the name of a container.
const SHOWN: usize = 12;

/// The attachments whose addresses the cluster tells, or has told before it lost the pod.
#[derive(Default)]
pub struct Remaining {
    all: BTreeMap<AttachmentId, Sandbox>,
    /// By the names of their pods: each event about any pod of the cluster asks.
    pods: HashMap<ObjectName, BTreeSet<AttachmentId>>,
    /// Number of those that were kept so far.
    kept: u64,
}

struct Sandbox {
    attachment: Attachment,
    /// The pod as the cluster told it last.
    pod: Arc<Pod>,
    /// The cluster tells of it no more, or as of one that is finished.
    is_gone: bool,
    /// How many were kept before it.
    since: u64,
}

impl Sandbox {
    /// Returns the pod's name while it is gone.
    fn name(&self) -> ObjectName {
        name_of(&self.attachment)
    }

    fn shown(&self) -> Shown {
        let addresses = self.attachment.addresses.to_vec().into();
        (self.name(), self.is_gone.then(|| Arc::new(Pod { addresses, ..(*self.pod).clone() })))
    }
}

/// Returns the name under which the pod of an attachment is published while it is gone.
fn name_of(attachment: &Attachment) -> ObjectName {
    let Attachment { id, pod, .. } = attachment;
    let container: String = id.container.chars().take(SHOWN).collect();
    ObjectName::new(&pod.namespace, &format!("{}~{container}~{}", pod.name, id.interface))
}

impl Remaining {
    pub fn len(&self) -> usize {
        self.all.len()
    }

    pub fn attachments(&self) -> impl Iterator<Item = &Attachment> {
        self.all.values().map(|sandbox| &sandbox.attachment)
    }

    /// Returns the pod of this name if it is one that is gone.
    pub fn of_name(&self, name: &ObjectName) -> Option<Arc<Pod>> {
        // No object has such a name, so that others cost nothing.
        let (of, _) = name.name.split_once('~')?;
        let ids = self.pods.get(&ObjectName::new(&name.namespace, of))?;
        let mut gone = ids.iter().filter_map(|id| self.all.get(id)).filter(|sandbox| sandbox.is_gone);
        gone.find(|sandbox| sandbox.name() == *name)?.shown().1
    }

    /// Keeps an attachment of this pod, where it is certain that it is.
    pub fn keep(&mut self, attachment: &Attachment, pod: &Arc<Pod>) {
        if attachment.uid.is_some() && attachment.uid == pod.uid && !pod.finished && !pod.host_network {
            self.insert(attachment, pod, false);
        }
    }

    fn insert(&mut self, attachment: &Attachment, pod: &Arc<Pod>, is_gone: bool) {
        self.kept += 1;
        let sandbox = Sandbox { attachment: attachment.clone(), pod: pod.clone(), is_gone, since: self.kept };
        self.all.insert(attachment.id.clone(), sandbox);
        self.pods.entry(attachment.pod.clone()).or_default().insert(attachment.id.clone());
    }

    /// Recalls those that were gone when the last known state was written, which these pods are of. Returns the attachments that it found, and the pods of that state that nobody
    /// could end: they are not to be published.
    pub fn recall<'a>(
        &mut self,
        known: &Table<ObjectName, Pod>,
        attachments: impl Iterator<Item = &'a Attachment>,
    ) -> (Vec<AttachmentId>, Vec<ObjectName>) {
        let mut gone: BTreeMap<&ObjectName, &Arc<Pod>> =
            known.iter().filter(|(name, _)| name.is_of_gone_pod()).collect();
        gone.retain(|name, _| self.of_name(name).is_none());
        let mut found = Vec::new();
        for attachment in attachments {
            if let Some(pod) = gone.remove(&name_of(attachment)) {
                self.insert(attachment, pod, true);
                found.push(attachment.id.clone());
            }
        }
        (found, gone.into_keys().cloned().collect())
    }

    /// Ends the one that was kept first of those that are gone. Returns it as it is to be published: not at all.
    pub fn end_oldest(&mut self) -> Option<Shown> {
        let gone = self.all.values().filter(|sandbox| sandbox.is_gone);
        let oldest = gone.min_by_key(|sandbox| sandbox.since)?.attachment.id.clone();
        self.end(|one| one.id == oldest).1.pop()
    }

    /// Applies what the cluster tells of the pods of a name, on this node or another. Returns those of before that are gone or finished by it, or are not any more.
    pub fn told(&mut self, name: &ObjectName, told: Option<&Arc<Pod>>, node: &str) -> Vec<Shown> {
        let is_here = told.is_some_and(|pod| pod.node.as_ref().is_none_or(|of| **of == *node));
        // Of one here without a UID it cannot be said that it is another one. Those of other nodes have none.
        let may_be_any = is_here && told.is_some_and(|pod| pod.uid.is_none());
        let mut turned = Vec::new();
        for id in self.pods.get(name).into_iter().flatten() {
            let Some(sandbox) = self.all.get_mut(id) else { continue };
            let own = told.filter(|pod| pod.uid == sandbox.attachment.uid);
            let is_finished = own.is_some_and(|pod| pod.finished);
            // What is finished for the cluster may send as before: it is judged as it was.
            if let Some(pod) = own.filter(|_| !is_finished) {
                sandbox.pod = pod.clone();
            }
            let was_gone = sandbox.is_gone;
            sandbox.is_gone = is_finished || own.is_none() && !may_be_any;
            if was_gone != sandbox.is_gone {
                turned.push(sandbox.shown());
            }
        }
        turned
    }

    /// Ends those of which the container runtime says so. Returns the pods that it concerns; says whether any has ended.
    pub fn end(&mut self, is_over: impl Fn(&Attachment) -> bool) -> (bool, Vec<Shown>) {
        let over: Vec<AttachmentId> = self.attachments().filter(|one| is_over(one)).map(|one| one.id.clone()).collect();
        let ended: Vec<Sandbox> = over.iter().filter_map(|id| self.all.remove(id)).collect();
        for Attachment { id, pod, .. } in ended.iter().map(|sandbox| &sandbox.attachment) {
            let Some(ids) = self.pods.get_mut(pod) else { continue };
            ids.remove(id);
            if ids.is_empty() {
                self.pods.remove(pod);
            }
        }
        let gone = ended.iter().filter(|sandbox| sandbox.is_gone).map(|sandbox| (sandbox.name(), None)).collect();
        (!over.is_empty(), gone)
    }

    /// Ends those that a new attachment takes the place of: of its own pod, and of whoever had one of its addresses.
    pub fn displaced_by(&mut self, new: &Attachment) -> (bool, Vec<Shown>) {
        let addresses: BTreeSet<_> = new.addresses.iter().collect();
        self.end(|one| {
            let is_former = one.pod == new.pod && one.uid == new.uid && one.id.interface == new.id.interface;
            one.id == new.id || is_former || one.addresses.iter().any(|address| addresses.contains(address))
        })
    }
}
