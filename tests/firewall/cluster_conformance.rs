//! The conformance cases of the Network Policy API (`kubernetes-sigs/network-policy-api`, `conformance/tests`), under their
//! names, in our words: who reaches whom under which policies, judged by the verdict, by the oracle and by the rules traced as the
//! kernel gets them, in both families.
//!
//! The cast is theirs: four namespaces with two pods each, all of them on this node, so both ends of a packet are judged. Policies are written as YAML and read by the
//! parser of manifests.
//!
//! One has the opposite outcome here, `CNPAdminTierHairpin`, a feature of its own there: a pod reaches itself whatever policies say.

use sluice::firewall::rules::Direction;
use sluice::firewall::verdict::{Packet, Traffic, verdict};
use sluice::k8s::parse::cluster_network_policy::{ClusterNetworkPolicyObject, cluster_network_policy};
use sluice::model::{Node, NodeAddress, NodeAddressKind, World};
use sluice::net::Protocol;

use super::cases::{Case, HERE};
use super::{histories, lowered, oracle, tables};

const GRYFFINDOR: &str = "gryffindor";
const SLYTHERIN: &str = "slytherin";
const HUFFLEPUFF: &str = "hufflepuff";
const RAVENCLAW: &str = "ravenclaw";
/// In place of a house: `node/0` is a node.
const NODE: &str = "node";
const HOUSES: [&str; 4] = [GRYFFINDOR, SLYTHERIN, HUFFLEPUFF, RAVENCLAW];
const PROTOCOLS: [(Protocol, &str, u16, u16); 3] =
    [(Protocol::Tcp, "tcp", 80, 8080), (Protocol::Udp, "udp", 53, 5353), (Protocol::Sctp, "sctp", 9003, 9005)];

/// The cluster under test.
struct Castle(World);

impl Castle {
    fn new() -> Castle {
        let mut case = Case::new();
        for (at, house) in HOUSES.into_iter().enumerate() {
            case = case.namespace(house, &format!("conformance-house={house} kubernetes.io/metadata.name={house}"));
            for number in 0..2 {
                let [v4, v6] = addresses(at, number);
                let of = format!("conformance-house={house} name={house}-{number}");
                case = case.pod(&format!("{house}/{number}"), HERE, [&format!("{v4} {v6}"), &of, "web/tcp/80"]);
            }
        }
        Castle(case.0)
    }

    /// Adds a policy, or replaces it.
    fn apply(&mut self, name: &str, spec: &str) {
        let yaml = format!("{{metadata: {{name: {name}}}, spec: {spec}}}");
        let object: ClusterNetworkPolicyObject =
            serde_saphyr::from_str(&yaml).unwrap_or_else(|e| panic!("{yaml}: {e}"));
        let (name, policy, warnings) = cluster_network_policy(&object);
        assert_eq!(warnings, [], "{yaml}");
        self.0.cluster.cluster_policies.insert(name, policy.expect("it is sound"));
    }

    /// Adds a node (`node/0`) with one label, or replaces it.
    fn node(&mut self, number: usize, label: (&str, &str)) {
        let own = node_addresses(number).map(|text| text.parse().expect("an address"));
        let addresses = own.map(|address| NodeAddress { kind: NodeAddressKind::Internal, address });
        let labels = [label].into_iter().collect();
        let node = Node { addresses: addresses.into(), labels, ..Node::default() };
        self.0.cluster.nodes.insert(number.to_string().into(), node);
    }

    /// Whether a pod reaches another one (`gryffindor/0`) at a port.
    fn check(&self, from: &str, to: &str, (protocol, port): (Protocol, u16), expected: bool) {
        let rules = histories::rules(&self.0);
        for family in 0..2 {
            let (source, destination) = (address(from, family), address(to, family));
            let traffic = Traffic::Port { protocol, port };
            let packet = Packet { source, destination, traffic, from_this_node: false };
            let told = format!("{from} to {to} {protocol} {port}: {packet:?}");
            assert_eq!(verdict(&rules, &packet).passes(), expected, "by the verdict: {told}");
            let meant = Direction::BOTH.into_iter().all(|direction| oracle::passes(&self.0, &packet, direction));
            assert_eq!(meant, expected, "by the oracle: {told}");
            assert_eq!(lowered::is_forwarded(&self.0, packet), expected, "by the chains: {told}");
            assert_eq!(tables::is_forwarded(&self.0, &packet), expected, "by the table: {told}");
        }
    }
}

fn addresses(house: usize, number: usize) -> [String; 2] {
    let last = 1 + house * 2 + number;
    [format!("10.244.0.{last}"), format!("fd00:10:244::{last:x}")]
}

fn address(pod: &str, family: usize) -> std::net::IpAddr {
    let (house, number) = pod.split_once('/').expect("house/number");
    if house == NODE {
        let [v4, v6] = node_addresses(number.parse().expect("a number"));
        return [v4, v6][family].parse().expect("an address");
    }
    let house = HOUSES.iter().position(|one| *one == house).expect("a house");
    addresses(house, number.parse().expect("0 or 1"))[family].parse().expect("an address")
}

/// Addresses of another node than ours.
fn node_addresses(number: usize) -> [String; 2] {
    [format!("192.0.2.{}", 100 + number), format!("2001:db8:2::{}", 100 + number)]
}

/// All pods of a house, as a subject or peer.
fn house(name: &str) -> String {
    format!("namespaces: {{matchLabels: {{kubernetes.io/metadata.name: {name}}}}}")
}

/// The same, by labels of namespaces and pods.
fn pods_of(name: &str) -> String {
    let labels = format!("{{matchLabels: {{conformance-house: {name}}}}}");
    format!("pods: {{namespaceSelector: {labels}, podSelector: {labels}}}")
}

/// One rule; `ports` are like `tcp 80`, or `tcp 80-90`.
fn rule(action: &str, side: &str, peer: &str, ports: &[String]) -> String {
    let protocol = |text: &String| {
        let (protocol, port) = text.split_once(' ').expect("tcp 80");
        let port = match port.split_once('-') {
            Some((start, end)) => format!("range: {{start: {start}, end: {end}}}"),
            None => format!("number: {port}"),
        };
        format!("{{{protocol}: {{destinationPort: {{{port}}}}}}}")
    };
    let ports: Vec<String> = ports.iter().map(protocol).collect();
    let protocols = if ports.is_empty() { String::new() } else { format!(", protocols: [{}]", ports.join(", ")) };
    format!("{{action: {action}, {side}: [{{{peer}}}]{protocols}}}")
}

fn spec(tier: &str, priority: u16, subject: &str, ingress: &[String], egress: &[String]) -> String {
    let list = |name: &str, rules: &[String]| {
        if rules.is_empty() { String::new() } else { format!(", {name}: [{}]", rules.join(", ")) }
    };
    let rules = list("ingress", ingress) + &list("egress", egress);
    format!("{{tier: {tier}, priority: {priority}, subject: {{{subject}}}{rules}}}")
}

/// A policy of either tier for one direction of gryffindor.
fn one_sided(tier: &str, direction: Direction, rules: &[String]) -> String {
    match direction {
        Direction::Ingress => spec(tier, 3, &house(GRYFFINDOR), rules, &[]),
        Direction::Egress => spec(tier, 3, &house(GRYFFINDOR), &[], rules),
    }
}

fn side(direction: Direction) -> &'static str {
    if direction == Direction::Ingress { "from" } else { "to" }
}

/// `CNP{Admin,Baseline}Tier{Ingress,Egress}{TCP,UDP,SCTP}`.
fn rules_of_one_protocol(tier: &str, direction: Direction, (protocol, word, port, other): (Protocol, &str, u16, u16)) {
    let at = |port: u16| vec![format!("{word} {port}")];
    let of = |action: &str, name: &str, ports: &[String]| rule(action, side(direction), &house(name), ports);
    let mut rules = vec![
        of("Accept", RAVENCLAW, &[]),
        of("Deny", RAVENCLAW, &[]),
        of("Pass", RAVENCLAW, &[]),
        of("Deny", SLYTHERIN, &at(port)),
        of("Pass", SLYTHERIN, &at(port)),
        of("Accept", HUFFLEPUFF, &at(port)),
        of("Deny", HUFFLEPUFF, &[]),
    ];
    let mut castle = Castle::new();
    let check = |castle: &Castle, house: &str, port: u16, expected: bool| {
        for (own, number) in [("gryffindor/0", 0), ("gryffindor/1", 1)] {
            let peer = format!("{house}/{number}");
            let (to_own, to_peer) = match direction {
                Direction::Ingress => (expected, true),
                Direction::Egress => (true, expected),
            };
            castle.check(&peer, own, (protocol, port), to_own);
            castle.check(own, &peer, (protocol, port), to_peer);
        }
    };
    castle.apply("rules", &one_sided(tier, direction, &rules));
    // Rules are ordered: the first that matches decides, and what none matches passes. The other direction is open.
    check(&castle, RAVENCLAW, port, true);
    check(&castle, RAVENCLAW, other, true);
    check(&castle, HUFFLEPUFF, port, true);
    check(&castle, HUFFLEPUFF, other, false);
    check(&castle, SLYTHERIN, port, false);
    check(&castle, SLYTHERIN, other, true);
    rules.swap(0, 1);
    castle.apply("rules", &one_sided(tier, direction, &rules));
    check(&castle, RAVENCLAW, port, false);
    check(&castle, RAVENCLAW, other, false);
    rules.swap(0, 2);
    castle.apply("rules", &one_sided(tier, direction, &rules));
    check(&castle, RAVENCLAW, port, true);
    rules.swap(3, 4);
    castle.apply("rules", &one_sided(tier, direction, &rules));
    check(&castle, SLYTHERIN, port, true);
    check(&castle, SLYTHERIN, other, true);
}

macro_rules! of_one_protocol {
    ($($name:ident: $tier:literal $direction:ident $protocol:literal;)*) => {$(
        #[test]
        fn $name() {
            rules_of_one_protocol($tier, Direction::$direction, PROTOCOLS[$protocol]);
        }
    )*};
}

of_one_protocol! {
    cnp_admin_tier_ingress_tcp: "Admin" Ingress 0;
    cnp_admin_tier_ingress_udp: "Admin" Ingress 1;
    cnp_admin_tier_ingress_sctp: "Admin" Ingress 2;
    cnp_admin_tier_egress_tcp: "Admin" Egress 0;
    cnp_admin_tier_egress_udp: "Admin" Egress 1;
    cnp_admin_tier_egress_sctp: "Admin" Egress 2;
    cnp_baseline_tier_ingress_tcp: "Baseline" Ingress 0;
    cnp_baseline_tier_ingress_udp: "Baseline" Ingress 1;
    cnp_baseline_tier_ingress_sctp: "Baseline" Ingress 2;
    cnp_baseline_tier_egress_tcp: "Baseline" Egress 0;
    cnp_baseline_tier_egress_udp: "Baseline" Egress 1;
    cnp_baseline_tier_egress_sctp: "Baseline" Egress 2;
}

/// `CNP{Admin,Baseline}TierGressRules`: all protocols and both directions in one policy.
#[test]
fn cnp_admin_and_baseline_tier_gress_rules() {
    for tier in ["Admin", "Baseline"] {
        let [all, others]: [Vec<String>; 2] = [
            PROTOCOLS.iter().map(|(_, word, port, _)| format!("{word} {port}")).collect(),
            PROTOCOLS.iter().map(|(_, word, _, other)| format!("{word} {other}")).collect(),
        ];
        let rules = |side: &str, allowed: &[String]| {
            [
                rule("Accept", side, &house(RAVENCLAW), &[]),
                rule("Deny", side, &house(RAVENCLAW), &[]),
                rule("Deny", side, &house(SLYTHERIN), &all),
                rule("Accept", side, &house(HUFFLEPUFF), allowed),
                rule("Deny", side, &house(HUFFLEPUFF), &[]),
            ]
        };
        let mut castle = Castle::new();
        castle.apply("gress", &spec(tier, 15, &house(GRYFFINDOR), &rules("from", &all), &rules("to", &others)));
        for (protocol, _, port, other) in PROTOCOLS {
            for at in [port, other] {
                castle.check("ravenclaw/0", "gryffindor/1", (protocol, at), true);
                castle.check("gryffindor/0", "ravenclaw/1", (protocol, at), true);
                castle.check("slytherin/0", "gryffindor/0", (protocol, at), at == other);
                castle.check("gryffindor/1", "slytherin/1", (protocol, at), at == other);
                castle.check("hufflepuff/0", "gryffindor/0", (protocol, at), at == port);
                castle.check("gryffindor/1", "hufflepuff/0", (protocol, at), at == other);
            }
        }
    }
}

/// `CNP{Admin,Baseline}TierPortRange`.
#[test]
fn cnp_admin_and_baseline_tier_port_range() {
    for tier in ["Admin", "Baseline"] {
        for (protocol, word, ..) in PROTOCOLS {
            let ports = [format!("{word} 8000-8099")];
            let mut castle = Castle::new();
            let denied = |side| [rule("Deny", side, &house(SLYTHERIN), &ports)];
            castle.apply("range", &spec(tier, 9, &house(GRYFFINDOR), &denied("from"), &denied("to")));
            for (port, expected) in [(7999, true), (8000, false), (8050, false), (8099, false), (8100, true)] {
                castle.check("slytherin/0", "gryffindor/0", (protocol, port), expected);
                castle.check("gryffindor/1", "slytherin/1", (protocol, port), expected);
                castle.check("ravenclaw/1", "gryffindor/1", (protocol, port), true);
            }
        }
    }
}

/// `CNP{Admin,Baseline}Tier{Ingress,Egress}NamedPort`.
#[test]
fn cnp_admin_and_baseline_tier_named_ports() {
    for tier in ["Admin", "Baseline"] {
        for direction in Direction::BOTH {
            let side = side(direction);
            let named = format!(
                "{{action: Accept, {side}: [{{{}}}], protocols: [{{destinationNamedPort: web}}]}}",
                house(HUFFLEPUFF)
            );
            let mut castle = Castle::new();
            let rules = [named, rule("Deny", side, &house(HUFFLEPUFF), &[])];
            castle.apply("named", &one_sided(tier, direction, &rules));
            let (from, to) = match direction {
                Direction::Ingress => ("hufflepuff/0", "gryffindor/0"),
                Direction::Egress => ("gryffindor/0", "hufflepuff/0"),
            };
            castle.check(from, to, (Protocol::Tcp, 80), true);
            castle.check(from, to, (Protocol::Tcp, 8080), false);
            castle.check(from, to, (Protocol::Udp, 80), false);
        }
    }
}

/// `CNP{Admin,Baseline}TierEgressInlineCIDRPeers`.
#[test]
fn cnp_admin_and_baseline_tier_egress_inline_cidr_peers() {
    for tier in ["Admin", "Baseline"] {
        let everywhere = "networks: [0.0.0.0/0, '::/0']";
        let denied = [rule("Accept", "to", &pods_of(SLYTHERIN), &[]), rule("Deny", "to", everywhere, &[])];
        let mut castle = Castle::new();
        castle.apply("cidr", &spec(tier, 85, &pods_of(GRYFFINDOR), &[], &denied));
        castle.check("gryffindor/0", "slytherin/0", (Protocol::Tcp, 80), true);
        castle.check("gryffindor/0", "ravenclaw/0", (Protocol::Tcp, 80), false);
        castle.check("gryffindor/1", "hufflepuff/0", (Protocol::Udp, 53), false);
        let [luna, cedric] = [addresses(3, 0), addresses(2, 0)];
        let hosts = format!("networks: [{}/32, '{}/128', {}/32, '{}/128']", luna[0], luna[1], cedric[0], cedric[1]);
        let mut rules = denied.to_vec();
        rules.insert(0, rule("Accept", "to", &hosts, &[]));
        castle.apply("cidr", &spec(tier, 85, &pods_of(GRYFFINDOR), &[], &rules));
        castle.check("gryffindor/0", "ravenclaw/0", (Protocol::Tcp, 80), true);
        castle.check("gryffindor/1", "hufflepuff/0", (Protocol::Sctp, 9003), true);
        castle.check("gryffindor/1", "hufflepuff/1", (Protocol::Tcp, 80), false);
        castle.check("ravenclaw/1", "gryffindor/0", (Protocol::Tcp, 80), true);
    }
}

/// `CNP{Admin,Baseline}TierEgressNodePeers`, and nodes whose labels change.
#[test]
fn cnp_admin_and_baseline_tier_egress_node_peers() {
    let (linux, other) = (("kubernetes.io/os", "linux"), ("kubernetes.io/os", "windows"));
    let nodes = "nodes: {matchLabels: {kubernetes.io/os: linux}}";
    for tier in ["Admin", "Baseline"] {
        let rules = [
            rule("Accept", "to", nodes, &["tcp 36363".to_owned()]),
            rule("Pass", "to", nodes, &["udp 5353".to_owned()]),
            rule("Deny", "to", &pods_of(SLYTHERIN), &[]),
            rule("Deny", "to", nodes, &[]),
        ];
        let mut castle = Castle::new();
        castle.apply("nodes", &spec(tier, 75, &pods_of(GRYFFINDOR), &[], &rules));
        castle.node(0, linux);
        castle.node(1, other);
        for (protocol, port, expected) in [
            (Protocol::Tcp, 36363, true),
            (Protocol::Udp, 5353, true),
            (Protocol::Tcp, 36364, false),
            (Protocol::Udp, 36363, false),
            (Protocol::Sctp, 9003, false),
        ] {
            castle.check("gryffindor/1", "node/0", (protocol, port), expected);
            castle.check("ravenclaw/1", "node/0", (protocol, port), true);
            // No rule is for a node with another label, nor for one that is not known.
            castle.check("gryffindor/1", "node/1", (protocol, port), true);
            castle.check("gryffindor/1", "node/2", (protocol, port), true);
        }
        castle.check("gryffindor/1", "slytherin/0", (Protocol::Tcp, 36363), false);
        castle.node(1, linux);
        castle.node(0, other);
        castle.check("gryffindor/1", "node/1", (Protocol::Tcp, 36364), false);
        castle.check("gryffindor/1", "node/0", (Protocol::Tcp, 36364), true);
    }
}

/// `CNP{Admin,Baseline}Tier{Ingress,Egress}Rules{Egress,Ingress}Unaffected`.
#[test]
fn cnp_admin_and_baseline_tier_rules_of_one_direction_leave_the_other_alone() {
    for tier in ["Admin", "Baseline"] {
        for direction in Direction::BOTH {
            let mut castle = Castle::new();
            let denied = [rule("Deny", side(direction), &house(SLYTHERIN), &[])];
            castle.apply("isolation", &one_sided(tier, direction, &denied));
            castle.check("slytherin/0", "gryffindor/0", (Protocol::Tcp, 80), direction == Direction::Egress);
            castle.check("gryffindor/0", "slytherin/0", (Protocol::Tcp, 80), direction == Direction::Ingress);
            for house in ["ravenclaw/0", "hufflepuff/0"] {
                castle.check("gryffindor/0", house, (Protocol::Tcp, 80), true);
                castle.check(house, "gryffindor/0", (Protocol::Tcp, 80), true);
            }
        }
    }
}

/// `CNP{Admin,Baseline}TierPodSelector`, and a missing `namespaceSelector` (`standard-gress-omitted-namespaceselector`).
#[test]
fn cnp_admin_and_baseline_tier_pod_selector() {
    for tier in ["Admin", "Baseline"] {
        let by_pod = |name: &str| format!("pods: {{podSelector: {{matchLabels: {{conformance-house: {name}}}}}}}");
        let cedric = "pods: {namespaceSelector: {matchLabels: {conformance-house: hufflepuff}}, podSelector: {matchLabels: {name: hufflepuff-0}}}";
        let ingress = [rule("Deny", "from", &by_pod(SLYTHERIN), &[]), rule("Deny", "from", cedric, &[])];
        let egress = [rule("Deny", "to", &by_pod(RAVENCLAW), &[]), rule("Deny", "to", cedric, &[])];
        let mut castle = Castle::new();
        castle.apply("pods", &spec(tier, 20, &by_pod(GRYFFINDOR), &ingress, &egress));
        let luna = "pods: {namespaceSelector: {matchLabels: {conformance-house: ravenclaw}}, podSelector: {matchLabels: {name: ravenclaw-0}}}";
        castle.apply("name", &spec(tier, 21, luna, &[], &[rule("Deny", "to", &house(SLYTHERIN), &[])]));
        for (from, to, expected) in [
            ("slytherin/0", "gryffindor/1", false),
            ("gryffindor/1", "slytherin/0", true),
            ("gryffindor/0", "ravenclaw/1", false),
            ("ravenclaw/1", "gryffindor/0", true),
            ("hufflepuff/0", "gryffindor/0", false),
            ("hufflepuff/1", "gryffindor/0", true),
            ("gryffindor/0", "hufflepuff/0", false),
            ("gryffindor/0", "hufflepuff/1", true),
            ("ravenclaw/0", "slytherin/0", false),
            ("ravenclaw/1", "slytherin/0", true),
            ("slytherin/0", "hufflepuff/0", true),
        ] {
            castle.check(from, to, (Protocol::Tcp, 80), expected);
        }
    }
}

/// `CNPAdminTierPriorityField`: the same two policies, and then the other one is first.
#[test]
fn cnp_admin_tier_priority_field() {
    let both =
        |action: &str| ["from", "to"].map(|side| rule(action, side, &pods_of(SLYTHERIN), &[])).map(|rule| vec![rule]);
    let ([deny_in, deny_out], [pass_in, pass_out]) = (both("Deny"), both("Pass"));
    let [accept_in, accept_out] = both("Accept");
    let mut castle = Castle::new();
    castle.apply("first", &spec("Admin", 50, &pods_of(GRYFFINDOR), &deny_in, &deny_out));
    castle.apply("second", &spec("Admin", 60, &pods_of(GRYFFINDOR), &pass_in, &pass_out));
    castle.apply("default", &spec("Baseline", 10, &pods_of(GRYFFINDOR), &accept_in, &accept_out));
    let check = |castle: &Castle, expected| {
        castle.check("slytherin/0", "gryffindor/0", (Protocol::Tcp, 80), expected);
        castle.check("gryffindor/1", "slytherin/0", (Protocol::Tcp, 8080), expected);
    };
    check(&castle, false);
    castle.apply("second", &spec("Admin", 40, &pods_of(GRYFFINDOR), &pass_in, &pass_out));
    check(&castle, true);
}

/// `CNP{Admin,Baseline}TierSamePriority`: policies of one priority are all in force, each for its own subject.
#[test]
fn cnp_admin_and_baseline_tier_same_priority() {
    for tier in ["Admin", "Baseline"] {
        let mut castle = Castle::new();
        let mut apply = |name: &str, subject: &str, peer: &str, port: u16| {
            let denied = |side| [rule("Deny", side, &house(peer), &[format!("tcp {port}")])];
            castle.apply(name, &spec(tier, 15, &house(subject), &denied("from"), &denied("to")));
        };
        apply("a", GRYFFINDOR, SLYTHERIN, 80);
        apply("b", GRYFFINDOR, HUFFLEPUFF, 80);
        apply("c", HUFFLEPUFF, SLYTHERIN, 8080);
        for (one, other, port, expected) in [
            ("slytherin/0", "gryffindor/0", 80, false),
            ("hufflepuff/0", "gryffindor/1", 80, false),
            ("slytherin/1", "hufflepuff/0", 8080, false),
            ("slytherin/0", "gryffindor/0", 8080, true),
            ("slytherin/1", "hufflepuff/0", 80, true),
            ("ravenclaw/0", "gryffindor/0", 80, true),
        ] {
            castle.check(one, other, (Protocol::Tcp, port), expected);
            castle.check(other, one, (Protocol::Tcp, port), expected);
        }
    }
}

/// `CNPAdminTierIntegration`: what the Admin tier passes on is decided by NetworkPolicies, and without them by the Baseline tier.
#[test]
fn cnp_admin_tier_integration() {
    let both = |action: &str| ["from", "to"].map(|side| vec![rule(action, side, &house(SLYTHERIN), &[])]);
    let ([deny_in, deny_out], [pass_in, pass_out]) = (both("Deny"), both("Pass"));
    let allows = super::cases::rule(&[super::cases::pods_in("conformance-house=slytherin", "")], &[]);
    let allowed = Some(std::slice::from_ref(&allows));
    let with_policy = |castle: Castle| Castle(Case(castle.0).policy("gryffindor/allow", "", [allowed, allowed]).0);
    let mut castle = with_policy(Castle::new());
    castle.apply("default", &spec("Baseline", 10, &house(GRYFFINDOR), &deny_in, &deny_out));
    let check = |castle: &Castle, (slytherin, ravenclaw): (bool, bool)| {
        for port in [80, 8080] {
            castle.check("slytherin/0", "gryffindor/0", (Protocol::Tcp, port), slytherin);
            castle.check("gryffindor/1", "slytherin/1", (Protocol::Tcp, port), slytherin);
            castle.check("ravenclaw/0", "gryffindor/0", (Protocol::Tcp, port), ravenclaw);
        }
    };
    castle.apply("admin", &spec("Admin", 10, &house(GRYFFINDOR), &deny_in, &deny_out));
    check(&castle, (false, false));
    castle.apply("admin", &spec("Admin", 10, &house(GRYFFINDOR), &pass_in, &pass_out));
    check(&castle, (true, false));
    castle.0.cluster.policies.remove(&sluice::model::ObjectName::new(GRYFFINDOR, "allow"));
    check(&castle, (false, true));
    castle.0.cluster.cluster_policies.remove(&"default".into());
    check(&castle, (true, true));
}

/// `CNPAdminTierHairpin`, with the opposite outcome: a pod is denied what it sends to a Service of its own pods where the Service chooses a neighbour, and
/// not where it chooses the pod itself (`docs/differences.md` says why). IPVS has given the packet its real destination before it is judged.
#[test]
fn a_pod_reaches_itself_through_its_service_and_is_denied_its_neighbour() {
    let mut castle = Castle::new();
    let denied = [rule("Deny", "from", &house(GRYFFINDOR), &[])];
    castle.apply("hairpin", &spec("Admin", 15, &house(GRYFFINDOR), &denied, &[]));
    for (endpoint, expected) in [("gryffindor/0", true), ("gryffindor/1", false)] {
        castle.check("gryffindor/0", endpoint, (Protocol::Tcp, 80), expected);
        for family in 0..2 {
            let (source, destination) = (address("gryffindor/0", family), address(endpoint, family));
            let traffic = Traffic::Port { protocol: Protocol::Tcp, port: 80 };
            let packet = Packet { source, destination, traffic, from_this_node: false };
            assert_eq!(lowered::is_sent(&castle.0, packet), expected, "by the chains, behind IPVS: {packet:?}");
            assert_eq!(tables::is_sent(&castle.0, &packet), expected, "by the table, behind IPVS: {packet:?}");
        }
    }
}

/// Substitutes of rules that cannot be read are in force, too.
#[test]
fn a_rule_with_a_peer_that_is_not_supported_accepts_nothing_and_denies_everything() {
    for (action, expected) in [("Accept", true), ("Deny", false), ("Pass", false)] {
        let mut castle = Castle::new();
        let yaml = format!(
            "{{metadata: {{name: names}}, spec: {}}}",
            spec("Admin", 1, &house(GRYFFINDOR), &[], &[rule(action, "to", "domainNames: [example.org]", &[])])
        );
        let object: ClusterNetworkPolicyObject = serde_saphyr::from_str(&yaml).expect("sound YAML");
        let (name, policy, warnings) = cluster_network_policy(&object);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        castle.0.cluster.cluster_policies.insert(name, policy.expect("the policy itself is sound"));
        castle.check("gryffindor/0", "ravenclaw/0", (Protocol::Tcp, 80), expected);
        castle.check("ravenclaw/0", "gryffindor/0", (Protocol::Tcp, 80), true);
    }
}
