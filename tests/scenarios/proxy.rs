//! The service proxy's scenarios: virtual services, sets, rules and routes, and where connections end.

use std::sync::Arc;
use std::time::Instant;

use sluice::config::ProxyConfig;
use sluice::kernel::address::AddressKey;
use sluice::kernel::ipvs::{ServiceKey, Virtual, flags};
use sluice::kernel::link::LinkName;
use sluice::kernel::route::Route;
use sluice::model::Authority;
use sluice::net::{Family, Protocol};
use sluice::proxy::apply::Mirrors;
use sluice::proxy::desired::{Desired, ProxyChanges};
use sluice::proxy::plan::Plan;
use sluice::reconcile::Moment;

use crate::file::{File, Known};
use crate::objects;
use crate::support::flags as words;
use crate::support::memory::{MemoryKernel, State};
use crate::support::packet::{self, End};

pub const KNOWN: Known = Known {
    given: &["flags", "host", "objects", "remembered", "tunnel mode"],
    expected: &[
        "warnings", "notes", "virtuals", "sets", "rules", "routes", "settings", "counts", "routing", "problems",
        "trace",
    ],
    never_silent: &["warnings", "notes"],
};

/// Desired state, warnings and traces of a scenario.
struct Found {
    desired: Desired,
    notes: Vec<String>,
    warnings: Vec<String>,
    problems: Vec<String>,
    kernel: State,
}

/// The file with what was found.
pub fn check(file: &File) -> File {
    let found = found(file);
    file.with(|section| match section {
        "trace" => file.lines("trace").map(|line| traced(line, &found.kernel)).collect(),
        section => found.lines(section),
    })
}

fn found(file: &File) -> Found {
    let given: Vec<&str> = file.lines("flags").collect();
    let (config, families) = words::proxy(&given);
    // `on`: as with `--enable-direct-server-return`.
    let tunnel_mode = file.lines("tunnel mode").next() == Some("on");
    let config = Arc::new(ProxyConfig { tunnel_mode, ..(*config).clone() });
    let (mut world, warnings) = objects::world(file.text("objects"), file.lines("host"));
    // The last known state: `all nodes`, or `own node`.
    if let Some(nodes) = file.lines("remembered").next() {
        world.authority.proxy = Authority::Remembered;
        world.authority.router = if nodes == "all nodes" { Authority::Remembered } else { Authority::Nothing };
    }
    let mut plan = Plan::new(config, families, (6, 1));
    let now = Instant::now();
    let ProxyChanges { mut notes, refused, .. } = plan.update(&world, now);
    notes.extend(
        refused.named.iter().map(|(service, it)| format!("{service}: {} is not served: {}", it.address, it.reason)),
    );
    let desired = plan.desired().clone();
    let problems = plan.problems().iter().flat_map(|(service, problems)| {
        problems.iter().map(move |problem| format!("{service}: {problem}")).collect::<Vec<_>>()
    });
    let problems = problems.collect();

    // Routes have no other source than an address of the host.
    let mut state = State::of_others();
    state.addresses.extend(world.host.addresses.iter().map(|own| {
        let (link, address) = (LinkName(own.link.clone()), Family::host_prefix(own.address));
        (AddressKey { link, address }, ())
    }));
    let kernel = MemoryKernel::new(state);
    let mut mirrors = Mirrors::new(kernel.targets(), Vec::new());
    mirrors.round(&desired, Authority::Complete, Moment { now, jitter: 0 });
    let refused = kernel.with(|machine| machine.refused.clone());
    assert!(
        refused.is_empty() && mirrors.is_settled(),
        "one round is enough, and the kernel refuses nothing: {refused:?}"
    );
    Found { desired, notes, warnings, problems, kernel: kernel.state() }
}

impl Found {
    fn lines(&self, section: &str) -> Vec<String> {
        let Desired { virtuals, sets, elements, rules, routes, settings, policy_rules, .. } = &self.desired;
        match section {
            "warnings" => self.warnings.clone(),
            "notes" => self.notes.clone(),
            "problems" => self.problems.clone(),
            "routing" => policy_rules.keys().map(ToString::to_string).collect(),
            "virtuals" => virtuals.iter().flat_map(|(key, found)| virtual_service(key, found)).collect(),
            "sets" => elements.keys().map(ToString::to_string).collect(),
            "rules" => objects::rules(rules),
            "routes" => {
                let known = |route: &Route| route.source.map_or_else(|| "no source".to_owned(), |s| format!("src {s}"));
                routes.iter().map(|(key, route)| format!("{key} {:?} {}", route.kind, known(route))).collect()
            }
            "settings" => settings.iter().map(|(key, wanted)| format!("{key} {wanted:?}")).collect(),
            "counts" => vec![
                format!("virtual services {}", virtuals.len()),
                format!("elements {}", elements.len()),
                format!("routes {}", routes.len()),
                format!("largest set {}", sets.values().map(|set| set.max_elements).max().unwrap_or_default()),
            ],
            _ => panic!("{section} is no section that is found"),
        }
    }
}

/// `tcp 10.96.0.9:80 rr`, then one line for each destination.
fn virtual_service(key: &ServiceKey, found: &Virtual) -> Vec<String> {
    let service = &found.service;
    let mut head = format!("{key} {}", service.scheduler);
    if service.flags & flags::PERSISTENT != 0 {
        head.push_str(&format!(" persistent {}", service.persistence_seconds));
    }
    for (bit, name) in [(flags::SCHEDULER_1, 1), (flags::SCHEDULER_2, 2), (flags::SCHEDULER_3, 3)] {
        if service.flags & bit != 0 {
            head.push_str(&format!(" flag-{name}"));
        }
    }
    let known = flags::PERSISTENT | flags::SCHEDULER_1 | flags::SCHEDULER_2 | flags::SCHEDULER_3;
    assert_eq!(service.flags & !known, 0, "a flag that this test has no name for");
    let destination = |d: sluice::kernel::ipvs::Destination| format!("  {} {:?} {}", d.address, d.forwarding, d.weight);
    std::iter::once(head).chain(found.destinations.iter().map(destination)).collect()
}

/// `tcp 10.96.0.9:80`, and where such a connection ends.
fn traced(line: &str, kernel: &State) -> String {
    let question = line.split(" → ").next().unwrap_or_default().trim();
    // `tcp 203.0.113.20:80 from 10.0.0.1`, or of some client outside the cluster.
    let (connection, client) = question.split_once(" from ").unwrap_or((question, ""));
    let (protocol, address) = connection.split_once(' ').unwrap_or_else(|| panic!("{line:?} is no connection"));
    let protocol = Protocol::from_api(&protocol.to_uppercase()).unwrap_or_else(|| panic!("{protocol} is no protocol"));
    let address: std::net::SocketAddr = address.parse().unwrap_or_else(|_| panic!("{address} is no address"));
    let key = ServiceKey::Address { address: address.ip(), protocol, port: address.port() };
    let end = match client.parse() {
        Ok(client) => packet::end_from(kernel, key, client),
        Err(_) => packet::end(kernel, key),
    };
    let end = match end {
        End::Dropped => "dropped".to_owned(),
        End::Martian => "a tunnel, and the kernel takes no answers".to_owned(),
        End::Elsewhere => "goes where routing says".to_owned(),
        End::Refused => "refused".to_owned(),
        End::Host => "a program of the host".to_owned(),
        End::Backends(backends) => backends.iter().map(|backend| backend.to_string()).collect::<Vec<_>>().join(", "),
    };
    format!("{question} → {end}")
}
