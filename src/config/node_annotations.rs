//! Configuration of what is believed of Nodes.

use super::flags::Flags;
use super::mistakes::Mistakes;
use crate::net::NodeAnnotations;

/// Reads `--node-pod-cidr-annotations` and `--rr-server-nodes`. A list without names is as none, as of every flag; a name that no Node can have is a mistake, also an empty one among others.
pub(super) fn node_annotations(flags: &Flags, mistakes: &mut Mistakes) -> NodeAnnotations {
    let typed = || flags.rr_server_nodes.iter().flat_map(|list| &list.0);
    let names: Vec<String> = typed().map(|name| name.trim().to_ascii_lowercase()).collect();
    if let Some((odd, _)) = typed().zip(&names).find(|(_, name)| !super::is_node_name(name)) {
        mistakes.add(format!(
            "--rr-server-nodes must be names of Nodes with commas between them, like node-1,node-2; {odd:?} is none."
        ));
    }
    NodeAnnotations {
        pod_cidrs: flags.node_pod_cidr_annotations,
        reflectors: (!names.is_empty()).then(|| names.into_iter().map(Into::into).collect()),
    }
}
