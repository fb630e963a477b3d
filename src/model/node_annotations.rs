//! Which annotations of Nodes count. A kubelet may write all annotations of its own Node (Kubernetes' admission plugin NodeRestriction leaves them to it), and a few of
//! them say something about other nodes' traffic.

use std::collections::BTreeSet;
use std::sync::Arc;

use compact_str::CompactString;
use ipnet::IpNet;

use super::{Node, Reflection, Routing};
use crate::net::NodeAnnotations;

impl Node {
    /// The same Node, which has this name, without what is not believed of it. A reflector that is none is an ordinary node.
    #[must_use]
    pub fn as_believed(self: Arc<Node>, name: &str, believed: &NodeAnnotations) -> Arc<Node> {
        let mut node = self;
        if !believed.pod_cidrs && node.spec_pod_cidrs.is_some() {
            let changed = Arc::make_mut(&mut node);
            changed.pod_cidrs = changed.spec_pod_cidrs.take().map(Vec::from).unwrap_or_default();
        }
        let poses = |names: &BTreeSet<CompactString>| !names.contains(name);
        if believed.reflectors.as_ref().is_some_and(poses) && matches!(node.routing().reflection, Reflection::Server(_))
        {
            let rest = Routing { reflection: Reflection::None, ..node.routing().clone() };
            Arc::make_mut(&mut node).routing = Some(Box::new(rest)).filter(|rest| **rest != Routing::default());
        }
        node
    }

    /// The pod ranges of the Node that it does not have where less of it is believed: those in none of the ranges that it has then.
    pub fn pod_cidrs_beyond(&self, believed: &Node) -> Vec<IpNet> {
        let is_believed = |range: &IpNet| believed.pod_cidrs.iter().any(|used| used.contains(range));
        self.pod_cidrs.iter().filter(|range| !is_believed(range)).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn node(used: &[&str], spec: Option<&[&str]>, reflection: Reflection) -> Arc<Node> {
        let ranges = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("a range")).collect::<Vec<_>>();
        let routing = Routing { reflection, ..Routing::default() };
        Arc::new(Node {
            pod_cidrs: ranges(used),
            spec_pod_cidrs: spec.map(|texts| ranges(texts).into()),
            routing: Some(Box::new(routing)).filter(|routing| **routing != Routing::default()),
            ..Node::default()
        })
    }

    const SERVER: Reflection = Reflection::Server(Ipv4Addr::new(0, 0, 0, 42));
    const CLIENT: Reflection = Reflection::Client(Ipv4Addr::new(0, 0, 0, 42));

    #[test]
    fn without_annotations_of_pod_ranges_those_of_the_spec_count_alone() {
        let believed = NodeAnnotations { pod_cidrs: false, reflectors: None };
        let wide = node(&["10.0.0.0/8"], Some(&["10.244.1.0/24", "fd00:10:244:1::/64"]), CLIENT);
        let spec = node(&["10.244.1.0/24", "fd00:10:244:1::/64"], None, CLIENT);
        assert_eq!(wide.as_believed("node-1", &believed), spec);
        // The control plane gives none.
        let named = node(&["10.245.1.0/24"], Some(&[]), Reflection::None);
        assert_eq!(named.as_believed("node-1", &believed), node(&[], None, Reflection::None));
        assert_eq!(spec.clone().as_believed("node-1", &believed), spec);
    }

    #[test]
    fn of_ranges_those_are_lost_that_the_spec_does_not_cover() {
        let beyond = |used: &[&str], spec: &[&str]| {
            let said = node(used, Some(spec), Reflection::None);
            let believed = NodeAnnotations { pod_cidrs: false, reflectors: None };
            let lost = said.pod_cidrs_beyond(&said.clone().as_believed("node-1", &believed));
            lost.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(beyond(&["10.244.1.0/24", "fd00:1::/64"], &["10.244.1.0/24"]), ["fd00:1::/64"]);
        assert_eq!(beyond(&["fd00:1::/64", "10.244.1.0/24"], &["10.244.1.0/24", "fd00:1::/64"]), [""; 0]);
        assert_eq!(beyond(&["10.244.1.128/25"], &["10.244.1.0/24"]), [""; 0]);
        assert_eq!(beyond(&["10.0.0.0/8"], &["10.244.1.0/24"]), ["10.0.0.0/8"]);
    }

    #[test]
    fn where_reflectors_are_named_another_node_that_says_it_is_one_is_an_ordinary_node() {
        let names = BTreeSet::from(["reflector-1".into()]);
        let believed = NodeAnnotations { reflectors: Some(names), ..NodeAnnotations::default() };
        assert_eq!(node(&[], None, SERVER).as_believed("node-1", &believed), node(&[], None, Reflection::None));
        for (name, reflection) in [("reflector-1", SERVER), ("node-1", CLIENT), ("node-1", Reflection::None)] {
            let as_it_is = node(&["10.245.1.0/24"], Some(&["10.244.1.0/24"]), reflection);
            assert_eq!(as_it_is.clone().as_believed(name, &believed), as_it_is);
        }
    }

    #[test]
    fn by_default_all_annotations_are_believed() {
        let claims = node(&["10.0.0.0/8"], Some(&["10.244.1.0/24"]), SERVER);
        assert_eq!(claims.clone().as_believed("node-1", &NodeAnnotations::default()), claims);
    }
}
