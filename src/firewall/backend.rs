//! What brings the rule set into a kernel and says how that stands. Who knows policies ([`driver`](super::driver)) knows no
//! more of the kernel than this, so that another way to enforce them is one new folder beside [`iptables`](super::iptables).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use compact_str::CompactString;
use ipnet::IpNet;

use crate::kernel::Error;
use crate::model::{Authority, World};
use crate::net::{Family, PerFamily};
use crate::reconcile::{Found, Moment};
use crate::subsystem;

use super::plan;
use super::rules::{Direction, RuleSet};
use super::verdict::Verdict;

/// One way to enforce the rule set.
pub trait Backend {
    /// The kinds of kernel objects that it keeps.
    type Kinds: subsystem::Kinds;

    /// The kinds, to be audited.
    fn kinds(&mut self) -> &mut Self::Kinds;

    /// Takes in what changed of the rule set, and the facts of this node. Touches nothing.
    fn update(&mut self, rules: &RuleSet, world: &World, changed: &plan::Changed);

    /// The ranges in which only known pods may be reached.
    fn closed(&self) -> &[IpNet];

    /// How much is wanted of the kernel.
    fn count(&self) -> Count;

    /// True when the kernel is known to be as wanted, as far as it takes it.
    fn is_settled(&self) -> bool;

    /// Whether a round would do something: something changed, failed, or is to be tried again by now.
    fn has_work(&self, now: Instant) -> bool;

    /// Brings what changed into the kernel, as far as `authority` allows.
    fn round(&mut self, authority: Authority, at: Moment) -> Round;

    /// Brings about what lets the rules see all packets of pods; with `pods_on_bridge` also those between ports of one bridge.
    ///
    /// # Errors
    /// Why that failed.
    fn keep_settings(&mut self, pods_on_bridge: bool, at: Moment) -> Result<(), String>;

    /// Removes what earlier runs left where it no longer belongs. Returns why something could not be removed.
    fn remove_abandoned(&mut self) -> Vec<String>;

    /// Looks at everything at once: somebody asks what the kernel holds.
    fn look_at_all(&mut self, at: Moment) -> Vec<Found>;

    /// Whether the kernel does what this verdict says, as far as was last seen.
    ///
    /// # Errors
    /// What it lacks, as a sentence without its end; the first of several.
    fn enforced(&self, rules: &RuleSet, verdict: &Verdict, family: Family) -> Result<(), String>;

    /// What the kernel refuses at the moment; what only that would allow is refused.
    fn refused(&self) -> Vec<Refusal<'_>>;

    /// When the next retry of something that failed is due.
    fn retry_at(&self) -> Option<Instant>;
}

/// Packets that were refused, for whoever reads the metrics.
pub trait Dropped {
    /// Asks the kernel.
    ///
    /// # Errors
    /// Where it does not answer.
    fn count(&mut self) -> Result<(), Error>;

    /// How many were refused on behalf of each policy since the start, as of the last count. Who owns nothing any more has no
    /// sum, also where the kernel has not been asked since.
    fn sums(&mut self) -> &BTreeMap<Owner, u64>;
}

/// A policy and a direction. The annotation of a namespace is a policy without a name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Owner {
    pub namespace: CompactString,
    pub policy: CompactString,
    pub direction: Direction,
}

/// Something that the kernel refuses for its own sake, while it takes the rest.
#[derive(Debug)]
pub struct Refusal<'a> {
    pub object: String,
    pub reason: &'a str,
}

/// How much is wanted of the kernel, both families together.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Count {
    pub sets: usize,
    pub elements: usize,
}

/// How long the parts of one round took.
#[derive(Default, Debug)]
pub struct Round {
    /// The sets and their elements, and the rules.
    pub sets_took: Duration,
    pub rules_took: Duration,
    /// Changing the elements of each family; zero where none changed.
    pub elements_took: PerFamily<Duration>,
    /// Reading and writing the rules of a family, each time.
    pub rules_read: Vec<(Family, Duration)>,
    pub rules_written: Vec<(Family, Duration)>,
}
