//! Objects of either backend in the kernel in memory, looked at and damaged in the words of neither of them.

use sluice::firewall::iptables::dispatch;
use sluice::firewall::iptables::names::CHAIN_TAIL;
use sluice::firewall::plan::Plan;
use sluice::firewall::rules::{Direction, PolicyKey};
use sluice::firewall::{iptables, nftables};
use sluice::kernel::iptables::{Piece, Rules};
use sluice::kernel::nftables::{Content, Fields, Key, Match, Verdict};
use sluice::model::ObjectName;

use super::super::table_walk::Contents;
use super::*;

/// The rules of policies that are in force, or shall be.
#[derive(Clone, PartialEq, Debug)]
pub enum InForce {
    Chains(BTreeMap<Piece, Rules>),
    Table(Contents),
}

impl InForce {
    /// Those of one family, and in a table those of both.
    pub fn of(&self, family: Family) -> InForce {
        match self {
            InForce::Chains(chains) => {
                let mut chains = chains.clone();
                chains.retain(|piece, _| piece.family() == family);
                InForce::Chains(chains)
            }
            InForce::Table(table) => {
                let mut table = table.clone();
                table.retain(|object, content| family_of(object, content).is_none_or(|of| of == family));
                InForce::Table(table)
            }
        }
    }

    /// Whether any pod is judged by policies.
    pub fn isolates(&self) -> bool {
        match self {
            InForce::Chains(chains) => {
                chains.keys().any(|piece| piece.to_string().contains(iptables::names::POD_CHAINS))
            }
            InForce::Table(table) => {
                let maps: Vec<_> = nftables::names::entrances().collect();
                table.keys().any(|object| matches!(object, Object::Element(map, _) if maps.contains(map)))
            }
        }
    }

    /// Whether addresses that no known pod has are refused in both families.
    pub fn closes_both(&self) -> bool {
        Family::BOTH.into_iter().all(|family| self.closes(family))
    }

    fn closes(&self, family: Family) -> bool {
        match self {
            InForce::Chains(chains) => chains.get(&dispatch::chain(family, CHAIN_TAIL)).is_some_and(dispatch::closes),
            InForce::Table(table) => Direction::BOTH.into_iter().all(|direction| {
                let Some(Content::Chain(chain)) = table.get(&Object::Chain(nftables::names::closed(direction))) else {
                    return false;
                };
                let is_of = |one: &Match| matches!(one, Match::Address { range, .. } if Family::from(*range) == family);
                let mut rules = chain.rules.iter().filter(|rule| rule.verdict() == Some(&Verdict::Reject));
                rules.any(|rule| rule.matches().iter().any(is_of))
            }),
        }
    }
}

/// The family that an object of a table is for, so far as it has one.
fn family_of(object: &Object, content: &Content) -> Option<Family> {
    match (object, content) {
        (Object::Set(_), Content::Set(spec)) => match spec.fields {
            Fields::Address(family) | Fields::Addresses(family) | Fields::Service(family) => Some(family),
            _ => None,
        },
        (Object::Element(_, Key::Address(address) | Key::Itself(address) | Key::Service(address, ..)), _) => {
            Some(Family::from(*address))
        }
        (Object::Element(_, Key::Prefix(range)), _) => Some(Family::from(*range)),
        (Object::Element(_, Key::Range(ends)), _) => Some(Family::from(ends.0)),
        _ => None,
    }
}

impl Running {
    pub fn in_force(&self) -> InForce {
        match self.config.backend {
            Backend::Iptables => {
                let mut chains = self.kernel.state().rules;
                chains.retain(|piece, _| piece.to_string().contains("KUBE-"));
                InForce::Chains(chains)
            }
            Backend::Nftables => InForce::Table(self.table.contents()),
        }
    }

    /// What shall be in force of a World.
    pub fn desired(&self, world: &World) -> InForce {
        let mut plan = Plan::of(self.config.backend);
        let changed = plan.update(world);
        let config = self.config.clone();
        match self.config.backend {
            Backend::Iptables => {
                let mut lowering = iptables::lowering::Lowering::new(config, BOTH);
                lowering.update(plan.rules(), world, &changed);
                InForce::Chains(lowering.desired().rules.clone())
            }
            Backend::Nftables => {
                let mut lowering = nftables::lowering::Lowering::new(config, BOTH);
                lowering.update(plan.rules(), world, &changed);
                InForce::Table(lowering.desired().table.clone())
            }
        }
    }

    /// How much was done to the kernel.
    pub fn acts(&self) -> u64 {
        self.kernel.with(|machine| machine.acts) + self.table.transactions()
    }

    /// Others take everything away.
    pub fn flush(&self) {
        match self.config.backend {
            Backend::Iptables => self.kernel.with(|machine| machine.state.rules.clear()),
            Backend::Nftables => self.table.change(|table| *table = Contents::default()),
        }
    }

    /// Rules cannot be changed from now on, with iptables those of IPv6, or can be again.
    pub fn breaks(&self, is_broken: bool) {
        match self.config.backend {
            Backend::Iptables => self.kernel.with(|machine| machine.broken = is_broken.then_some(Family::V6)),
            Backend::Nftables => self.table.breaks(is_broken),
        }
    }

    /// The kernel takes nothing of IPv6 from now on.
    pub fn breaks_v6(&self) {
        match self.config.backend {
            Backend::Iptables => self.breaks(true),
            Backend::Nftables => {
                let is_v6 = |object: &Object, content: &Content| family_of(object, content) == Some(Family::V6);
                self.table.refuse(Some(std::rc::Rc::new(is_v6)));
            }
        }
    }

    /// The kernel does not take what the policy `late` of the namespace `shop` comes to need for ingress.
    pub fn refuses_late(&self) {
        let key = PolicyKey { policy: ObjectName::new("shop", "late"), direction: Direction::Ingress };
        match self.config.backend {
            Backend::Iptables => {
                let chain = iptables::names::policy_chain(&key);
                self.kernel.with(|machine| machine.unloadable = [chain].into());
            }
            Backend::Nftables => {
                let is_peers = |object: &Object, _: &Content| matches!(object, Object::Set(set) if set.as_str().starts_with("pods_shop_"));
                self.table.refuse(Some(std::rc::Rc::new(is_peers)));
            }
        }
    }

    /// Whether this address is an element of any set.
    pub fn has_element(&self, address: &str) -> bool {
        let is_of = |text: String| text.contains(address);
        match self.config.backend {
            Backend::Iptables => self.kernel.state().elements.keys().any(|key| is_of(key.to_string())),
            Backend::Nftables => {
                let table = self.table.contents();
                table.keys().any(|object| matches!(object, Object::Element(..)) && is_of(object.to_string()))
            }
        }
    }

    /// Others take away an element and a chain; returns how an audit calls them.
    pub fn damage(&self) -> [String; 2] {
        match self.config.backend {
            Backend::Iptables => self.kernel.with(|machine| {
                let (element, ()) = machine.state.elements.pop_first().expect("there are some");
                let ours = |piece: &&Piece| piece.to_string().contains("KUBE-");
                let piece = machine.state.rules.keys().rfind(ours).cloned().expect("there are some");
                machine.state.rules.remove(&piece);
                [element.to_string(), piece.to_string()]
            }),
            Backend::Nftables => self.table.change(|table| {
                let is_element = |object: &&Object| matches!(object, Object::Element(..));
                let element = table.keys().find(is_element).cloned().expect("there are some");
                let is_chain = |object: &&Object| matches!(object, Object::Chain(_));
                let chain = table.keys().find(is_chain).cloned().expect("there are some");
                for object in [&element, &chain] {
                    table.remove(object);
                }
                [element.to_string(), chain.to_string()]
            }),
        }
    }
}
