//! The Node of this host: other nodes route to it by the addresses that were detected here, whatever its annotation says by now.
//!
//! It takes a while until the annotation is written and seen, and with a directory of manifests nobody may write it.

use std::sync::Arc;

use super::{Joined, set};
use crate::model::{Host, NODE_ADDRESS_ANNOTATION, Node, OwnAnnotation, Report};
use crate::net::PerFamily;

/// Returns our own Node as it is known here.
pub(super) fn as_detected(node: Arc<Node>, host: &Host) -> Arc<Node> {
    let Some(detected) = &host.detected else { return node };
    let mut own = (*node).clone();
    own.set_detected(detected.addresses);
    if own == *node { node } else { Arc::new(own) }
}

impl Joined {
    /// Brings what was detected into our own Node.
    pub(super) fn replace_own_node(&mut self) {
        let (nodes, name) = (&mut self.cluster.nodes, &self.host.node_name);
        if let Some(node) = nodes.get(name).cloned() {
            set(nodes, name.clone(), Some(as_detected(node, &self.host)));
        }
    }

    /// Returns the annotation of our own Node; `None` while the source has not told the Node.
    fn own_annotation(&self) -> Option<OwnAnnotation> {
        let seen = self.own_node.as_ref()?;
        let text = |node: &Node| {
            let found = PerFamily::from_fn(|family| node.detected(family).map(|address| address.to_string()));
            let texts: Vec<&str> = found.iter().filter_map(|(_, text)| text.as_deref()).collect();
            (!texts.is_empty()).then(|| texts.join(","))
        };
        let mut wanted = Node::default();
        wanted.set_detected(self.host.detected.as_ref().map(|detected| detected.addresses).unwrap_or_default());
        Some(OwnAnnotation { wanted: text(&wanted), seen: text(seen) })
    }

    /// Puts the annotation into the report; returns whether it differs. Without the flag the one of an earlier run goes.
    pub fn tell_own_annotation(&self, report: &mut Report) -> bool {
        let Some(annotation) = self.own_annotation() else { return false };
        let before = report.annotations.get(NODE_ADDRESS_ANNOTATION).cloned().unwrap_or_default();
        if before == annotation {
            return false;
        }
        report.annotations.insert(NODE_ADDRESS_ANNOTATION, annotation);
        true
    }
}
