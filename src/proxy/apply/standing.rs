//! Parts of a virtual service that the kernel lacks, as last seen: for who asks, and for the health checks of Services.

use super::elements::has_element;
use super::{Connected, Kernel, Mirrors};
use crate::kernel::ipset::Entry;
use crate::kernel::ipvs::{Destination, ServiceKey, Virtual};
use crate::kernel::nftables::Object;
use crate::proxy::clients::{Clients, set_of_chain, set_of_rule, source};
use crate::proxy::desired::Desired;
use crate::proxy::endpoints::DRAINING;
use crate::proxy::marks::{Marks, restriction};
use crate::proxy::names::Set;
use crate::proxy::plan::{address_of, local_route_key, marked_route_key};
use crate::proxy::unallocated::{is_chain, is_rule};
use crate::reconcile::{Mirror, Reflection};

/// A kernel object that is missing beside a virtual service, or stands in its way.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Lack {
    /// The local route of its address.
    Route,
    /// The address in the set of the guard, which names it as a Service's.
    Address,
    /// The address with its port in the set of the guard, which lets it in.
    Port,
    /// The mark of its packets, by which they find the tunnel.
    Mark,
    /// The elements that close it to clients outside of its source ranges.
    Closing,
    /// Some of its source ranges, whose clients are dropped.
    Sources,
    /// The element that keeps clients outside away where no endpoint is on this node.
    Inside,
    /// It is still closed to clients outside although an endpoint is on this node.
    StillInside,
    /// It is still closed to clients outside of source ranges that are gone.
    StillClosed,
}

impl Lack {
    /// The lack as a sentence without its end.
    pub fn reason(self) -> &'static str {
        match self {
            Lack::Route => "the local route of the address is missing",
            Lack::Address => "the address is missing in the guard's set of service addresses",
            Lack::Port => "the port is missing in the guard's set of service ports, and is refused",
            Lack::Mark => "what marks its packets for the tunnel is missing",
            Lack::Closing => "what closes it to clients outside of its source ranges is missing",
            Lack::Sources => "source ranges are missing, and their clients are dropped",
            Lack::Inside => "what drops clients outside while no endpoint is on this node is missing",
            Lack::StillInside => "it still drops clients outside although an endpoint is on this node",
            Lack::StillClosed => "it still drops clients outside of source ranges that are gone",
        }
    }

    /// Returns whether no client outside is served.
    fn keeps_out(self) -> bool {
        match self {
            Lack::Route | Lack::Port | Lack::Mark | Lack::StillInside => true,
            // The clients of some ranges are served, and of the node port all.
            Lack::Sources | Lack::StillClosed => false,
            // These let in too many, or only name the address.
            Lack::Closing | Lack::Inside | Lack::Address => false,
        }
    }

    /// One word for programs.
    pub fn word(self) -> &'static str {
        match self {
            Lack::Route => "route",
            Lack::Address => "guardAddress",
            Lack::Port => "guardPort",
            Lack::Mark => "tunnelMark",
            Lack::Closing => "sourceRangeGuard",
            Lack::Sources => "sourceRanges",
            Lack::Inside => "localPolicyGuard",
            Lack::StillInside => "localPolicyGuardStays",
            Lack::StillClosed => "sourceRangeGuardStays",
        }
    }
}

/// State of the kernel beside a virtual service.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Beside {
    pub lacks: Vec<Lack>,
    /// Some of it cannot be read now, or its last change failed.
    pub is_doubtful: bool,
}

impl<K: Kernel> Mirrors<K> {
    /// Returns what the kernel lacks beside a desired virtual service that has these clients, as last seen.
    pub fn beside(&self, desired: &Desired, key: &ServiceKey, clients: &Clients) -> Beside {
        let (Some(entry), Some(address)) = (restriction(key), address_of(key)) else { return Beside::default() };
        let marks = Marks::<K> { elements: &self.elements, table: &self.table };
        let mut lacks = Vec::new();
        let mut note = |is_lacking: bool, lack: Lack| {
            if is_lacking {
                lacks.push(lack)
            }
        };
        let is_tunnelled = desired.marks.contains_key(key);
        let marked = marked_route_key(address);
        let route = if desired.routes.contains_key(&marked) { marked } else { local_route_key(address) };
        // With another source, too, it makes the address one of this host.
        let has_route = || self.routes.seen().is_some_and(|seen| seen.contains_key(&route));
        note(desired.routes.contains_key(&route) && !has_route(), Lack::Route);
        note(!marks.has_address(address), Lack::Address);
        note(!marks.has_service(key), Lack::Port);
        note(is_tunnelled && !(self.gives_mark(key, desired) && self.leads_marked(key, desired)), Lack::Mark);
        for (set, missing, stays) in
            [(Set::Restricted, Lack::Closing, Lack::StillClosed), (Set::InsideOnly, Lack::Inside, Lack::StillInside)]
        {
            if has_element(desired, set, &entry) {
                note(!is_enforced(&marks, &self.rules, desired, set, &entry), missing);
            } else {
                note(marks.has(set, &entry), stays);
            }
        }
        let ranges = clients.sources.iter().flat_map(|ranges| ranges.iter());
        let mut sources = ranges.filter_map(|range| source(key, *range));
        let set = Set::AllowedSources;
        note(sources.any(|entry| has_element(desired, set, &entry) && !marks.has(set, &entry)), Lack::Sources);
        let elements_are_in_doubt = self.elements.is_in_doubt() || self.table.is_in_doubt();
        let is_doubtful = (is_tunnelled && self.policy_rules.is_in_doubt())
            || self.routes.is_in_doubt()
            || elements_are_in_doubt
            || self.rules.is_in_doubt();
        Beside { lacks, is_doubtful }
    }

    /// Returns whether clients that shall be are served at a desired virtual service: it has an endpoint that it is to have, and nothing keeps them out.
    /// What is in the kernel too much does no harm here, nor do missing endpoints while others serve. One that waits to change between NAT and tunnels, or to get another mark, is judged by what serves it meanwhile
    /// ([`former_of`](Self::former_of)). A remembered cluster changes nothing that exists,
    /// so with `any_endpoint` those in the kernel count. One whose turn is to come (`backlog`) serves by its former endpoints.
    /// `None` while that cannot be known, because something cannot be read or a step beside it has failed.
    pub fn serves(
        &mut self,
        desired: &Desired,
        key: &ServiceKey,
        clients: &Clients,
        any_endpoint: bool,
    ) -> Option<bool> {
        let found = self.standing_at(key, &desired.kernel_key(key))?;
        let former = if found.is_none() { self.former_of(desired, key) } else { None };
        let Beside { mut lacks, is_doubtful } = self.beside(desired, key, clients);
        let stands = match former {
            Some((former, wanted)) => {
                let is_local = self.is_local(key);
                lacks.retain(|lack| match lack {
                    Lack::Mark => false,
                    Lack::Route => !is_local,
                    _ => true,
                });
                stands(&self.standing_at(key, &former)?, Some(&wanted), any_endpoint)
            }
            None => stands(&found, desired.virtual_of(key), any_endpoint),
        };
        let lets_in = lacks.into_iter().all(|lack| !lack.keeps_out());
        // Its former endpoints are to serve until then. All nodes have the same large change at the same time, and not one of them may say that it serves no more.
        let takes_meanwhile = || self.waits_for_its_turn(desired, key) && self::stands(&found, None, true);
        match stands && lets_in {
            true => Some(true),
            false if stands && is_doubtful => None,
            false if lets_in && takes_meanwhile() => (!is_doubtful).then_some(true),
            false => Some(false),
        }
    }

    /// Returns the virtual service that the kernel has for a port at this key; the outer `None` while that cannot be known.
    fn standing_at(&mut self, port: &ServiceKey, key: &ServiceKey) -> Option<Option<Virtual>> {
        // What a failed step has left is not known before it is tried again, and then it fails again: the kernel is asked.
        let found = match self.virtuals.is_doubtful(key) {
            true => self.virtuals.target().observe(key).ok()?.map(|found| found.without_counters()),
            false => self.virtuals.seen()?.get(key).cloned(),
        };
        // Somebody else's may have its mark.
        Some(found.filter(|found| key == port || found.is_in_tunnel_mode()))
    }

    /// Returns whether the address of a port is local, for all packets or for marked ones.
    fn is_local(&self, port: &ServiceKey) -> bool {
        let (Some(address), Some(seen)) = (address_of(port), self.routes.seen()) else { return false };
        [local_route_key(address), marked_route_key(address)].iter().any(|route| seen.contains_key(route))
    }

    /// Returns the virtual services that may differ from what is desired, and those whose address may, by address, protocol and port, beside those that
    /// [wait for their turn](Self::waits_for_its_turn); `None` if any may.
    pub fn unsettled_virtuals(&self, desired: &Desired) -> Option<Vec<ServiceKey>> {
        let marks = Marks::<K> { elements: &self.elements, table: &self.table };
        // Those that kube-router left may stay for long, and concern nobody who is served with NAT.
        let is_marked = desired.marks.is_empty() || self.policy_rules.is_settled();
        // Rules that refuse free cluster IPs wait until all Services are known, and concern no virtual service.
        let rules_stand = self.rules.unsettled().is_some_and(|pieces| pieces.iter().all(is_rule));
        let table_stands = self.table.unsettled().is_some_and(|objects| objects.iter().all(is_chain));
        if !marks.elements.is_settled() || !table_stands || !rules_stand || !is_marked {
            return None;
        }
        let (virtuals, routes) = (self.virtuals.unsettled()?, self.routes.unsettled()?);
        let addresses = routes.iter().map(|route| route.destination.addr());
        let of_routes = addresses.flat_map(|address| desired.virtuals_on(address)).map(|(port, _)| port);
        Some(virtuals.iter().filter_map(|key| desired.port_of(key)).chain(of_routes).collect())
    }

    /// Returns whether a virtual service is desired differently and its turn in a large change is to come (`backlog`).
    pub fn waits_for_its_turn(&self, desired: &Desired, key: &ServiceKey) -> bool {
        self.virtuals.postponed().contains(&desired.kernel_key(key))
    }
}

/// Returns whether an element that closes a virtual service is in the kernel, with the rules that look at it.
pub(super) fn is_enforced<K: Kernel>(
    marks: &Marks<'_, K>,
    rules: &Mirror<K::Rules>,
    desired: &Desired,
    set: Set,
    entry: &Entry,
) -> bool {
    let of_family = desired.rules.keys().filter(|piece| piece.family() == entry.family());
    let mut pieces = of_family.filter(|piece| set_of_rule(piece) == Some(set));
    let objects = desired.table.keys().take_while(|object| !matches!(object, Object::Element(..)));
    let mut chains = objects.filter(|object| set_of_chain(object).is_some_and(|(its, _)| its == set));
    marks.has(set, entry) && pieces.all(|piece| rules.has(piece)) && chains.all(|object| marks.table.has(object))
}

/// Returns whether there is a virtual service in the kernel that has an endpoint which takes new connections and is desired, or any.
fn stands(seen: &Option<Virtual>, want: Option<&Virtual>, any_endpoint: bool) -> bool {
    let Some(seen) = seen else { return false };
    let takes = |destination: &Destination| destination.weight != DRAINING;
    let is_wanted = |it: Destination| {
        let wanted = want.into_iter().flat_map(|want| want.destinations.iter());
        wanted.filter(takes).any(|wanted| wanted.address == it.address)
    };
    seen.destinations.iter().filter(takes).any(|it| any_endpoint || is_wanted(it))
}
