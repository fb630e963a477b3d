//! How this node stands, at a glance: `sluice status`.
//!
//! The program answers with a [`Status`] as JSON ([`serve`]), made from what it keeps anyway: health, notes and a few metrics
//! ([`figures`]). It asks neither the kernel nor the API server, so it answers in an outage of either, and costs nothing at ten thousand
//! Services. Whoever asked prints it ([`Status::text`]).

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
    /// As `/readyz` says.
    pub ready: bool,
    pub components: Vec<Component>,
    /// Faults that somebody should see to, and that keep nothing from being ready.
    pub notes: Vec<Note>,
}

/// A part of the program.
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
pub struct Component {
    pub component: String,
    /// Why it is not ready; empty where it is.
    pub reasons: Vec<String>,
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
        let ready = if self.ready { "ready" } else { "not ready" };
        let up = since(Duration::from_secs(self.up_seconds));
        let mut text = format!(
            "{node}: {ready}; sluice {version}, up {up}; packet filter {packet_filter}; cluster from {cluster}\n"
        );
        for Component { component, reasons, figures } in &self.components {
            let ready = if reasons.is_empty() { "ready" } else { "not ready" };
            let figures: Vec<String> = figures.iter().map(ToString::to_string).collect();
            let figures = if figures.is_empty() { String::new() } else { format!("; {}", figures.join(", ")) };
            text.push_str(&format!("{component}: {ready}{figures}\n"));
            reasons.iter().for_each(|reason| text.push_str(&format!("  {}\n", one_line(reason))));
        }
        for Note { component, text: note } in &self.notes {
            text.push_str(&format!("note: {component}: {}\n", one_line(note)));
        }
        text
    }
}

fn one_line(text: &str) -> String {
    text.replace(['\r', '\n'], " ")
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

    fn status() -> Status {
        let figure = |name: &str, value| Figure { name: name.to_owned(), value };
        Status {
            node: "node-1".to_owned(),
            version: "0.1.0".to_owned(),
            up_seconds: 11_530,
            packet_filter: "nftables".to_owned(),
            cluster: "the API server".to_owned(),
            ready: false,
            components: vec![
                Component {
                    component: "service proxy".to_owned(),
                    reasons: Vec::new(),
                    figures: vec![figure("IPVS services", 1204), figure("destinations draining", 3)],
                },
                Component {
                    component: "firewall".to_owned(),
                    reasons: vec!["rules of IPv4: the kernel\nrefuses".to_owned()],
                    figures: Vec::new(),
                },
            ],
            notes: vec![Note { component: "API server".to_owned(), text: "Service not read".to_owned() }],
        }
    }

    #[test]
    fn a_person_reads_one_line_for_each_part_reason_and_note() {
        let expected = "\
node-1: not ready; sluice 0.1.0, up 3 h 12 min; packet filter nftables; cluster from the API server
service proxy: ready; IPVS services 1204, destinations draining 3
firewall: not ready
  rules of IPv4: the kernel refuses
note: API server: Service not read
";
        assert_eq!(status().text(), expected);
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
