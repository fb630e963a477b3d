//! GoBGP: `gobgpd` and its client, of Debian's release and of the newest one.

use std::path::PathBuf;

use serde_json::Value;

use sluice::net::Family;

use crate::cell::{Daemon, Dials, Hops, PREFERENCE, Reflects, THEIRS};
use crate::other::Other;
use crate::route::Route;

/// Path of the newest client; its daemon is beside it.
pub fn newest() -> String {
    let newest = std::env::var("SLUICE_NEWER_GOBGP");
    newest.expect("$SLUICE_NEWER_GOBGP says where a client of 4.x is; `scripts/test interop` sees to it")
}

/// A program of the release that a daemon is of.
fn program(daemon: Daemon, name: &str) -> String {
    match daemon {
        Daemon::Gobgp4 => PathBuf::from(newest()).with_file_name(name).display().to_string(),
        Daemon::Gobgp | Daemon::Bird | Daemon::Frr => name.to_owned(),
    }
}

/// What the client of the daemon's release says; nothing where it fails.
pub fn ask(other: &Other, words: &[&str]) -> Option<String> {
    let client = program(other.cell.daemon, "gobgp");
    other.host.ask(&[&[client.as_str()], words].concat())
}

pub fn command(other: &Other, again: bool) -> Vec<String> {
    let daemon = program(other.cell.daemon, "gobgpd");
    let words = [daemon.as_str(), "-f", "gobgpd.toml", "--pprof-disable", "--api-hosts=127.0.0.1:50051"];
    words.into_iter().chain(again.then_some("-r")).map(str::to_owned).collect()
}

pub fn config(other: &Other) -> String {
    let cell = &other.cell;
    let identifier = other.host.address(Family::V4);
    let local = other.host.address(cell.over);
    let mut text = format!(
        "[global.config]\nas = {}\nrouter-id = \"{identifier}\"\nlocal-address-list = [\"{local}\"]\n",
        cell.asns[1]
    );
    for peer in &other.peers {
        text += &format!(
            "[[neighbors]]\n[neighbors.config]\nneighbor-address = \"{}\"\npeer-as = {}\n",
            peer.address(cell.over),
            cell.asns[0]
        );
        if let Some(password) = cell.passwords[1] {
            text += &format!("auth-password = \"{password}\"\n");
        }
        let passive = cell.dials == Dials::We;
        text += &format!("[neighbors.transport.config]\nlocal-address = \"{local}\"\npassive-mode = {passive}\n");
        text += "[neighbors.timers.config]\nconnect-retry = 1\nhold-time = 240\nidle-hold-time-after-reset = 1\n";
        match cell.hops {
            Hops::Plain => {}
            Hops::Multihop(hops) => {
                text += &format!("[neighbors.ebgp-multihop.config]\nenabled = true\nmultihop-ttl = {hops}\n");
            }
            Hops::Secured(hops) => {
                let least = 256 - u16::from(hops);
                text += &format!("[neighbors.ttl-security.config]\nenabled = true\nttl-min = {least}\n");
            }
        }
        if cell.reflects == Reflects::They {
            text += "[neighbors.route-reflector.config]\nroute-reflector-client = true\n";
            text += &format!("route-reflector-cluster-id = \"{identifier}\"\n");
        }
        if cell.graceful {
            text += "[neighbors.graceful-restart.config]\nenabled = true\n";
            text += &format!(
                "restart-time = {}\nlong-lived-enabled = {}\n",
                cell.restart_time(),
                cell.long_lived.is_some()
            );
        }
        for family in Family::BOTH.into_iter().filter(|family| *cell.families.of(*family)) {
            let name = if family == Family::V4 { "ipv4-unicast" } else { "ipv6-unicast" };
            text += &format!("[[neighbors.afi-safis]]\n[neighbors.afi-safis.config]\nafi-safi-name = \"{name}\"\n");
            if cell.graceful {
                text += "[neighbors.afi-safis.mp-graceful-restart.config]\nenabled = true\n";
            }
            if let Some(seconds) = cell.long_lived {
                text += "[neighbors.afi-safis.long-lived-graceful-restart.config]\nenabled = true\n";
                text += &format!("restart-time = {seconds}\n");
            }
            if let Some(most) = cell.most[1] {
                text += &format!("[neighbors.afi-safis.prefix-limit.config]\nmax-prefixes = {most}\n");
            }
        }
    }
    text
}

pub fn announce(other: &Other) {
    let cell = &other.cell;
    for family in Family::BOTH.into_iter().filter(|family| *cell.families.of(*family)) {
        let [plain, rich] = THEIRS.of(family);
        let next_hop = cell.next_hop(other.host, family);
        let name = if family == Family::V4 { "ipv4" } else { "ipv6" };
        let base = |prefix| format!("global rib -a {name} add {prefix} origin igp nexthop {next_hop}");
        let preference = if cell.is_inside() { format!(" local-pref {PREFERENCE}") } else { String::new() };
        let attributes = format!("{preference} med 70 community 65002:70 large-community 65002:7:8 rt 65002:700");
        for command in [base(plain), base(rich) + &attributes] {
            let words: Vec<&str> = command.split(' ').collect();
            ask(other, &words).unwrap_or_else(|| panic!("it refuses `{command}`"));
        }
    }
}

pub fn routes(other: &Other) -> Vec<Route> {
    let table = |family| ask(other, &["global", "rib", "-j", "-a", family]);
    let tables = ["ipv4", "ipv6"].into_iter().filter_map(table);
    let tables = tables.filter_map(|text| serde_json::from_str::<Value>(&text).ok());
    let prefixes = tables.flat_map(|table| table.as_object().cloned().unwrap_or_default());
    prefixes.filter_map(|(prefix, paths)| Some(route(prefix, paths.get(0)?))).collect()
}

fn route(prefix: String, path: &Value) -> Route {
    let mut route = Route { prefix, ..Route::default() };
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    for attribute in path["attrs"].as_array().expect("attributes") {
        let values = attribute["value"].as_array().cloned().unwrap_or_default();
        match number(&attribute["type"]) {
            1 => route.origin = ["igp", "egp", "incomplete"][number(&attribute["value"]) as usize].into(),
            2 => {
                let segments = attribute["as_paths"].as_array().expect("an AS path");
                let asns = segments.iter().flat_map(|segment| segment["asns"].as_array().expect("numbers"));
                route.path = asns.map(Value::to_string).collect::<Vec<_>>().join(" ");
            }
            3 | 14 => route.next_hop = attribute["nexthop"].as_str().expect("a next hop").into(),
            4 => route.med = attribute["metric"].as_u64(),
            5 => route.preference = attribute["value"].as_u64(),
            8 => {
                let communities = attribute["communities"].as_array().expect("communities");
                let text = |one: &Value| format!("{}:{}", number(one) >> 16, number(one) & 0xffff);
                route.communities = communities.iter().map(text).collect();
            }
            9 => route.originator = Some(attribute["value"].as_str().expect("an originator").into()),
            10 => route.clusters = values.iter().map(|one| one.as_str().expect("a cluster").into()).collect(),
            16 => route.extended = values.iter().map(extended).collect(),
            32 => {
                let text = |one: &Value| format!("{}:{}:{}", one["ASN"], one["LocalData1"], one["LocalData2"]);
                route.large = values.iter().map(text).collect();
            }
            _ => {}
        }
    }
    route
}

fn extended(value: &Value) -> String {
    assert_eq!((&value["type"], &value["subtype"]), (&0.into(), &2.into()), "a route target");
    format!("rt:{}", value["value"].as_str().expect("its value"))
}
