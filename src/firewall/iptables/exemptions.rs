//! Packets from pods to Services: judged after translation to their real destination.
//!
//! A packet to a service address enters INPUT with that address; IPVS translates it to the endpoint's and sends it
//! through OUTPUT, with the pod still as its source. Policies are about endpoints, so INPUT accepts the service ranges
//! and OUTPUT judges. These rules come first in the chain, with the comments that kube-router writes.
//!
//! The price, as with kube-router: its pods reach every service of the host itself on a port of the node port range,
//! regardless of their egress policies.

use ipnet::IpNet;

use crate::config::FirewallConfig;
use crate::kernel::iptables::rule::{IpProtocol, Side};
use crate::kernel::iptables::{Match, Rule, Verdict};
use crate::net::{Family, PortRange, Protocol};

use super::names::{CHAIN_INPUT, rule_id};

/// Returns the first rules of the chain for INPUT, in kube-router's order.
pub fn rules(config: &FirewallConfig, family: Family) -> Vec<Rule> {
    let of_family = |ranges: &[IpNet]| -> Vec<IpNet> {
        ranges.iter().filter(|range| Family::from(**range) == family).copied().collect()
    };
    let mut rules = Vec::new();
    for range in of_family(&config.ranges.cluster_ips) {
        rules.push(to_range(range, "allow traffic to primary/secondary cluster IP range"));
    }
    rules.extend(Protocol::ALL.map(|protocol| to_node_ports(config, protocol)));
    for range in of_family(&config.ranges.external_ips) {
        rules.push(to_range(range, &format!("allow traffic to external IP range: {range}")));
    }
    for range in of_family(&config.ranges.load_balancer_ips) {
        rules.push(to_range(range, &format!("allow traffic to load balancer IP range: {range}")));
    }
    rules
}

fn to_range(range: IpNet, said: &str) -> Rule {
    let to_range = Match::Destination { range, negated: false };
    let id = rule_id(CHAIN_INPUT, &Rule::new([Match::Comment(said.into()), to_range.clone()], Verdict::Return));
    Rule::new([to_range, Match::Comment(format!("{said} - {id}").into())], Verdict::Return)
}

fn to_node_ports(config: &FirewallConfig, protocol: Protocol) -> Rule {
    let range = &config.service_node_port_range;
    let said = format!("allow LOCAL {} traffic to node ports", protocol.to_string().to_uppercase());
    let saying = |said: String| {
        Rule::new(
            [
                Match::Protocol(IpProtocol::Transport(protocol)),
                Match::Comment(said.into()),
                Match::HostAddress { of: Side::Destination, negated: false },
                Match::Ports([PortRange { first: *range.start(), last: *range.end() }].into()),
            ],
            Verdict::Return,
        )
    };
    let id = rule_id(CHAIN_INPUT, &saying(said.clone()));
    saying(format!("{said} - {id}"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::ServiceRanges;

    #[test]
    fn the_rules_are_those_of_running_nodes() {
        let range = |text: &str| vec![text.parse().unwrap()];
        let config = FirewallConfig {
            backend: crate::config::Backend::default(),
            sync_period: Duration::from_secs(300),
            default_deny: false,
            flush_established: false,
            ranges: ServiceRanges {
                strict: true,
                cluster_ips: range("10.96.0.0/12"),
                external_ips: range("203.0.113.0/24"),
                load_balancer_ips: range("203.0.113.0/24"),
            },
            knows_services: true,
            tunnel_mode: false,
            service_node_port_range: 30000..=32767,
        };
        let local = "-m addrtype --dst-type LOCAL -m multiport --dports 30000:32767 -j RETURN";
        let said = |text: &str| format!("-m comment --comment \"{text}\"");
        assert_eq!(
            rules(&config, Family::V4).iter().map(Rule::to_string).collect::<Vec<_>>(),
            [
                format!(
                    "-d 10.96.0.0/12 {} -j RETURN",
                    said("allow traffic to primary/secondary cluster IP range - BVHX2PIHDXXEO43X")
                ),
                format!("-p tcp {} {local}", said("allow LOCAL TCP traffic to node ports - LR7XO7NXDBGQJD2M")),
                format!("-p udp {} {local}", said("allow LOCAL UDP traffic to node ports - 76UCBPIZNGJNWNUZ")),
                format!("-p sctp {} {local}", said("allow LOCAL SCTP traffic to node ports - YU47VQ3DEDE3VDG7")),
                format!(
                    "-d 203.0.113.0/24 {} -j RETURN",
                    said("allow traffic to external IP range: 203.0.113.0/24 - LHOQU5ELQQ6P3LF6")
                ),
                format!(
                    "-d 203.0.113.0/24 {} -j RETURN",
                    said("allow traffic to load balancer IP range: 203.0.113.0/24 - 2J4EYZURXQNDHUE2")
                ),
            ]
        );
        assert_eq!(rules(&config, Family::V6).len(), 3);
    }
}
