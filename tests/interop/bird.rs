//! BIRD: `bird` and `birdc`.

use sluice::net::Family;

use crate::cell::{Dials, Hops, PREFERENCE, Reflects, THEIRS};
use crate::ground::{Host, Topology};
use crate::other::Other;
use crate::route::Route;

/// The names of its protocols, one for each speaker of ours.
const NAMES: [&str; 3] = ["to_1", "to_2", "to_3"];

pub fn command(again: bool) -> Vec<String> {
    let words = ["bird", "-f", "-c", "bird.conf", "-s", "bird.ctl"];
    words.into_iter().chain(again.then_some("-R")).map(str::to_owned).collect()
}

pub fn config(other: &Other) -> String {
    let (cell, host) = (&other.cell, other.host);
    let mut text =
        format!("log stderr all;\nrouter id {};\nprotocol device {{ scan time 1; }}\n", host.address(Family::V4));
    for family in Family::BOTH {
        let [plain, rich] = THEIRS.of(family);
        let preference = if cell.is_inside() { format!("bgp_local_pref = {PREFERENCE}; ") } else { String::new() };
        let kind = if family == Family::V4 { "ipv4" } else { "ipv6" };
        text += &format!(
            "protocol static {{ {kind};\n  route {plain} blackhole;\n  route {rich} blackhole {{ {preference}\
             bgp_community.add((65002,70)); bgp_ext_community.add((rt,65002,700)); \
             bgp_large_community.add((65002,7,8)); }};\n"
        );
        if cell.topology == Topology::Router {
            let (all, gateway) =
                if family == Family::V4 { ("0.0.0.0/0", "192.0.2.254") } else { ("::/0", "2001:db8::ff") };
            text += &format!("  route {all} via {gateway};\n");
        }
        text += "}\n";
    }
    for (peer, name) in other.peers.iter().zip(NAMES) {
        text += &protocol(other, peer, name);
    }
    text
}

fn protocol(other: &Other, peer: &Host, name: &str) -> String {
    let (cell, host) = (&other.cell, other.host);
    let mut text = format!(
        "protocol bgp {name} {{\n  local {} as {};\n  neighbor {} as {};\n  \
         connect delay time 1; connect retry time 1; error wait time 1, 2;\n",
        host.address(cell.over),
        cell.asns[1],
        peer.address(cell.over),
        cell.asns[0]
    );
    let mut say = |words: &str| text += &format!("  {words};\n");
    match cell.hops {
        Hops::Plain if cell.topology == Topology::Link => say("direct"),
        Hops::Plain => {}
        Hops::Multihop(hops) => say(&format!("multihop {hops}")),
        Hops::Secured(hops) => {
            if hops > 1 {
                say(&format!("multihop {hops}"));
            }
            say("ttl security on");
        }
    }
    if let Some(password) = cell.passwords[1] {
        say(&format!("password \"{password}\""));
    }
    if cell.dials == Dials::We {
        say("passive on");
    }
    if cell.reflects == Reflects::They {
        say("rr client");
        say(&format!("rr cluster id {}", host.address(Family::V4)));
    }
    if cell.graceful {
        say("graceful restart on");
        say(&format!("graceful restart time {}", cell.restart_time()));
        if let Some(seconds) = cell.long_lived {
            say("long lived graceful restart on");
            say(&format!("long lived stale time {seconds}"));
        }
    }
    if cell.two_octets {
        say("enable as4 off");
    }
    for family in Family::BOTH.into_iter().filter(|family| *cell.families.of(*family)) {
        let kind = if family == Family::V4 { "ipv4" } else { "ipv6" };
        let extended = if cell.extended_next_hop && family == Family::V4 { "extended next hop on; " } else { "" };
        let limit = cell.most[1].map_or(String::new(), |most| format!("import limit {most} action disable; "));
        let own = cell.next_hop(host, family);
        // Reflected routes keep their next hop.
        // Reflected routes keep their next hop. The MED of an exported route is set in this filter alone.
        let [_, rich] = THEIRS.of(family);
        let export = format!(
            "export filter {{ if net.len = 0 then reject; if source = RTS_STATIC then bgp_next_hop = {own}; \
             if net = {rich} then bgp_med = 70; accept; }}; "
        );
        text += &format!("  {kind} {{ import all; {export}{limit}{extended}}};\n");
    }
    text + "}\n"
}

pub fn tell(host: &Host, command: &str) {
    let words: Vec<&str> = ["birdc", "-s", "bird.ctl"].into_iter().chain([command]).collect();
    host.ask(&words).unwrap_or_else(|| panic!("it refuses `{command}`"));
}

pub fn routes(host: &Host) -> Vec<Route> {
    let text = host.ask(&["birdc", "-s", "bird.ctl", "show route primary all"]).unwrap_or_default();
    let mut routes: Vec<Route> = Vec::new();
    for line in text.lines() {
        let Some(line) = line.strip_prefix('\t') else {
            let prefix = line.split(' ').next().unwrap_or_default();
            if prefix.contains('/') {
                routes.push(Route { prefix: prefix.to_owned(), ..Route::default() });
            }
            continue;
        };
        let (Some((name, value)), Some(route)) = (line.split_once(": "), routes.last_mut()) else { continue };
        // `(rt, 65001, 300) (rt, 65001, 301)`
        let many = || value.split(") ").map(|one| one.replace(['(', ')', ' '], "").replace(',', ":"));
        match name {
            "BGP.origin" => route.origin = value.to_lowercase(),
            "BGP.as_path" => route.path = value.to_owned(),
            "BGP.next_hop" => route.next_hop = value.split(' ').next().unwrap_or_default().to_owned(),
            "BGP.med" => route.med = value.parse().ok(),
            "BGP.local_pref" => route.preference = value.parse().ok(),
            "BGP.community" => route.communities = many().collect(),
            "BGP.ext_community" => route.extended = many().collect(),
            "BGP.large_community" => route.large = many().collect(),
            "BGP.originator_id" => route.originator = Some(value.to_owned()),
            "BGP.cluster_list" => route.clusters = value.split(' ').map(str::to_owned).collect(),
            _ => {}
        }
    }
    routes
}
