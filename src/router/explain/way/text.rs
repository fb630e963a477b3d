//! A way as text: a paragraph for each address.

use ipnet::IpNet;

use super::{Masquerade, Origin, Owner, Planned, Tunnel, Way, Ways, differences};
use crate::kernel::route::{Fate, RouteKey, TABLE_LOCAL, TABLE_MAIN, Taken};
use crate::model::Authority;
use crate::net::{Family, PerFamily};
use crate::router::explain::RouteInKernel;
use crate::router::explain::routes::describe;
use crate::router::names::{BRIDGE, PROTOCOL};

/// Formats the answer as lines of text, each ending with a line break.
pub fn text(ways: &Ways) -> String {
    let mut text: String = heading(ways).into_iter().map(|line| line + "\n").collect();
    for (way, origin) in &ways.ways {
        text.push_str(&format!("{}: {}\n", way.address, owner(way)));
        text.extend(lines(way, origin).into_iter().map(|line| format!("  {line}\n")));
    }
    text
}

/// Says how far the cluster is known, where that is not all of it as of now, and which pod was asked for.
pub fn heading(ways: &Ways) -> Vec<String> {
    let known = match ways.authority {
        Authority::Complete => None,
        Authority::Partial => Some("partial: some objects cannot be read"),
        Authority::Remembered => Some("remembered: from the last known state of an earlier run"),
        Authority::Nothing => Some("nothing is known"),
    };
    let mut heading: Vec<String> = known.map(|known| format!("known of the cluster: {known}")).into_iter().collect();
    if let Some((name, pod)) = &ways.pod {
        let node = pod.node.as_deref().map(|node| format!(" on Node {node}")).unwrap_or_default();
        let network = if pod.host_network { ", on the host network" } else { "" };
        heading.push(format!("Pod {name}{node}{network}"));
    }
    heading
}

/// Returns whose an address is.
pub fn owner(way: &Way) -> String {
    match &way.owner {
        Owner::ThisNode => "an address of this node".to_owned(),
        _ if way.is_served => "an address of Services, delivered on this node".to_owned(),
        Owner::ThisNodeOutside => {
            "an ExternalIP of this Node that no link of the host has, so whoever translates it is outside".to_owned()
        }
        Owner::OwnPods(range) => format!("in {range}, pods of this node"),
        Owner::PodsOf { node, range } => format!("in {range}, pods of Node {node}"),
        Owner::Node(node) => format!("an address of Node {node}"),
        Owner::Other => "of no Node and in no pod range: outside of the cluster, so far as Nodes tell".to_owned(),
    }
}

/// Returns everything about a way, a sentence a line, without their ends.
pub fn lines(way: &Way, origin: &Origin) -> Vec<String> {
    let mut lines = route(way, origin);
    if let Some(planned) = &way.planned_of_pods {
        lines.push(format!(
            "route of packets of pods: {} {}; a rule chooses it by their source",
            named(&planned.key),
            describe(&planned.route)
        ));
    }
    lines.extend(fits(way).map(|(mtu, why)| format!("MTU: {mtu} bytes: {why}")));
    lines.extend(fits_of_pods(way).map(|(mtu, why)| format!("MTU of packets of pods: {mtu} bytes: {why}")));
    lines.extend(source(way));
    lines.extend(
        masquerade(way).map(|(is, why)| format!("masqueraded, from pods: {}{why}", if is { "yes " } else { "no: " })),
    );
    match &way.kernel {
        Ok(taken) => lines.push(format!("kernel, packets of this node: {}", looked_up(taken))),
        Err(error) => lines.push(format!("kernel: cannot be asked: {error}")),
    }
    match &way.kernel_of_pods {
        Ok(None) if way.own_pods.is_none() => {}
        Ok(None) => lines.push("kernel, packets of pods: not looked up: no link of this host leads to the address that stands for its pods, as before the first of them or where each has a link".to_owned()),
        Ok(Some(taken)) if way.kernel.as_ref().is_ok_and(|of_node| is_alike(of_node, taken)) => {
            lines.push("kernel, packets of pods: the same".to_owned());
        }
        Ok(Some(taken)) => lines.push(format!("kernel, packets of pods: {}", looked_up(taken))),
        Err(error) => lines.push(format!("kernel, packets of pods: cannot be asked: {error}")),
    }
    lines.extend(differences(way).into_iter().map(|what| format!("differs from the plan: {what}")));
    lines
}

/// The desired route, where it comes from, and whether it is there; or why there is none.
fn route(way: &Way, origin: &Origin) -> Vec<String> {
    if way.is_served || way.owner == Owner::ThisNode {
        return vec!["route: delivered on this node".to_owned()];
    }
    let Some(planned) = &way.planned else {
        let mut lines = vec![match (&way.owner, way.why_none.is_empty()) {
            (Owner::OwnPods(_), _) => "route: none of ours is needed: the CNI plugin's links lead there".to_owned(),
            (_, true) => "route: none of ours: the kernel's own decide".to_owned(),
            (_, false) => "route: none, although there should be one".to_owned(),
        }];
        lines.extend(way.why_none.iter().map(|why| format!("no route: {why}")));
        lines.extend(origin.refused.iter().map(|why| format!("no route: {why}")));
        return lines;
    };
    let mut lines = vec![format!("route: {} {}", named(&planned.key), describe(&planned.route))];
    let nodes: Vec<String> = planned.kernel.given_by.iter().map(|node| format!("Node {node}")).collect();
    if !nodes.is_empty() {
        lines.push(format!("from: the object of {} (--node-routes=api)", nodes.join(", ")));
    }
    lines.extend(origin.used.iter().map(|from| format!("from: {from}")));
    lines.extend(way.why_none.iter().chain(&origin.refused).map(|why| format!("no narrower route: {why}")));
    lines.push(format!("in the kernel: {}", standing(planned)));
    lines.extend(planned.kernel.in_the_way.iter().map(|rival| format!("in the way: {rival}")));
    for (hop, tunnel) in planned.route.next_hops.iter().zip(&planned.tunnels) {
        if let Some(tunnel) = tunnel {
            lines.push(format!("tunnel {}: {}", hop.link, of_tunnel(tunnel)));
        }
    }
    lines
}

/// Returns how a route stands in the kernel.
pub fn standing(planned: &Planned) -> String {
    match &planned.kernel.route {
        RouteInKernel::InPlace(_) => "in place".to_owned(),
        RouteInKernel::Waiting { seen: None, .. } => "about to be written".to_owned(),
        RouteInKernel::Waiting { seen: Some(seen), .. } => {
            format!("about to be changed; it has {}", describe(seen))
        }
        RouteInKernel::Failed { error, .. } => {
            format!("not in place: the last changes of routes failed, the first one with: {error}")
        }
        RouteInKernel::Unread(error) => format!("routes cannot be read: {error}"),
        RouteInKernel::Kept(_) | RouteInKernel::Absent => "absent".to_owned(),
    }
}

fn of_tunnel(tunnel: &Tunnel) -> String {
    let ends = &tunnel.ends;
    let port = ends.port.map(|port| format!(", UDP port {port}")).unwrap_or_default();
    let overhead = ends.encapsulation.overhead(Family::from(ends.remote));
    let standing = match tunnel.is_in_place {
        Some(true) => "in place",
        Some(false) => "not in place",
        None => "cannot be read",
    };
    let (kind, local, remote) = (ends.encapsulation.name(), ends.local, ends.remote);
    format!("{kind}{port} from {local} to {remote}, which adds {overhead} bytes to each packet; {standing}")
}

/// Returns the largest packet that passes unchanged, in bytes, and why; `None` where nothing says it.
pub fn fits(way: &Way) -> Option<(u32, String)> {
    let of_all = way.planned_of_pods.is_none();
    fits_by(way, way.planned.as_ref(), way.kernel.as_ref().ok(), of_all)
}

/// Returns the same of packets of pods, where another route is theirs.
pub fn fits_of_pods(way: &Way) -> Option<(u32, String)> {
    let planned = way.planned_of_pods.as_ref()?;
    fits_by(way, Some(planned), way.kernel_of_pods.as_ref().ok().and_then(Option::as_ref), true)
}

fn fits_by(way: &Way, planned: Option<&Planned>, taken: Option<&Taken>, of_pods: bool) -> Option<(u32, String)> {
    if way.is_served || way.owner == Owner::ThisNode {
        return None;
    }
    let taken = taken.filter(|taken| taken.fate == Fate::Forwarded);
    let tunnel = planned.and_then(|planned| planned.tunnels.iter().flatten().next());
    let device = taken.and_then(|taken| Some((taken.link_mtu?, taken.link.as_ref()?)));
    let path = taken.and_then(|taken| taken.path_mtu);
    let arithmetic = |mtu| arithmetic(tunnel, way.node_mtus, mtu);
    let (mtu, why) = match (path, device, tunnel.and_then(|tunnel| tunnel.ends.mtu)) {
        (Some(path), device, _) if device.is_none_or(|(device, _)| path < device) => {
            (path, "the kernel has been told so of the path, or the route says so".to_owned())
        }
        (_, Some((device, link)), wanted) => {
            let wanted = wanted.filter(|wanted| *wanted != device);
            let wanted = wanted.map(|wanted| format!(", and should have {wanted}")).unwrap_or_default();
            (device, format!("{link} has it{wanted}{}", arithmetic(device)))
        }
        (_, None, wanted) => (wanted?, format!("the tunnel is to have it{}", arithmetic(wanted?))),
    };
    let larger = way.pods_mtu.filter(|pods| of_pods && *pods > mtu);
    let larger = larger.map(|pods| {
        format!("; pods may send {pods} ({BRIDGE}): this node answers larger ones, and they send smaller ones")
    });
    Some((mtu, format!("{why}{}", larger.unwrap_or_default())))
}

/// Returns how the MTU of a tunnel follows from that of the link that carries it.
fn arithmetic(tunnel: Option<&Tunnel>, node_mtus: PerFamily<Option<u32>>, mtu: u32) -> String {
    let Some(ends) = tunnel.map(|tunnel| &tunnel.ends) else { return String::new() };
    let family = Family::from(ends.remote);
    let Some(link) = *node_mtus.of(family) else { return String::new() };
    let overhead = ends.encapsulation.overhead(family);
    let kind = ends.encapsulation.name();
    match link.checked_sub(overhead) == Some(mtu) {
        true => format!(": {link} of this node's link less {overhead} of {kind} over {family}"),
        false => format!(" (this node's link has {link}, and {kind} over {family} adds {overhead})"),
    }
}

fn source(way: &Way) -> Option<String> {
    if way.is_served || way.owner == Owner::ThisNode {
        return None;
    }
    let wanted = way.planned.as_ref().and_then(|planned| planned.route.source);
    let taken = way.kernel.as_ref().ok().and_then(|taken| taken.source);
    let (source, why) = match (wanted, taken) {
        (Some(wanted), _) => (wanted, "the route names it, because a tunnel's device has none"),
        (None, Some(taken)) => (taken, "the kernel's choice"),
        (None, None) => return None,
    };
    Some(format!("source address: {source} of packets of this node ({why})"))
}

/// Returns whether packets of pods are masqueraded on their way out, and why; `None` of those that the kernel refuses before.
pub fn masquerade(way: &Way) -> Option<(bool, String)> {
    let of_pods = way.kernel_of_pods.as_ref().ok().and_then(Option::as_ref);
    let fate = of_pods.or(way.kernel.as_ref().ok()).map(|taken| taken.fate);
    let why = match (&way.masquerade, fate) {
        (Masquerade::Off, _) => "--enable-pod-egress is off".to_owned(),
        (Masquerade::Unknown, _) => "no Node is known, or the family is off".to_owned(),
        _ if way.is_served => "it is delivered here; of a Service's packets sluice svc tells more".to_owned(),
        _ if way.owner == Owner::ThisNode => "it is delivered here".to_owned(),
        (_, Some(Fate::Local)) => "it is delivered here".to_owned(),
        (Masquerade::ToPods(range), _) => format!("{range} are pods of the cluster"),
        (Masquerade::ToNode, _) => "it is an address of a node".to_owned(),
        (Masquerade::ToOutside, Some(Fate::Refused | Fate::RefusedOrMartian)) => return None,
        (Masquerade::ToOutside, _) => {
            let why = "(--enable-pod-egress): it is neither a node's address nor in a pod range of one";
            return Some((true, why.to_owned()));
        }
    };
    Some((false, why))
}

/// Returns the kernel's way.
pub fn looked_up(taken: &Taken) -> String {
    let by = taken.decided_by.as_ref();
    let by = by.map(|(key, origin)| format!(", by {} of {}", named(key), protocol(*origin))).unwrap_or_default();
    match taken.fate {
        Fate::Refused => return format!("refused: no route, or one that refuses{by}"),
        Fate::RefusedOrMartian => {
            return format!("refused: by a route, or by the check of its source (rp_filter){by}");
        }
        Fate::Local => return format!("delivered here{by}"),
        Fate::Other(kind) => return format!("broadcast, multicast or anycast (route type {kind}){by}"),
        Fate::Forwarded => {}
    }
    let gateway = taken.gateway.map(|gateway| format!("via {gateway} ")).unwrap_or_default();
    let link = taken.link.as_ref().map_or_else(|| "no link".to_owned(), ToString::to_string);
    let source = taken.source.map(|source| format!(" src {source}")).unwrap_or_default();
    format!("{gateway}dev {link}{source}{by}")
}

/// Returns whether two ways are the same, whatever their source addresses: forwarded packets have theirs.
fn is_alike(one: &Taken, other: &Taken) -> bool {
    let without_source = |taken: &Taken| Taken { source: None, ..taken.clone() };
    without_source(one) == without_source(other)
}

/// Returns a route's prefix, with its table where that is another one than the main table.
pub fn named(key: &RouteKey) -> String {
    let prefix = match key.destination {
        prefix if prefix == IpNet::V4(ipnet::Ipv4Net::default()) || prefix == IpNet::V6(ipnet::Ipv6Net::default()) => {
            format!("{prefix} (default)")
        }
        prefix => prefix.to_string(),
    };
    match key.table {
        TABLE_MAIN => prefix,
        TABLE_LOCAL => format!("{prefix} table local"),
        table => format!("{prefix} table {table}"),
    }
}

/// Returns who makes routes of a protocol (`/etc/iproute2/rt_protos`).
pub fn protocol(number: u8) -> String {
    let known = match number {
        PROTOCOL => "sluice",
        2 => "the kernel",
        3 => "protocol boot (ip route, and tunnels of sluice)",
        4 => "an administrator (static)",
        9 => "a router advertisement",
        12 => "BIRD",
        16 => "DHCP",
        186 => "FRR (BGP)",
        number => return format!("protocol {number}"),
    };
    known.to_owned()
}
