//! `--netpol-default-deny`: the ranges in which only known pods of this node may be reached.

use ipnet::IpNet;

use crate::config::FirewallConfig;
use crate::model::World;
use crate::net::Family;

/// Returns this node's pod CIDRs, if addresses in them are closed until their rules are in place. A deleted Node,
/// or one without pod CIDR, opens nothing: the ranges of a family known `before` are kept.
pub fn closed_ranges(config: &FirewallConfig, world: &World, before: &[IpNet]) -> Vec<IpNet> {
    if !config.default_deny {
        return Vec::new();
    }
    let node = world.cluster.nodes.get(&world.host.node_name);
    let known: Vec<IpNet> = node.into_iter().flat_map(|node| node.pod_cidrs.iter().copied()).collect();
    let is_known = |old: &IpNet| known.iter().any(|new| Family::from(*new) == Family::from(*old));
    let kept: Vec<IpNet> = before.iter().copied().filter(|old| !is_known(old)).collect();
    known.into_iter().chain(kept).collect()
}
