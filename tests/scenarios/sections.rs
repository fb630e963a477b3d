//! The file of a scenario: a description, and sections that begin with `-- NAME --`.

use std::fmt;

use sluice::kernel::ipset::Entry;
use sluice::kernel::ipvs::{ServiceKey, Virtual, flags};
use sluice::kernel::route::Route;
use sluice::net::Protocol;
use sluice::proxy::desired::Desired;

use crate::support::memory::State;
use crate::support::packet::{self, End};

/// What is given, and what may be expected.
const GIVEN: [&str; 3] = ["flags", "host", "objects"];
const EXPECTED: [&str; 9] = ["warnings", "notes", "virtuals", "sets", "rules", "routes", "settings", "counts", "trace"];

/// A scenario as it stands in its file.
pub struct File {
    description: String,
    sections: Vec<(String, String)>,
}

/// What the program made of it.
pub struct Found {
    pub desired: Desired,
    pub notes: Vec<String>,
    pub warnings: Vec<String>,
    pub kernel: State,
}

impl File {
    pub fn parse(text: &str) -> Result<File, String> {
        let mut file = File { description: String::new(), sections: Vec::new() };
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("-- ").and_then(|rest| rest.strip_suffix(" --")) {
                if !GIVEN.contains(&name) && !EXPECTED.contains(&name) {
                    return Err(format!("there is no section {name:?}"));
                }
                file.sections.push((name.to_owned(), String::new()));
                continue;
            }
            let text = file.sections.last_mut().map_or(&mut file.description, |(_, text)| text);
            text.push_str(line);
            text.push('\n');
        }
        if file.description.trim().is_empty() {
            return Err("it does not say what it is about".to_owned());
        }
        if !file.sections.iter().any(|(name, _)| EXPECTED.contains(&name.as_str())) {
            return Err("it expects nothing".to_owned());
        }
        Ok(file)
    }

    pub fn text(&self, name: &str) -> &str {
        self.sections.iter().find(|(its, _)| its == name).map_or("", |(_, text)| text)
    }

    pub fn lines(&self, name: &str) -> impl Iterator<Item = &str> {
        self.text(name).lines().filter(|line| !line.trim().is_empty())
    }

    /// The same file with what was found in the sections that it has.
    pub fn with(&self, found: &Found) -> File {
        let mut sections: Vec<(String, String)> = Vec::new();
        for (name, text) in self.sections.iter().filter(|(name, _)| GIVEN.contains(&name.as_str())) {
            sections.push((name.clone(), text.clone()));
        }
        for name in EXPECTED {
            let has = self.sections.iter().any(|(its, _)| its == name);
            let lines = match name {
                "trace" => self.lines("trace").map(|line| traced(line, &found.kernel)).collect(),
                _ => found.lines(name),
            };
            let never_silent = ["warnings", "notes"].contains(&name) && !lines.is_empty();
            if has || never_silent {
                sections.push((name.to_owned(), lines.iter().map(|line| format!("{line}\n")).collect()));
            }
        }
        File { description: self.description.clone(), sections }
    }
}

impl fmt::Display for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.description)?;
        for (name, text) in &self.sections {
            write!(f, "-- {name} --\n{text}")?;
        }
        Ok(())
    }
}

impl Found {
    fn lines(&self, section: &str) -> Vec<String> {
        let Desired { virtuals, sets, elements, rules, routes, settings, .. } = &self.desired;
        match section {
            "warnings" => self.warnings.clone(),
            "notes" => self.notes.clone(),
            "virtuals" => virtuals.iter().flat_map(|(key, found)| virtual_service(key, found)).collect(),
            "sets" => elements.keys().map(|key| format!("{} {}", key.set, entry(&key.entry))).collect(),
            "rules" => {
                let piece = |(piece, rules): (&_, &sluice::kernel::iptables::Rules)| {
                    let head = std::iter::once(format!("{piece}"));
                    head.chain(rules.0.iter().map(|rule| format!("  {rule}"))).collect::<Vec<String>>()
                };
                rules.iter().flat_map(piece).collect()
            }
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
    let destination =
        |d: &sluice::kernel::ipvs::Destination| format!("  {} {:?} {}", d.address, d.forwarding, d.weight);
    std::iter::once(head).chain(found.destinations.iter().map(destination)).collect()
}

fn entry(entry: &Entry) -> String {
    entry.to_string()
}

/// `tcp 10.96.0.9:80`, and where such a connection ends.
fn traced(line: &str, kernel: &State) -> String {
    let question = line.split(" → ").next().unwrap_or_default().trim();
    let (protocol, address) = question.split_once(' ').unwrap_or_else(|| panic!("{line:?} is no connection"));
    let protocol = Protocol::from_api(&protocol.to_uppercase()).unwrap_or_else(|| panic!("{protocol} is no protocol"));
    let address: std::net::SocketAddr = address.parse().unwrap_or_else(|_| panic!("{address} is no address"));
    let key = ServiceKey::Address { address: address.ip(), protocol, port: address.port() };
    let end = match packet::end(kernel, key) {
        End::Elsewhere => "goes where routing says".to_owned(),
        End::Refused => "refused".to_owned(),
        End::Host => "a program of the host".to_owned(),
        End::Backends(backends) => backends.iter().map(|backend| backend.to_string()).collect::<Vec<_>>().join(", "),
    };
    format!("{question} → {end}")
}
