//! The choice of one address of each family among those of this host.

use std::fmt;
use std::net::IpAddr;

use compact_str::CompactString;
use ipnet::IpNet;

use super::{AddressDetection, is_link_local};
use crate::net::{Family, PerFamily};

/// One address on one link of this host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Candidate {
    pub link: CompactString,
    /// Number of the link.
    pub index: u32,
    /// Kind of virtual link, in the kernel's word; empty for hardware.
    pub kind: CompactString,
    /// The link is set up.
    pub up: bool,
    /// The prefix keeps its host bits.
    pub address: IpNet,
    /// It is of scope global: reachable from other hosts.
    pub global: bool,
    /// It is neither to be proven unique yet nor proven not to be, and neither deprecated nor temporary.
    pub lasting: bool,
    /// It is proven not to be unique: another host has it.
    pub duplicate: bool,
}

/// The addresses that were chosen.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Choice {
    pub addresses: PerFamily<Option<IpAddr>>,
    /// The families of which nothing is found now. An address that was chosen before stays while the host has it.
    pub lacks: PerFamily<bool>,
}

/// Links that carry addresses of Services: ours and kube-router's, kube-proxy's, and NodeLocal DNSCache's.
pub const CARRY_SERVICE_ADDRESSES: [&str; 3] = ["kube-dummy-if", "kube-ipvs0", "nodelocaldns"];
/// The link of this program and of kube-router whose addresses are those of pods' gateways.
const BRIDGE: &str = "kube-bridge";
/// How the names of our other links begin.
const NEVER_BEGINS: [&str; 2] = ["tun-", "sluice-"];

/// How the names of links begin that pods, virtual machines and other network plugins have.
const VIRTUAL_BEGINS: [&str; 20] = [
    "docker",
    "cbr",
    "cni",
    "dummy",
    "virbr",
    "lxcbr",
    "lxdbr",
    "lxc",
    "veth",
    "cali",
    "vxlan.calico",
    "tunl",
    "flannel",
    "weave",
    "cilium",
    "antrea",
    "ovn",
    "podman",
    "nerdctl",
    "kube-",
];
/// Kinds of links that are made of others, or of none.
const VIRTUAL_KINDS: [&str; 12] =
    ["dummy", "ipip", "sit", "ip6tnl", "gre", "gretap", "ip6gre", "vxlan", "geneve", "wireguard", "tun", "vti"];

/// Chooses the addresses by which other nodes are to route to this one. `sources` are the kernel's answers for the destinations of
/// `can-reach`, `former` what is used so far.
pub fn choose(
    method: &AddressDetection,
    families: PerFamily<bool>,
    all: &[Candidate],
    sources: PerFamily<Option<IpAddr>>,
    former: PerFamily<Option<IpAddr>>,
) -> Choice {
    let mut choice = Choice::default();
    for family in Family::BOTH.into_iter().filter(|family| *families.of(*family) && method.looks_for(*family)) {
        let eligible = all.iter().filter(|one| Family::from(one.address) == family && is_eligible(one));
        let fitting: Vec<(Rank, &Candidate)> =
            eligible.filter_map(|one| Some((rank(method, one, all, *sources.of(family))?, one))).collect();
        let may_move = |rank: Rank, one: &Candidate| {
            // The bridge of a container runtime has a network, too, and is no link to other nodes.
            let is_beside = |other: &Candidate| {
                other.link == one.link || matches!(method, AddressDetection::Cidr(_)) && !is_virtual(other)
            };
            is_alone(one) && fitting.iter().any(|(its, other)| *its == rank && !is_alone(other) && is_beside(other))
        };
        let mut ranked: Vec<((Rank, bool), &Candidate)> =
            fitting.iter().map(|(rank, one)| ((*rank, may_move(*rank, one)), *one)).collect();
        // In the order of IPv4 addresses one that moves is behind the node's own; that of IPv6 addresses says nothing of it.
        let moves = |one: &Candidate| family == Family::V6 && *method.targets().of(family) == Some(one.address.addr());
        // Stable: addresses of one link stay in the kernel's order.
        ranked.sort_by_key(|(rank, one)| (*rank, one.index, moves(one), order(one)));
        let former = *former.of(family);
        let best = ranked.first().map(|(rank, _)| *rank);
        let of_best = || ranked.iter().filter(|(rank, _)| Some(*rank) == best).map(|(_, one)| one.address.addr());
        let is_on_host =
            |address: &IpAddr| all.iter().any(|one| one.address.addr() == *address && !one.duplicate && !is_ours(one));
        *choice.addresses.of_mut(family) = match best {
            Some(_) => former.filter(|former| of_best().any(|one| one == *former)).or_else(|| of_best().next()),
            None => former.filter(is_on_host),
        };
        *choice.lacks.of_mut(family) = best.is_none();
    }
    choice
}

/// Returns the place of an address on its link beside others there.
fn order(one: &Candidate) -> Option<IpAddr> {
    Some(one.address.addr()).filter(IpAddr::is_ipv6)
}

/// Returns whether any method may choose an address.
fn is_eligible(one: &Candidate) -> bool {
    let address = one.address.addr();
    let is_mapped = matches!(address, IpAddr::V6(address) if address.to_ipv4_mapped().is_some());
    let is_unicast = !address.is_unspecified() && !address.is_loopback() && !address.is_multicast() && !is_mapped;
    one.up && one.global && one.lasting && is_unicast && !is_link_local(address) && !is_ours(one)
}

/// Returns whether an address is on a link that carries those of Services, of tunnels or of pods' gateways.
fn is_ours(one: &Candidate) -> bool {
    let link = one.link.as_str();
    link == BRIDGE
        || CARRY_SERVICE_ADDRESSES.contains(&link)
        || NEVER_BEGINS.iter().any(|begin| one.link.starts_with(begin))
}

/// Returns whether an address is on no network, as one is that moves from host to host (keepalived, kube-vip), and one that DHCPv6 gave.
fn is_alone(one: &Candidate) -> bool {
    one.address.prefix_len() == one.address.max_prefix_len()
}

/// Returns whether an address is on a link that leads nowhere: a service address that several hosts have may be there, as for routers that share the load
/// (anycast), or for a director whose answers do not pass it.
fn leads_nowhere(one: &Candidate) -> bool {
    one.link == "lo" || one.kind == "dummy" || one.link.starts_with("dummy")
}

/// How good an address is; the least is the best. First the place in the method's list, then whether its link leads nowhere.
type Rank = (usize, bool);

/// Returns how good an address is; `None` where the method does not fit it.
fn rank(method: &AddressDetection, one: &Candidate, all: &[Candidate], source: Option<IpAddr>) -> Option<Rank> {
    let is_last = matches!(method, AddressDetection::Interface(_) | AddressDetection::Cidr(_)) && leads_nowhere(one);
    Some((place(method, one, all, source)?, is_last))
}

/// Returns the place of an address in the method's list; `None` where the method does not fit it.
fn place(method: &AddressDetection, one: &Candidate, all: &[Candidate], source: Option<IpAddr>) -> Option<usize> {
    let address = one.address.addr();
    match method {
        AddressDetection::CanReach(targets) if source.is_some() && *targets.of(Family::from(address)) == source => {
            beside_target(one, all, source?)
        }
        AddressDetection::CanReach(_) if source == Some(address) => Some(0),
        // The kernel prefers temporary addresses where it makes them (RFC 8981): the lasting one beside it is meant.
        AddressDetection::CanReach(_) => {
            let chosen = all.iter().find(|other| Some(other.address.addr()) == source)?;
            let is_beside = chosen.link == one.link && chosen.address.trunc() == one.address.trunc();
            (is_beside && !chosen.lasting).then_some(1)
        }
        AddressDetection::Interface(expressions) => expressions.iter().position(|it| it.matches(&one.link)),
        AddressDetection::SkipInterface(expressions) => {
            let is_skipped = is_virtual(one) || expressions.iter().any(|it| it.matches(&one.link));
            (!is_skipped).then_some(0)
        }
        AddressDetection::Cidr(networks) => networks.iter().position(|network| network.contains(&address)),
    }
}

/// Returns the place of an address where the destination of `can-reach` is this host's own: the kernel answers with the destination itself. It may
/// be here for the moment alone, as the address that servers of the control plane share, so that another of its network on its link is better where it has none of its
/// own; on a link that leads nowhere it says nothing.
fn beside_target(one: &Candidate, all: &[Candidate], target: IpAddr) -> Option<usize> {
    let holders = all.iter().filter(|other| other.address.addr() == target);
    let holder = holders.min_by_key(|other| leads_nowhere(other))?;
    let is_target = one.address.addr() == target;
    if one.link != holder.link {
        return None;
    }
    match is_alone(holder) {
        true if is_target => (!leads_nowhere(holder)).then_some(2),
        true if one.address.contains(&target) => Some(0),
        true => (!is_alone(one)).then_some(1),
        false => one.address.contains(&target).then_some(0),
    }
}

fn is_virtual(one: &Candidate) -> bool {
    let name = one.link.as_str();
    // Docker names the bridges of its networks after their first twelve digits.
    let is_network =
        name.strip_prefix("br-").is_some_and(|id| id.len() == 12 && id.bytes().all(|it| it.is_ascii_hexdigit()));
    name == "lo"
        || is_network
        || VIRTUAL_KINDS.contains(&one.kind.as_str())
        || VIRTUAL_BEGINS.iter().any(|begin| name.starts_with(begin))
}

impl Choice {
    /// Returns a sentence for each family of which nothing is found.
    pub fn problems(&self, method: &AddressDetection) -> PerFamily<Option<String>> {
        PerFamily::from_fn(|family| {
            let lack = Lack { method, family, kept: *self.addresses.of(family) };
            self.lacks.of(family).then(|| lack.to_string())
        })
    }
}

/// A family of which nothing is found.
struct Lack<'a> {
    method: &'a AddressDetection,
    family: Family,
    kept: Option<IpAddr>,
}

impl fmt::Display for Lack<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Lack { method, family, kept } = self;
        write!(f, "--node-ip-autodetect={method} finds no {family} address of this host; ")?;
        match kept {
            Some(kept) => write!(f, "{kept}, which it found before, stays in use while the host has it"),
            None => f.write_str("other nodes route to the InternalIP of its Node"),
        }
    }
}
