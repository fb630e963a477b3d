//! Answers as they are printed.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::*;
use crate::bgp::message::{AsPath, Attributes, Community, Notification, Reason};
use crate::bgp::policy::{Decision, Line, Policy, Statement};
use crate::bgp::rib::{Advertisement, Count, PathState, Policies, Refusal, Standing, Step, Withheld};
use crate::bgp::session::{Cause, State};
use crate::bgp::speaker::{FailureCause, Idle};
use crate::kernel::link::LinkName;
use crate::kernel::route::{NextHop, Route, RouteKind};
use crate::net::{LinkLocal, LinkNames};
use crate::router::drain::Stage;
use crate::router::problem::About;

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn prefix(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

fn known() -> PeersKnown {
    let sources = [
        (address("192.0.2.2"), PeerSource::Node("node-2".into())),
        (address("192.0.2.254"), PeerSource::Flags),
        (address("2001:db8::fe"), PeerSource::Annotation),
    ];
    PeersKnown {
        authority: Authority::Complete,
        node_routes: NodeRoutes::Bgp,
        outside: Outside { stage: Stage::Announced, is_sent: true, has_addresses: true, holds_for_nodes: false },
        sources: sources.into(),
        links: LinkNames::default(),
        problems: Vec::new(),
    }
}

fn policies() -> Policies {
    let statement = |name: &str| Statement { name: name.to_owned(), ..Statement::default() };
    let policy = |name: &str, lines: &[&str]| {
        let statements = lines.iter().map(|line| statement(line)).collect();
        Arc::new(Policy { name: name.to_owned(), statements, otherwise: Decision::Reject })
    };
    Policies {
        import: policy("kube_router_import1", &["servicevipsdefinedsetallpeerset", "podcidrdefinedsetallpeerset"]),
        export: policy("kube_router_export1", &["podcidrdefinedsetiBGPpeerset"]),
    }
}

fn neighbour(text: &str, state: State) -> NeighbourState {
    let last = text.chars().last().and_then(|last| last.to_digit(16)).unwrap_or_default();
    NeighbourState {
        address: address(text),
        name: text.to_owned(),
        id: PeerId(PeerId::FIRST.0 + last),
        asn: Some(65001),
        is_internal: true,
        is_client: false,
        has_password: false,
        state,
        since: Duration::from_secs(192),
        has_been_up: state == State::Established,
        flops: 0,
        families: PerFamily { v4: true, v6: true },
        counts: PerFamily::default(),
        stale: PerFamily::default(),
        long_lived: PerFamily::default(),
        is_told: true,
        idle: None,
        next_dial: None,
        is_passive: false,
        last_failure: None,
        path: None,
    }
}

fn speaker() -> SpeakerState {
    SpeakerState { asn: 65001, identifier: [192, 0, 2, 1].into(), is_restarting: false, prefixes: 3, groups: 1 }
}

fn peers() -> Peers {
    let used = |received, used| Count { received, used, stale: 0 };
    let up = NeighbourState {
        has_password: true,
        counts: PerFamily { v4: used(3, 2), v6: used(1, 1) },
        ..neighbour("192.0.2.2", State::Established)
    };
    let refused = FailureCause::Dial("connect to 192.0.2.254:179: Connection refused (os error 111)".into());
    let dialled = NeighbourState {
        last_failure: Some((refused, Duration::from_secs(5))),
        next_dial: Some(Duration::from_secs(12)),
        asn: Some(65002),
        ..neighbour("192.0.2.254", State::Active)
    };
    let said = Cause::Received(Notification::with_text(Reason::SHUTDOWN, "maintenance"));
    let shut = NeighbourState {
        last_failure: Some((FailureCause::Ended(said), Duration::from_secs(3700))),
        has_been_up: true,
        families: PerFamily { v4: false, v6: true },
        ..neighbour("2001:db8::fe", State::Idle)
    };
    let stopped = NeighbourState { idle: Some(Idle::Stopped), asn: None, ..neighbour("198.51.100.7", State::Idle) };
    let announced = BTreeMap::from([(up.id, PerFamily { v4: 4, v6: 1 })]);
    let mut known = known();
    known.problems.push(Problem::new(About::Node("node-3".into()), "it has no usable InternalIP or ExternalIP"));
    let neighbours = vec![up, dialled, stopped, shut];
    Peers { speaker: Some(speaker()), neighbours, announced: Some(announced), known }
}

#[test]
fn neighbours_are_a_table_and_below_it_why_each_has_no_session() {
    let expected = "\
AS 65001, identifier 192.0.2.1, 3 prefixes
NEIGHBOUR     AS     STATE        SINCE  FAMILIES   RECEIVED  ACCEPTED  ANNOUNCED  PASSWORD  FROM
192.0.2.2     65001  Established  3 min  IPv4,IPv6  4         3         5          yes       Node node-2
192.0.2.254   65002  Active       never  IPv4,IPv6  0         0         0          no        --peer-router-ips
198.51.100.7  any    Idle         never  IPv4,IPv6  0         0         0          no        gobgp neighbor add
2001:db8::fe  65001  Idle         3 min  IPv6       0         0         0          no        annotation of this Node
192.0.2.254: not established: last dial failed 5 s ago: connect to 192.0.2.254:179: Connection refused (os error 111); next dial in 12 s
198.51.100.7: not established: stopped by an operator (gobgp neighbor enable starts it)
2001:db8::fe: not established: last connection ended 1 h 1 min ago: it said 6/2 administrative shutdown: maintenance
Node node-3: it has no usable InternalIP or ExternalIP
";
    assert_eq!(peers_text(&peers()), expected);
}

#[test]
fn neighbours_in_json_have_the_same() {
    let answer: Value = serde_json::from_str(&peers_json(&peers())).expect("JSON");
    let all = answer["neighbours"].as_array().expect("a list");
    assert_eq!(all[0]["announced"]["ipv4"], 4);
    assert_eq!((all[0]["password"].as_bool(), all[1]["password"].as_bool()), (Some(true), Some(false)));
    assert_eq!((all[0]["received"]["ipv6"].as_u64(), all[0]["accepted"]["ipv4"].as_u64()), (Some(1), Some(2)));
    assert_eq!((all[1]["state"].as_str(), all[1]["reasons"][1].as_str()), (Some("Active"), Some("next dial in 12 s")));
    assert_eq!(all[3]["source"], "annotation of this Node");
    assert_eq!(answer["problems"][0]["about"], "Node node-3");
    let uncounted = Peers { announced: None, ..peers() };
    let answer: Value = serde_json::from_str(&peers_json(&uncounted)).expect("JSON");
    assert_eq!(answer["neighbours"][0]["announced"], Value::Null);
    assert!(peers_text(&uncounted).contains("  4         3         -          yes       Node node-2"));
}

#[test]
fn without_a_speaker_its_problems_are_named() {
    let mut known = known();
    known.authority = Authority::Remembered;
    known.problems.push(Problem::new(About::Speaker, "this node has no AS number"));
    let peers = Peers { speaker: None, neighbours: Vec::new(), announced: None, known };
    let expected = "\
known of the cluster: remembered: from the last known state of an earlier run
BGP does not run on this node
BGP: this node has no AS number
";
    assert_eq!(peers_text(&peers), expected);
}

/// The identifiers of neighbours .2 and .254, and of one over IPv6.
const NODE: PeerId = PeerId(4);
const ROUTER: PeerId = PeerId(6);
const SIX: PeerId = PeerId(16);

fn path(source: PeerId, path: &[u32], next_hop: &str, standing: Standing) -> PathState {
    let mut attributes = Attributes::local(address(next_hop));
    attributes.as_path = AsPath::sequence(path);
    let received = Arc::new(attributes);
    let used = (!matches!(standing, Standing::Refused(_))).then(|| received.clone());
    let is_in_use = matches!(standing, Standing::Best(_));
    PathState { source, received, used, age: Duration::from_secs(70), is_stale: false, standing, is_in_use }
}

fn in_kernel(route: RouteInKernel, next_hops: &[(&str, Option<NoWay>)]) -> InKernel {
    let next_hops = next_hops.iter().map(|(next_hop, why)| (address(next_hop), *why)).collect();
    InKernel { route, next_hops, given_by: Vec::new(), in_the_way: Vec::new() }
}

fn route_via(gateway: &str) -> Arc<Route> {
    let next_hops = [NextHop { link: LinkName("eth0".into()), gateway: Some(address(gateway)), on_link: false }].into();
    Arc::new(Route { kind: RouteKind::Unicast, protocol: 17, source: None, next_hops })
}

fn routes(why: bool, prefixes: Vec<(PrefixState, InKernel)>) -> Routes {
    let addresses = [(NODE, "192.0.2.2"), (ROUTER, "192.0.2.254"), (SIX, "2001:db8::fe")];
    Routes {
        question: Question { selected: PrefixQuery::All, why },
        is_restarting: false,
        prefixes,
        left_off: 0,
        addresses: addresses.map(|(id, text)| (id, address(text))).into(),
        known: known(),
    }
}

fn state(text: &str, paths: Vec<PathState>, told: Option<Advertisement>) -> PrefixState {
    let next_hops = paths.iter().filter(|path| path.is_in_use).map(|path| path.received.next_hop).collect();
    PrefixState { prefix: prefix(text), paths, paths_left_off: 0, next_hops, told, policies: policies() }
}

fn several(why: bool) -> Vec<(PrefixState, InKernel)> {
    let best = Standing::Best(Line::Default);
    let mut sent = Attributes::local(address("192.0.2.1"));
    sent.communities = [Community(65001 << 16 | 7)].into();
    let told = Advertisement {
        neighbours: vec![
            (NODE, Ok(Arc::new(sent))),
            (ROUTER, Err(Withheld::Source)),
            (SIX, Err(Withheld::Policy(Line::Default))),
        ],
        others: (3, 1),
    };
    let lost = Standing::Lost { step: Step::AsPathLength, by: ROUTER };
    let first = state(
        "203.0.113.0/24",
        vec![path(ROUTER, &[65002], "192.0.2.254", best), path(NODE, &[65003, 65004], "192.0.2.2", lost)],
        why.then_some(told),
    );
    let refused = Standing::Refused(Refusal::Policy(Line::Statement(0)));
    let second = state("fd00:10:96::9/128", vec![path(SIX, &[65002], "2001:db8::fe", refused)], None);
    let own = path(PeerId::LOCAL, &[], "192.0.2.1", best);
    let third = state("10.244.1.0/24", vec![own], why.then(Advertisement::default));
    let far = state("198.51.100.0/24", vec![path(ROUTER, &[65002], "192.0.2.254", best)], None);
    vec![
        (first, in_kernel(RouteInKernel::InPlace(route_via("192.0.2.254")), &[("192.0.2.254", None)])),
        (second, in_kernel(RouteInKernel::Absent, &[])),
        (third, in_kernel(RouteInKernel::Absent, &[])),
        (far, in_kernel(RouteInKernel::Absent, &[("192.0.2.254", Some(NoWay::RouterElsewhere))])),
    ]
}

#[test]
fn routes_are_a_table_with_a_line_for_each() {
    let expected = "\
PREFIX             FROM                     NEXT HOP      AS PATH      STATE
203.0.113.0/24     192.0.2.254              192.0.2.254   65002        best, in the kernel
203.0.113.0/24     192.0.2.2 (Node node-2)  192.0.2.2     65003 65004  lost
fd00:10:96::9/128  2001:db8::fe             2001:db8::fe  65002        refused
10.244.1.0/24      this node                192.0.2.1     -            best
198.51.100.0/24    192.0.2.254              192.0.2.254   65002        best, no way to the next hop
1999 more prefixes; name one to see it
";
    let routes = Routes { left_off: 1999, ..routes(false, several(false)) };
    assert_eq!(routes_text(&routes), expected);
}

#[test]
fn with_reasons_each_route_says_what_decided() {
    let expected = "\
203.0.113.0/24
  from 192.0.2.254, 1 min: best; accepted by import policy kube_router_import1, which has no line for it
    next hop 192.0.2.254, AS path 65002, origin igp
  from 192.0.2.2 (Node node-2), 1 min: lost to the one from 192.0.2.254 at AS_PATH length: 2, not 1
    next hop 192.0.2.2, AS path 65003 65004, origin igp
  kernel: in place: via 192.0.2.254 dev eth0
  to 192.0.2.2 (Node node-2): announced with next hop 192.0.2.1, empty AS path, origin igp, communities 65001:7
  to 192.0.2.254: not announced: the best route is its own
  to 2001:db8::fe: not announced: rejected by export policy kube_router_export1, which has no line for it
  to 4 more neighbours: announced to 3 of them
fd00:10:96::9/128
  from 2001:db8::fe, 1 min: refused: rejected by import policy kube_router_import1, line 1 servicevipsdefinedsetallpeerset
    next hop 2001:db8::fe, AS path 65002, origin igp
  kernel: no route: none is used
10.244.1.0/24
  from this node, 1 min: best; accepted by import policy kube_router_import1, which has no line for it
    next hop 192.0.2.1, empty AS path, origin igp
  kernel: no route: the prefix is this node's own
  announced to nobody: no neighbour has a session
198.51.100.0/24
  from 192.0.2.254, 1 min: best; accepted by import policy kube_router_import1, which has no line for it
    next hop 192.0.2.254, AS path 65002, origin igp
  kernel: no route
  kernel: not used: 192.0.2.254 is on no link of this host
";
    assert_eq!(routes_text(&routes(true, several(true))), expected);
}

#[test]
fn routes_in_json_have_the_same() {
    let answer: Value = serde_json::from_str(&routes_json(&routes(true, several(true)))).expect("JSON");
    let all = answer["prefixes"].as_array().expect("a list");
    assert_eq!(all.len(), 4);
    let lost = &all[0]["paths"][1];
    assert_eq!((lost["standing"].as_str(), lost["lost"]["step"].as_str()), (Some("lost"), Some("AS_PATH length")));
    assert_eq!(
        (all[0]["kernel"]["standing"].as_str(), all[0]["kernel"]["seen"].as_str()),
        (Some("inPlace"), Some("via 192.0.2.254 dev eth0"))
    );
    let told = &all[0]["neighbours"];
    assert_eq!(
        (told[0]["announced"].as_bool(), told[1]["reason"].as_str()),
        (Some(true), Some("the best route is its own"))
    );
    assert_eq!(all[0]["neighboursLeftOff"]["announced"], 3);
    assert_eq!(
        (all[1]["paths"][0]["used"].clone(), all[1]["kernel"]["reasons"][0].as_str()),
        (Value::Null, Some("no route: none is used"))
    );
}

#[test]
fn next_hops_of_routers_behind_interfaces_are_told_with_the_name_of_the_link_in_every_form_of_the_answer() {
    let inside = LinkLocal::new("fe80::2".parse().expect("an address"), 7).expect("a link-local one").combined();
    let text = inside.to_string();
    let best = path(ROUTER, &[65002], &text, Standing::Best(Line::Default));
    let lost = path(NODE, &[], &text, Standing::Unreachable);
    let refused = path(SIX, &[], &text, Standing::Refused(Refusal::OwnNextHop(inside)));
    let told = Advertisement {
        neighbours: vec![(NODE, Err(Withheld::NextHop(inside))), (SIX, Ok(Arc::new(Attributes::local(inside))))],
        others: (0, 0),
    };
    let state = state("203.0.113.0/24", vec![best, lost, refused], Some(told));
    let kernel = in_kernel(RouteInKernel::Absent, &[(&text, Some(NoWay::RouterElsewhere))]);
    for why in [false, true] {
        let mut routes = routes(why, vec![(state.clone(), kernel.clone())]);
        routes.known.links = LinkNames([(7, "eth1".into())].into());
        for answer in [routes_text(&routes), routes_json(&routes)] {
            assert!(!answer.contains(&text), "{answer}");
            assert!(answer.contains("fe80::2%eth1"), "{answer}");
        }
    }
}

#[test]
fn each_state_of_the_kernel_has_its_sentence() {
    let best =
        || state("203.0.113.0/24", vec![path(ROUTER, &[65002], "192.0.2.254", Standing::Best(Line::Default))], None);
    let (desired, seen) = (route_via("192.0.2.254"), route_via("192.0.2.2"));
    for (route, table, sentence) in [
        (
            RouteInKernel::Waiting { desired: desired.clone(), seen: None },
            "about to be written",
            "about to get via 192.0.2.254 dev eth0",
        ),
        (
            RouteInKernel::Waiting { desired: desired.clone(), seen: Some(seen.clone()) },
            "about to be written",
            "has via 192.0.2.2 dev eth0, about to get via 192.0.2.254 dev eth0",
        ),
        (
            RouteInKernel::Failed { desired, error: "add route: Network is unreachable".into() },
            "refused by the kernel",
            "the first one with: add route: Network is unreachable",
        ),
        (RouteInKernel::Kept(seen), "an earlier route is in the kernel", "which is not wanted any more"),
        (
            RouteInKernel::Unread("list routes: no answer".into()),
            "kernel not read",
            "routes cannot be read: list routes",
        ),
    ] {
        let hops = &[("192.0.2.254", None)];
        let text = routes_text(&routes(false, vec![(best(), in_kernel(route.clone(), hops))]));
        assert!(text.contains(&format!("best, {table}\n")), "{text}");
        let text = routes_text(&routes(true, vec![(best(), in_kernel(route, hops))]));
        assert!(text.contains(sentence), "{text}");
    }
    let rival = "another program's route comes first: 203.0.113.0/24 proto 4 metric 0 dev eth1";
    let kernel = InKernel {
        in_the_way: vec![rival.to_owned()],
        ..in_kernel(RouteInKernel::InPlace(route_via("192.0.2.254")), &[("192.0.2.254", None)])
    };
    let text = routes_text(&routes(true, vec![(best(), kernel)]));
    assert!(text.contains(&format!("  kernel: {rival}\n")), "{text}");
}

#[test]
fn a_route_that_node_objects_give_names_them_in_every_form_of_the_answer() {
    for (range, gateway) in [("10.244.2.0/24", "192.0.2.2"), ("fd00:10:244:2::/64", "2001:db8::2")] {
        let kernel = InKernel {
            given_by: vec!["node-2".into()],
            ..in_kernel(RouteInKernel::InPlace(route_via(gateway)), &[(gateway, None)])
        };
        let given = || vec![(PrefixState::without_paths(prefix(range)), kernel.clone())];
        let table = routes_text(&routes(false, given()));
        let words: Vec<&str> = table.lines().nth(1).expect("a line").split_whitespace().collect();
        assert_eq!(words.join(" "), format!("{range} Node node-2 {gateway} - given, in the kernel"));
        let expected = format!(
            "{range}\n  from Node node-2: next hop {gateway}; given by the Node object (--node-routes=api), whatever neighbours say\n  \
             kernel: in place: via {gateway} dev eth0\n"
        );
        assert_eq!(routes_text(&routes(true, given())), expected);
        let answer: Value = serde_json::from_str(&routes_json(&routes(true, given()))).expect("JSON");
        let answered = &answer["prefixes"][0];
        assert_eq!(
            (&answered["givenByNodes"][0], &answered["kernel"]["standing"]),
            (&"node-2".into(), &"inPlace".into())
        );
    }
}

#[test]
fn the_neighbours_say_that_the_node_drains() {
    let mut peers = peers();
    assert!(!peers_text(&peers).contains("drains"));
    for (stage, word, text) in [
        (Stage::Leaving, "leaving", "announced with GRACEFUL_SHUTDOWN and about to be withdrawn\n"),
        (Stage::Withdrawn, "withdrawn", "this node drains: service addresses are withdrawn from routers outside\n"),
    ] {
        peers.known.outside.stage = stage;
        assert!(peers_text(&peers).contains(text));
        let answer: Value = serde_json::from_str(&peers_json(&peers)).expect("JSON");
        assert_eq!(answer["serviceAddresses"], word);
    }
}

#[test]
fn the_neighbours_say_where_routes_to_pods_come_from() {
    let mut peers = peers();
    assert!(!peers_text(&peers).contains("--node-routes"));
    peers.known.node_routes = NodeRoutes::Api;
    let of_objects = "routes to pods of other nodes come from Node objects (--node-routes=api); ";
    let with_one = format!("{of_objects}sessions with nodes are those of nodes that have --node-routes=bgp\n");
    assert!(peers_text(&peers).contains(&with_one));
    peers.known.sources.retain(|_, source| !matches!(source, PeerSource::Node(_)));
    assert!(peers_text(&peers).contains(&format!("{of_objects}nodes have no sessions\n")));
    let answer: Value = serde_json::from_str(&peers_json(&peers)).expect("JSON");
    assert_eq!(answer["nodeRoutes"], "api");
}

#[test]
fn an_answer_with_long_attributes_stays_bounded() {
    let long = || {
        let mut best = path(ROUTER, &[64700; 10_000], "192.0.2.254", Standing::Best(Line::Default));
        let mut attributes = Attributes::clone(&best.received);
        attributes.communities = (0..10_000).map(Community).collect();
        (best.received, best.used) = (Arc::new(attributes), None);
        best
    };
    let one = || (state("203.0.113.0/24", vec![long()], None), in_kernel(RouteInKernel::Absent, &[]));
    let text = routes_text(&routes(false, vec![one()]));
    assert!(text.lines().all(|line| line.len() < 200) && text.contains("64700 …"), "{text}");
    let text = routes_text(&routes(true, vec![one()]));
    assert!(text.len() < 2000 && text.contains(" and 9984 more"), "{text}");
    let answer: Value = serde_json::from_str(&routes_json(&routes(true, vec![one()]))).expect("JSON");
    let received = &answer["prefixes"][0]["paths"][0]["received"];
    assert_eq!(
        (received["communities"].as_array().map(Vec::len), received["membersLeftOff"].as_u64()),
        (Some(16), Some(9984))
    );
    // A prefix with very many routes, often enough to be too long.
    let wide = || {
        let mut all = one();
        all.0.paths = vec![long(); 64];
        all
    };
    let many = routes(true, (0..400).map(|_| wide()).collect());
    let answer = routes_json(&many);
    assert!(answer.len() < 2 * LONGEST, "{}", answer.len());
    let answer: Value = serde_json::from_str(&answer).expect("JSON");
    let listed = answer["prefixes"].as_array().map(Vec::len).unwrap_or_default() as u64;
    assert_eq!(answer["prefixesLeftOff"].as_u64(), Some(400 - listed));
    assert!(listed < 400, "the test is about an answer that is too long");
}

#[test]
fn a_word_is_a_prefix_or_an_address_and_either_has_reasons() {
    let parsed = |word: &str| Question::parse(word, false);
    assert_eq!(parsed(""), Ok(Question { selected: PrefixQuery::All, why: false }));
    for (word, selected) in [
        ("10.244.1.7/24", PrefixQuery::Inside(prefix("10.244.1.0/24"))),
        ("fd00:10:244:1::5/64", PrefixQuery::Inside(prefix("fd00:10:244:1::/64"))),
        (" 10.244.1.7 ", PrefixQuery::Around(address("10.244.1.7"))),
        ("fd00:10:244:1::5", PrefixQuery::Around(address("fd00:10:244:1::5"))),
        ("::ffff:10.244.1.7", PrefixQuery::Around(address("10.244.1.7"))),
    ] {
        assert_eq!(parsed(word), Ok(Question { selected, why: true }), "{word}");
    }
    for word in ["shop/web", "10.244.1.0/33", "10.244.1", "node-1"] {
        assert_eq!(parsed(word), Err(NoPrefix(word.to_owned())));
    }
}

#[test]
fn every_set_of_prefixes_that_a_policy_may_name_has_a_meaning() {
    for set in ["podcidrdefinedset", "nodeipdefinedsetv6", "linkdefinedset", "customimportrejectdefinedsetv6"] {
        assert!(crate::router::policy::meaning(set).is_some(), "{set}");
    }
    assert_eq!(crate::router::policy::meaning("of an operator"), None);
    for (statement, has_meaning) in
        [("othersiBGPordinaryset", true), ("unheardiBGPpeersetv6", true), ("podcidrdefinedset", false)]
    {
        assert_eq!(crate::router::policy::meaning_for_neighbours(statement).is_some(), has_meaning, "{statement}");
    }
}
