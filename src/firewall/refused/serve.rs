//! Answers questions for refused packets, and has the kernel's log of them open only while somebody asks.
//!
//! Packets wait in the socket until the next question, which comes twice a second from each that asks.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;
use tracing::{info, warn};

use crate::observe::local::{Answer, Question};

use super::super::explain::{Known, circumstances};
use super::super::flows::{Flows, Log};
use super::{Limits, MOST, Recent, named};

/// The refused packets, for all that ask.
#[derive(Default)]
pub struct RefusedPackets {
    open: Option<Open>,
    recent: Recent,
}

struct Open {
    log: Box<dyn Log>,
    /// Time of the last question.
    asked: Instant,
    limits: Limits,
}

/// The time after the last question at which the log is closed.
const IDLE: Duration = Duration::from_secs(5);

impl RefusedPackets {
    /// Returns when the log is to be closed; `None` while it is not open.
    pub fn deadline(&self) -> Option<Instant> {
        self.open.as_ref().map(|open| open.asked + IDLE)
    }

    /// Closes the log if nobody asks any more.
    pub fn close_idle(&mut self, now: Instant) {
        if self.deadline().is_some_and(|deadline| deadline <= now) {
            self.close();
        }
    }

    /// Answers with the packets since the number that the question names; without a number with that of the next packet.
    ///
    /// # Errors
    /// The log cannot be read, as a sentence.
    pub fn answer(&mut self, known: Known<'_>, flows: &dyn Flows, question: &Question, now: Instant) -> Answer {
        let since = match question.about.get("since").map(|number| number.parse()) {
            Some(Ok(number)) => Some(number),
            Some(Err(_)) => return Err("\"since\" must be a number".to_owned()),
            None => None,
        };
        if self.open.is_none() {
            let log = flows.open_log().map_err(|error| format!("refused packets cannot be read: {error}"))?;
            info!("Reading refused packets from the kernel's log while somebody asks");
            self.open = Some(Open { log, asked: now, limits: Limits::default() });
        }
        let lost = self.read(known, now)?;
        // A number of an earlier run of this program may be larger than any of this one.
        let since = since.unwrap_or(u64::MAX).min(self.recent.next());
        let (packets, missed) = self.recent.since(since);
        let packets: Vec<_> = packets.map(super::json).collect();
        let authority = known.world.authority.firewall;
        Ok(format!(
            "{}\n",
            json!({
                "next": self.recent.next(),
                "missed": missed,
                "lost": lost,
                "cluster": circumstances::word(authority),
                "doubt": circumstances::doubt(authority),
                "packets": packets,
            })
        ))
    }

    /// Takes what the kernel has logged. Returns how many packets were lost since the log was opened, because they came too fast.
    fn read(&mut self, known: Known<'_>, now: Instant) -> Result<u64, String> {
        let Some(open) = &mut self.open else { return Ok(0) };
        open.asked = now;
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (recent, limits) = (&mut self.recent, &mut open.limits);
        let read = open.log.receive(MOST, &mut |logged| {
            let mut packet = named(known, logged, at);
            packet.limited = limits.note(&packet, now);
            recent.push(packet);
        });
        let lost = open.log.lost();
        if let Err(error) = &read {
            warn!(%error, "Reading refused packets failed");
            self.close();
        }
        read.map(|()| lost)
    }

    fn close(&mut self) {
        self.open = None;
        self.recent.clear();
    }
}
