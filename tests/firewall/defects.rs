//! Defects of other implementations, one case for each: D1 to D9 and D13 as they were found in kube-router, and the
//! corners that the API's text is easily misread at.

use sluice::firewall::ip_block::Span;
use sluice::firewall::rules::{Element, SetKey};
use sluice::model::{NamedPort, PolicyRule};
use sluice::net::Protocol;

use super::cases::{Case, ELSEWHERE, HERE, address, block, object, pods, pods_in, port, rule};

const NOTHING: Option<&[PolicyRule]> = Some(&[]);

const A: &str = "10.244.1.1";
const B: &str = "10.244.1.2";
const C: &str = "10.244.2.3";

/// Two pods of this node and one of another, with one address each.
fn three() -> Case {
    Case::new()
        .namespace("shop", "team=red")
        .pod("shop/a", HERE, [A, "app=a", ""])
        .pod("shop/b", HERE, [B, "app=b", ""])
        .pod("shop/c", ELSEWHERE, [C, "app=c", ""])
}

#[test]
fn d1_what_may_come_in_may_not_go_out_for_that() {
    let case = three().policy("shop/both", "", [Some(&[rule(&[pods("app=a")], &[])]), NOTHING]);
    case.expect(A, B, "tcp/80", ["denied shop/both", "shop/both 0"]);
    case.expect(B, A, "tcp/80", ["denied shop/both", "denied shop/both"]);
    let reverse = three().policy("shop/both", "", [NOTHING, Some(&[rule(&[pods("app=b")], &[])])]);
    reverse.expect(A, B, "tcp/80", ["shop/both 0", "denied shop/both"]);
}

#[test]
fn d2_a_port_name_that_nobody_has_opens_nothing() {
    let rules = [rule(&[pods("app=c")], &[port("tcp/typo")])];
    let case = three().policy("shop/in", "app=a", [Some(&rules), None]);
    case.expect(C, A, "tcp/80", ["not here", "denied shop/in"]);
    let case = three().policy("shop/out", "app=a", [None, Some(&rules)]);
    case.expect(A, C, "tcp/80", ["denied shop/out", "not here"]);
    // A name in another protocol is no name.
    let rules = [rule(&[], &[port("udp/http")])];
    let case = Case::new().pod("shop/a", HERE, [A, "app=a", "http/tcp/80"]).policy("shop/in", "", [Some(&rules), None]);
    case.expect(C, A, "udp/80", ["not here", "denied shop/in"]);
    case.expect(C, A, "tcp/80", ["not here", "denied shop/in"]);
}

#[test]
fn d3_each_pod_has_its_own_number_for_a_name() {
    let case = Case::new()
        .pod("shop/a", HERE, [A, "app=x", "http/tcp/80 admin/tcp/9000"])
        .pod("shop/b", HERE, [B, "app=x", "http/tcp/8080"])
        .policy("shop/in", "", [Some(&[rule(&[], &[port("tcp/http"), port("tcp/admin")])]), None]);
    case.expect(C, A, "tcp/80", ["not here", "shop/in 0"]);
    case.expect(C, A, "tcp/9000", ["not here", "shop/in 0"]);
    case.expect(C, A, "tcp/8080", ["not here", "denied shop/in"]);
    case.expect(C, B, "tcp/8080", ["not here", "shop/in 0"]);
    case.expect(C, B, "tcp/80", ["not here", "denied shop/in"]);
    case.expect(C, B, "tcp/9000", ["not here", "denied shop/in"]);
}

#[test]
fn d4_a_hole_stays_inside_its_own_block() {
    let peers = [block("203.0.113.0/24", &["203.0.113.8/29"]), block("203.0.113.9/32", &[])];
    let case = three().policy("shop/in", "app=a", [Some(&[rule(&peers, &[])]), None]);
    case.expect("203.0.113.1", A, "tcp/80", ["not here", "shop/in 0"]);
    case.expect("203.0.113.8", A, "tcp/80", ["not here", "denied shop/in"]);
    case.expect("203.0.113.9", A, "tcp/80", ["not here", "shop/in 0"]);
    // The same text twice, once with a hole.
    let peers = [block("203.0.113.0/24", &[]), block("203.0.113.0/24", &["203.0.113.8/29"])];
    let case = three().policy("shop/in", "app=a", [Some(&[rule(&peers, &[])]), None]);
    case.expect("203.0.113.8", A, "tcp/80", ["not here", "shop/in 0"]);
}

#[test]
fn d5_blocks_that_overlap_are_one_set_of_disjoint_ranges() {
    let peers = [block("0.0.0.0/0", &[]), block("10.0.0.0/8", &["10.1.0.0/16"]), block("10.1.0.0/24", &[])];
    let case = three().policy("shop/in", "app=a", [Some(&[rule(&peers, &[])]), None]);
    case.expect("10.1.0.1", A, "tcp/80", ["not here", "shop/in 0"]);
    let rules = case.rules();
    let contents = rules.sets.values().next().expect("the set of the blocks");
    let everything = Span::from("0.0.0.0/0".parse::<ipnet::IpNet>().unwrap());
    assert_eq!((&*contents.ranges.v4, contents.len()), (&[everything][..], 1));
}

#[test]
fn d6_all_of_ipv6_is_all_of_it() {
    let own = "fd00:10:244::1";
    let case = Case::new().pod("shop/a", HERE, [own, "", ""]).policy(
        "shop/in",
        "",
        [Some(&[rule(&[block("::/0", &[])], &[])]), None],
    );
    for outside in ["64:ff9b::1", "fc00::1", "ff02::1", "2001:db8:113::1", "::1"] {
        case.expect(outside, own, "tcp/80", ["not here", "shop/in 0"]);
    }
    // Nobody can tell whose this is.
    case.expect("fe80::1", own, "tcp/80", ["link-local", "link-local"]);
}

#[test]
fn d7_what_a_policy_allowed_goes_with_it() {
    let before = three().policy("shop/deny", "app=a", [NOTHING, None]).policy(
        "shop/open",
        "app=a",
        [Some(&[rule(&[], &[])]), None],
    );
    before.expect(C, A, "tcp/80", ["not here", "shop/open 0"]);
    let mut plan = sluice::firewall::plan::Plan::new();
    plan.update(&before.0);
    let mut after = before;
    after.0.cluster.policies.remove(&object("shop/open"));
    plan.update(&after.0);
    assert_eq!(*plan.rules(), after.rules(), "nothing is left behind");
    after.expect(C, A, "tcp/80", ["not here", "denied shop/deny"]);
}

#[test]
fn d8_a_set_has_no_largest_size_and_troubles_no_other() {
    let mut case = three().policy("shop/in", "app=a", [Some(&[rule(&[pods("app=many")], &[])]), None]).policy(
        "shop/other",
        "app=b",
        [Some(&[rule(&[pods("app=c")], &[])]), None],
    );
    for number in 0..70_000u32 {
        let address = std::net::Ipv4Addr::from(0x0A80_0000 + number).to_string();
        case = case.pod(&format!("shop/many-{number}"), ELSEWHERE, [&address, "app=many", ""]);
    }
    let rules = case.rules();
    let sizes: Vec<usize> = rules.sets.values().map(sluice::firewall::rules::Contents::len).collect();
    assert_eq!(sizes, [1, 70_000]);
    case.expect("10.129.17.111", A, "tcp/80", ["not here", "shop/in 0"]);
    case.expect(C, B, "tcp/80", ["not here", "shop/other 0"]);
}

#[test]
fn d9_names_that_run_together_stay_apart() {
    let case = Case::new()
        .pod("a/pod", HERE, [A, "", ""])
        .pod("ab/pod", HERE, [B, "", ""])
        .policy("a/bc", "", [Some(&[rule(&[], &[port("tcp/80")])]), None])
        .policy("ab/c", "", [Some(&[rule(&[], &[port("tcp/443")])]), None]);
    case.expect(C, A, "tcp/80", ["not here", "a/bc 0"]);
    case.expect(C, A, "tcp/443", ["not here", "denied a/bc"]);
    case.expect(C, B, "tcp/443", ["not here", "ab/c 0"]);
    case.expect(C, B, "tcp/80", ["not here", "denied ab/c"]);
}

#[test]
fn d13_a_named_port_of_egress_without_peers_means_every_pod_by_its_own_number() {
    let case = Case::new()
        .pod("shop/a", HERE, [A, "", ""])
        .pod("shop/b", HERE, [B, "", "http/tcp/80"])
        .pod("other/c", ELSEWHERE, [C, "", "http/tcp/8080"])
        .policy("shop/out", "", [None, Some(&[rule(&[], &[port("tcp/http")])])]);
    case.expect(A, B, "tcp/80", ["shop/out 0", "open"]);
    case.expect(A, B, "tcp/8080", ["denied shop/out", "open"]);
    case.expect(A, C, "tcp/8080", ["shop/out 0", "not here"]);
    case.expect(A, C, "tcp/80", ["denied shop/out", "not here"]);
    case.expect(A, "203.0.113.1", "tcp/80", ["denied shop/out", "not here"]);
}

#[test]
fn a_named_port_of_egress_to_a_block_means_the_pods_inside_it() {
    let case = Case::new()
        .pod("shop/a", HERE, [A, "", ""])
        .pod("shop/b", HERE, [B, "", "http/tcp/80"])
        .pod("other/c", ELSEWHERE, [C, "", "http/tcp/80"])
        .policy("shop/out", "", [None, Some(&[rule(&[block("10.244.2.0/24", &[])], &[port("tcp/http")])])]);
    case.expect(A, C, "tcp/80", ["shop/out 0", "not here"]);
    case.expect(A, B, "tcp/80", ["denied shop/out", "open"]);
    case.expect(A, "10.244.2.9", "tcp/80", ["denied shop/out", "not here"]);
}

#[test]
fn a_pod_with_both_families_is_isolated_and_reached_in_both() {
    let (own, peer) = ("fd00:10:244:1::1", "fd00:10:244:2::3");
    let case = Case::new()
        .pod("shop/a", HERE, [&format!("{A} {own}"), "app=a", "http/tcp/80"])
        .pod("shop/c", ELSEWHERE, [&format!("{C} {peer}"), "app=c", ""])
        .policy("shop/in", "app=a", [Some(&[rule(&[pods("app=c")], &[port("tcp/http")])]), None]);
    case.expect(C, A, "tcp/80", ["not here", "shop/in 0"]);
    case.expect(peer, own, "tcp/80", ["not here", "shop/in 0"]);
    case.expect(peer, own, "tcp/81", ["not here", "denied shop/in"]);
    case.expect("2001:db8:113::1", own, "tcp/80", ["not here", "denied shop/in"]);
}

#[test]
fn a_finished_pod_leaves_its_address_to_the_next() {
    let case = three()
        .policy("shop/in", "app=a", [Some(&[rule(&[pods("app=old")], &[])]), None])
        .pod("shop/old", ELSEWHERE, [C, "app=old", ""])
        .edit_pod("shop/old", |pod| pod.finished = true);
    case.expect(C, A, "tcp/80", ["not here", "denied shop/in"]);
    // And a finished pod is no target: its address is another's.
    let case = three()
        .pod("shop/old", HERE, [B, "app=old", ""])
        .edit_pod("shop/old", |pod| pod.finished = true)
        .policy("shop/in", "app=old", [NOTHING, None]);
    case.expect(C, B, "tcp/80", ["not here", "open"]);
}

#[test]
fn an_address_that_two_running_pods_have_has_the_rights_of_both() {
    let twins = |first: &str, second: &str| {
        three()
            .pod("shop/x", ELSEWHERE, ["10.244.2.9", first, "http/tcp/80"])
            .pod("shop/y", ELSEWHERE, ["10.244.2.9", second, "http/tcp/80"])
            .policy("shop/a", "app=a", [Some(&[rule(&[pods("role=client")], &[])]), None])
            .policy("shop/b", "app=b", [None, Some(&[rule(&[], &[port("tcp/http")])])])
    };
    twins("role=client", "role=client").expect("10.244.2.9", A, "tcp/80", ["not here", "shop/a 0"]);
    twins("role=client", "role=other").expect("10.244.2.9", A, "tcp/80", ["not here", "denied shop/a"]);
    twins("", "").expect(B, "10.244.2.9", "tcp/80", ["shop/b 0", "not here"]);
    let differ = twins("", "").edit_pod("shop/y", |pod| {
        pod.ports = [NamedPort { name: "http".into(), protocol: Protocol::Tcp, number: 81 }].into();
    });
    differ.expect(B, "10.244.2.9", "tcp/80", ["denied shop/b", "not here"]);
    differ.expect(B, "10.244.2.9", "tcp/81", ["denied shop/b", "not here"]);
}

#[test]
fn two_pods_of_this_node_with_one_address_have_to_agree() {
    let case = three()
        .pod("shop/z", HERE, [A, "app=z", ""])
        .policy("shop/web", "app=a", [Some(&[rule(&[], &[port("tcp/80"), port("tcp/443")])]), None])
        .policy("shop/z", "app=z", [Some(&[rule(&[], &[port("tcp/443")])]), None]);
    case.expect(C, A, "tcp/443", ["not here", "shop/web 0"]);
    case.expect(C, A, "tcp/80", ["not here", "denied shop/z"]);
}

#[test]
fn pods_with_their_node_s_network_are_neither_targets_nor_peers() {
    let node = "192.0.2.12";
    let case = three()
        .pod("shop/node", ELSEWHERE, [node, "app=node", ""])
        .edit_pod("shop/node", |pod| pod.host_network = true)
        .policy("shop/in", "", [Some(&[rule(&[pods("app=node")], &[])]), None]);
    case.expect(node, A, "tcp/80", ["not here", "denied shop/in"]);
    let by_address = three().policy("shop/in", "", [Some(&[rule(&[block("192.0.2.12/32", &[])], &[])]), None]);
    by_address.expect(node, A, "tcp/80", ["not here", "shop/in 0"]);
}

#[test]
fn the_own_node_always_reaches_its_pods_and_no_other_node_does() {
    let case = three().policy("shop/deny", "", [NOTHING, NOTHING]);
    case.expect("192.0.2.11", A, "tcp/80", ["not here", "exempt"]);
    case.expect("192.0.2.12", A, "tcp/80", ["not here", "denied shop/deny"]);
    case.expect(A, "192.0.2.11", "tcp/80", ["denied shop/deny", "not here"]);
    case.expect(A, A, "tcp/80", ["exempt", "exempt"]);
    case.expect(C, A, "icmp/8", ["not here", "exempt"]);
    case.expect(C, A, "icmp/13", ["not here", "denied shop/deny"]);
}

#[test]
fn where_a_pod_runs_decides_that_it_is_local_and_not_its_address() {
    let case = three().policy("shop/deny", "", [NOTHING, None]).edit_pod("shop/c", |pod| pod.node = None).pod(
        "shop/d",
        HERE,
        ["203.0.113.77", "", ""],
    );
    case.expect(A, C, "tcp/80", ["open", "not here"]);
    case.expect(A, "203.0.113.77", "tcp/80", ["open", "denied shop/deny"]);
}

#[test]
fn protocols_are_never_taken_for_each_other() {
    let rules = [rule(&[], &[port("sctp/80"), port("udp/*")])];
    let case = three().policy("shop/in", "app=a", [Some(&rules), None]);
    case.expect(C, A, "sctp/80", ["not here", "shop/in 0"]);
    case.expect(C, A, "tcp/80", ["not here", "denied shop/in"]);
    case.expect(C, A, "udp/53", ["not here", "shop/in 0"]);
    case.expect(C, A, "sctp/81", ["not here", "denied shop/in"]);
}

#[test]
fn peers_of_one_rule_are_alternatives_and_selectors_of_one_peer_are_not() {
    let case = |rules: &[PolicyRule]| {
        three()
            .namespace("red", "team=red")
            .namespace("blue", "team=blue")
            .pod("red/web", ELSEWHERE, ["10.244.2.10", "app=web", ""])
            .pod("red/db", ELSEWHERE, ["10.244.2.11", "app=db", ""])
            .pod("blue/web", ELSEWHERE, ["10.244.2.12", "app=web", ""])
            .policy("shop/in", "app=a", [Some(rules), None])
    };
    let both = case(&[rule(&[pods_in("team=red", "app=web")], &[])]);
    both.expect("10.244.2.10", A, "tcp/80", ["not here", "shop/in 0"]);
    both.expect("10.244.2.11", A, "tcp/80", ["not here", "denied shop/in"]);
    both.expect("10.244.2.12", A, "tcp/80", ["not here", "denied shop/in"]);
    let either = case(&[rule(&[pods_in("team=red", ""), pods_in("", "app=web")], &[])]);
    for source in ["10.244.2.10", "10.244.2.11", "10.244.2.12"] {
        either.expect(source, A, "tcp/80", ["not here", "shop/in 0"]);
    }
    either.expect(C, A, "tcp/80", ["not here", "shop/in 0"]);
    let own = case(&[rule(&[pods("app=web")], &[])]);
    own.expect("10.244.2.10", A, "tcp/80", ["not here", "denied shop/in"]);
}

#[test]
fn the_rule_that_decides_is_named_by_its_place_in_the_policy() {
    let rules =
        [rule(&[pods("app=nobody")], &[]), rule(&[pods("app=c")], &[port("tcp/443")]), rule(&[], &[port("tcp/80")])];
    let case = three().policy("shop/in", "app=a", [Some(&rules), None]);
    case.expect(C, A, "tcp/443", ["not here", "shop/in 1"]);
    case.expect(C, A, "tcp/80", ["not here", "shop/in 2"]);
}

#[test]
fn only_what_concerns_this_node_is_compiled() {
    let case = three()
        .policy("shop/here", "app=a", [Some(&[rule(&[pods("app=c")], &[port("tcp/http")])]), None])
        .policy("shop/there", "app=c", [Some(&[rule(&[pods("app=a")], &[])]), None]);
    let rules = case.rules();
    assert_eq!(rules.pods.keys().collect::<Vec<_>>(), [&object("shop/a"), &object("shop/b")]);
    assert!(rules.policies.keys().all(|key| key.policy == object("shop/here")));
    assert_eq!(rules.sets.len(), 2, "the peers of one policy, and the named port of the pods of this node");
}

#[test]
fn policies_that_ask_the_same_share_one_set() {
    let mut case = three();
    for (name, target) in [("shop/one", "app=a"), ("shop/two", "app=b")] {
        let rules = [rule(&[pods("app=c")], &[port("tcp/80")]), rule(&[pods("app=c")], &[])];
        case = case.policy(name, target, [Some(&rules), Some(&rules)]);
    }
    let rules = case.rules();
    assert_eq!(rules.sets.len(), 1);
    let (set, contents) = rules.sets.iter().next().expect("one set");
    assert!(matches!(**set, SetKey::Pods(_)));
    assert_eq!(contents.elements.v4.iter().collect::<Vec<_>>(), [&Element::Address(address(C))]);
}
