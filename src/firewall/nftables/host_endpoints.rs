//! The rules by which pods are refused Services with an endpoint on this node (the other
//! [`host_endpoints`](super::super::host_endpoints) explains them).
//!
//! For a pod that may not reach the host endpoint 192.0.2.11:6443 of the Service at 10.96.0.1:443, in `input_egress`, before
//! the addresses of Services are accepted:
//!
//! ```text
//! set services_of_192.0.2.11_tcp_6443 { type ipv4_addr . inet_proto . inet_service; elements = { 10.96.0.1 . tcp . 443 } }
//! chain input_egress { … ip saddr vmap @host_endpoints4 … }
//! map host_endpoints4 { … elements = { 10.244.1.8 : jump services_10.244.1.8 } }
//! chain services_10.244.1.8 {
//!     ip daddr . meta l4proto . th dport @services_of_192.0.2.11_tcp_6443 limit … log … group 100
//!     ip daddr . meta l4proto . th dport @services_of_192.0.2.11_tcp_6443 counter name out_shop_web_… reject
//! }
//! ```
//!
//! A chain of an address, not of a class: what it refuses is known by its name alone, also after a start at which Services are
//! not known completely. Then it stays as it was found, for addresses whose pods are isolated still (`unsure`): absence proves
//! nothing.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use crate::config::FirewallConfig;
use crate::kernel::nftables::{Content, Fields, Key, Kind, Lookup, Match, Name, Object, Rule, SetSpec, Verdict};
use crate::model::{Authority, World};
use crate::net::Family;

use super::super::denials::Denials;
use super::super::host_endpoints::HostEndpoint;
use super::super::rules::{Direction, RuleSet};
use super::class::{Class, LOG_LIMIT, log, refusal};
use super::names;
use super::parts::{Lowered, Part};

/// Returns the chain that refuses Services to an address; nothing if its pods may reach all of them.
pub fn refused_services(address: IpAddr, rules: &RuleSet, denials: &Denials) -> Lowered {
    let (family, name) = (Family::from(address), names::refused_services(address));
    let (mut lowered, mut chain) = (Lowered::default(), Vec::new());
    for (pod, local) in rules.local_pods_at(address) {
        let class = Class::of(Direction::Egress, pod, &local.egress).map(Arc::new);
        for endpoint in denials.of(pod).filter(|one| Family::from(one.address) == family) {
            let set = names::endpoint(endpoint);
            let to_service = Match::InSet { lookup: Lookup::DestinationService(family), set, negated: false };
            let said = format!("{pod} egress to {endpoint}");
            match &class {
                Some(class) => chain.extend(refusal(&names::class(class), &[to_service], &said)),
                // Several policies of a tier may deny it, and none of them is known here.
                None => chain.extend(refusal_of_tier(&name, to_service, &said)),
            }
            lowered.needs.insert(Part::Endpoint(*endpoint));
            lowered.needs.extend(class.clone().map(Part::Counter));
        }
    }
    if !chain.is_empty() {
        lowered.chain(name.clone(), chain);
        lowered.verdict(&names::host_endpoints(family), Key::Address(address), Verdict::Jump(name));
    }
    lowered
}

/// Returns the rules that refuse a Service to a pod that only a tier judges.
fn refusal_of_tier(chain: &Name, to_service: Match, said: &str) -> [Rule; 2] {
    let log = Rule::with([to_service.clone(), LOG_LIMIT], [log(chain.as_str())], None);
    [log, Rule::new([to_service], Verdict::Reject).commented(said)]
}

/// Returns the set of the addresses and ports of the Services of a host endpoint.
pub fn endpoint(endpoint: &HostEndpoint, denials: &Denials) -> Lowered {
    let (name, fields) = (names::endpoint(endpoint), Fields::Service(Family::from(endpoint.address)));
    let mut lowered = Lowered::default();
    lowered.map(&name, SetSpec { fields, kind: Kind::Set, intervals: false });
    let elements = denials.entrances(endpoint).map(|one| Key::Service(one.address, endpoint.protocol, one.port));
    lowered.objects.extend(elements.map(|key| (Object::Element(name.clone(), key), Content::Element)));
    lowered
}

/// Returns the addresses whose chains of an earlier run stay; `None` where Services are known completely, or never will be, because
/// neither the service proxy nor the router runs: what nothing keeps up to date goes.
pub fn unsure(rules: &RuleSet, world: &World, config: &FirewallConfig) -> Option<BTreeSet<IpAddr>> {
    let judged = rules.pods.values().filter(|pod| pod.is_judged(Direction::Egress));
    (config.knows_services && world.authority.proxy != Authority::Complete)
        .then(|| judged.flat_map(|pod| pod.addresses.iter().copied()).collect())
}
