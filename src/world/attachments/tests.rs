//! Announced addresses of pods that come, go, and are told late.

mod remaining;
mod restarts;
mod status;
mod successors;

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
        for (name, pod) in self.attachments.put(&name(of), pod.map(Arc::new)) {
            self.publish(name, pod);
        }
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

/// The names of the pods at an address.
fn at(node: &Node, address: &str) -> Vec<String> {
    let address = address.parse().expect("an address");
    node.pods
        .iter()
        .filter(|(_, pod)| pod.addresses.contains(&address))
        .map(|(name, _)| name.name.to_string())
        .collect()
}
