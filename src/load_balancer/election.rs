//! Which agent gives addresses: the holder of the Lease `kube-router-lballoc`. Without I/O.
//!
//! Kubernetes: `coordination.k8s.io/v1` Lease, used as client-go's `leaderelection` uses it, so that kube-router and this program elect
//! one of them together. No two clocks are compared: who does not hold the Lease takes it when it has not seen it change for as long
//! as it is valid, counted by its own monotonic clock; the holder counts from before it sent the renewal that was taken.
//!
//! An identity is one process's: after a restart the Lease of the process before is somebody else's, whose last writes may be on their way.

pub mod driver;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use compact_str::CompactString;

/// Delays of the election.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// For so long others leave the Lease to who renewed it.
    pub valid: Duration,
    /// For so long its holder begins writes. What is left of `valid` is for those that are on their way then.
    pub usable: Duration,
    /// Between two renewals, and before what failed is tried again.
    pub retry: Duration,
    /// Who waits for the Lease of another looks at it after once to twice this, each agent at times of its own: every node of the cluster is
    /// a candidate.
    pub look: Duration,
    /// The longest pause of a candidate whose tries fail: of thousands each would ask every few seconds for what none of them is allowed.
    pub longest: Duration,
}

/// `look` aside as client-go has them by default, and kube-router.
pub const TIMING: Timing = Timing {
    valid: Duration::from_secs(15),
    usable: Duration::from_secs(10),
    retry: Duration::from_secs(2),
    look: Duration::from_secs(5),
    longest: Duration::from_secs(30),
};

/// `spec.leaseDurationSeconds` of a Lease that was given up, as client-go writes it and this program.
pub const RELEASED: Duration = Duration::from_secs(1);

/// The Lease as it was read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lease {
    /// `metadata.resourceVersion`.
    pub version: CompactString,
    /// `spec.holderIdentity`; empty where nobody holds it.
    pub holder: CompactString,
    /// `spec.leaseDurationSeconds`.
    pub valid: Duration,
}

/// The next thing to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    Wait(Instant),
    /// Read the Lease.
    Read,
    /// Write it with our identity, if it still has this version; create it where there is none.
    Claim(Option<CompactString>),
}

/// Why a Lease could not be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unclaimed {
    /// Somebody else has changed it.
    Conflict,
    /// Refused, or no answer: it may have been written or not.
    Failed,
}

/// One candidate.
#[derive(Debug)]
pub struct Elector {
    identity: CompactString,
    timing: Timing,
    /// The Lease of somebody else, and when it was first seen in this version.
    seen: Option<(Lease, Instant)>,
    /// There was a Lease at some time.
    has_seen: bool,
    /// Since when it is known to be gone.
    gone: Option<Instant>,
    /// The version to claim; `Some(None)`: to create it.
    claim: Option<Option<CompactString>>,
    /// When the last renewal that was taken was sent.
    renewed: Option<Instant>,
    next: Option<Instant>,
    /// Looks at the Lease of another, and tries that failed.
    looks: u64,
    /// Tries in a row that failed.
    failures: u32,
}

impl Elector {
    pub fn new(identity: CompactString, timing: Timing) -> Elector {
        let (looks, failures, has_seen) = (0, 0, false);
        Elector {
            identity,
            timing,
            seen: None,
            has_seen,
            gone: None,
            claim: None,
            renewed: None,
            next: None,
            looks,
            failures,
        }
    }

    /// A part of this time, another one for each look of each candidate.
    fn part_of(&self, time: Duration) -> Duration {
        let mut hasher = DefaultHasher::new();
        (&self.identity, self.looks).hash(&mut hasher);
        time * (hasher.finish() % 1000) as u32 / 1000
    }

    pub fn step(&self, now: Instant) -> Step {
        match (self.next.filter(|next| *next > now), &self.claim) {
            (Some(next), _) => Step::Wait(next),
            (None, Some(version)) => Step::Claim(version.clone()),
            (None, None) => Step::Read,
        }
    }

    /// Notes the Lease as it was read; `None` where there is none.
    pub fn read(&mut self, lease: Option<Lease>, now: Instant) {
        let Some(lease) = lease else {
            (self.seen, self.renewed) = (None, None);
            let since = *self.gone.get_or_insert(now);
            self.take_after(since + self.timing.valid, None, now);
            return;
        };
        (self.has_seen, self.gone) = (true, None);
        // Whoever gives it up in order writes that it is valid for one second. Where somebody else took the holder's name out of it, that one may go on writing for
        // as long as it was valid.
        let is_given_up = lease.holder.is_empty() && lease.valid == RELEASED;
        if is_given_up || lease.holder == self.identity {
            (self.claim, self.next, self.seen) = (Some(Some(lease.version)), None, None);
            return;
        }
        // It is somebody else's now, whatever was believed.
        self.renewed = None;
        let since =
            self.seen.as_ref().filter(|(seen, _)| seen.version == lease.version).map_or(now, |(_, since)| *since);
        // What others have written there is not to keep everybody waiting for ever, nor to let anybody in early.
        let valid = lease.valid.clamp(self.timing.valid, self.timing.valid * 8);
        self.take_after(since + valid, Some(lease.version.clone()), now);
        self.seen = Some((lease, since));
    }

    /// Claims this version when its time is over, and looks again before; what was never there has no time.
    fn take_after(&mut self, over: Instant, version: Option<CompactString>, now: Instant) {
        if now >= over || !self.has_seen {
            (self.claim, self.next) = (Some(version), None);
            return;
        }
        self.claim = None;
        self.looks += 1;
        self.failures = 0;
        // Not all who wait are to claim it at the same moment.
        let over = over + self.part_of(self.timing.retry);
        self.next = Some((now + self.timing.look + self.part_of(self.timing.look)).min(over));
    }

    /// Records that the Lease could not be read.
    pub fn unread(&mut self, now: Instant) {
        self.next = Some(now + self.pause());
    }

    /// The time before what failed is tried again. Whoever was the last to hold the Lease, as far as it knows, has none to lose: after an outage it goes on at once, and it is one
    /// of all. Others wait longer and longer, each at times of its own.
    fn pause(&mut self) -> Duration {
        if self.renewed.is_some() {
            return self.timing.retry;
        }
        self.failures = self.failures.saturating_add(1);
        self.looks += 1;
        let most = self.timing.retry.saturating_mul(1 << self.failures.min(16)).min(self.timing.longest);
        most / 2 + self.part_of(most / 2)
    }

    /// Notes the outcome of a claim that was sent at this time: the version of the Lease, or why there is none.
    pub fn claimed(&mut self, sent: Instant, outcome: Result<CompactString, Unclaimed>, now: Instant) {
        match outcome {
            Ok(version) => {
                (self.has_seen, self.gone) = (true, None);
                (self.renewed, self.claim, self.seen, self.failures) = (Some(sent), Some(Some(version)), None, 0);
                self.next = Some(sent + self.timing.retry);
            }
            Err(unclaimed) => {
                // What it is now has to be read.
                self.claim = None;
                let pause = match unclaimed {
                    Unclaimed::Conflict => {
                        self.renewed = None;
                        self.timing.retry
                    }
                    Unclaimed::Failed => self.pause(),
                };
                self.next = Some(now + pause);
            }
        }
    }

    /// Until when writes may be begun; `None`: never, or no more.
    pub fn usable_until(&self) -> Option<Instant> {
        self.renewed.map(|sent| sent + self.timing.usable)
    }

    /// The version of the Lease to give up, where it is ours.
    pub fn to_release(&self) -> Option<CompactString> {
        self.renewed.and(self.claim.clone().flatten())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(version: &str, holder: &str) -> Option<Lease> {
        Some(Lease { version: version.into(), holder: holder.into(), valid: Duration::from_secs(15) })
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn a_lease_that_nobody_holds_is_taken_and_renewed_without_reading_it() {
        let given_up = Lease { version: "7".into(), holder: "".into(), valid: RELEASED };
        for (found, claim) in [(None, None), (Some(given_up), Some("7".into()))] {
            let begun = Instant::now();
            let mut elector = Elector::new("a".into(), TIMING);
            assert_eq!(elector.step(begun), Step::Read);
            elector.read(found, begun);
            assert_eq!(elector.step(begun), Step::Claim(claim));
            assert_eq!(elector.usable_until(), None);
            elector.claimed(begun, Ok("8".into()), begun + seconds(1));
            assert_eq!(elector.usable_until(), Some(begun + seconds(10)), "counted from before it was sent");
            assert_eq!(elector.step(begun + seconds(1)), Step::Wait(begun + seconds(2)));
            assert_eq!(elector.step(begun + seconds(2)), Step::Claim(Some("8".into())));
            assert_eq!(elector.to_release(), Some("8".into()));
        }
    }

    #[test]
    fn the_lease_of_another_is_taken_only_after_it_has_not_changed_for_as_long_as_it_is_valid() {
        let begun = Instant::now();
        let mut elector = Elector::new("a".into(), TIMING);
        elector.read(lease("7", "b"), begun);
        elector.read(lease("8", "b"), begun + seconds(14));
        assert!((19..24).contains(&waits_until(&elector, begun, 14)));
        elector.read(lease("8", "b"), begun + seconds(28));
        assert!((29..31).contains(&waits_until(&elector, begun, 28)), "the time is over at 29");
        elector.read(lease("8", "b"), begun + seconds(31));
        assert_eq!(elector.step(begun + seconds(31)), Step::Claim(Some("8".into())));
        elector.claimed(begun + seconds(31), Err(Unclaimed::Conflict), begun + seconds(31));
        assert_eq!(elector.usable_until(), None);
        assert_eq!(elector.step(begun + seconds(33)), Step::Read, "it contends again");
    }

    /// The whole seconds after `begun` at which a candidate does something, seen so many seconds after it.
    fn waits_until(elector: &Elector, begun: Instant, now: u64) -> u64 {
        let Step::Wait(next) = elector.step(begun + seconds(now)) else { panic!("it waits") };
        (next - begun).as_secs()
    }

    #[test]
    fn thousands_who_wait_for_the_lease_of_another_look_seldom_and_not_together() {
        let begun = Instant::now();
        let mut asked = vec![0; 60];
        for number in 0..5000 {
            let mut elector = Elector::new(format!("node{number}").into(), TIMING);
            let mut version = 0;
            let mut now = 0;
            while now < 60 {
                // Its holder renews it between any two looks.
                version += 1;
                elector.read(lease(&version.to_string(), "holder"), begun + seconds(now));
                now = waits_until(&elector, begun, now).max(now + 1);
                if let Some(second) = asked.get_mut(now as usize) {
                    *second += 1;
                }
            }
        }
        let most = asked.iter().skip(20).max().expect("some seconds");
        assert!(*most < 1200, "{asked:?}: every two seconds it would be 2,500 in each");
    }

    #[test]
    fn thousands_who_may_not_read_or_write_the_lease_ask_less_and_less_and_the_holder_does_not_wait() {
        let begun = Instant::now();
        for may_read in [false, true] {
            let mut asked = vec![0; 300];
            for number in 0..1000 {
                let mut elector = Elector::new(format!("node{number}").into(), TIMING);
                let mut now = begun;
                while now < begun + seconds(300) {
                    match elector.step(now) {
                        Step::Wait(next) => now = next,
                        Step::Read if may_read => {
                            elector.read(None, now);
                            asked[(now - begun).as_secs() as usize] += 1;
                        }
                        Step::Read => {
                            elector.unread(now);
                            asked[(now - begun).as_secs() as usize] += 1;
                        }
                        Step::Claim(_) => elector.claimed(now, Err(Unclaimed::Failed), now),
                    }
                }
            }
            let most = asked.iter().skip(60).max().expect("some seconds");
            assert!(*most < 80, "may read {may_read}: {asked:?}: every two seconds it would be 500 in each");
        }
        let mut elector = Elector::new("holder".into(), TIMING);
        elector.read(None, begun);
        elector.claimed(begun, Ok("1".into()), begun);
        // Also in an outage that is longer than the Lease is valid: nobody else may have come in between.
        for second in 2..300 {
            elector.unread(begun + seconds(second));
            assert_eq!(elector.step(begun + seconds(second)), Step::Wait(begun + seconds(second + 2)));
        }
        elector.read(lease("2", "another"), begun + seconds(300));
        let waits = [301, 310, 330].map(|second| {
            elector.unread(begun + seconds(second));
            waits_until(&elector, begun, second) - second
        });
        assert!(waits[2] >= 8, "who has lost it is as any other: {waits:?}");
    }

    #[test]
    fn who_lost_it_stops_at_once_and_who_only_failed_to_renew_it_when_its_time_is_over() {
        let begun = Instant::now();
        let mut elector = Elector::new("a".into(), TIMING);
        elector.read(None, begun);
        elector.claimed(begun, Ok("1".into()), begun);
        elector.claimed(begun + seconds(2), Err(Unclaimed::Failed), begun + seconds(7));
        assert_eq!(elector.usable_until(), Some(begun + seconds(10)));
        assert_eq!(elector.step(begun + seconds(9)), Step::Read, "whether it was written is not known");
        elector.read(lease("2", "a"), begun + seconds(9));
        assert_eq!(elector.usable_until(), Some(begun + seconds(10)), "what was read renews nothing");
        elector.claimed(begun + seconds(9), Ok("3".into()), begun + seconds(9));
        assert_eq!(elector.usable_until(), Some(begun + seconds(19)));
        elector.claimed(begun + seconds(11), Err(Unclaimed::Conflict), begun + seconds(11));
        assert_eq!((elector.usable_until(), elector.to_release()), (None, None));
    }

    #[test]
    fn a_lease_that_is_deleted_has_no_two_holders_at_once() {
        let begun = Instant::now();
        let [mut holder, mut other] = ["a", "b"].map(|identity| Elector::new(identity.into(), TIMING));
        holder.read(None, begun);
        holder.claimed(begun, Ok("1".into()), begun);
        other.read(lease("1", "a"), begun + seconds(1));
        // Somebody deletes it at 2 s, and the other one looks before the holder does.
        other.read(None, begun + seconds(3));
        assert!((8..13).contains(&waits_until(&other, begun, 3)), "the holder may still begin writes until 10");
        holder.claimed(begun + seconds(4), Err(Unclaimed::Failed), begun + seconds(4));
        assert_eq!(holder.usable_until(), Some(begun + seconds(10)));
        holder.read(None, begun + seconds(6));
        assert_eq!(holder.usable_until(), None, "whoever finds it gone holds it no more");
        assert_eq!(holder.to_release(), None);
        assert!((11..16).contains(&waits_until(&holder, begun, 6)), "and waits like everybody");
        other.read(None, begun + seconds(17));
        assert!((18..20).contains(&waits_until(&other, begun, 17)), "its time is over at 18");
        other.read(None, begun + seconds(20));
        assert_eq!(other.step(begun + seconds(20)), Step::Claim(None));
        other.claimed(begun + seconds(20), Ok("9".into()), begun + seconds(20));
        holder.read(lease("9", "b"), begun + seconds(20));
        // Gone once more: the time counts from then.
        holder.read(None, begun + seconds(30));
        assert!(matches!(holder.step(begun + seconds(30)), Step::Wait(_)));
        holder.read(None, begun + seconds(45));
        assert_eq!(holder.step(begun + seconds(45)), Step::Claim(None));
    }

    #[test]
    fn a_lease_whose_holder_somebody_else_took_out_is_left_alone_for_as_long_as_it_is_valid() {
        let without_duration = Lease { version: "2".into(), holder: "".into(), valid: Duration::ZERO };
        for emptied in [lease("2", ""), Some(without_duration)] {
            let begun = Instant::now();
            let [mut holder, mut other, mut new] =
                ["a", "b", "c"].map(|identity| Elector::new(identity.into(), TIMING));
            holder.read(None, begun);
            holder.claimed(begun, Ok("1".into()), begun);
            other.read(lease("1", "a"), begun + seconds(1));
            for candidate in [&mut other, &mut new] {
                candidate.read(emptied.clone(), begun + seconds(3));
                assert!((8..13).contains(&waits_until(candidate, begun, 3)), "the holder may begin writes until 10");
                candidate.read(emptied.clone(), begun + seconds(20));
                assert_eq!(candidate.step(begun + seconds(20)), Step::Claim(Some("2".into())));
            }
            holder.claimed(begun + seconds(4), Err(Unclaimed::Conflict), begun + seconds(4));
            holder.read(emptied, begun + seconds(6));
            assert_eq!(holder.usable_until(), None, "whoever finds it so holds it no more");
        }
    }

    #[test]
    fn an_earlier_process_of_the_same_pod_is_somebody_else() {
        let begun = Instant::now();
        let mut elector = Elector::new("pod_2".into(), TIMING);
        elector.read(lease("7", "pod_1"), begun);
        assert!((5..10).contains(&waits_until(&elector, begun, 0)));
    }
}
