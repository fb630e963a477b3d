//! Interface of a backend, which applies the rule set to a kernel and reports its state. The [`driver`](super::driver)
//! knows only this of the kernel, so another backend is one new folder beside [`iptables`](super::iptables).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use compact_str::CompactString;
use ipnet::IpNet;

use crate::config::FirewallConfig;
use crate::kernel::Error;
use crate::model::{Authority, ObjectName, World};
use crate::net::{Family, PerFamily};
use crate::reconcile::{Found, Moment};
use crate::subsystem;

use super::bridges::ClosedBridges;
use super::host_endpoints::HostEndpoints;
use super::plan;
use super::rules::{Direction, RuleSet};
use super::verdict::Verdict;

/// A backend: one way to enforce the rule set.
pub trait Backend {
    /// The kinds of kernel objects that it manages.
    type Kinds: subsystem::Kinds;

    /// Returns the kinds, for audits.
    fn kinds(&mut self) -> &mut Self::Kinds;

    /// Updates the desired state from changes of the rule set and the facts of this node. Does not touch the kernel.
    fn update(&mut self, rules: &RuleSet, world: &World, changed: &plan::RuleSetChanges);

    /// Returns the configuration, with the ranges of Services of the last update.
    fn config(&self) -> &Arc<FirewallConfig>;

    /// Returns the ranges in which only known pods may be reached.
    fn closed(&self) -> &[IpNet];

    /// Returns the bridges on which packets are refused for addresses that policies cannot name, whether they exist or not.
    fn closed_bridges(&self) -> &ClosedBridges;

    /// Returns the endpoints of Services on this node itself, which it keeps for refusing those Services.
    fn host_endpoints(&self) -> &HostEndpoints;

    /// Returns the number of desired kernel objects.
    fn count(&self) -> Count;

    /// Called when much work is over: keeps in memory once what is as desired.
    fn pack(&mut self);

    /// Returns whether the kernel is known to be as desired, except for what it refuses.
    fn is_settled(&self) -> bool;

    /// Returns whether the kernel is known to hold everything by which pods are refused Services. What shall go does not count, nor what opens paths alone.
    fn holds_refusals(&self) -> bool;

    /// Returns whether a round has work: something changed, failed, or is due for a retry.
    fn has_work(&self, now: Instant) -> bool;

    /// Applies the changes to the kernel, as far as `authority` allows.
    fn round(&mut self, authority: Authority, at: Moment) -> RoundDurations;

    /// Returns whether Services are known as far as they ever will be. While they are not, what an earlier run refuses of them stays.
    fn knows_services(&self) -> bool;

    /// Returns whether something is there that earlier runs left with another packet filter. What cannot be read is not.
    fn has_abandoned(&mut self) -> bool;

    /// Removes objects of earlier runs from where they no longer belong. Returns why something could not be removed; `None` after a part of
    /// the removal: the next one is to follow soon, and what else there is to do goes first.
    fn remove_abandoned(&mut self) -> Option<Vec<String>>;

    /// Audits everything at once, to answer a user's question about the kernel's state.
    fn look_at_all(&mut self, at: Moment) -> Vec<Found>;

    /// Returns whether the kernel enforces this verdict, as far as was last seen.
    ///
    /// # Errors
    /// Feature that the kernel lacks, as a sentence without its end; the first of several.
    fn enforced(&self, rules: &RuleSet, verdict: &Verdict, family: Family) -> Result<(), String>;

    /// Returns whether the kernel judges all packets of this pod as the rule set says, as far as was last seen. Objects of other
    /// pods do not count, and neither does what closes more than the rule set: chains and elements that the kernel refuses.
    ///
    /// # Errors
    /// The first feature that the kernel lacks, as a sentence without its end.
    fn pod_enforced(&self, rules: &RuleSet, pod: &ObjectName) -> Result<(), String>;

    /// Returns whether the kernel holds a state that is newer than the remembered cluster, which is not applied therefore.
    fn holds_newer_state(&self) -> bool;

    /// Adds what the kernel needs to judge a pod at a new address as at its former ones, where it knows these as they are remembered. Nothing
    /// that exists changes. For a kernel that [`holds_newer_state`](Backend::holds_newer_state).
    fn add_address(&mut self, starting: &NewAddress<'_>, at: Moment);

    /// Returns whether that is in the kernel, as far as was last seen.
    ///
    /// # Errors
    /// Why it is not, or cannot come before the cluster is known, as a sentence without its end.
    fn address_enforced(&self, starting: &NewAddress<'_>) -> Result<(), String>;

    /// Returns what of this host stands against policies without being a failure, each as a sentence without its end: chains of others that drop what
    /// policies allow, and what no rule of ours can see in this kernel. Asks the kernel, at most every few seconds.
    fn notes(&mut self) -> Vec<String>;

    /// Returns whether pods start although a table of frames that should drop something for them is refused: one of the notes says what.
    fn gives_frames_up(&self) -> bool;

    /// Returns what the kernel currently refuses; traffic that only a refused chain would allow is dropped.
    fn refused(&self) -> Vec<Refusal<'_>>;

    /// Has the next round try again what the kernel refuses.
    fn retry_refused(&mut self, now: Instant);

    /// Returns when the next retry of a failed step is due.
    fn retry_at(&self) -> Option<Instant>;
}

/// An address that a pod of this node has just got.
#[derive(Debug)]
pub struct NewAddress<'a> {
    pub pod: &'a ObjectName,
    pub address: IpAddr,
    /// The addresses of this family that the pod was known at before.
    pub former: &'a [IpAddr],
}

impl NewAddress<'_> {
    /// Returns what the kernel lacks of the address, where that is the same by each of the former ones.
    ///
    /// # Errors
    /// There is no former address, what is lacking differs between them, or `by` fails for one: why the address has to wait until the
    /// cluster is known, as a sentence without its end.
    pub fn agreed<A: PartialEq>(&self, by: impl Fn(IpAddr) -> Result<A, String>) -> Result<A, String> {
        let mut all: Option<A> = None;
        for former in self.former {
            let additions = by(*former)?;
            if all.as_ref().is_some_and(|all| *all != additions) {
                return Err(format!("the kernel judges {} in different ways at its former addresses", self.pod));
            }
            all = Some(additions);
        }
        all.ok_or_else(|| format!("the kernel knows {} at no former address", self.pod))
    }
}

/// Counters of refused packets, for the metrics.
pub trait Dropped {
    /// Reads the counters from the kernel.
    ///
    /// # Errors
    /// If the kernel does not answer.
    fn count(&mut self) -> Result<(), Error>;

    /// Returns the number of packets dropped on bridges since the start, by the reason, as of the last reading.
    fn on_bridges(&self) -> &BTreeMap<&'static str, u64>;

    /// Returns the number of packets refused for each policy since the start, as of the last reading. Policies that no
    /// longer own a chain have no sum, even if the kernel has not been read since.
    fn sums(&mut self) -> &BTreeMap<Owner, u64>;
}

/// A policy and a direction. The annotation of a namespace is a policy without a name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Owner {
    pub namespace: CompactString,
    pub policy: CompactString,
    pub direction: Direction,
}

/// An object that the kernel refuses because of its own content, while it takes others.
#[derive(Debug)]
pub struct Refusal<'a> {
    pub object: String,
    pub reason: &'a str,
    pub consequence: Consequence,
}

/// Consequence of a refusal for packets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Consequence {
    /// A chain is missing: traffic that only it allows is denied.
    Lacks,
    /// All objects that the kernel refuses together have this number of chains reject everything, or elements drop it; the names of the
    /// first ten.
    Closes { count: usize, first: Vec<String> },
    /// Nothing can be changed.
    KeepsAll,
}

/// Number of desired kernel objects, both families together.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Count {
    pub sets: usize,
    pub elements: usize,
}

/// Durations of the parts of one round.
#[derive(Default, Debug)]
pub struct RoundDurations {
    /// Duration of the sets and their elements, and of the rules.
    pub sets_took: Duration,
    pub rules_took: Duration,
    /// Duration of changing the elements of each family; zero if none changed.
    pub elements_took: PerFamily<Duration>,
    /// Duration of each reading and writing of a family's rules.
    pub rules_read: Vec<(Family, Duration)>,
    pub rules_written: Vec<(Family, Duration)>,
}
