//! Nodes without what is not believed of them ([`NodeAnnotations`]): nobody behind the World knows that they say more.

use super::super::last_known::Known;
use super::Joined;
use crate::k8s::{Object, Warning};
use crate::model::Table;
use crate::net::NodeAnnotations;

impl Joined {
    /// The same, with these annotations of Nodes believed and no others.
    #[must_use]
    pub fn believing(self, annotations: NodeAnnotations) -> Joined {
        Joined { annotations, ..self }
    }

    /// Returns the object as it counts.
    pub(super) fn as_believed(&self, object: Object) -> Object {
        match object {
            Object::Node(name, Some(node)) => {
                let node = node.as_believed(&name, &self.annotations);
                Object::Node(name, Some(node))
            }
            other => other,
        }
    }

    /// Returns what our own Node says and is not believed; the agents of other Nodes say it of them.
    pub fn unbelieved(&self, object: &Object) -> Vec<Warning> {
        let Object::Node(name, Some(node)) = object else { return Vec::new() };
        if *name != self.host.node_name {
            return Vec::new();
        }
        let believed = node.clone().as_believed(name, &self.annotations);
        let lost: Vec<String> = node.pod_cidrs_beyond(&believed).iter().map(ToString::to_string).collect();
        let ranges = (!lost.is_empty()).then(|| Warning {
            field: "kube-router.io/pod-cidrs".into(),
            text: format!(
                "--node-pod-cidr-annotations=false takes the ranges of spec.podCIDRs in place of {}; nobody reaches pods \
                 that have addresses of these until they are made anew",
                lost.join(", ")
            ),
        });
        let reflector = (believed.routing().reflection != node.routing().reflection).then(|| Warning {
            field: "kube-router.io/rr.server".into(),
            text: "--rr-server-nodes does not name this Node, so that it is no route reflector".to_owned(),
        });
        ranges.into_iter().chain(reflector).collect()
    }

    /// Returns the last known state as it counts: an earlier run may have believed more.
    pub(super) fn remembered_as_believed(&self, mut remembered: Known) -> Known {
        if self.annotations != NodeAnnotations::default() {
            let mut nodes = Table::default();
            for (name, node) in remembered.cluster.nodes.iter() {
                nodes.insert_shared(name.clone(), node.clone().as_believed(name, &self.annotations));
            }
            remembered.cluster.nodes = nodes;
        }
        remembered
    }
}
