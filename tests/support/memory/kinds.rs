//! The families: which rows are ours, what the kernel refuses, and what it does by itself.

use std::collections::BTreeMap;
use std::fmt::{Debug, Display};
use std::net::SocketAddr;
use std::sync::Arc;

use compact_str::{CompactString, format_compact};
use rustix::io::Errno;
use sluice::kernel::Error;
use sluice::kernel::address::AddressKey;
use sluice::kernel::bridge::Hairpin;
use sluice::kernel::ipset::{self, ElementKey, SetKind, SetName, SetSpec};
use sluice::kernel::iptables::{Piece, Refusal, Rule, Rules, Verdict};
use sluice::kernel::ipvs::{Destination, Part, RefusedPart, ServiceKey, Services, Virtual};
use sluice::kernel::link::{Link, LinkName};
use sluice::kernel::route::{NextHop, Route, RouteKey, RouteKind, TABLE_LOCAL};
use sluice::kernel::rule::PolicyRule;
use sluice::kernel::sysctl::Setting;
use sluice::net::Family;
use sluice::proxy::names::{
    CHAIN_DSR, CHAIN_DSR_MSS, CHAIN_DSR_SENT, CHAIN_GUARD, CHAIN_HIDDEN, CHAIN_INSIDE, CHAIN_SNAT, CHAIN_SOURCES,
    CHAIN_UNALLOCATED, DEVICE, DSR_TABLE, EMPTY_TABLE, Set,
};
use sluice::reconcile::{Failure, Step, Target};

use super::{Fault, Machine, Object, State};

/// One kind of rows in a [`State`].
pub trait Rows: Sized + 'static {
    type Key: Ord + Clone + Debug + Display;
    type Value: PartialEq + Clone + Debug;
    const NAME: &'static str;
    /// A glance sees their number alone.
    const COUNTED: bool = false;
    /// A glance sees something of them.
    const GLANCED: bool = true;

    fn rows(state: &mut State) -> &mut BTreeMap<Self::Key, Self::Value>;

    fn object(key: &Self::Key) -> Object;

    fn is_ours(key: &Self::Key, value: &Self::Value) -> bool;

    /// Why the kernel will not have it, beside that it exists or does not.
    fn refusal(_state: &State, _key: &Self::Key, _want: Option<&Self::Value>) -> Option<Errno> {
        None
    }

    /// Changes what was `found`, from what the caller believes it to be.
    fn change(found: &mut Self::Value, _have: &Self::Value, want: &Self::Value) -> Result<(), Errno> {
        *found = want.clone();
        Ok(())
    }

    /// Removes dependent state that the kernel drops with an object that is changed or deleted.
    fn lose(_state: &mut State, _key: &Self::Key, _have: &Self::Value, _want: Option<&Self::Value>) {}

    /// Applies side effects of the kernel after a change.
    fn follow(_state: &mut State, _key: &Self::Key, _want: Option<&Self::Value>) {}

    fn grown(_have: &Self::Value, want: &Self::Value) -> Self::Value {
        want.clone()
    }

    /// As for [`Target::filled`].
    fn filled(_have: &Self::Value, _want: &Self::Value) -> Option<Self::Value> {
        None
    }

    fn perform(machine: &mut Machine, steps: &[Step<'_, Self::Key, Self::Value>]) -> Vec<Failure<Error>> {
        machine.perform_each::<Self>(steps)
    }
}

pub enum Links {}
pub enum Settings {}
pub enum Sets {}
pub enum Elements {}
pub enum RuleRows {}
pub enum Virtuals {}
pub enum PolicyRules {}
pub enum Routes {}
pub enum Addresses {}
pub enum HairpinPorts {}

impl Rows for HairpinPorts {
    type Key = LinkName;
    type Value = Hairpin;
    const NAME: &'static str = "hairpin mode of bridge ports";

    fn rows(state: &mut State) -> &mut BTreeMap<LinkName, Hairpin> {
        &mut state.hairpin_ports
    }

    fn object(key: &LinkName) -> Object {
        Object::HairpinPorts(key.clone())
    }

    fn is_ours(_: &LinkName, _: &Hairpin) -> bool {
        true
    }
}

impl Rows for Links {
    type Key = LinkName;
    type Value = Link;
    const NAME: &'static str = "links";

    fn rows(state: &mut State) -> &mut BTreeMap<LinkName, Link> {
        &mut state.links
    }

    fn object(key: &LinkName) -> Object {
        Object::Link(key.clone())
    }

    fn is_ours(key: &LinkName, _: &Link) -> bool {
        key.0 == DEVICE
    }

    /// A device that goes, or goes down, takes its routes with it, and its addresses and settings when it goes.
    fn follow(state: &mut State, key: &LinkName, want: Option<&Link>) {
        let filter = Setting(format_compact!("net/ipv4/conf/{key}/rp_filter"));
        if want.is_some() {
            // What `net/ipv4/conf/default` says, which many distributions have at 1.
            state.settings.entry(filter).or_insert("1".into());
        } else {
            state.settings.remove(&filter);
        }
        if want.is_some_and(|link| link.up) {
            let its: Vec<AddressKey> = state.addresses.keys().filter(|address| address.link == *key).cloned().collect();
            its.iter().for_each(|address| make_local(state, address));
            return;
        }
        state.routes.retain(|_, route| !leaves_by(route, key));
        if want.is_none() {
            state.addresses.retain(|address, ()| address.link != *key);
        }
    }
}

impl Rows for Settings {
    type Key = Setting;
    type Value = CompactString;
    const NAME: &'static str = "settings";
    const GLANCED: bool = false;

    fn rows(state: &mut State) -> &mut BTreeMap<Setting, CompactString> {
        &mut state.settings
    }

    fn object(key: &Setting) -> Object {
        Object::Setting(key.clone())
    }

    fn is_ours(_: &Setting, _: &CompactString) -> bool {
        false
    }

    fn refusal(state: &State, key: &Setting, want: Option<&CompactString>) -> Option<Errno> {
        let of_bridges = key.0.starts_with("net/bridge/");
        match want {
            None => Some(Errno::PERM),
            Some(_) => (state.lacks_bridge_filter && of_bridges).then_some(Errno::NOENT),
        }
    }
}

impl Rows for Sets {
    type Key = SetName;
    type Value = SetSpec;
    const NAME: &'static str = "sets";

    fn rows(state: &mut State) -> &mut BTreeMap<SetName, SetSpec> {
        &mut state.sets
    }

    fn object(key: &SetName) -> Object {
        Object::Set(key.clone())
    }

    fn is_ours(key: &SetName, _: &SetSpec) -> bool {
        is_our_set(key)
    }

    /// A set that a rule names cannot go, and one that holds more cannot become smaller.
    fn refusal(state: &State, key: &SetName, want: Option<&SetSpec>) -> Option<Errno> {
        let held = state.elements.keys().filter(|element| element.set == *key).count();
        match want {
            Some(spec) if held > spec.max_elements as usize => Some(Errno::NOSPC),
            Some(_) => None,
            None => named(&state.rules).any(|set| set == key).then_some(Errno::BUSY),
        }
    }

    fn grown(have: &SetSpec, want: &SetSpec) -> SetSpec {
        <ipset::Sets as Target>::grown(have, want)
    }

    fn follow(state: &mut State, key: &SetName, want: Option<&SetSpec>) {
        if want.is_none() {
            state.elements.retain(|element, ()| element.set != *key);
        }
    }
}

impl Rows for Elements {
    type Key = ElementKey;
    type Value = ();
    const NAME: &'static str = "set elements";
    const COUNTED: bool = true;

    fn rows(state: &mut State) -> &mut BTreeMap<ElementKey, ()> {
        &mut state.elements
    }

    fn object(key: &ElementKey) -> Object {
        Object::Element(key.clone())
    }

    fn is_ours(key: &ElementKey, (): &()) -> bool {
        is_our_set(&key.set)
    }

    fn refusal(state: &State, key: &ElementKey, want: Option<&()>) -> Option<Errno> {
        use sluice::kernel::ipset::Entry;
        want?;
        let Some(spec) = state.sets.get(&key.set) else { return Some(Errno::NOENT) };
        let held = state.elements.keys().filter(|element| element.set == key.set).count();
        let kind = match &key.entry {
            Entry::Ip(_) => SetKind::HashIp,
            Entry::IpPort(..) => SetKind::HashIpPort,
            Entry::Net(_) => SetKind::HashNet,
            Entry::IpPortNet(entry) if entry.range.prefix_len() == 0 => return Some(Errno::INVAL),
            Entry::IpPortNet(_) => SetKind::HashIpPortNet,
        };
        let family = key.entry.family();
        if (kind, family) != (spec.kind, spec.family) {
            return Some(Errno::INVAL);
        }
        (held >= spec.max_elements as usize).then_some(Errno::NOSPC)
    }
}

impl Rows for RuleRows {
    type Key = Piece;
    type Value = Rules;
    const NAME: &'static str = "rules";

    fn grown(have: &Rules, want: &Rules) -> Rules {
        have.grown(want)
    }

    fn rows(state: &mut State) -> &mut BTreeMap<Piece, Rules> {
        &mut state.rules
    }

    fn object(key: &Piece) -> Object {
        Object::Rule(key.clone())
    }

    fn is_ours(key: &Piece, _: &Rules) -> bool {
        let ours = |chain: &CompactString| {
            let guards = [CHAIN_GUARD, CHAIN_UNALLOCATED, CHAIN_HIDDEN, CHAIN_SOURCES, CHAIN_INSIDE];
            let others = [CHAIN_SNAT, CHAIN_DSR, CHAIN_DSR_MSS, CHAIN_DSR_SENT];
            guards.contains(&chain.as_str()) || others.contains(&chain.as_str())
        };
        match key {
            Piece::Chain { chain, .. } => ours(chain),
            Piece::Jump { to, .. } => ours(to),
            Piece::Leftover { .. } => true,
        }
    }

    /// The pieces of one address family are one transaction: all of them or none.
    fn perform(machine: &mut Machine, steps: &[Step<'_, Piece, Rules>]) -> Vec<Failure<Error>> {
        let mut failures = Vec::new();
        for family in Family::BOTH {
            let of_family = |piece: &Piece| match piece {
                Piece::Chain { family: its, .. } | Piece::Jump { family: its, .. } => *its == family,
                Piece::Leftover { family: its, .. } => *its == family,
            };
            let group: Vec<usize> = (0..steps.len()).filter(|index| of_family(steps[*index].key)).collect();
            let (group, refused) = loadable(machine, steps, group);
            failures.extend(refused);
            let done = match machine.broken == Some(family) {
                true => Err(Errno::BUSY),
                false => transaction(machine, steps, &group),
            };
            if let Err(errno) = done {
                let failed = |index| Failure { step: index, error: Error::errno("restore", "rules", errno) };
                failures.extend(group.into_iter().map(failed));
            }
        }
        failures
    }
}

/// The steps of one family if this kernel takes all of them; else none, and their failures: while one is refused the others
/// wait for what is put in its place.
fn loadable(
    machine: &mut Machine,
    steps: &[Step<'_, Piece, Rules>],
    group: Vec<usize>,
) -> (Vec<usize>, Vec<Failure<Error>>) {
    // A pod's chain that does nothing but drop is taken by any kernel: everything, or what it refuses of Services.
    let only_drops = |rules: &Rules| rules.0.iter().all(|rule| rule.verdict() == Some(&Verdict::Drop));
    let is_refused = |piece: &Piece, want: Option<&Rules>| match piece {
        Piece::Chain { chain, .. } => {
            machine.unloadable.contains(chain) && want.is_some_and(|rules| !only_drops(rules))
        }
        Piece::Jump { .. } | Piece::Leftover { .. } => false,
    };
    let refused: Vec<Refusal> = group
        .iter()
        .filter(|index| is_refused(steps[**index].key, steps[**index].want))
        .map(|index| Refusal { piece: steps[*index].key.clone(), reason: "this kernel lacks a module".to_owned() })
        .collect();
    if refused.is_empty() {
        return (group, Vec::new());
    }
    machine.tried_in_vain.extend(refused);
    let failed = |index: usize| Failure {
        step: index,
        error: Error::errno("restore", steps[index].key.to_string(), Errno::NOENT),
    };
    (Vec::new(), group.into_iter().map(failed).collect())
}

/// The sets that rules name.
fn named(rules: &BTreeMap<Piece, Rules>) -> impl Iterator<Item = &SetName> {
    rules.values().flat_map(|rules| &rules.0).flat_map(Rule::sets)
}

fn transaction(machine: &mut Machine, steps: &[Step<'_, Piece, Rules>], group: &[usize]) -> Result<(), Errno> {
    if group.is_empty() {
        return Ok(());
    }
    let fault = machine.faults.of_step();
    if matches!(fault, Fault::Before | Fault::Lost) {
        return Err(Errno::INTR);
    }
    let mut rules = machine.state.rules.clone();
    let mut missing = false;
    for step in group.iter().map(|index| &steps[*index]) {
        match step.want {
            Some(want) => {
                rules.insert(step.key.clone(), want.clone());
            }
            None => missing |= rules.remove(step.key).is_none(),
        }
    }
    let entered = rules.iter().flat_map(|(piece, rules)| rules.0.iter().map(move |rule| (piece, rule)));
    let chain_of = |piece: &Piece, chain| Piece::Chain { family: piece.family(), table: piece.table(), chain };
    let enters_nothing = entered
        .filter_map(|(piece, rule)| Some(chain_of(piece, rule.chain()?.clone())))
        .any(|chain| !rules.contains_key(&chain));
    let jump_into_nothing = enters_nothing
        || rules.keys().any(|piece| match piece {
            Piece::Jump { family, table, to, .. } => {
                !rules.contains_key(&Piece::Chain { family: *family, table: *table, chain: to.clone() })
            }
            _ => false,
        });
    let unknown_set = named(&rules).any(|set| !machine.state.sets.contains_key(set));
    if missing || jump_into_nothing || unknown_set {
        machine.refused.push(format!(
            "rules: missing {missing}, jump into nothing {jump_into_nothing}, unknown set {unknown_set}"
        ));
        return Err(Errno::NOENT);
    }
    machine.state.rules = rules;
    for index in group {
        machine.acted(&Object::Rule(steps[*index].key.clone()));
    }
    if fault == Fault::After { Err(Errno::INTR) } else { Ok(()) }
}

impl Rows for Virtuals {
    type Key = ServiceKey;
    type Value = Virtual;
    const NAME: &'static str = "virtual services";

    fn rows(state: &mut State) -> &mut BTreeMap<ServiceKey, Virtual> {
        &mut state.virtuals
    }

    fn object(key: &ServiceKey) -> Object {
        Object::Virtual(*key)
    }

    /// Nothing, until its owner says which are.
    fn is_ours(_: &ServiceKey, _: &Virtual) -> bool {
        false
    }

    /// A scheduler that is not there makes no virtual service, and leaves one as it was; a destination that is not taken is not added. Both fail the step, the
    /// rest of which is done.
    fn perform(machine: &mut Machine, steps: &[Step<'_, ServiceKey, Virtual>]) -> Vec<Failure<Error>> {
        let mut refusals: BTreeMap<usize, Errno> = BTreeMap::new();
        let mut wants: Vec<Option<Virtual>> = steps.iter().map(|step| step.want.cloned()).collect();
        for (index, (step, wanted)) in steps.iter().zip(&mut wants).enumerate() {
            if wanted.is_none() && machine.undeletable.contains(step.key) {
                refusals.insert(index, Errno::NOBUFS);
                *wanted = step.have.cloned();
                continue;
            }
            let Some(want) = wanted else { continue };
            let had = |address| step.have.is_some_and(|have| have.destinations.find(address).is_some());
            let is_refused = |it: &Destination| machine.refused_destinations.contains(&it.address) && !had(it.address);
            let mut refuse = |part, errno| {
                machine.refused_parts.push(RefusedPart { key: *step.key, part });
                refusals.entry(index).or_insert(errno);
            };
            let is_described = step.have.is_none_or(|have| have.service != want.service);
            if is_described && machine.lacking_schedulers.contains(&*want.service.scheduler) {
                refuse(Part::Scheduler(want.service.scheduler), Errno::NOENT);
                match step.have {
                    Some(have) => want.service = have.service.clone(),
                    None => {
                        *wanted = None;
                        continue;
                    }
                }
            }
            let (refused, taken): (Vec<Destination>, Vec<Destination>) = want.destinations.iter().partition(is_refused);
            refused.iter().for_each(|it| refuse(Part::Destination(it.address), Errno::INVAL));
            want.destinations = taken.into();
        }
        let is_left = |index: &usize| steps[*index].have.is_some() || wants[*index].is_some();
        let left: Vec<usize> = (0..steps.len()).filter(is_left).collect();
        let step = |index: &usize| Step { want: wants[*index].as_ref(), ..steps[*index] };
        let steps_left: Vec<_> = left.iter().map(step).collect();
        let mut failures = machine.perform_each::<Virtuals>(&steps_left);
        failures.iter_mut().for_each(|failure| failure.step = left[failure.step]);
        for (index, errno) in refusals {
            if failures.iter().all(|failure| failure.step != index) {
                let error = Error::errno("change virtual service", steps[index].key.to_string(), errno);
                failures.push(Failure { step: index, error });
            }
        }
        failures
    }

    /// Destinations are added, changed and removed one by one, each as the caller believes it to be; what the
    /// kernel refuses of that leaves the rest done.
    fn change(found: &mut Virtual, have: &Virtual, want: &Virtual) -> Result<(), Errno> {
        let by_address = |list: &[Destination]| -> BTreeMap<SocketAddr, Destination> {
            list.iter().map(|destination| (destination.address, *destination)).collect()
        };
        let (had, wanted) = (by_address(&have.destinations.to_vec()), by_address(&want.destinations.to_vec()));
        let mut is = by_address(&found.destinations.to_vec());
        let mut refusal = Ok(());
        for (address, destination) in &wanted {
            match (had.get(address), is.contains_key(address)) {
                (Some(old), _) if old == destination => {}
                (None, true) => refusal = Err(Errno::EXIST),
                (Some(_), false) => refusal = Err(Errno::NOENT),
                _ => {
                    is.insert(*address, *destination);
                }
            }
        }
        for address in had.keys().filter(|address| !wanted.contains_key(address)) {
            if is.remove(address).is_none() {
                refusal = Err(Errno::NOENT);
            }
        }
        if have.service != want.service {
            found.service = want.service.clone();
        }
        found.destinations = is.into_values().collect();
        refusal
    }

    fn grown(have: &Virtual, want: &Virtual) -> Virtual {
        <Services as Target>::grown(have, want)
    }

    fn filled(have: &Virtual, want: &Virtual) -> Option<Virtual> {
        <Services as Target>::filled(have, want)
    }
}

impl Rows for PolicyRules {
    type Key = PolicyRule;
    type Value = ();
    const NAME: &'static str = "rules of routing";

    fn rows(state: &mut State) -> &mut BTreeMap<PolicyRule, ()> {
        &mut state.policy_rules
    }

    fn object(key: &PolicyRule) -> Object {
        Object::PolicyRule(*key)
    }

    fn is_ours(key: &PolicyRule, (): &()) -> bool {
        [DSR_TABLE, EMPTY_TABLE].contains(&key.place)
    }
}

impl Rows for Routes {
    type Key = RouteKey;
    type Value = Arc<Route>;
    const NAME: &'static str = "routes";

    fn rows(state: &mut State) -> &mut BTreeMap<RouteKey, Arc<Route>> {
        &mut state.routes
    }

    fn object(key: &RouteKey) -> Object {
        Object::Route(key.clone())
    }

    fn is_ours(key: &RouteKey, route: &Arc<Route>) -> bool {
        let places = [(TABLE_LOCAL, DEVICE), (DSR_TABLE.table, DEVICE), (DSR_TABLE.table, "lo")];
        places.into_iter().any(|(table, link)| key.table == table && leaves_by(route, &LinkName(link.into())))
    }

    /// A route needs its device, up; its source must be an address of this host.
    fn refusal(state: &State, _: &RouteKey, want: Option<&Arc<Route>>) -> Option<Errno> {
        let want = want?;
        let stands = |link: &LinkName| {
            state.links.get(link).is_some_and(|link| link.up)
                || state.tunnels.get(link).is_some_and(|tunnel| tunnel.up)
                || state.overlay_devices.get(link).is_some_and(|device| device.up)
                || state.wireguard_devices.get(link).is_some_and(|device| device.up)
        };
        if !want.next_hops.iter().all(|hop| stands(&hop.link)) {
            return Some(Errno::NODEV);
        }
        let is_own = |source| state.addresses.keys().any(|key| key.address.addr() == source);
        (!want.source.is_none_or(is_own)).then_some(Errno::INVAL)
    }
}

impl Rows for Addresses {
    type Key = AddressKey;
    type Value = ();
    const NAME: &'static str = "addresses";

    fn rows(state: &mut State) -> &mut BTreeMap<AddressKey, ()> {
        &mut state.addresses
    }

    fn object(key: &AddressKey) -> Object {
        Object::Address(key.clone())
    }

    fn is_ours(key: &AddressKey, (): &()) -> bool {
        key.link.0 == DEVICE
    }

    fn refusal(state: &State, key: &AddressKey, want: Option<&()>) -> Option<Errno> {
        (want.is_some() && !state.links.contains_key(&key.link)).then_some(Errno::NODEV)
    }

    /// With an address comes and goes its own local route, whose source it is; with the last IPv4 address of a device
    /// go all its IPv4 routes.
    fn follow(state: &mut State, key: &AddressKey, want: Option<&()>) {
        if want.is_some() {
            make_local(state, key);
        } else {
            let is_v4 = |address: &AddressKey| Family::from(address.address) == Family::V4;
            let left = state.addresses.keys().any(|address| address.link == key.link && is_v4(address));
            if is_v4(key) && !left {
                let of_v4 = |route: &RouteKey| Family::from(route.destination) == Family::V4;
                state.routes.retain(|route, value| !(of_v4(route) && leaves_by(value, &key.link)));
            }
            let (address, prefix) = (key.address.addr(), Family::host_prefix(key.address.addr()));
            state.routes.retain(|route, value| {
                let its = route.table == TABLE_LOCAL && route.destination == prefix && value.kind == RouteKind::Local;
                !(its && value.source == Some(address) && leaves_by(value, &key.link))
            });
        }
    }
}

/// The kernel makes an address of a device that is up local, unless a route says so already.
fn make_local(state: &mut State, key: &AddressKey) {
    let (address, link) = (key.address.addr(), key.link.clone());
    if !state.links.get(&link).is_some_and(|link| link.up) {
        return;
    }
    let route = RouteKey { table: TABLE_LOCAL, destination: Family::host_prefix(address), metric: 0 };
    let next_hops = vec![NextHop { link, gateway: None, on_link: false }];
    let local = Route { kind: RouteKind::Local, protocol: 2, source: Some(address), next_hops: next_hops.into() };
    state.routes.entry(route).or_insert(local.into());
}

pub fn is_our_set(name: &SetName) -> bool {
    Family::BOTH.into_iter().any(|family| Set::ALL.into_iter().any(|set| set.name(family) == *name))
}

fn leaves_by(route: &Route, link: &LinkName) -> bool {
    route.next_hops.iter().any(|hop| hop.link == *link)
}
