//! FRR: its `bgpd` alone, without the daemon that knows the kernel, and `vtysh`.

use serde_json::Value;

use sluice::net::Family;

use crate::cell::{Cell, Dials, Hops, PREFERENCE, Reflects, THEIRS};
use crate::ground::Host;
use crate::other::Other;
use crate::route::Route;

pub fn command(host: &Host) -> Vec<String> {
    let directory = host.directory().display().to_string();
    let pid = host.file("bgpd.pid").display().to_string();
    let config = host.file("bgpd.conf").display().to_string();
    let words = ["/usr/lib/frr/bgpd", "-S", "-Z", "-P", "0", "--log", "stdout", "-f", &config, "-i", &pid];
    let words = words.into_iter().chain(["--vty_socket", &directory]);
    words.map(str::to_owned).collect()
}

/// Graceful restart, also the long-lived one, as a cell has it.
fn restart(cell: &Cell) -> String {
    if !cell.graceful {
        return String::new();
    }
    let long_lived = cell.long_lived.map(|seconds| format!(" bgp long-lived-graceful-restart stale-time {seconds}\n"));
    format!(
        " bgp graceful-restart\n bgp graceful-restart preserve-fw-state\n bgp graceful-restart restart-time {}\n{}",
        cell.restart_time(),
        long_lived.unwrap_or_default()
    )
}

pub fn config(other: &Other) -> String {
    let (cell, host) = (&other.cell, other.host);
    let mut text = String::from("hostname theirs\nlog stdout\n");
    for (name, rich) in [("plain", false), ("rich", true)] {
        text += &format!("route-map {name} permit 10\n");
        text += &format!(" set ip next-hop {}\n", host.address(Family::V4));
        text += &format!(" set ipv6 next-hop global {}\n", host.address(Family::V6));
        if rich {
            text += " set metric 70\n set community 65002:70\n set extcommunity rt 65002:700\n";
            text += " set large-community 65002:7:8\n";
            if cell.is_inside() {
                text += &format!(" set local-preference {PREFERENCE}\n");
            }
        }
    }
    text += &format!(
        "route-map out permit 10\n set ip next-hop {}\n set ipv6 next-hop global {}\n",
        host.address(Family::V4),
        host.address(Family::V6)
    );
    text += &format!("router bgp {}\n bgp router-id {}\n", cell.asns[1], host.address(Family::V4));
    text += " no bgp ebgp-requires-policy\n no bgp default ipv4-unicast\n no bgp network import-check\n";
    text += " bgp log-neighbor-changes\n";
    text += &restart(cell);
    if cell.reflects == Reflects::They {
        text += &format!(" bgp cluster-id {}\n", host.address(Family::V4));
    }
    for peer in &other.peers {
        let mut say = |words: &str| text += &format!(" neighbor {} {words}\n", peer.address(cell.over));
        say(&format!("remote-as {}", cell.asns[0]));
        say("timers connect 1");
        match cell.hops {
            Hops::Plain => {}
            Hops::Multihop(hops) => say(&format!("ebgp-multihop {hops}")),
            Hops::Secured(hops) => say(&format!("ttl-security hops {hops}")),
        }
        if let Some(password) = cell.passwords[1] {
            say(&format!("password {password}"));
        }
        if cell.dials == Dials::We {
            say("passive");
        }
        if cell.extended_next_hop {
            say("capability extended-nexthop");
        }
    }
    for family in Family::BOTH.into_iter().filter(|family| *cell.families.of(*family)) {
        let kind = if family == Family::V4 { "ipv4" } else { "ipv6" };
        text += &format!(" address-family {kind} unicast\n");
        for peer in &other.peers {
            let mut say = |words: &str| text += &format!("  neighbor {} {words}\n", peer.address(cell.over));
            say("activate");
            if !cell.is_inside() && !cell.extended_next_hop {
                // It does not know its own addresses without the daemon that knows the kernel.
                say("route-map out out");
            }
            if cell.reflects == Reflects::They {
                say("route-reflector-client");
            }
            if let Some(most) = cell.most[1] {
                say(&format!("maximum-prefix {most}"));
            }
        }
        let [plain, rich] = THEIRS.of(family);
        text += &format!("  network {plain} route-map plain\n  network {rich} route-map rich\n exit-address-family\n");
    }
    text
}

pub fn ask(host: &Host, command: &str) -> Option<String> {
    let directory = host.directory().display().to_string();
    host.ask(&["vtysh", "--vty_socket", &directory, "-d", "bgpd", "-c", command])
}

pub fn configure(host: &Host, commands: &[&str]) {
    let directory = host.directory().display().to_string();
    let mut words = vec!["vtysh", "--vty_socket", &directory, "-d", "bgpd", "-c", "configure terminal"];
    commands.iter().for_each(|command| words.extend(["-c", command]));
    host.ask(&words).unwrap_or_else(|| panic!("it refuses {commands:?}"));
}

pub fn routes(host: &Host) -> Vec<Route> {
    let table = |family: &str| ask(host, &format!("show bgp {family} unicast json detail"));
    let tables = ["ipv4", "ipv6"].into_iter().filter_map(table);
    let tables = tables.filter_map(|text| serde_json::from_str::<Value>(&text).ok());
    let prefixes = tables.flat_map(|table| table["routes"].as_object().cloned().unwrap_or_default());
    let best = |paths: &Value| {
        let all = paths.as_array().cloned().unwrap_or_default();
        all.into_iter().find(|path| path["bestpath"]["overall"] == Value::Bool(true))
    };
    prefixes.filter_map(|(prefix, paths)| Some(route(prefix, &best(&paths)?))).collect()
}

fn route(prefix: String, path: &Value) -> Route {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let words = |value: &Value| text(value).split_whitespace().map(str::to_owned).collect();
    let as_path = text(&path["aspath"]["string"]);
    let next_hops = path["nexthops"].as_array().cloned().unwrap_or_default();
    let global = next_hops.iter().find(|one| one["scope"] != "link-local");
    let extended = text(&path["extendedCommunity"]["string"]);
    Route {
        prefix,
        next_hop: global.map(|one| text(&one["ip"])).unwrap_or_default(),
        path: if as_path == "Local" { String::new() } else { as_path },
        origin: text(&path["origin"]).to_lowercase(),
        med: path["metric"].as_u64(),
        preference: path["locPrf"].as_u64(),
        communities: words(&path["community"]["string"]),
        extended: extended.split_whitespace().map(|one| one.replace("RT:", "rt:")).collect(),
        large: words(&path["largeCommunity"]["string"]),
        originator: path["originatorId"].as_str().map(str::to_owned),
        clusters: path["clusterList"]["list"].as_array().into_iter().flatten().map(text).collect(),
    }
}
