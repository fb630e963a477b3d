//! Logs neighbours that cannot be connected to, in few messages.
//!
//! The first ones are logged by name, when that begins and when it ends. Any more, as when thousands of nodes do not
//! answer, are one message with their number and an example, repeated only when the number has doubled or halved.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Neighbours that cannot be connected to.
#[derive(Default)]
pub struct Dialling {
    named: BTreeSet<IpAddr>,
    counted: BTreeSet<IpAddr>,
    /// Error of one of the neighbours that are only counted.
    example: Option<(IpAddr, String)>,
    /// The last number logged.
    said: usize,
    /// Time since when their number differs much from that.
    since: Option<Instant>,
}

/// A log message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Line {
    /// This many unnamed neighbours cannot be connected to; one of them, and its error.
    Many { neighbours: usize, example: IpAddr, error: String },
    /// Only named ones are left.
    Over,
}

/// Maximum number of named neighbours.
const NAMED: usize = 16;
/// Delay before a new number is logged: dials begin and fail in bursts.
const SETTLE: Duration = Duration::from_secs(3);

impl Dialling {
    /// Records that a neighbour cannot be connected to. Returns whether it is named.
    pub fn failed(&mut self, peer: IpAddr, error: &str) -> bool {
        if self.named.contains(&peer) {
            return false;
        }
        if self.counted.is_empty() && self.named.len() < NAMED {
            return self.named.insert(peer);
        }
        self.counted.insert(peer);
        self.example.get_or_insert_with(|| (peer, error.to_owned()));
        false
    }

    /// Records that it can be connected to again, or is no longer desired. Returns whether it was named.
    pub fn ended(&mut self, peer: IpAddr) -> bool {
        self.counted.remove(&peer);
        self.example.take_if(|(example, _)| *example == peer);
        self.named.remove(&peer)
    }

    /// Returns the message about unnamed neighbours that is due, if any.
    pub fn line(&mut self, now: Instant) -> Option<Line> {
        let neighbours = self.counted.len();
        let differs = neighbours != self.said && (neighbours >= 2 * self.said || 2 * neighbours <= self.said);
        if !differs {
            self.since = None;
            return None;
        }
        if now < *self.since.get_or_insert(now) + SETTLE {
            return None;
        }
        (self.said, self.since) = (neighbours, None);
        let Some(first) = self.counted.first() else { return Some(Line::Over) };
        let (example, error) = self.example.clone().unwrap_or_else(|| (*first, String::new()));
        Some(Line::Many { neighbours, example, error })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(number: u32) -> IpAddr {
        IpAddr::V4((0x0a00_0000 + number).into())
    }

    /// Returns all messages until none is due, with one call per second.
    fn lines(dialling: &mut Dialling, now: &mut Instant) -> Vec<Line> {
        let look = |_| {
            *now += Duration::from_secs(1);
            dialling.line(*now)
        };
        (0..10).filter_map(look).collect()
    }

    #[test]
    fn thousands_that_do_not_answer_are_one_line_and_a_few_names() {
        let (mut dialling, mut now) = (Dialling::default(), Instant::now());
        let named: Vec<u32> = (0..5000).filter(|number| dialling.failed(peer(*number), "no answer")).collect();
        assert_eq!(named, (0..16).collect::<Vec<_>>());
        let many = |neighbours| Line::Many { neighbours, example: peer(16), error: "no answer".to_owned() };
        assert_eq!(lines(&mut dialling, &mut now), [many(4984)]);
        assert!((0..2000).all(|number| !dialling.failed(peer(5000 + number), "no answer")));
        assert_eq!(lines(&mut dialling, &mut now), [], "that is not much more");
        let told: Vec<u32> = (0..7000).filter(|number| dialling.ended(peer(*number))).collect();
        assert_eq!(told.len(), 16, "who was named is named again");
        assert_eq!(lines(&mut dialling, &mut now), [Line::Over]);
    }

    #[test]
    fn the_same_neighbour_is_named_once_until_it_is_back() {
        let mut dialling = Dialling::default();
        assert!(dialling.failed(peer(1), "no answer") && !dialling.failed(peer(1), "no answer"));
        assert!(dialling.ended(peer(1)) && !dialling.ended(peer(1)));
        assert!(dialling.failed(peer(1), "no answer"));
    }
}
