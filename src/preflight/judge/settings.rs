//! Kernel settings: those that the agent writes and cannot, and forwarding.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use compact_str::CompactString;

use crate::config::Config;
use crate::firewall;
use crate::kernel::sysctl::{Setting, WantedSetting};
use crate::model::{OnLink, Reflection};
use crate::net::Family;
use crate::preflight::facts::{ClusterFacts, Facts, FoundSetting};
use crate::preflight::{Finding, Level};
use crate::proxy::local_node::LocalNode;
use crate::proxy::settings::{InTunnelMode, kernel_version, settings as of_proxy};
use crate::router::{self, neighbour_limit};

/// Written by nobody here, and needed for packets of pods.
const FORWARDING: [(&str, bool); 2] = [("net/ipv4/ip_forward", false), ("net/ipv6/conf/all/forwarding", true)];

/// Returns the settings that the agent writes on a host whose node's addresses are on these links.
pub fn written(
    config: &Config,
    release: &str,
    links: BTreeMap<IpAddr, CompactString>,
) -> BTreeMap<Setting, WantedSetting> {
    let mut written = BTreeMap::new();
    if config.router.is_some() {
        written.extend(router::settings::settings(config.families));
    }
    if config.proxy.is_some() {
        let node = LocalNode { families: config.families, links, ..LocalNode::default() };
        // What Services with the annotation for direct server return need, whether or not there is one yet.
        let tunnels =
            InTunnelMode { is_any_v4: config.families.v4 && config.serves_through_tunnels(), takes_over: false };
        written.extend(of_proxy(&node, kernel_version(release).unwrap_or((6, 0)), tunnels));
    }
    if config.firewall.is_some() {
        written.extend(firewall::settings::settings(config.router.is_some()));
    }
    written
}

/// Returns the settings that are read.
pub fn asked(config: &Config, release: &str, links: BTreeMap<IpAddr, CompactString>) -> Vec<Setting> {
    let read = FORWARDING.map(|(path, _)| Setting(path.into()));
    let limits = config.router.iter().flat_map(|_| Family::BOTH.map(neighbour_limit::setting));
    written(config, release, links).into_keys().chain(read).chain(limits).collect()
}

/// Judges the settings that exist: one that does not belongs to a module, or to a device that is not there yet.
pub fn judge(facts: &Facts, config: &Config) -> Vec<Finding> {
    let found = &facts.kernel.settings;
    let links = super::addresses::links_of_node(facts, config);
    let mut findings: Vec<Finding> = Vec::new();
    for (setting, wanted) in written(config, &facts.kernel.release, links) {
        let Some(FoundSetting { value, unwritable: Some(reason) }) = found.get(&setting) else { continue };
        let has = |_: &str| facts.kernel.replaced_for_devices.contains(&setting);
        let Some(wanted) = wanted.given_beside(value, has).filter(|wanted| wanted.as_str() != value) else { continue };
        let what = format!("it is {value}, has to be {wanted}, and cannot be written: {reason}");
        let why = "the agent writes it at its start, and /readyz names it until it is as it has to be".to_owned();
        let name = setting.0.replace('/', ".");
        let todo = format!(
            "let the container be privileged, or set it on the host: sysctl -w {name}={wanted}, and in its /etc/sysctl.d"
        );
        findings.push(Finding::bad(Level::Degraded, format!("setting {name}"), [what, why, todo]));
    }
    if findings.is_empty() {
        findings.push(Finding::ok("settings", "those that the agent writes can be written, or are as they have to be"));
    }
    if super::filters(config) {
        let is_on = |is_v6: bool| if is_v6 { config.families.v6 } else { config.families.v4 };
        let off = FORWARDING.into_iter().filter(|(path, is_v6)| {
            is_on(*is_v6) && found.get(&Setting((*path).into())).is_some_and(|setting| setting.value == "0")
        });
        findings.extend(off.map(|(path, _)| {
            let name = path.replace('/', ".");
            let what = "it is 0: this host forwards no packets".to_owned();
            let why = "pods reach nothing beyond this host; the CNI plugin bridge sets it when the first pod starts, other plugins may not".to_owned();
            let todo = format!("sysctl -w {name}=1, and the same in /etc/sysctl.d");
            Finding::bad(Level::Degraded, format!("setting {name}"), [what, why, todo])
        }));
    }
    findings.extend(neighbours(facts, config));
    findings
}

/// Judges the number of nodes on links of this host. A list of Nodes for people has one address of each. Those of the other family may be on a link as well, where
/// this Node is on one with that family: then that is said, and not held against the host. Nor is it where this node has no sessions with most others, or none
/// that the list tells of: without a full mesh the nodes of its own system.
fn neighbours(facts: &Facts, config: &Config) -> Vec<Finding> {
    let (ClusterFacts::Answered(api), Some(router)) = (&facts.cluster, &config.router) else { return Vec::new() };
    let listed = match &api.nodes {
        Ok(listed) => listed,
        Err(unknown) => {
            let what = format!("the number of nodes on links of this host is not known: {}", unknown.reason());
            return vec![Finding::ok("neighbours", what)];
        }
    };
    let networks: Vec<OnLink> = super::addresses::networks(&facts.network).collect();
    let own: BTreeSet<IpAddr> = facts.network.addresses.iter().map(|one| one.address.addr()).collect();
    let counted = neighbour_limit::on_links(listed.iter().copied().filter(|address| !own.contains(address)), &networks);
    let has = |family| {
        let address = api.node.as_ref().ok().and_then(|node| node.address(family));
        address.is_some_and(|address| networks.iter().any(|network| network.prefix.contains(&address)))
    };
    let role = api.node.as_ref().map(|node| node.routing().reflection).unwrap_or_default();
    let is_client = matches!(role, Reflection::Client(_));
    let of = |(family, is_on): (Family, &bool)| {
        let of_family = *counted.of(family);
        let perhaps = if has(family) { counted.v4 + counted.v6 } else { of_family };
        let found = facts.kernel.settings.get(&neighbour_limit::setting(family))?;
        let limit = found.value.parse().ok()?;
        let are_too_many = |nodes| neighbour_limit::are_too_many(nodes, limit, false);
        let (what, todo) = neighbour_limit::sentences(family, limit);
        let subject = format!("neighbours of {family}");
        let why = "there is no session with a node beyond, and no way to its pods".to_owned();
        if !is_on || !are_too_many(perhaps) {
            return None;
        }
        Some(match are_too_many(of_family) && router.speaks_with_all_nodes() && !is_client {
            true => Finding::bad(Level::Degraded, subject, [what, why, todo]),
            false if are_too_many(of_family) => Finding::ok(subject, format!("{what}; {todo}")),
            false => Finding::ok(subject, format!("if other nodes have {family} addresses as well: {what}; {todo}")),
        })
    };
    config.families.iter().filter_map(of).collect()
}
