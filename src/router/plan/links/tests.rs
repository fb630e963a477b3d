use std::net::IpAddr;

use super::*;
use crate::bgp::rib::{PeerId, RouteChange};
use crate::kernel::route::{RouteKey, TABLE_MAIN};
use crate::link_neighbours::Standing;
use crate::net::{ExternalPeer, PerFamily, Remote, RemoteAs};
use crate::router::given::{address, config, host, node, prefix, with, world};

const BOTH: PerFamily<bool> = PerFamily { v4: true, v6: true };

/// A node of IPv4 alone with a router behind `eth1`.
fn plan() -> Plan {
    let peer = ExternalPeer::of(Remote::link("eth1").expect("a name"), RemoteAs::External);
    let own = with(node("192.0.2.1", "10.244.1.0/24"), |routing| routing.peers = vec![peer]);
    let mut plan = Plan::new(std::sync::Arc::new(config(&["--enable-ipv6"])), BOTH);
    plan.update(&world(host("192.0.2.1/24"), &[("node-1", own)]));
    plan
}

fn on_link(text: &str, link: u32) -> IpAddr {
    LinkLocal::new(text.parse().expect("an address"), link).expect("a link-local one").combined()
}

fn found_at(link: u32, neighbour: &str) -> Standings {
    let own = "fe80::1".parse().expect("an address");
    let state = State::Found(Found { link, own, neighbour: neighbour.parse().expect("an address") });
    [("eth1".into(), Standing { state, beside: None })].into()
}

fn problems(plan: &Plan) -> Vec<String> {
    plan.desired().problems.iter().map(ToString::to_string).filter(|text| text.contains("eth1")).collect()
}

#[test]
fn a_router_on_a_link_is_a_neighbour_when_it_is_found_and_none_when_it_goes() {
    let mut plan = plan();
    assert_eq!(plan.wanted_links(), ["eth1".into()].into());
    assert!(plan.desired().peers.is_empty() && plan.awaits_routers());
    assert_eq!(problems(&plan), ["external peer eth1: it is being looked for; there is no session"]);
    let changed = plan.set_links(found_at(7, "fe80::2"));
    let peer = on_link("fe80::2", 7);
    assert!(changed.listen && changed.addresses && !changed.speaker);
    assert_eq!((changed.peers, problems(&plan), plan.awaits_routers()), ([peer].into(), vec![], false));
    let wanted = plan.desired().peers[&peer].clone();
    assert_eq!(
        (wanted.name().as_str(), wanted.settings.asn, wanted.settings.is_external),
        ("fe80::2%eth1", None, true)
    );
    assert_eq!((wanted.transport.local, wanted.own.v4, wanted.own.v6), {
        let own = Some(on_link("fe80::1", 7));
        (own, None, own)
    });
    let listen = &plan.desired().speaker.as_ref().expect("it runs").listen;
    assert!(listen.contains(&"[fe80::1%7]:179".parse().expect("an address")), "{listen:?}");
    // What we announce has each neighbour's own next hop.
    assert!(plan.desired().announcements[&prefix("10.244.1.0/24")].next_hop.is_unspecified());
    let changed = plan.set_links(found_at(7, "fe80::3"));
    assert_eq!(changed.peers, [peer, on_link("fe80::3", 7)].into());
    let changed = plan.set_links([("eth1".into(), Standing { state: State::Down, beside: None })].into());
    assert!(changed.listen && plan.desired().peers.is_empty() && !plan.awaits_routers());
    assert_eq!(problems(&plan), ["external peer eth1: the interface is down or has no carrier; there is no session"]);
    assert_eq!(plan.desired().speaker.as_ref().expect("it runs").listen.len(), 1);
}

#[test]
fn a_router_that_has_a_session_or_had_one_is_to_stay_on_its_link() {
    let mut plan = plan();
    let former: Ipv6Addr = "fe80::9".parse().expect("an address");
    let formers = [("eth1".into(), former), ("eth2".into(), former)].into();
    let watched = |plan: &Plan, kept: &[IpAddr]| plan.watched_links(&kept.iter().copied().collect(), &formers);
    let with = |neighbour: Option<&str>| -> WantedLinks {
        let kept = neighbour.map(|text| text.parse().expect("an address"));
        [("eth1".into(), Wanted { kept, former: Some(former) })].into()
    };
    let peer = on_link("fe80::2", 7);
    assert_eq!(watched(&plan, &[peer]), with(None), "it is not found yet");
    plan.set_links(found_at(7, "fe80::2"));
    assert_eq!(watched(&plan, &[peer]), with(Some("fe80::2")));
    assert_eq!(watched(&plan, &[on_link("fe80::2", 8), on_link("fe80::3", 7)]), with(None), "these are others");
}

#[test]
fn more_routers_than_one_are_told_and_the_first_one_is_the_neighbour() {
    let mut plan = plan();
    let mut standings = found_at(7, "fe80::2");
    standings.values_mut().for_each(|standing| standing.beside = "fe80::9".parse().ok());
    plan.set_links(standings);
    assert_eq!(plan.desired().peers.len(), 1);
    let text = "external peer eth1: the router fe80::9 advertises itself there as well; the session is with the first one, fe80::2";
    assert_eq!(problems(&plan), [text]);
}

#[test]
fn routes_of_both_families_lead_over_the_link_and_follow_it() {
    let mut plan = plan();
    plan.set_links(found_at(7, "fe80::2"));
    let learn = |plan: &mut Plan, link: u32| {
        for text in ["203.0.113.0/24", "2001:db8:113::/48"] {
            let best = crate::bgp::rib::Best {
                source: PeerId::FIRST,
                attributes: std::sync::Arc::new(crate::bgp::message::Attributes::local(on_link("fe80::2", link))),
            };
            let next_hops = vec![on_link("fe80::2", link)];
            plan.learn(&[RouteChange { prefix: prefix(text), best: Some(best), next_hops }]);
        }
    };
    learn(&mut plan, 7);
    let hops = |plan: &Plan, text: &str| {
        let route = plan.routes().routes().get(&RouteKey::new(TABLE_MAIN, prefix(text)))?;
        Some(route.next_hops.iter().map(|hop| (hop.link.0.to_string(), hop.gateway, hop.on_link)).collect::<Vec<_>>())
    };
    let expected = Some(vec![("eth1".to_owned(), Some(address("fe80::2")), false)]);
    for text in ["203.0.113.0/24", "2001:db8:113::/48"] {
        assert_eq!(hops(&plan, text), expected, "{text}");
    }
    plan.set_links(Standings::new());
    assert_eq!(hops(&plan, "203.0.113.0/24"), None, "the link has gone");
    plan.set_links(found_at(8, "fe80::2"));
    assert_eq!(hops(&plan, "203.0.113.0/24"), None, "another link has the name");
    learn(&mut plan, 8);
    assert_eq!(hops(&plan, "203.0.113.0/24"), expected);
}
