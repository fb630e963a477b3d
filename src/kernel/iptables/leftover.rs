//! Rules that kube-router left directly in a built-in chain.
//!
//! Its masquerading stands in `POSTROUTING` of the table `nat`, one rule for each pod range of the node or one
//! for everything:
//!
//! ```text
//! ! -s 10.244.0.0/24 ! -d 10.244.0.0/24 -m ipvs --vdir ORIGINAL --vmethod MASQ -m comment --comment "" -j SNAT --to-source 192.0.2.1 --random-fully
//! ```
//!
//! and older versions masqueraded by `MASQUERADE`. Ours is in a chain of its own, so what has exactly this shape,
//! the empty comment included, is a leftover whoever took over has to remove. Nothing else has an empty
//! comment by accident.
//!
//! Its router masquerades what pods send to the outside in the same place, known by the names of its sets, and accepts packets
//! of pods in `FORWARD`, known by the text of its comments:
//!
//! ```text
//! -m set --match-set kube-router-pod-subnets src -m set ! --match-set kube-router-pod-subnets dst -m set ! --match-set kube-router-node-ips dst -j MASQUERADE --random-fully
//! -i kube-bridge -m comment --comment "allow outbound traffic from pods" -j ACCEPT
//! ```
//!
//! Direct server return marks packets to a service port in `PREROUTING` and `OUTPUT` of the table `mangle`, known by the mark, which is
//! a hash of address, protocol and port, and announces a smaller segment size in answers of pods, known by the bridge:
//!
//! ```text
//! -d 203.0.113.7/32 -p tcp -m tcp --dport 80 -j MARK --set-xmark 0x35c6/0xffffffff
//! -s 203.0.113.7/32 -i kube-bridge -p tcp -m tcp --sport 80 --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 1440
//! ```
//!
//! Those of the router belong to whoever takes the router's place, and stay while kube-router goes on as the router beside us.

use super::rule::{IpProtocol, SetSides, Side};
use super::{Match, Rule, Table, Verdict};
use crate::kernel::ipset::SetName;
use crate::net::Protocol;
use crate::net::service_mark::service_mark;

/// The part of kube-router that an owner replaces, and whose leftovers it therefore removes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Leftovers {
    #[default]
    None,
    Proxy,
    Router,
    /// The same without the rules in `FORWARD`: with nftables the router keeps them itself (`kernel::nftables::passages`).
    RouterEgress,
}

impl Leftovers {
    /// The built-in chains in which there may be any.
    pub(super) fn places(self) -> &'static [(Table, &'static str)] {
        match self {
            Leftovers::None => &[],
            Leftovers::Proxy => {
                &[(Table::Nat, "POSTROUTING"), (Table::Mangle, "PREROUTING"), (Table::Mangle, "OUTPUT")]
            }
            Leftovers::Router => &[(Table::Nat, "POSTROUTING"), (Table::Filter, "FORWARD")],
            Leftovers::RouterEgress => &[(Table::Nat, "POSTROUTING")],
        }
    }

    /// Returns whether kube-router wrote this rule of a built-in chain and nobody needs it any more.
    pub(super) fn include(self, table: Table, chain: &str, rule: &Rule) -> bool {
        match (self, table, chain) {
            (Leftovers::Proxy, Table::Nat, "POSTROUTING") => is_masquerade(rule),
            (Leftovers::Proxy, Table::Mangle, "PREROUTING") => {
                service_mark_of(rule).is_some() || is_smaller_segment(rule)
            }
            (Leftovers::Proxy, Table::Mangle, "OUTPUT") => service_mark_of(rule).is_some(),
            (Leftovers::Router | Leftovers::RouterEgress, Table::Nat, "POSTROUTING") => is_pod_egress(rule),
            (Leftovers::Router, Table::Filter, "FORWARD") => is_accept_of_pods(rule),
            _ => false,
        }
    }
}

/// Marks tried for one service port before a rule counts as somebody else's: kube-router takes the next one where a mark is taken.
const ATTEMPTS: u32 = 16;

/// Returns the mark that a rule gives to packets to a service port, if it is that of kube-router for this port.
fn service_mark_of(rule: &Rule) -> Option<u32> {
    let [
        Match::Destination { range, negated: false },
        Match::Protocol(IpProtocol::Transport(protocol)),
        Match::Port { protocol: of, side: Side::Destination, port },
    ] = rule.matches()
    else {
        return None;
    };
    let Some(Verdict::SetMark(mark)) = rule.verdict() else { return None };
    let is_its = |attempt| service_mark(range.addr(), *protocol, *port, attempt) == mark.value;
    let is_host = range.prefix_len() == range.max_prefix_len();
    (is_host && of == protocol && mark.mask == u32::MAX && (0..ATTEMPTS).any(is_its)).then_some(mark.value)
}

fn is_smaller_segment(rule: &Rule) -> bool {
    let [
        Match::Source { range, negated: false },
        Match::InputLink(link),
        Match::Protocol(IpProtocol::Transport(Protocol::Tcp)),
        Match::OpeningFrom { .. },
    ] = rule.matches()
    else {
        return false;
    };
    let is_host = range.prefix_len() == range.max_prefix_len();
    is_host && &**link == "kube-bridge" && matches!(rule.verdict(), Some(Verdict::SetMss(_)))
}

fn is_pod_egress(rule: &Rule) -> bool {
    let in_set = |one: &Match| match one {
        Match::Set { set, of: SetSides::Address(side), negated } => Some((set.clone(), *side, *negated)),
        _ => None,
    };
    let Some(asked): Option<Vec<_>> = rule.matches().iter().map(in_set).collect() else { return false };
    let [(pods, Side::Source, false), (again, Side::Destination, true), rest @ ..] = asked.as_slice() else {
        return false;
    };
    let is_one_of = |set: &SetName, names: [&str; 2]| names.contains(&&*set.0);
    let nodes = match rest {
        // Older versions knew no set of nodes.
        [] => true,
        [(nodes, Side::Destination, true)] => is_one_of(nodes, ["kube-router-node-ips", "inet6:kube-router-node-ips"]),
        _ => false,
    };
    let is_set = is_one_of(pods, ["kube-router-pod-subnets", "inet6:kube-router-pod-subnets"]);
    is_set && pods == again && nodes && matches!(rule.verdict(), Some(Verdict::Masquerade { .. }))
}

fn is_accept_of_pods(rule: &Rule) -> bool {
    let (way, comment) = match (rule.matches(), rule.verdict()) {
        ([way, Match::Comment(comment)], Some(Verdict::Accept)) => (way, comment),
        // Ours with nftables, which is for answers alone.
        ([way, Match::State { .. }, Match::Comment(comment)], Some(Verdict::Accept)) => (way, comment),
        _ => return false,
    };
    match (&**comment, way) {
        ("allow outbound traffic from pods", Match::InputLink(link))
        | ("allow inbound traffic to pods", Match::OutputLink(link)) => &**link == "kube-bridge",
        ("allow outbound node port traffic on node interface with which node ip is associated", way) => {
            matches!(way, Match::OutputLink(_))
        }
        _ => false,
    }
}

fn is_masquerade(rule: &Rule) -> bool {
    let rest = match rule.matches() {
        [
            Match::Source { range: source, negated: true },
            Match::Destination { range: destination, negated: true },
            rest @ ..,
        ] if source == destination => rest,
        rest => rest,
    };
    let [Match::ByIpvs { .. }, Match::Comment(comment)] = rest else { return false };
    let translates = matches!(rule.verdict(), Some(Verdict::SourceNat { .. } | Verdict::Masquerade { .. }));
    comment.is_empty() && translates
}

#[cfg(test)]
mod tests {
    use super::*;

    const GLOBAL: &str = r#"-m ipvs --vdir ORIGINAL --vmethod MASQ -m comment --comment """#;
    const RANGE: &str =
        r#"! -s 10.244.0.0/24 ! -d 10.244.0.0/24 -m ipvs --vdir ORIGINAL --vmethod MASQ -m comment --comment """#;

    #[test]
    fn kube_routers_masquerade_rules_are_known_by_their_shape() {
        for head in [
            GLOBAL,
            RANGE,
            &RANGE.replace("--vdir", "--ipvs --vdir"),
            &RANGE.replace("10.244.0.0/24", "fd00:10:244::/64"),
        ] {
            for verdict in [
                "SNAT --to-source 192.0.2.1",
                "SNAT --to-source 192.0.2.1 --random-fully",
                "MASQUERADE",
                "MASQUERADE --random-fully",
            ] {
                let rule = Rule::from(format!("{head} -j {verdict}"));
                assert!(Leftovers::Proxy.include(Table::Nat, "POSTROUTING", &rule), "{rule}");
                assert!(!Leftovers::Proxy.include(Table::Nat, "PREROUTING", &rule), "{rule}");
                assert!(!Leftovers::Proxy.include(Table::Mangle, "POSTROUTING", &rule), "{rule}");
                assert!(!Leftovers::Router.include(Table::Nat, "POSTROUTING", &rule), "{rule}");
                assert!(!Leftovers::None.include(Table::Nat, "POSTROUTING", &rule), "{rule}");
            }
        }
    }

    #[test]
    fn rules_of_kube_routers_router_are_known_to_whoever_takes_its_place() {
        let pods = "-m set --match-set kube-router-pod-subnets src -m set ! --match-set kube-router-pod-subnets dst";
        let node = "-m set ! --match-set kube-router-node-ips dst";
        let port = "allow outbound node port traffic on node interface with which node ip is associated";
        let egress = |rule: &str| Leftovers::Router.include(Table::Nat, "POSTROUTING", &rule.into());
        let forward = |rule: &str| Leftovers::Router.include(Table::Filter, "FORWARD", &rule.into());
        for rule in [
            format!("{pods} {node} -j MASQUERADE --random-fully"),
            format!("{pods} {node} -j MASQUERADE"),
            format!("{pods} -j MASQUERADE"),
            format!("{pods} {node} -j MASQUERADE").replace("kube-router", "inet6:kube-router"),
        ] {
            assert!(egress(&rule), "{rule}");
            assert!(
                !Leftovers::Proxy.include(Table::Nat, "POSTROUTING", &rule.as_str().into()),
                "kube-router may be the router still"
            );
        }
        for rule in [
            r#"-i kube-bridge -m comment --comment "allow outbound traffic from pods" -j ACCEPT"#.to_owned(),
            r#"-o kube-bridge -m comment --comment "allow inbound traffic to pods" -j ACCEPT"#.to_owned(),
            format!("-o eth7 -m comment --comment \"{port}\" -j ACCEPT"),
            format!("-o eth7 -m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment \"{port}\" -j ACCEPT"),
        ] {
            assert!(forward(&rule) && !egress(&rule), "{rule}");
        }
        let kept = r#"-i kube-bridge -m comment --comment "allow outbound traffic from pods" -j ACCEPT"#;
        assert!(!Leftovers::RouterEgress.include(Table::Filter, "FORWARD", &kept.into()), "with nftables it is ours");
        for foreign in [
            "-m set --match-set kube-router-pod-subnets src -j KUBE-ROUTER-EGRESS",
            "-m set --match-set kube-router-pod-subnets src -m set ! --match-set other dst -j MASQUERADE",
            "-j KUBE-ROUTER-PODS",
            "-i kube-bridge -j ACCEPT",
            r#"-i docker0 -m comment --comment "allow outbound traffic from pods" -j ACCEPT"#,
        ] {
            assert!(!egress(foreign) && !forward(foreign), "{foreign}");
        }
    }

    #[test]
    fn rules_of_direct_server_return_are_known_by_the_mark_of_the_service_port() {
        let mangle = |chain: &str, rule: &str| Leftovers::Proxy.include(Table::Mangle, chain, &rule.into());
        let marks = "-d 10.0.0.1/32 -p tcp -m tcp --dport 80 -j MARK --set-xmark 0x35c6/0xffffffff";
        let collided = "-d 147.160.180.44/32 -p udp -m udp --dport 80 -j MARK --set-xmark 0x34a/0xffffffff";
        let v6 = "-d 2001:db8::1/128 -p tcp -m tcp --dport 443 -j MARK --set-xmark 0x23a9/0xffffffff";
        for rule in [marks, collided, v6] {
            assert!(mangle("PREROUTING", rule) && mangle("OUTPUT", rule), "{rule}");
            assert!(!mangle("INPUT", rule) && !Leftovers::Router.include(Table::Mangle, "OUTPUT", &rule.into()));
        }
        assert_eq!(service_mark_of(&marks.into()), Some(13766));
        let segments =
            "-s 10.0.0.1/32 -i kube-bridge -p tcp -m tcp --sport 80 --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 1440";
        assert!(mangle("PREROUTING", segments) && !mangle("OUTPUT", segments));
        for foreign in [
            // A mark that an administrator chose for a virtual service of their own.
            "-d 10.0.0.1/32 -p tcp -m tcp --dport 80 -j MARK --set-xmark 0x1/0xffffffff",
            "-d 10.0.0.1/32 -p tcp -m tcp --dport 80 -j MARK --set-xmark 0x35c6/0x3fff",
            "-d 10.0.0.0/24 -p tcp -m tcp --dport 80 -j MARK --set-xmark 0x35c6/0xffffffff",
            "-d 10.0.0.1/32 -p tcp -m tcp --dport 81 -j MARK --set-xmark 0x35c6/0xffffffff",
            "-d 10.0.0.1/32 -p udp -m udp --dport 80 -j MARK --set-xmark 0x35c6/0xffffffff",
            "-d 10.0.0.1/32 -p tcp -m udp --dport 80 -j MARK --set-xmark 0x35c6/0xffffffff",
            "-d 10.0.0.1/32 -p tcp -m tcp --sport 80 -j MARK --set-xmark 0x35c6/0xffffffff",
            "-d 10.0.0.1/32 -p tcp -m tcp --dport 80:81 -j MARK --set-xmark 0x35c6/0xffffffff",
            "-d 10.0.0.1/32 -p tcp -m tcp ! --dport 80 -j MARK --set-xmark 0x35c6/0xffffffff",
            "-s 10.0.0.1/32 -i kube-bridge -p tcp -m tcp --sport 80:81 --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 1440",
            "-d 10.0.0.1/32 -p tcp -m tcp --dport 80 -m comment --comment mine -j MARK --set-xmark 0x35c6/0xffffffff",
            "-i eth0 -d 10.0.0.1/32 -p tcp -m tcp --dport 80 -j MARK --set-xmark 0x35c6/0xffffffff",
            "-d 10.0.0.1/32 -p tcp -m tcp --dport 80 -j ACCEPT",
            "-s 10.0.0.1/32 -i cni0 -p tcp -m tcp --sport 80 --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 1440",
            "-p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 1440",
            "-s 10.0.0.1/32 -i kube-bridge -p tcp -m tcp --sport 80 -j TCPMSS --clamp-mss-to-pmtu",
        ] {
            assert!(!mangle("PREROUTING", foreign) && !mangle("OUTPUT", foreign), "{foreign}");
        }
    }

    #[test]
    fn what_only_looks_alike_is_foreign() {
        let foreign = [
            "-m ipvs --vdir ORIGINAL --vmethod MASQ -j KUBE-ROUTER-SNAT".to_owned(),
            "-m ipvs --vdir ORIGINAL -j KUBE-ROUTER-HAIRPIN".to_owned(),
            "-m ipvs --vdir ORIGINAL --vmethod MASQ -j MASQUERADE".to_owned(),
            "-m ipvs --vdir ORIGINAL --vmethod MASQ -m comment --comment mine -j MASQUERADE".to_owned(),
            format!("{GLOBAL} -j SNAT --to-source 192.0.2.1 --persistent"),
            format!("{GLOBAL} -j ACCEPT"),
            format!("-o eth0 {GLOBAL} -j MASQUERADE"),
            format!("{} -j MASQUERADE", RANGE.replacen("10.244.0.0/24", "10.245.0.0/24", 1)),
            format!("{} -j MASQUERADE", RANGE.replacen("! -s", "-s", 1)),
            String::new(),
        ];
        for rule in foreign.map(Rule::from) {
            assert!(!Leftovers::Proxy.include(Table::Nat, "POSTROUTING", &rule), "{rule}");
        }
    }
}
