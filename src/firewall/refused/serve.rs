//! Answers questions for refused packets, and reads the kernel's log of them only while somebody asks.
//!
//! Packets wait in the socket until the next question, which comes twice a second from each that asks. When nobody asks any more the group goes back, for
//! other programs and so that nothing is logged in vain, and the socket stays: to close it would hold up changes of rules.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;
use tracing::{info, warn};

use crate::kernel::nflog::OpenError;
use crate::observe::local::{Answer, Question};

use super::super::explain::{Known, circumstances};
use super::super::flows::{Flows, Log};
use super::{Limits, MOST, Recent, named};

/// The refused packets, for all that ask.
#[derive(Default)]
pub struct RefusedPackets {
    open: Option<Open>,
    /// A log that was given back.
    kept: Option<Box<dyn Log>>,
    recent: Recent,
}

struct Open {
    log: Box<dyn Log>,
    /// Time of the last question.
    asked: Instant,
    limits: Limits,
}

/// The time after the last question at which the log is given back.
const IDLE: Duration = Duration::from_secs(5);

impl RefusedPackets {
    /// Returns when the log is to be given back; `None` while it is not read.
    pub fn deadline(&self) -> Option<Instant> {
        self.open.as_ref().map(|open| open.asked + IDLE)
    }

    /// Gives the log back if nobody asks any more.
    pub fn release_idle(&mut self, now: Instant) {
        if self.deadline().is_none_or(|deadline| deadline > now) {
            return;
        }
        self.recent.clear();
        let Some(Open { mut log, .. }) = self.open.take() else { return };
        match log.release() {
            Ok(()) => self.kept = Some(log),
            // It is closed then, which gives it back as well.
            Err(error) => warn!(%error, "Giving back the log of refused packets failed"),
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
            let log = self.log(flows).map_err(|error| format!("refused packets cannot be read: {error}"))?;
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

    /// Takes the log again, or opens it.
    fn log(&mut self, flows: &dyn Flows) -> Result<Box<dyn Log>, OpenError> {
        let Some(mut log) = self.kept.take() else { return flows.open_log() };
        match log.acquire() {
            Ok(()) => Ok(log),
            Err(OpenError::Taken(group)) => {
                self.kept = Some(log);
                Err(OpenError::Taken(group))
            }
            // A new socket may do what this one does not, which may have taken the group all the same.
            Err(OpenError::Kernel(_)) => {
                drop(log);
                flows.open_log()
            }
        }
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
            self.open = None;
            self.recent.clear();
        }
        read.map(|()| lost)
    }
}
