//! How this node stands, at a glance: `sluice status`.
//!
//! The program answers with a [`Status`] as JSON ([`serve`]), made from what it keeps anyway: health, notes and a few metrics
//! ([`figures`]), from the World's authority and from the last warnings of the log. It asks neither the kernel nor the API server, so it answers in an
//! outage of either, and costs nothing at ten thousand Services. Whoever asked prints it ([`Status::text`]).

pub mod figures;
pub mod serve;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::figures::Figure;

/// The state of the program on this node.
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
pub struct Status {
    /// The name of the Node.
    pub node: String,
    pub version: String,
    /// Seconds since the program started.
    pub up_seconds: u64,
    /// `nftables` or `iptables`.
    pub packet_filter: String,
    /// Where objects of the cluster come from.
    pub cluster: String,
    /// How far the cluster is known to each subsystem that runs.
    #[serde(default)]
    pub known: Vec<Known>,
    /// Seconds since when objects of the cluster cannot be read, so that what is known of them is so old or older; absent while all of them are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unread_seconds: Option<u64>,
    /// As `/readyz` says.
    pub ready: bool,
    pub components: Vec<Component>,
    /// BGP neighbours, by address.
    #[serde(default)]
    pub neighbours: Vec<Neighbour>,
    /// Faults that somebody should see to, and that keep nothing from being ready.
    pub notes: Vec<Note>,
    /// Warnings and errors in the log since the start.
    #[serde(default)]
    pub warnings: Warnings,
}

/// How far the cluster is known to a subsystem.
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
pub struct Known {
    pub component: String,
    /// `complete`; `partial`, where something could not be read; `remembered`, from the last known state; or `nothing`.
    pub cluster: String,
}

/// A BGP neighbour.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Neighbour {
    /// `192.0.2.1`, or `fe80::1%eth1` of one behind an interface.
    pub address: String,
    /// 0 where any AS number is accepted.
    pub asn: u32,
    /// `internal` or `external`.
    pub kind: String,
    /// The state of its session (RFC 4271 section 8.2.2).
    pub state: String,
}

/// Warnings and errors of the log.
#[derive(Clone, PartialEq, Default, Serialize, Deserialize, Debug)]
pub struct Warnings {
    pub count: u64,
    /// The last few, the newest last.
    pub latest: Vec<String>,
}

/// A part of the program.
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
pub struct Component {
    pub component: String,
    /// Why it is not ready; empty where it is.
    pub reasons: Vec<String>,
    /// Seconds since the kernel was last known to hold all that this part brings into it; absent where it never was, or where the part keeps nothing there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub synced_seconds: Option<u64>,
    pub figures: Vec<Figure>,
}

/// A note of `/readyz`.
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
pub struct Note {
    pub component: String,
    pub text: String,
}

impl Status {
    /// Parses an answer of the program.
    ///
    /// # Errors
    /// It is not of this form.
    pub fn parse(text: &str) -> Result<Status, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// The answer for a person.
    pub fn text(&self) -> String {
        let Status { node, version, packet_filter, cluster, .. } = self;
        let cluster = format!("{cluster}{}", self.age());
        let ready = if self.ready { "ready" } else { "not ready" };
        let up = since(Duration::from_secs(self.up_seconds));
        let mut text = format!(
            "{node}: {ready}; sluice {version}, up {up}; packet filter {packet_filter}; cluster from {cluster}\n"
        );
        for Component { component, reasons, synced_seconds, figures } in &self.components {
            let ready = if reasons.is_empty() { "ready" } else { "not ready" };
            let synced = synced_seconds.map(|seconds| format!("in sync {} ago", since(Duration::from_secs(seconds))));
            let figures: Vec<String> = figures.iter().map(ToString::to_string).collect();
            let figures = Some(figures.join(", ")).filter(|figures| !figures.is_empty());
            let more: String = synced.into_iter().chain(figures).map(|text| format!("; {text}")).collect();
            text.push_str(&format!("{component}: {ready}{more}\n"));
            reasons.iter().for_each(|reason| text.push_str(&format!("  {}\n", one_line(reason))));
        }
        for Neighbour { address, asn, kind, state } in self.neighbours.iter().filter(|it| it.state != ESTABLISHED) {
            text.push_str(&format!("neighbour {address} (AS {asn}, {kind}): {state}\n"));
        }
        for Note { component, text: note } in &self.notes {
            text.push_str(&format!("note: {component}: {}\n", one_line(note)));
        }
        let Warnings { count, latest } = &self.warnings;
        if *count > 0 {
            text.push_str(&format!("warnings in the log since the start: {count}; the latest:\n"));
            latest.iter().for_each(|line| text.push_str(&format!("  {}\n", one_line(line))));
        }
        text
    }

    /// How far the cluster is known, and how old that is, to be put behind its source.
    fn age(&self) -> String {
        let mut text = String::new();
        let is_complete = |known: &&Known| known.cluster == COMPLETE;
        if let (Some(first), true) = (self.known.first(), self.known.windows(2).all(same_knowledge)) {
            text.push_str(&format!(", {}", first.cluster));
        } else {
            for Known { component, cluster } in self.known.iter().filter(|known| !is_complete(known)) {
                text.push_str(&format!(", {cluster} for the {component}"));
            }
        }
        if let Some(seconds) = self.unread_seconds {
            text.push_str(&format!(", not read for {}", since(Duration::from_secs(seconds))));
        }
        text
    }
}

fn same_knowledge(pair: &[Known]) -> bool {
    let mut words = pair.iter().map(|known| &known.cluster);
    words.next() == words.next()
}

/// Words of [`Known`] and [`Neighbour`].
const COMPLETE: &str = "complete";
const ESTABLISHED: &str = "established";

/// A text as one line that a terminal shows as it is.
fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// A duration in its two largest units.
fn since(time: Duration) -> String {
    let seconds = time.as_secs();
    match (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, seconds) => format!("{seconds} s"),
        (0, 0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (0, hours, minutes, _) => format!("{hours} h {minutes} min"),
        (days, hours, _, _) => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(component: &str, cluster: &str) -> Known {
        Known { component: component.to_owned(), cluster: cluster.to_owned() }
    }

    fn neighbour(address: &str, state: &str) -> Neighbour {
        let address = address.to_owned();
        Neighbour { address, asn: 64_512, kind: "internal".to_owned(), state: state.to_owned() }
    }

    fn status() -> Status {
        let figure = |name: &str, value| Figure { name: name.to_owned(), value };
        Status {
            node: "node-1".to_owned(),
            version: "0.1.0".to_owned(),
            up_seconds: 11_530,
            packet_filter: "nftables".to_owned(),
            cluster: "the API server".to_owned(),
            known: vec![known("service proxy", "complete"), known("firewall", "partial")],
            unread_seconds: Some(182),
            ready: false,
            components: vec![
                Component {
                    component: "service proxy".to_owned(),
                    reasons: Vec::new(),
                    synced_seconds: Some(3),
                    figures: vec![figure("IPVS services", 1204), figure("destinations draining", 3)],
                },
                Component {
                    component: "firewall".to_owned(),
                    reasons: vec!["rules of IPv4:\u{9b}the kernel\nrefuses".to_owned()],
                    synced_seconds: None,
                    figures: Vec::new(),
                },
            ],
            neighbours: vec![neighbour("192.0.2.2", "established"), neighbour("2001:db8::3", "active")],
            notes: vec![Note { component: "API server".to_owned(), text: "Service not read".to_owned() }],
            warnings: Warnings { count: 7, latest: vec!["W1120 05:04:18 slow".to_owned()] },
        }
    }

    #[test]
    fn a_person_reads_one_line_for_each_part_reason_and_note() {
        let expected = "\
node-1: not ready; sluice 0.1.0, up 3 h 12 min; packet filter nftables; cluster from the API server, partial for the firewall, not read for 3 min 2 s
service proxy: ready; in sync 3 s ago; IPVS services 1204, destinations draining 3
firewall: not ready
  rules of IPv4: the kernel refuses
neighbour 2001:db8::3 (AS 64512, internal): active
note: API server: Service not read
warnings in the log since the start: 7; the latest:
  W1120 05:04:18 slow
";
        assert_eq!(status().text(), expected);
    }

    #[test]
    fn what_all_know_alike_is_said_once_and_an_age_only_where_something_is_not_read() {
        let all = |words: [&str; 2], unread_seconds| {
            let known = vec![known("firewall", words[0]), known("router", words[1])];
            Status { known, unread_seconds, ..status() }.age()
        };
        assert_eq!(all(["complete", "complete"], None), ", complete");
        assert_eq!(all(["remembered", "remembered"], Some(7200)), ", remembered, not read for 2 h 0 min");
        assert_eq!(all(["complete", "nothing"], None), ", nothing for the router");
        assert_eq!(Status { known: Vec::new(), unread_seconds: None, ..status() }.age(), "");
    }

    #[test]
    fn an_answer_is_read_back_as_it_was() {
        let text = serde_json::to_string(&status()).expect("it has no odd keys");
        assert_eq!(Status::parse(&text).expect("its own form"), status());
        assert!(Status::parse("{}").is_err());
    }

    #[test]
    fn durations_have_their_two_largest_units() {
        for (seconds, text) in [(0, "0 s"), (61, "1 min 1 s"), (3_600, "1 h 0 min"), (90_000, "1 d 1 h")] {
            assert_eq!(since(Duration::from_secs(seconds)), text);
        }
    }
}
