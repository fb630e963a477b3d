//! The kinds of objects of the cluster that the subsystems which run need to know; nothing else is asked for.

use crate::config::{Config, ProxyConfig};
use crate::k8s::Wanted;

/// Kinds of objects that the running subsystems need. The service proxy has to know all nodes' addresses where a Service may have
/// external ones: it must not serve those. So does the firewall: a ClusterNetworkPolicy may select Nodes by their labels. Who gives addresses
/// gives none of a Node, and none of a range of cluster IPs.
pub fn wanted(config: &Config) -> Vec<Wanted> {
    let serves_external = config.proxy.as_ref().is_some_and(|proxy| proxy.ranges.allow_any());
    let nodes = match config.router {
        Some(_) => Wanted::Nodes,
        None if serves_external || config.firewall.is_some() || config.load_balancer.is_some() => Wanted::Nodes,
        None => Wanted::Node(config.node_name.as_str().into()),
    };
    let mut wanted = vec![nodes];
    if config.proxy.is_some() || config.router.is_some() {
        wanted.extend([Wanted::Services, Wanted::EndpointSlices]);
    }
    if config.router.is_some() {
        wanted = vec![Wanted::Nodes, Wanted::Services, Wanted::EndpointSlices];
    }
    if config.firewall.is_some() {
        wanted.extend([Wanted::Pods, Wanted::Namespaces, Wanted::NetworkPolicies, Wanted::ClusterNetworkPolicies]);
    } else if config.proxy.is_some() && config.serves_through_tunnels() {
        // They say whose pods get service addresses (direct server return).
        wanted.push(Wanted::Pods);
    }
    // The service proxy alone asks them which addresses its guard refuses, and about external addresses where some are allowed and not all.
    let asks = |proxy: &ProxyConfig| proxy.guard || proxy.ranges.strict && proxy.ranges.allow_any();
    let knows_all = config.firewall.is_some() || config.router.is_some() || config.load_balancer.is_some();
    if knows_all || config.proxy.as_ref().is_some_and(asks) {
        wanted.push(Wanted::ServiceCidrs);
    }
    wanted
}
