//! Answers as text: a table of all Services, or a paragraph for each address.

use crate::kernel::ipvs::{Connections, ServiceKey, Stats};
use crate::model::{Authority, Service, ServiceType, TrafficPolicy};
use crate::net::PerFamily;

use super::{
    EndpointState, Explanation, HealthCheckState, KernelState, Place, Question, Served, ServiceState, Standing,
};

/// Formats the answer as lines of text, each ending with a line break.
pub fn text(explanation: &Explanation, question: &Question) -> String {
    let mut text = known(explanation);
    match question {
        Question::All => text.push_str(&table(&explanation.services)),
        Question::Service(_) | Question::Address(..) => {
            text.extend(explanation.services.iter().map(|state| in_full(state, explanation.outside.as_ref())));
        }
    }
    if explanation.left_off > 0 {
        text.push_str(&format!("{} more Services ask for it\n", explanation.left_off));
    }
    text
}

/// Says how far the cluster is known, where that is not all of it as of now.
fn known(explanation: &Explanation) -> String {
    let how = match explanation.authority {
        Authority::Complete => None,
        Authority::Partial => Some("partial: some objects cannot be read, so nothing is removed from the kernel"),
        Authority::Remembered => {
            Some("remembered: from the last known state of an earlier run, which changes nothing that exists")
        }
        Authority::Nothing => Some("nothing is known"),
    };
    let how = how.map(|how| format!("known of the cluster: {how}\n"));
    how.into_iter().chain(explanation.notes.iter().map(|note| format!("{note}\n"))).collect()
}

fn table(services: &[ServiceState]) -> String {
    let header = ["SERVICE", "TYPE", "ADDRESSES", "ENDPOINTS", "STATE"].map(str::to_owned);
    let rows: Vec<[String; 5]> = [header].into_iter().chain(services.iter().map(row)).collect();
    let mut widths = [0; 5];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |row: &[String; 5]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

fn row(state: &ServiceState) -> [String; 5] {
    let Service { cluster_ips, external_ips, load_balancer, .. } = &*state.service;
    let balanced = load_balancer.iter().map(|entry| entry.address);
    let addresses = cluster_ips.iter().chain(external_ips).copied().chain(balanced);
    let mut addresses: Vec<String> = addresses.map(|address| address.to_string()).collect();
    addresses.dedup();
    let more = addresses.len().saturating_sub(4);
    addresses.truncate(4);
    if more > 0 {
        addresses.push(format!("and {more} more"));
    }
    let endpoints = format!("{}/{}", state.serving(), state.endpoints);
    [state.name.to_string(), kind(&state.service).to_owned(), addresses.join(","), endpoints, summary(state)]
}

/// Counts the addresses in each state; an address counts once for each port.
fn summary(state: &ServiceState) -> String {
    let [mut in_place, mut in_part, mut missing, mut different, mut unread] = [0_usize; 5];
    let [mut refused, mut lost, mut without] = [0_usize; 3];
    for place in &state.places {
        let counted = match &place.standing {
            Standing::Served(served) => match served.kernel {
                KernelState::Present { is_desired: true, .. } if served.beside.lacks.is_empty() => &mut in_place,
                KernelState::Present { is_desired: true, .. } => &mut in_part,
                KernelState::Present { .. } => &mut different,
                KernelState::Missing => &mut missing,
                KernelState::Unread(_) => &mut unread,
            },
            Standing::Refused(_) => &mut refused,
            Standing::LostTo(_) => &mut lost,
            Standing::SpeakerPort => &mut refused,
            Standing::NoLocalEndpoint | Standing::Closing => &mut without,
            Standing::ThroughBalancer | Standing::Skipped | Standing::FamilyOff => continue,
        };
        *counted += 1;
    }
    let counts = [
        (in_place, "in place"),
        (in_part, "in place in part"),
        (missing, "missing"),
        (different, "different"),
        (unread, "not read yet"),
        (refused, "refused"),
        (lost, "lost to another Service"),
        (without, "without a local endpoint"),
    ];
    let problems = match state.problems.len() {
        0 => None,
        1 => Some("1 problem".to_owned()),
        count => Some(format!("{count} problems")),
    };
    let counts = counts.into_iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}"));
    let words: Vec<String> = counts.chain(problems).collect();
    if words.is_empty() { "nothing to serve".to_owned() } else { words.join(", ") }
}

/// Everything about one Service. `outside`: what the source ranges of all Services have dropped.
fn in_full(state: &ServiceState, outside: Option<&Result<PerFamily<u64>, String>>) -> String {
    let mut text = format!("Service {}: {}\n", state.name, wants(&state.service));
    text.extend(state.problems.iter().map(|problem| format!("  problem: {problem}\n")));
    if let Some(HealthCheckState { port, lost_to, local_endpoints, is_pending }) = &state.health_check {
        let pending = if *is_pending { "; answers 503, because the kernel has not got all of the Service" } else { "" };
        text.push_str(&match lost_to {
            Some(owner) => format!("  health check port {port}: Service {owner} has it\n"),
            None => format!("  health check port {port}: ready endpoints on this node: {local_endpoints}{pending}\n"),
        });
    }
    if let Some(outside) = outside.filter(|_| state.has_source_ranges()) {
        text.push_str(&match outside {
            Ok(PerFamily { v4, v6 }) => format!(
                "  clients outside of source ranges: {v4} packets of IPv4 and {v6} of IPv6 dropped on this node, at all Services together\n"
            ),
            Err(error) => format!("  clients outside of source ranges: what was dropped cannot be read: {error}\n"),
        });
    }
    text.extend(state.places.iter().map(of_place));
    if state.places_left_off > 0 {
        text.push_str(&format!("  {} more addresses with their ports\n", state.places_left_off));
    }
    text
}

/// Describes what a Service wants besides addresses.
fn wants(service: &Service) -> String {
    let mut words = vec![kind(service).to_owned(), format!("scheduler {}", service.annotations.scheduler.name())];
    if let Some(seconds) = service.affinity_seconds {
        words.push(format!("affinity ClientIP {seconds} s"));
    }
    words.push(format!("internal traffic {}", policy(service.internal_traffic_policy)));
    words.push(format!("external traffic {}", policy(service.external_policy())));
    if let Some(ranges) = &service.source_ranges {
        let ranges: Vec<String> = ranges.iter().map(ToString::to_string).collect();
        words.push(match ranges.is_empty() {
            true => "load balancer addresses for nobody".to_owned(),
            false => format!("load balancer addresses for {} only", ranges.join(" ")),
        });
    }
    words.join(", ")
}

pub(super) fn kind(service: &Service) -> &'static str {
    match service.kind {
        ServiceType::ClusterIp => "ClusterIP",
        ServiceType::NodePort => "NodePort",
        ServiceType::LoadBalancer => "LoadBalancer",
    }
}

pub(super) fn policy(policy: TrafficPolicy) -> &'static str {
    match policy {
        TrafficPolicy::Cluster => "Cluster",
        TrafficPolicy::Local => "Local",
    }
}

fn of_place(place: &Place) -> String {
    let Place { key, role, port_name, standing } = place;
    let named = if port_name.is_empty() { String::new() } else { format!(", port {port_name}") };
    let at = format!("  {key} ({}{named})", role.name());
    match standing {
        Standing::Served(served) => format!("{}{}", of_served(&at, served), without_port(served, place)),
        standing => format!("{at}: not served: {}\n", why_not(standing)),
    }
}

/// Says why an address is not served.
pub(super) fn why_not(standing: &Standing) -> String {
    match standing {
        Standing::Served(_) => String::new(),
        Standing::Refused(reason) => reason.to_string(),
        Standing::LostTo(owner) => format!("Service {owner} claims it too and comes first"),
        Standing::NoLocalEndpoint => "the traffic policy is Local, and no usable endpoint is on this node".to_owned(),
        Standing::Closing => "it goes as soon as routers have been told".to_owned(),
        Standing::ThroughBalancer => "its load balancer has ipMode Proxy, so traffic must pass it".to_owned(),
        Standing::Skipped => "the annotation kube-router.io/service.skiplbips leaves it out".to_owned(),
        Standing::FamilyOff => "its address family is not enabled on this node".to_owned(),
        Standing::SpeakerPort => "this node speaks BGP or BFD at this port of its own address".to_owned(),
    }
}

fn of_served(at: &str, served: &Served) -> String {
    let Served { clients, endpoints, left_off, without_port, kernel, beside, .. } = served;
    let state = match kernel {
        KernelState::Unread(why) => format!("the kernel was not read: {why}"),
        KernelState::Missing => "missing in the kernel".to_owned(),
        KernelState::Present { is_desired: true, .. } if beside.lacks.is_empty() => "in place".to_owned(),
        KernelState::Present { is_desired: true, .. } => "the virtual service is in place".to_owned(),
        KernelState::Present { observed: None, .. } => "different in the kernel".to_owned(),
        KernelState::Present { observed: Some(observed), .. } => {
            format!("different in the kernel, which has {}", observed.without_counters())
        }
    };
    let (counters, is_read) = match kernel {
        KernelState::Present { observed: Some(observed), .. } => {
            let mut all = Connections::default();
            for found in &observed.destinations {
                all.active = all.active.saturating_add(found.connections.active);
                all.inactive = all.inactive.saturating_add(found.connections.inactive);
            }
            (format!("; {}", traffic(&all, &observed.stats)), true)
        }
        _ => (String::new(), false),
    };
    let inside =
        if clients.inside_only { "; for this node's pods and itself only, as no usable endpoint is here" } else { "" };
    let clients = match &clients.sources {
        Some(ranges) if ranges.is_empty() => "; for no client".to_owned(),
        Some(_) => "; for the source ranges only".to_owned(),
        None => String::new(),
    };
    let mut text = format!("{at}: {state}{clients}{inside}{counters}\n");
    text.extend(beside.lacks.iter().map(|lack| format!("    not in place: {}\n", lack.reason())));
    if beside.is_doubtful {
        text.push_str("    the route or the sets of the address cannot be read, or a change of them has failed\n");
    }
    if endpoints.is_empty() && *without_port == 0 {
        text.push_str("    no endpoint\n");
    }
    text.extend(endpoints.iter().map(|endpoint| of_endpoint(endpoint, is_read)));
    if *left_off > 0 {
        text.push_str(&format!("    {left_off} more endpoints\n"));
    }
    text
}

/// Says how many endpoints the Service's port does not fit.
fn without_port(served: &Served, place: &Place) -> String {
    let protocol = match place.key {
        ServiceKey::Address { protocol, .. } => format!("{protocol} "),
        ServiceKey::Mark { .. } => String::new(),
    };
    match (served.without_port, place.port_name.as_str()) {
        (0, _) => String::new(),
        (count, "") => format!("    out: {count} endpoints without a {protocol}port that has no name\n"),
        (count, name) => format!("    out: {count} endpoints without a {protocol}port named {name}\n"),
    }
}

fn of_endpoint(endpoint: &EndpointState, is_read: bool) -> String {
    let EndpointState { address, node, standing, traffic: found } = endpoint;
    let node = node.as_ref().map(|node| format!(" on {node}")).unwrap_or_default();
    let found = match found {
        Some((connections, stats)) => format!("; {}", traffic(connections, stats)),
        None if is_read && !standing.is_out() => "; missing in the kernel".to_owned(),
        None => String::new(),
    };
    format!("    {address}{node}: {}{found}\n", standing.reason())
}

/// `2 active and 1 inactive connections`, and the rates where there are any.
fn traffic(connections: &Connections, stats: &Stats) -> String {
    let Connections { active, inactive, .. } = connections;
    let Stats { connections_rate, packets_in_rate, packets_out_rate, bytes_in_rate, bytes_out_rate, .. } = stats;
    let mut text = format!("{active} active and {inactive} inactive connections");
    let rates = [connections_rate, packets_in_rate, packets_out_rate, bytes_in_rate, bytes_out_rate];
    if rates.into_iter().any(|rate| *rate > 0) {
        text.push_str(&format!(
            ", {connections_rate} new/s, in {packets_in_rate} packets/s {bytes_in_rate} B/s, out {packets_out_rate} packets/s {bytes_out_rate} B/s"
        ));
    }
    text
}
