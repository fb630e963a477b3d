//! Pods that are gone from the cluster while their sandboxes are there.
//!
//! Who may delete a pod may do so by force (`--force --grace-period=0`): the API server forgets it at once, and the kubelet gives its containers the grace period of the
//! pod's own spec, up to days. The same follows where a Node object is deleted. Policies have to hold for as long as the pod sends, which the
//! container runtime knows: until DEL, or a collection (GC) that does not name the attachment. Until then it is published as the cluster told it last, under a name that no
//! object can have, because the next pod may have its name already.
//!
//! Only where the UIDs say that the attachment is that pod's. What an attachment was of is not on disk: a pod that was gone before this run began is not known.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::model::{Attachment, AttachmentId, ObjectName, Pod};

use super::Shown;

/// Number of letters that are shown of the name of a container.
const SHOWN: usize = 12;

/// The attachments whose addresses the cluster tells, or has told before it lost the pod.
#[derive(Default)]
pub struct Remaining(BTreeMap<AttachmentId, Sandbox>);

struct Sandbox {
    attachment: Attachment,
    /// The pod as the cluster told it last.
    pod: Arc<Pod>,
    /// The cluster tells of it no more.
    is_gone: bool,
}

impl Sandbox {
    /// Returns the pod's name while it is gone.
    fn name(&self) -> ObjectName {
        let Attachment { id, pod, .. } = &self.attachment;
        let container: String = id.container.chars().take(SHOWN).collect();
        ObjectName::new(&pod.namespace, &format!("{}~{container}~{}", pod.name, id.interface))
    }

    fn shown(&self) -> Shown {
        let addresses = self.attachment.addresses.to_vec().into();
        (self.name(), self.is_gone.then(|| Arc::new(Pod { addresses, ..(*self.pod).clone() })))
    }
}

impl Remaining {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn attachments(&self) -> impl Iterator<Item = &Attachment> {
        self.0.values().map(|sandbox| &sandbox.attachment)
    }

    /// Returns the pod of this name if it is one that is gone.
    pub fn of_name(&self, name: &ObjectName) -> Option<Arc<Pod>> {
        // No object has such a name, so that others cost nothing.
        let gone = || self.0.values().filter(|sandbox| sandbox.is_gone);
        name.name.contains('~').then(|| gone().find(|sandbox| sandbox.name() == *name))??.shown().1
    }

    /// Keeps an attachment of this pod, where it is certain that it is.
    pub fn keep(&mut self, attachment: &Attachment, pod: &Arc<Pod>) {
        if attachment.uid.is_some() && attachment.uid == pod.uid && !pod.finished && !pod.host_network {
            let sandbox = Sandbox { attachment: attachment.clone(), pod: pod.clone(), is_gone: false };
            self.0.insert(attachment.id.clone(), sandbox);
        }
    }

    /// Applies what the cluster tells of the pods of a name, on this node or another. Returns those of before that are gone by it, or are not any more.
    pub fn told(&mut self, name: &ObjectName, told: Option<&Arc<Pod>>, node: &str) -> Vec<Shown> {
        let is_here = told.is_some_and(|pod| pod.node.as_ref().is_none_or(|of| **of == *node));
        // Of one here without a UID it cannot be said that it is another one. Those of other nodes have none.
        let may_be_any = is_here && told.is_some_and(|pod| pod.uid.is_none());
        let mut turned = Vec::new();
        self.0.retain(|_, sandbox| {
            if sandbox.attachment.pod != *name {
                return true;
            }
            let own = told.filter(|pod| pod.uid == sandbox.attachment.uid);
            let (was_gone, is_finished) = (sandbox.is_gone, own.is_some_and(|pod| pod.finished));
            if let Some(pod) = own {
                sandbox.pod = pod.clone();
            }
            sandbox.is_gone = own.is_none() && !may_be_any;
            if was_gone != sandbox.is_gone {
                turned.push(sandbox.shown());
            }
            !is_finished
        });
        turned
    }

    /// Ends those of which the container runtime says so. Returns the pods that it concerns; says whether any has ended.
    pub fn end(&mut self, is_over: impl Fn(&Attachment) -> bool) -> (bool, Vec<Shown>) {
        let mut gone = Vec::new();
        let before = self.0.len();
        self.0.retain(|_, sandbox| {
            let is_over = is_over(&sandbox.attachment);
            if is_over && sandbox.is_gone {
                gone.push((sandbox.name(), None));
            }
            !is_over
        });
        (before != self.0.len(), gone)
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
