//! The client of GoBGP asks a speaker of ours, which has a session with GoBGP itself: what it prints, and what it can bring about.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use sluice::bgp::driver::Access;
use sluice::bgp::policy::{Change, Condition, Decision, Matching, NeighbourSet, Policy, PrefixSet, Statement};
use sluice::bgp::rib::Policies;
use sluice::bgp::session::State;
use sluice::bgp::speaker::Order;
use sluice::gobgp::serve::{self, Place, Ports};
use sluice::gobgp::service::Service;
use sluice::gobgp::wire::messages::{
    AfiSafi, Attribute, GetBgpResponse, IpAddressPrefix, ListPathRequest, ListPathResponse, ListPeerRequest,
    ListPeerResponse, NextHopAttribute, Nlri, Nothing, TableLookupPrefix, attribute, nlri,
};
use sluice::net::Family;
use tokio::net::UnixStream;
use tokio::sync::{oneshot, watch};

use crate::cell::{Cell, Daemon};
use crate::ground::{Host, Topology, eventually, look, with_hosts};
use crate::other::Other;
use crate::ours::{Ours, wanted};

/// The API of one speaker, on its host.
struct Served {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    fn start(host: &Host, ours: &Ours) -> Served {
        let listen = Family::BOTH.map(|family| SocketAddr::new(host.address(family), 179)).into();
        let access = Access { handle: ours.handle.clone(), listen };
        let places =
            vec![Place::Port("127.0.0.1:50051".parse().expect("an address")), Place::Socket(host.file("gobgp.sock"))];
        let (stop, stopped) = oneshot::channel();
        let serve = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let (_access, seen) = watch::channel(Some(access));
                serve::spawn(Service::new(seen), places, Ports::Writable);
                let _ = stopped.await;
            });
        };
        let thread = host.inside(|| std::thread::spawn(serve));
        Served { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed already.
            let _ = thread.join();
        }
    }
}

/// A release of the client: Debian's, or the newest one, which `scripts/test` builds.
pub struct Client {
    program: String,
    pub is_newer: bool,
}

pub fn debians() -> Client {
    Client { program: "gobgp".to_owned(), is_newer: false }
}

pub fn clients() -> [Client; 2] {
    [debians(), Client { program: crate::gobgp::newest(), is_newer: true }]
}

/// Runs a test for each client.
fn with_session(cell: &Cell, test: impl Fn(&Client, &Host, &Ours, &Other) + Send + Sync) {
    clients().iter().for_each(|client| with_session_of(client, cell, &test));
}

/// Runs a test with our speaker on the first host and GoBGP on the second, both with all routes of the other.
fn with_session_of(client: &Client, cell: &Cell, test: impl FnOnce(&Client, &Host, &Ours, &Other) + Send) {
    with_hosts(2, Topology::Link, |hosts| {
        let ours = Ours::start(&hosts[0], cell.asns[0], false);
        ours.announce(cell, &hosts[0]);
        ours.want(wanted(cell, &hosts[0], &hosts[1]));
        let other = Other::start(cell, &hosts[1], vec![&hosts[0]]);
        eventually("what we have", &cell.we_have(&hosts[1]), || ours.table());
        eventually("what they have", &cell.they_have(&hosts[0]), || other.table());
        let _served = Served::start(&hosts[0], &ours);
        look(|| hosts[0].ask(&["gobgp", "global"])).expect("the API answers");
        test(client, &hosts[0], &ours, &other);
    });
}

fn cell() -> Cell {
    Cell::with(Daemon::Gobgp)
}

impl Client {
    /// Output of the client for this command, without repeated blanks and without times.
    pub fn says(&self, host: &Host, command: &str) -> String {
        let words: Vec<&str> = std::iter::once(self.program.as_str()).chain(command.split(' ')).collect();
        let text =
            host.ask(&words).unwrap_or_else(|| panic!("`gobgp {command}` fails: {}", self.refuses(host, command)));
        let is_time =
            |word: &str| word.len() == 8 && word.split(':').count() == 3 && !word.contains(|c: char| c.is_alphabetic());
        let line = |line: &str| {
            let words = line.split_whitespace();
            let words = words.map(|word| if is_time(word.trim_end_matches(',')) { "TIME" } else { word });
            words.collect::<Vec<_>>().join(" ")
        };
        text.lines().map(line).collect::<Vec<_>>().join("\n").trim_end().to_owned()
    }

    /// Error output of the client for a command that it refuses.
    pub fn refuses(&self, host: &Host, command: &str) -> String {
        let output = host.inside(|| {
            let mut client = std::process::Command::new(&self.program);
            client.args(command.split(' ')).output().expect("start gobgp")
        });
        assert!(!output.status.success(), "`gobgp {command}` succeeds");
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).trim().to_owned()
    }
}

/// The newer client says behind each route of `adj-out` that it is not filtered.
pub fn lines(text: &str) -> Vec<&str> {
    text.lines().map(|line| line.trim().trim_end_matches("not filtered")).collect()
}

/// The rich routes as the client prints their attributes.
const OUR_RICH: &str = "[{Origin: ?} {Med: 50} {Communities: 65001:100, 65001:200} {Extcomms: [65001:300]} {LargeCommunity: [ 65001:1:2]}]";
const THEIR_RICH: &str =
    "[{Origin: i} {Med: 70} {Communities: 65002:70} {Extcomms: [65002:700]} {LargeCommunity: [ 65002:7:8]}]";

#[test]
fn the_client_says_who_we_are_and_how_a_neighbour_stands() {
    let cell = Cell { passwords: [Some("open sesame"); 2], ..cell() };
    with_session(&cell, |client, host, ours, other| {
        let global = client.says(host, "global");
        let expected = ["AS: 65001", "Router-ID: 192.0.2.1", "Listening Port: 179, Addresses: 192.0.2.1, 2001:db8::1"];
        assert_eq!(lines(&global)[..3], expected);
        let all = "Peer AS Up/Down State |#Received Accepted\n192.0.2.2 65002 TIME Establ | 4 4";
        assert_eq!(client.says(host, "neighbor"), all);
        let one = client.says(host, "neighbor 192.0.2.2");
        for line in [
            "BGP neighbor is 192.0.2.2, remote AS 65002",
            "BGP version 4, remote router ID 192.0.2.2",
            if client.is_newer {
                "BGP state = SESSION_STATE_ESTABLISHED, up for TIME"
            } else {
                "BGP state = ESTABLISHED, up for TIME"
            },
            "Hold time is 240, keepalive interval is 80 seconds",
            "ipv4-unicast: advertised and received",
            "ipv6-unicast: advertised and received",
            "route-refresh: advertised and received",
            "4-octet-as: advertised and received",
            "enhanced-route-refresh: advertised",
            "fqdn: received",
            "Route Refresh: 0 0",
            "Advertised: 4",
            "Received: 4",
            "Accepted: 4",
        ] {
            assert!(lines(&one).contains(&line), "{line} is not in\n{one}");
        }
        let json = client.says(host, "-j neighbor 192.0.2.2");
        assert!(json.contains("192.0.2.2") && !json.contains("sesame") && !json.contains("auth_password"), "{json}");
        assert_eq!(ours.state(other.host.address(Family::V4)), State::Established);
    });
}

#[test]
fn a_neighbour_over_ipv6_is_asked_for_by_its_address() {
    let cell = Cell { over: Family::V6, ..cell() };
    with_session(&cell, |client, host, _, _| {
        assert!(client.says(host, "neighbor").ends_with("2001:db8::2 65002 TIME Establ | 4 4"));
        assert!(client.says(host, "neighbor 2001:db8::2").starts_with("BGP neighbor is 2001:db8::2, remote AS 65002"));
        // Without -a it is the family of the neighbour's address.
        let adj_in = client.says(host, "neighbor 2001:db8::2 adj-in");
        assert_eq!(lines(&adj_in)[1], "0 2001:db8:113::/64 2001:db8::2 65002 TIME [{Origin: i}]");
        assert_eq!(lines(&client.says(host, "neighbor 2001:db8::2 adj-out -a ipv4")).len(), 3);
    });
}

#[test]
fn the_client_prints_our_routes_with_all_their_attributes() {
    with_session(&cell(), |client, host, _, _| {
        let four = client.says(host, "global rib");
        let expected = [
            "*> 10.244.1.0/24 192.0.2.1 TIME [{Origin: i}]".to_owned(),
            format!("*> 10.244.2.0/24 192.0.2.1 TIME {OUR_RICH}"),
            "*> 203.0.113.0/25 192.0.2.2 65002 TIME [{Origin: i}]".to_owned(),
            format!("*> 203.0.113.128/25 192.0.2.2 65002 TIME {THEIR_RICH}"),
        ];
        assert_eq!(lines(&four)[1..], expected);
        let six = client.says(host, "global rib -a ipv6");
        let expected = [
            "*> 2001:db8:113::/64 2001:db8::2 65002 TIME [{Origin: i}]".to_owned(),
            format!("*> 2001:db8:113:1::/64 2001:db8::2 65002 TIME {THEIR_RICH}"),
            "*> fd00:10:244:1::/64 2001:db8::1 TIME [{Origin: i}]".to_owned(),
            format!("*> fd00:10:244:2::/64 2001:db8::1 TIME {OUR_RICH}"),
        ];
        assert_eq!(lines(&six)[1..], expected);
        let heard = client.says(host, "neighbor 192.0.2.2 adj-in");
        let expected = [
            "0 203.0.113.0/25 192.0.2.2 65002 TIME [{Origin: i}]".to_owned(),
            format!("0 203.0.113.128/25 192.0.2.2 65002 TIME {THEIR_RICH}"),
        ];
        assert_eq!(lines(&heard)[1..], expected);
        let told = client.says(host, "neighbor 192.0.2.2 adj-out -a ipv6");
        let expected = [
            "0 fd00:10:244:1::/64 2001:db8::1 65001 [{Origin: i}]".to_owned(),
            format!("0 fd00:10:244:2::/64 2001:db8::1 65001 {OUR_RICH}"),
        ];
        assert_eq!(lines(&told)[1..], expected);
        for (command, sizes) in [
            ("global rib summary", "Destination: 4, Path: 4"),
            ("global rib summary -a ipv6", "Destination: 4, Path: 4"),
            ("neighbor 192.0.2.2 adj-in summary", "Destination: 2, Path: 2"),
            ("neighbor 192.0.2.2 adj-out summary", "Destination: 2, Path: 2"),
        ] {
            assert_eq!(lines(&client.says(host, command))[1], sizes, "{command}");
        }
    });
}

#[test]
fn one_prefix_those_inside_and_those_around_are_found() {
    with_session(&cell(), |client, host, _, _| {
        // The client puts a mark or a number before each prefix.
        let found = |command: &str| {
            let text = client.says(host, command);
            let routes = text.lines().skip(1).filter_map(|line| line.split(' ').nth(1));
            routes.map(str::to_owned).collect::<Vec<_>>().join(" ")
        };
        for (command, expected) in [
            ("global rib 10.244.1.0/24", "10.244.1.0/24"),
            ("global rib 203.0.113.200", "203.0.113.128/25"),
            ("global rib 203.0.113.0/24 longer-prefixes", "203.0.113.0/25 203.0.113.128/25"),
            ("global rib 203.0.113.128/25 longer-prefixes", "203.0.113.128/25"),
            ("global rib 203.0.113.7/32 shorter-prefixes", "203.0.113.0/25"),
            ("global rib -a ipv6 fd00:10:244:2::9", "fd00:10:244:2::/64"),
            ("global rib -a ipv6 fd00::/8 longer-prefixes", "fd00:10:244:1::/64 fd00:10:244:2::/64"),
            ("neighbor 192.0.2.2 adj-in 203.0.113.0/25", "203.0.113.0/25"),
        ] {
            assert_eq!(found(command), expected, "{command}");
        }
        assert_eq!(client.says(host, "global rib 198.51.100.0/24"), "Network not in table");
    });
}

#[test]
fn sessions_are_reset_stopped_and_started_by_the_client() {
    with_session(&cell(), |client, host, ours, other| {
        let peer = other.host.address(Family::V4);
        let received = |number: usize| ours.of(peer, move |neighbour| neighbour.peer().received()[number]);
        let sent = |number: usize| ours.of(peer, move |neighbour| neighbour.sent()[number]);
        let (updates, refreshes) = (received(2), sent(5));
        client.says(host, "neighbor 192.0.2.2 softresetin");
        eventually("our questions", &(refreshes + 2), || sent(5));
        eventually("what is sent again", &true, || received(2) > updates);
        let updates = sent(2);
        client.says(host, "neighbor 192.0.2.2 softresetout");
        eventually("what we send again", &true, || sent(2) > updates);
        client.says(host, "neighbor all softreset");
        eventually("our next questions", &(refreshes + 4), || sent(5));
        assert_eq!(ours.of(peer, |neighbour| neighbour.flops()), 0, "the session has stood all the time");
        client.says(host, "neighbor 192.0.2.2 reset --reason tea");
        eventually("an end and a beginning", &(1, State::Established), || {
            ours.of(peer, |neighbour| (neighbour.flops(), neighbour.peer().state()))
        });
        assert!(other.log().contains("tea"), "the other side is told why");
        client.says(host, "neighbor 192.0.2.2 disable");
        eventually("a stopped session", &State::Idle, || ours.state(peer));
        assert!(client.says(host, "neighbor").contains("Idle(Admin)"));
        client.says(host, "neighbor 192.0.2.2 enable");
        eventually("a session", &State::Established, || ours.state(peer));
        client.says(host, "neighbor 192.0.2.2 shutdown --reason rest");
        eventually("it comes back", &(3, State::Established), || {
            ours.of(peer, |neighbour| (neighbour.flops(), neighbour.peer().state()))
        });
    });
}

#[test]
fn what_the_client_adds_can_be_taken_back_and_nothing_else() {
    with_session(&cell(), |client, host, ours, other| {
        client.says(host, "global rib add 198.51.100.0/24 med 5 community 65001:7 local-pref 300");
        client.says(host, "global rib add -a ipv6 2001:db8:51::/48 nexthop 2001:db8::1");
        let theirs = |command: &str| debians().says(other.host, command);
        let four = "*> 198.51.100.0/24 192.0.2.1 65001 TIME [{Origin: ?} {Med: 5} {Communities: 65001:7}]";
        eventually("their route", &true, || theirs("global rib").lines().any(|line| line == four));
        let six = "*> 2001:db8:51::/48 2001:db8::1 65001 TIME [{Origin: ?}]";
        eventually("their IPv6 route", &true, || theirs("global rib -a ipv6").lines().any(|line| line == six));
        for (command, reason) in [
            ("global rib del 10.244.1.0/24", "10.244.1.0/24 was not added by a client"),
            ("global rib add 10.244.1.0/24", "the agent itself announces 10.244.1.0/24"),
            ("neighbor del 192.0.2.2", "the cluster wants neighbor 192.0.2.2"),
            ("neighbor add 192.0.2.2 as 65002", "there is a neighbor 192.0.2.2 already"),
            ("global del all", "BGP is set up by the flags of the agent"),
            ("policy prefix add some 10.0.0.0/8", "this agent does not serve AddDefinedSet"),
            ("log-level debug", "this agent does not serve SetLogLevel"),
            ("neighbor 192.0.2.2 local", "neighbors have no tables of their own"),
        ] {
            let said = client.refuses(host, command);
            assert!(said.contains(reason), "{command}: {said}");
        }
        client.says(host, "global rib del all");
        client.says(host, "global rib del 2001:db8:51::/48 -a ipv6");
        eventually("what they have then", &cell().they_have(host), || other.table());
        client.says(host, "neighbor add 192.0.2.77 as 65077");
        assert!(client.says(host, "neighbor").contains("192.0.2.77 65077 never"));
        client.says(host, "neighbor del 192.0.2.77");
        assert_eq!(ours.ask(|speaker| speaker.neighbours().count()), 1);
    });
}

/// Policies as kube-router's users know them.
fn policies() -> Policies {
    let set = |name: &str, prefix: &str| {
        let mut set = PrefixSet::new(name);
        set.insert_exactly(prefix.parse().expect("a prefix"));
        Some(Condition { set: Arc::new(set), matching: Matching::Any })
    };
    let prefixes = ["192.0.2.2/32".parse().expect("a prefix")].into();
    let neighbours = Arc::new(NeighbourSet { name: "externalpeerset".into(), prefixes });
    let neighbours = Some(Condition { set: neighbours, matching: Matching::Any });
    let outwards = Statement {
        name: "podcidrdefinedsetexternalpeerset".into(),
        prefixes: set("podcidrdefinedset", "10.244.1.0/24"),
        neighbours: neighbours.clone(),
        changes: vec![Change::Prepend { asn: 65001, times: 2 }, Change::NextHopSelf],
        decision: Some(Decision::Accept),
        ..Statement::default()
    };
    let inwards = Statement {
        name: "customimportrejectdefinedsetexternalpeerset".into(),
        prefixes: set("customimportrejectdefinedset", "203.0.113.0/25"),
        neighbours,
        decision: Some(Decision::Reject),
        ..Statement::default()
    };
    let policy = |name: &str, statement, otherwise| {
        Arc::new(Policy { name: name.into(), statements: vec![statement], otherwise })
    };
    Policies {
        import: policy("kube_router_import1", inwards, Decision::Accept),
        export: policy("kube_router_export1", outwards, Decision::Reject),
    }
}

#[test]
fn policies_and_their_sets_are_printed_and_seen_at_work() {
    with_session(&cell(), |client, host, ours, _| {
        ours.order(vec![Order::Policies(policies())]);
        let prefix = client.says(host, "policy prefix");
        let expected = ["customimportrejectdefinedset 203.0.113.0/25 25..25", "podcidrdefinedset 10.244.1.0/24 24..24"];
        assert_eq!(lines(&prefix)[1..], expected);
        assert_eq!(lines(&client.says(host, "policy neighbor"))[1], "externalpeerset 192.0.2.2/32");
        for (command, words) in [
            (
                "policy",
                "Name kube_router_export1: StatementName podcidrdefinedsetexternalpeerset: Conditions: \
              PrefixSet: any podcidrdefinedset NeighborSet: any externalpeerset Actions: ASPathPrepend: prepend 65001 2 times \
              Nexthop: self accept",
            ),
            (
                "policy statement",
                "StatementName customimportrejectdefinedsetexternalpeerset: Conditions: \
              PrefixSet: any customimportrejectdefinedset NeighborSet: any externalpeerset Actions: reject",
            ),
            ("global policy", "Export policy: Default: REJECT Name kube_router_export1:"),
            ("global policy", "Import policy: Default: ACCEPT Name kube_router_import1:"),
        ] {
            // The newer client writes actions as the API names them.
            let said = client.says(host, command).replace("ROUTE_ACTION_", "");
            let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(said.contains(words), "{command}: {words} is not in\n{said}");
        }
        let out = client.says(host, "neighbor 192.0.2.2 adj-out");
        assert_eq!(lines(&out)[1..], ["0 10.244.1.0/24 192.0.2.1 65001 65001 65001 [{Origin: i}]"]);
        assert_eq!(lines(&client.says(host, "global rib 203.0.113.0/24 longer-prefixes")).len(), 2, "one is rejected");
        assert!(client.says(host, "neighbor").ends_with("| 4 3"));
    });
}

#[test]
fn changes_are_told_to_whoever_looks() {
    with_session(&cell(), |client, host, ours, other| {
        let mut watching = [
            host.start(&[&client.program, "monitor", "global", "rib", "--current"], "rib"),
            host.start(&[&client.program, "monitor", "adj-in", "--current"], "adj-in"),
            host.start(&[&client.program, "monitor", "neighbor", "192.0.2.2"], "neighbor"),
        ];
        let told = |file: &str, what: &str| {
            let text = || std::fs::read_to_string(host.file(file)).unwrap_or_default();
            assert!(look(|| text().contains(what).then_some(())).is_some(), "{what} is not in\n{}", text());
        };
        for file in ["rib", "adj-in"] {
            told(file, "[ROUTE] 203.0.113.0/25 via 192.0.2.2 aspath [65002] attrs [{Origin: i}]");
        }
        told("rib", "[ROUTE] 10.244.1.0/24 via 192.0.2.1 aspath [] attrs [{Origin: i}]");
        debians().says(other.host, "global rib add 198.51.100.0/24 nexthop 192.0.2.2 origin igp");
        for file in ["rib", "adj-in"] {
            told(file, "[ROUTE] 198.51.100.0/24 via 192.0.2.2 aspath [65002]");
        }
        debians().says(other.host, "global rib del 198.51.100.0/24");
        for file in ["rib", "adj-in"] {
            told(file, "[DELROUTE] 198.51.100.0/24");
        }
        client.says(host, "neighbor 192.0.2.2 disable");
        told("neighbor", "IDLE");
        ours.order(vec![Order::Start(other.host.address(Family::V4))]);
        told("neighbor", "ESTABLISHED");
        for one in &mut watching {
            one.kill().expect("it can be killed");
            one.wait().expect("it ends");
        }
    });
}

/// Calls a procedure of the service of 4.x over a socket, and reads the only message of the answer.
async fn call<M: Message + Default>(socket: PathBuf, procedure: &str, question: &impl Message) -> M {
    let stream = UnixStream::connect(socket).await.expect("somebody listens");
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("it speaks HTTP/2");
    tokio::spawn(connection);
    let question = question.encode_to_vec();
    let frame = [&[0][..], &(question.len() as u32).to_be_bytes(), &question].concat();
    let request = Request::post(format!("http://localhost/api.GoBgpService/{procedure}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(Bytes::from(frame)))
        .expect("a request");
    let answer = sender.send_request(request).await.expect("an answer").into_body().collect().await.expect("all of it");
    let status = answer.trailers().and_then(|trailers| trailers.get("grpc-status")).cloned();
    assert_eq!(status.expect("a status"), "0");
    M::decode(&answer.to_bytes()[5..]).expect("its message")
}

#[test]
fn the_socket_is_for_its_owner_alone_and_serves_the_newer_client() {
    with_session_of(&debians(), &cell(), |_, host, _, _| {
        let socket = host.file("gobgp.sock");
        let mode = std::fs::metadata(&socket).expect("the socket is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let bgp: GetBgpResponse = runtime.block_on(call(socket.clone(), "GetBgp", &Nothing {}));
        let global = bgp.global.expect("who we are");
        assert_eq!((global.asn, global.router_id.as_str(), global.listen_port), (65001, "192.0.2.1", 179));
        let question = ListPeerRequest { address: "192.0.2.2".into(), enable_advertised: true };
        let peer: ListPeerResponse = runtime.block_on(call(socket.clone(), "ListPeer", &question));
        let peer = peer.peer.expect("a neighbour");
        let state = peer.state.expect("its state");
        // In 4.x both have 0 for what is not said.
        assert_eq!((state.session_state, state.admin_state, state.r#type), (6, 1, 2));
        let advertised = |family: &AfiSafi| family.state.as_ref().map(|state| state.advertised);
        assert_eq!(peer.afi_safis.iter().map(advertised).collect::<Vec<_>>(), [Some(2), Some(2)]);
        let prefixes = vec![TableLookupPrefix { prefix: "203.0.113.0/25".into(), r#type: 0 }];
        let question = ListPathRequest { table_type: 1, prefixes, ..ListPathRequest::default() };
        let path: ListPathResponse = runtime.block_on(call(socket, "ListPath", &question));
        let path = path.destination.expect("a prefix").paths.remove(0);
        let nlri = Nlri::decode(path.nlri.as_slice()).expect("its prefix").nlri;
        let expected = IpAddressPrefix { prefix_len: 25, prefix: "203.0.113.0".into() };
        assert_eq!(nlri, Some(nlri::Nlri::Prefix(expected)));
        let attributes = path.pattrs.iter().map(|one| Attribute::decode(one.as_slice()).expect("one").attr);
        let next_hop = attribute::Attr::NextHop(NextHopAttribute { next_hop: "192.0.2.2".into() });
        assert!(attributes.flatten().any(|one| one == next_hop));
    });
}
