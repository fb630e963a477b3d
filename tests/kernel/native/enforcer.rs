//! The packet filters of this kernel, and a firewall's backend for each of them, so that one test tries all of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice::config::FirewallConfig;
use sluice::firewall::backend::Backend;
use sluice::firewall::frames;
use sluice::firewall::frames::linux::FrameTables;
use sluice::firewall::iptables::apply::{IptablesRound, Mirrors};
use sluice::firewall::iptables::linux::{self, Linux};
use sluice::firewall::iptables::lowering::Lowering;
use sluice::firewall::iptables::{drops, serve};
use sluice::firewall::nftables::{self, Nftables, names::TABLE};
use sluice::firewall::plan::RuleSetChanges;
use sluice::firewall::rules::RuleSet;
use sluice::firewall::serve::Refused;
use sluice::kernel::iptables::Flavour;
use sluice::model::{Authority, World};
use sluice::net::PerFamily;
use sluice::observe::metrics::Registry;
use sluice::reconcile::Moment;
use sluice::subsystem::Kinds;
use tokio::sync::watch;

use super::firewall::programs;
use super::moment;
use crate::namespace::{attempt, shell};

/// A packet filter of this kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Filter {
    Iptables(Flavour),
    Nftables,
}

impl Filter {
    pub const ALL: [Filter; 3] =
        [Filter::Iptables(Flavour::Legacy), Filter::Iptables(Flavour::NfTables), Filter::Nftables];

    /// Rules and sets as the programs print them: the whole table `filter` and all sets with iptables, our table with nftables.
    pub fn saved(self) -> String {
        match self {
            Filter::Iptables(flavour) => {
                let flavour = if flavour == Flavour::Legacy { "legacy" } else { "nft" };
                shell(&format!("iptables-{flavour}-save -t filter; ip6tables-{flavour}-save -t filter; ipset save"))
            }
            Filter::Nftables => shell(&format!("nft list table inet {TABLE} 2>/dev/null || true")),
        }
    }
}

/// A backend of the firewall.
pub struct Enforcer {
    pub filter: Filter,
    config: Arc<FirewallConfig>,
    families: PerFamily<bool>,
    /// How well the cluster is known, with nftables.
    pub authority: Authority,
    /// There always is one, but while it is replaced.
    backend: Option<Either>,
}

enum Either {
    Iptables(Box<(Lowering, Mirrors<Linux>)>),
    Nftables(Box<(Nftables<nftables::linux::Linux>, watch::Receiver<Arc<nftables::drops::Owners>>)>),
}

impl Enforcer {
    pub fn new(filter: Filter, config: Arc<FirewallConfig>, families: PerFamily<bool>) -> Enforcer {
        let backend = Some(Either::new(filter, &config, families));
        Enforcer { filter, config, families, authority: Authority::Complete, backend }
    }

    /// The process ends, and the next one begins without memory, with this filter.
    pub fn restart_with(&mut self, filter: Filter) {
        self.backend = None;
        until_nobody_owns_the_table();
        self.filter = filter;
        self.backend = Some(Either::new(filter, &self.config, self.families));
    }

    pub fn update(&mut self, rules: &RuleSet, world: &World, changed: &RuleSetChanges) {
        match self.backend() {
            Either::Iptables(both) => {
                let (lowering, mirrors) = &mut **both;
                mirrors.mark(&lowering.update(rules, world, changed));
            }
            Either::Nftables(both) => both.0.update(rules, world, changed),
        }
    }

    /// One round. Returns how many steps it took.
    pub fn round(&mut self, at: Moment) -> u64 {
        let authority = self.authority;
        let before = self.kinds(|kinds| kinds.steps_done());
        match self.backend() {
            Either::Iptables(_) => drop(self.round_of_iptables(at)),
            Either::Nftables(both) => drop(both.0.round(authority, at)),
        }
        self.kinds(|kinds| kinds.steps_done()) - before
    }

    /// One round of the backend for iptables.
    pub fn round_of_iptables(&mut self, at: Moment) -> IptablesRound {
        let Either::Iptables(both) = self.backend() else { panic!("this is about iptables") };
        let (lowering, mirrors) = &mut **both;
        mirrors.round(lowering.desired(), Authority::Complete, at)
    }

    /// The mirrors of the backend for iptables.
    pub fn iptables(&mut self) -> &mut Mirrors<Linux> {
        let Either::Iptables(both) = self.backend() else { panic!("this is about iptables") };
        &mut both.1
    }

    /// Runs rounds until all is as desired. Returns how many steps that took.
    pub fn settle(&mut self) -> u64 {
        let mut steps = 0;
        let mut at = moment();
        for _ in 0..10 {
            steps += self.round(at);
            if self.is_settled() {
                return steps;
            }
            at = Moment { now: self.retry_at().unwrap_or_else(Instant::now), jitter: 0 };
        }
        panic!("it does not settle: {:?}", self.troubles());
    }

    pub fn is_settled(&mut self) -> bool {
        self.kinds(|kinds| kinds.is_as_wanted())
    }

    pub fn retry_at(&mut self) -> Option<Instant> {
        match self.backend() {
            Either::Iptables(both) => both.1.retry_at(),
            Either::Nftables(both) => both.0.retry_at(),
        }
    }

    /// Last error of each kind of kernel objects that fails.
    pub fn troubles(&mut self) -> Vec<String> {
        let of_all = |kinds: &mut dyn Kinds| {
            let kinds = kinds.reflections();
            kinds.iter().filter_map(|kind| Some(kind.trouble()?.error.clone())).collect()
        };
        self.kinds(of_all)
    }

    pub fn remove_abandoned(&mut self) -> Vec<String> {
        match self.backend() {
            Either::Iptables(both) => both.1.remove_abandoned(),
            Either::Nftables(both) => loop {
                if let Some(failed) = both.0.remove_abandoned() {
                    return failed;
                }
            },
        }
    }

    pub fn has_abandoned(&mut self) -> bool {
        match self.backend() {
            Either::Iptables(both) => both.1.has_abandoned(),
            Either::Nftables(both) => both.0.has_abandoned(),
        }
    }

    /// Metrics of refused packets in the exposition format.
    pub fn refused(&mut self, rules: &RuleSet) -> String {
        let registry = Registry::new("test", "test");
        let filter = self.filter;
        let of_table = match self.backend() {
            Either::Iptables(_) => None,
            Either::Nftables(both) => Some(both.1.clone()),
        };
        match (filter, of_table) {
            (Filter::Iptables(flavour), _) => {
                let everything = RuleSetChanges {
                    pods: rules.pods.keys().cloned().collect(),
                    cluster_policies: rules.cluster_policies.keys().cloned().collect(),
                    ..RuleSetChanges::default()
                };
                let mut owners = drops::Owners::new();
                drops::update_owners(&mut owners, rules, &everything);
                let (_owners, told) = watch::channel(Arc::new(owners));
                let counters = serve::Counters::new(told, programs(flavour));
                registry.register(Box::new(Refused::new(counters).expect("valid names"))).expect("the names are free");
                registry.text()
            }
            (Filter::Nftables, told) => {
                let told = told.expect("it tells");
                let counters = nftables::serve::Counters::new(told).expect("the kernel can be reached");
                registry.register(Box::new(Refused::new(counters).expect("valid names"))).expect("the names are free");
                registry.text()
            }
        }
    }

    /// Does something with all kinds of kernel objects.
    pub fn kinds<R>(&mut self, act: impl FnOnce(&mut dyn Kinds) -> R) -> R {
        match self.backend() {
            Either::Iptables(both) => act(&mut both.1),
            Either::Nftables(both) => act(both.0.kinds()),
        }
    }

    fn backend(&mut self) -> &mut Either {
        self.backend.as_mut().expect("there is one")
    }
}

impl Either {
    fn new(filter: Filter, config: &Arc<FirewallConfig>, families: PerFamily<bool>) -> Either {
        match filter {
            Filter::Iptables(flavour) => {
                let targets = linux::open_with(programs(flavour)).expect("the kernel can be reached");
                Either::Iptables(Box::new((Lowering::new(config.clone(), families), Mirrors::new(targets))))
            }
            Filter::Nftables => {
                let opened = nftables::linux::open_for_cleanup().expect("the kernel can be reached");
                let FrameTables { tags, groups } = frames::linux::open().expect("the kernel can be reached");
                let targets = nftables::apply::Targets { frames: tags, groups, ..opened };
                let (owners, told) = watch::channel(Arc::default());
                Either::Nftables(Box::new((Nftables::new(config.clone(), families, targets, owners), told)))
            }
        }
    }
}

/// A table belongs to its process until all copies of the socket are closed, of which programs that begin have some for a moment.
pub fn until_nobody_owns_the_table() {
    let begun = Instant::now();
    let tables = [format!("inet {TABLE}"), format!("bridge {}", frames::TABLE), format!("inet {}", frames::TABLE)];
    let is_owned = |table: &String| attempt(&format!("nft list table {table}")).1.contains("flags owner");
    while tables.iter().any(is_owned) {
        assert!(begun.elapsed() < Duration::from_secs(10), "a table still has an owner");
        std::thread::sleep(Duration::from_millis(5));
    }
}
