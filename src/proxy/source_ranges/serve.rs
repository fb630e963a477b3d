//! The packets that source ranges have dropped, for the metrics endpoint and for who asks about a Service.
//!
//! Counted for all Services of a family together, because rules do not grow with Services ([`source_ranges`](super)). The kernel is read on request alone, and
//! only while any Service has source ranges; a reading is reused for all requests within a second of it.
//!
//! Kernel: with nftables the named counters of the rules that drop; with iptables the counters of the rules themselves, as `iptables-save -c` prints them. A counter
//! that begins anew, with its rule, adds to what it counted before; what it counts between its last reading and its end is lost. A counter of which nothing is known
//! counts on from its last reading. Each family is read and counted although the other cannot be.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounterVec, Opts};
use tokio::sync::watch;
use tracing::debug;

use super::super::names::{CHAIN_SOURCES, NFT_OUTSIDE_SOURCES, TABLE};
use crate::config::Backend;
use crate::kernel::iptables::{Counted, Families, Table, Verdict, counted};
use crate::kernel::nftables::{CounterReader, Name};
use crate::kernel::{Cause, Error, Name as ChainName};
use crate::net::{Family, PerFamily};

/// Validity of a reading.
const FRESH: Duration = Duration::from_secs(1);
/// The answer about a family whose rules are not there yet, or were written without a counter.
const UNCOUNTED: &str = "no rule counts them";

/// Reads the kernel's counters of these families.
pub type Read = Box<dyn FnMut(PerFamily<bool>) -> Counters + Send>;

/// A reading of the kernel's counters, in packets; `None` for a family that has no counter, or whose counter cannot be read.
#[derive(Default)]
pub struct Counters {
    pub packets: PerFamily<Option<u64>>,
    /// Why a family could not be read: the first of them.
    pub error: Option<Error>,
}

/// The sums of dropped packets of both families; clones share them.
#[derive(Clone)]
pub struct OutsideSources {
    sums: IntCounterVec,
    /// The families in which any Service has source ranges.
    ranged: watch::Receiver<PerFamily<bool>>,
    reading: Arc<Mutex<Reading>>,
}

struct Reading {
    read: Read,
    last: PerFamily<u64>,
    at: Option<Instant>,
}

impl OutsideSources {
    /// Creates the sums, in the network namespace of the threads that ask for them.
    ///
    /// # Errors
    /// If the metric's name or labels are invalid, which they are not.
    pub fn new(ranged: watch::Receiver<PerFamily<bool>>, read: Read) -> Result<OutsideSources, prometheus::Error> {
        let name = "sluice_proxy_outside_source_ranges_packets_total";
        let help = "Packets to load balancer addresses dropped because the client is in no source range of the Service, of all Services together";
        let sums = IntCounterVec::new(Opts::new(name, help), &["family"])?;
        Family::BOTH.iter().for_each(|family| drop(sums.with_label_values(&[&family.to_string()])));
        let reading = Arc::new(Mutex::new(Reading { read, last: PerFamily::default(), at: None }));
        Ok(OutsideSources { sums, ranged, reading })
    }

    /// Reads the kernel and returns the sums, in packets. May wait for the kernel.
    ///
    /// # Errors
    /// The kernel, or a program of iptables, does not tell, or nothing counts. What the other family counts is added all the same.
    pub fn packets(&self) -> Result<PerFamily<u64>, Error> {
        let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let ranged = *self.ranged.borrow();
        let is_any = ranged.v4 || ranged.v6;
        if is_any && reading.at.is_none_or(|at| at.elapsed() >= FRESH) {
            let (now, mut uncounted) = ((reading.read)(ranged), None);
            for family in Family::BOTH.into_iter().filter(|family| *ranged.of(*family)) {
                let Some(packets) = *now.packets.of(family) else {
                    let object = format!("{family} of clients outside of source ranges");
                    uncounted.get_or_insert(Error::new("count packets", object, Cause::Malformed(UNCOUNTED)));
                    continue;
                };
                let before = std::mem::replace(reading.last.of_mut(family), packets);
                // A counter that decreased was made anew.
                let before = if before <= packets { before } else { 0 };
                self.sum(family).inc_by(packets - before);
            }
            if let Some(error) = now.error.or(uncounted) {
                return Err(error);
            }
            reading.at = Some(Instant::now());
        }
        Ok(PerFamily::from_fn(|family| self.sum(family).get()))
    }

    fn sum(&self, family: Family) -> prometheus::IntCounter {
        self.sums.with_label_values(&[&family.to_string()])
    }
}

impl Collector for OutsideSources {
    fn desc(&self) -> Vec<&Desc> {
        self.sums.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        if let Err(error) = self.packets() {
            debug!(%error, "Reading the counters of source ranges failed");
        }
        self.sums.collect()
    }
}

/// Returns the reader of a backend's counters. `programs`: those of iptables, as soon as they have been found.
pub fn reader(backend: Backend, programs: Arc<OnceLock<Families>>) -> Read {
    match backend {
        Backend::Nftables => {
            let mut table = None;
            Box::new(move |_| in_table(&mut table))
        }
        Backend::Iptables => Box::new(move |families| {
            let chains = [ChainName::Exact(CHAIN_SOURCES.into())];
            in_rules(families, |family| {
                let programs = programs.get().and_then(|programs| *programs.of(family))?;
                Some(counted(programs, family, Table::Mangle, &chains))
            })
        }),
    }
}

fn in_table(opened: &mut Option<CounterReader>) -> Counters {
    let counts = match opened {
        Some(reader) => reader.counts(""),
        None => CounterReader::open(TABLE).and_then(|reader| opened.insert(reader).counts("")),
    };
    match counts {
        Ok(counts) => {
            let packets = |family: Family| counts.get(&Name::from(*NFT_OUTSIDE_SOURCES.of(family)));
            let packets = PerFamily::from_fn(|family| packets(family).map(|count| count.packets));
            Counters { packets, error: None }
        }
        Err(error) => Counters { error: Some(error), ..Counters::default() },
    }
}

/// Reads the rules of these families. `rules`: those of one family; `None` for a family without programs.
fn in_rules(
    families: PerFamily<bool>,
    mut rules: impl FnMut(Family) -> Option<Result<Vec<Counted>, Error>>,
) -> Counters {
    let mut counters = Counters::default();
    for family in Family::BOTH.into_iter().filter(|family| *families.of(*family)) {
        match rules(family) {
            Some(Ok(rules)) => *counters.packets.of_mut(family) = dropped(&rules),
            // The other family is counted all the same.
            Some(Err(error)) => drop(counters.error.get_or_insert(error)),
            None => {}
        }
    }
    counters
}

/// Returns the packets that rules dropped; `None` where none of them drops.
fn dropped(rules: &[Counted]) -> Option<u64> {
    let dropping = rules.iter().filter(|counted| counted.rule.verdict() == Some(&Verdict::Drop));
    dropping.map(|counted| counted.packets).reduce(|sum, packets| sum + packets)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packets(v4: u64, v6: u64) -> PerFamily<u64> {
        PerFamily { v4, v6 }
    }

    fn counters(v4: impl Into<Option<u64>>, v6: impl Into<Option<u64>>) -> Counters {
        Counters { packets: PerFamily { v4: v4.into(), v6: v6.into() }, error: None }
    }

    fn error(family: Family) -> Error {
        Error::new("count packets", family.to_string(), Cause::Rival("no program".to_owned()))
    }

    fn rule(rule: &str, packets: u64) -> Counted {
        Counted { chain: CHAIN_SOURCES.into(), rule: rule.into(), packets }
    }

    const DROP: &str = "-m set ! --match-set kube-router-allowed-src dst,dst,src -j DROP";

    #[test]
    fn what_a_counter_counted_before_it_was_made_anew_stays_in_the_sum() {
        let mut readings = vec![counters(1, 0), counters(2, 9), counters(7, 3)];
        let (_ranged, families) = watch::channel(PerFamily { v4: true, v6: true });
        let sums = OutsideSources::new(families, Box::new(move |_| readings.pop().expect("it is asked thrice")))
            .expect("a valid name");
        for expected in [packets(7, 3), packets(9, 9), packets(10, 9)] {
            sums.reading.lock().expect("nobody panics").at = None;
            assert_eq!(sums.packets().ok(), Some(expected));
        }
        assert_eq!(sums.packets().ok(), Some(packets(10, 9)), "a second reading within a second");
    }

    #[test]
    fn a_family_without_source_ranges_is_not_read_and_keeps_its_sum() {
        let (ranged, families) = watch::channel(PerFamily::default());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let told = asked.clone();
        let read = move |families| {
            told.lock().expect("nobody panics").push(families);
            counters(5, 8)
        };
        let sums = OutsideSources::new(families, Box::new(read)).expect("a valid name");
        assert_eq!(sums.packets().ok(), Some(packets(0, 0)));
        assert_eq!(asked.lock().expect("nobody panics").len(), 0, "no Service has source ranges");
        let only_v6 = PerFamily { v4: false, v6: true };
        ranged.send_replace(only_v6);
        assert_eq!(sums.packets().ok(), Some(packets(0, 8)));
        assert_eq!(*asked.lock().expect("nobody panics"), [only_v6]);
        ranged.send_replace(PerFamily::default());
        assert_eq!(sums.packets().ok(), Some(packets(0, 8)));
    }

    #[test]
    fn a_reading_that_fails_is_told_and_tried_again() {
        let (_ranged, families) = watch::channel(PerFamily { v4: true, v6: false });
        let mut tries = 0;
        let read = move |_| {
            tries += 1;
            let failed = Counters { error: Some(error(Family::V4)), ..Counters::default() };
            if tries == 1 { failed } else { counters(4, 0) }
        };
        let sums = OutsideSources::new(families, Box::new(read)).expect("a valid name");
        assert!(sums.packets().is_err());
        assert_eq!(sums.packets().ok(), Some(packets(4, 0)));
    }

    #[test]
    fn of_the_rules_of_iptables_those_count_that_drop() {
        let found = [
            rule("-m set --match-set kube-router-local-ips dst -m conntrack --ctdir REPLY -j RETURN", 9),
            rule(DROP, 3),
        ];
        assert_eq!(dropped(&found), Some(3));
        assert_eq!(dropped(&found[..1]), None, "no rule drops any more, or not yet");
    }

    #[test]
    fn one_family_is_counted_although_the_program_of_the_other_fails() {
        for failing in Family::BOTH {
            let (_ranged, families) = watch::channel(PerFamily { v4: true, v6: true });
            let read = move |families| {
                in_rules(families, |family| {
                    Some(if family == failing { Err(error(family)) } else { Ok(vec![rule(DROP, 3)]) })
                })
            };
            let sums = OutsideSources::new(families, Box::new(read)).expect("a valid name");
            assert!(sums.packets().is_err(), "somebody has to hear of it");
            for family in Family::BOTH {
                assert_eq!(sums.sum(family).get(), if family == failing { 0 } else { 3 }, "{failing} fails");
            }
        }
    }

    #[test]
    fn a_counter_that_cannot_be_read_for_a_while_counts_on_from_where_it_was() {
        let failed = || Counters { error: Some(error(Family::V4)), ..Counters::default() };
        for between in [failed(), counters(None, None)] {
            let mut readings = vec![counters(1000, 7), between, counters(1000, 7)];
            let (_ranged, families) = watch::channel(PerFamily { v4: true, v6: true });
            let read = move |_| readings.pop().expect("it is asked thrice");
            let sums = OutsideSources::new(families, Box::new(read)).expect("a valid name");
            let mut told = Vec::new();
            for _ in 0..3 {
                sums.reading.lock().expect("nobody panics").at = None;
                told.push(sums.packets().is_ok());
            }
            assert_eq!(told, [true, false, true]);
            assert_eq!(PerFamily::from_fn(|family| sums.sum(family).get()), packets(1000, 7));
        }
    }
}
