//! Properties of the plan that hold for every cluster and every history, checked on random ones.
//!
//! `PROPERTY_SEED` runs one history again; without it `PROPERTY_RUNS` histories are run (by default as many as fit into
//! some seconds; `PROPERTY_PERCENT` of that), with seeds from `FIRST_SEED` on or of the day's clock. A failure
//! names its seed.

#[path = "properties/bundle.rs"]
mod bundle;
#[path = "properties/router.rs"]
mod router;
#[path = "properties/router_walk.rs"]
mod router_walk;
#[path = "support/mod.rs"]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use sluice::config::ProxyConfig;
use sluice::kernel::ipset::Entry;
use sluice::kernel::ipvs::{Forwarding, ServiceKey, Virtual};
use sluice::kernel::sysctl::Setting;
use sluice::model::{Change, Cluster, Endpoint, Endpoints, ExternalField, ObjectName, Scheduler, Table, World};
use sluice::net::{Family, PerFamily, Protocol};
use sluice::proxy::desired::Desired;
use sluice::proxy::dsr::Untunnelled;
use sluice::proxy::external_ip;
use sluice::proxy::health_check::HealthChecks;
use sluice::proxy::names::{DSR_TABLE, Set};
use sluice::proxy::part::{Claim, Rank};
use sluice::proxy::plan::{Plan, local_route_key, marked_route_key};
use sluice::reconcile::Sorted;

use support::random::{Random, for_many};
use support::{flags, generate};

const KERNEL: (u32, u32) = (6, 1);
const GRACEFUL: &str = "--ipvs-graceful-termination=true";
const LOOSE: &str = "--strict-external-ip-validation=false";

/// A checked configuration.
struct Setup {
    config: Arc<ProxyConfig>,
    families: PerFamily<bool>,
}

fn plan(setup: &Setup) -> Plan {
    Plan::new(setup.config.clone(), setup.families, KERNEL)
}

/// The configuration of one run: some of the flags that decide what is wanted, and these.
fn setup(random: &mut Random, always: &[&'static str]) -> Setup {
    let mut words = always.to_vec();
    for word in [
        LOOSE,
        "--nodeport-bindon-all-ip=true",
        "--masquerade-all=true",
        "--ipvs-permit-all=false",
        "--service-external-ip-range=203.0.113.0/24",
        "--loadbalancer-ip-range=203.0.113.0/30",
        "--netfilter=nftables",
        "--service-cluster-ip-range=10.96.0.0/12",
    ] {
        if random.chance(40) {
            words.push(word);
        }
    }
    words.push(*random.pick(&["--enable-ipv6=true", "--enable-ipv6=false"]));
    let (config, families) = flags::proxy(&words);
    let config = Arc::new(ProxyConfig { tunnel_mode: random.chance(60), ..(*config).clone() });
    Setup { config, families }
}

/// Plan of a process without history.
fn at_once(setup: &Setup, world: &World, now: Instant) -> Plan {
    after_a_start(setup, world, &BTreeMap::new(), now)
}

/// The same, where packets are given these marks.
fn after_a_start(setup: &Setup, world: &World, given: &BTreeMap<ServiceKey, u32>, now: Instant) -> Plan {
    without_tunnels(setup, world, (given, &Untunnelled::new()), now)
}

/// The same, where no tunnel ends in these endpoints.
fn without_tunnels(
    setup: &Setup,
    world: &World,
    (given, untunnelled): (&BTreeMap<ServiceKey, u32>, &Untunnelled),
    now: Instant,
) -> Plan {
    let mut fresh = plan(setup);
    fresh.set_untunnelled(untunnelled.clone(), now);
    fresh.adopt_marks(given);
    fresh.update(&generate::copied(world), now);
    fresh
}

/// Some endpoints of some Services.
fn some_endpoints(world: &World, random: &mut Random) -> Untunnelled {
    let mut found = Untunnelled::new();
    for (service, endpoints) in world.cluster.endpoints.iter() {
        let listed = endpoints.slices.values().flat_map(|slice| slice.endpoints.listed());
        let some: BTreeSet<IpAddr> = listed.map(|one| one.address).filter(|_| random.chance(40)).collect();
        if !some.is_empty() && random.chance(50) {
            found.insert(service.clone(), some);
        }
    }
    found
}

#[test]
fn a_plan_after_any_history_equals_the_one_made_at_once() {
    for_many(200, |random| {
        let setup = setup(random, &[]);
        let (mut plan, now) = (plan(&setup), Instant::now());
        let (mut world, mut untunnelled) = (generate::empty_world(), Untunnelled::new());
        for _ in 0..40 {
            let changes: Vec<String> = (0..1 + random.below(3)).map(|_| generate::change(&mut world, random)).collect();
            plan.update(&world, now);
            if random.chance(30) {
                untunnelled = some_endpoints(&world, random);
                plan.set_untunnelled(untunnelled.clone(), now);
            }
            let fresh = without_tunnels(&setup, &world, (&plan.desired().marks, &untunnelled), now);
            only_draining_is_added(plan.desired(), fresh.desired(), &changes);
            drains_what_is_listed(&plan, &world, fresh.desired(), &changes);
            if random.chance(50) {
                end_all_connections(&mut plan);
                assert_same(plan.desired(), fresh.desired(), &changes);
            }
            assert_eq!(owners(&plan), owners(&fresh), "{changes:?}");
            // As the reader of counters asks.
            let owned = plan.owned();
            let unnamed = plan.desired().virtuals.keys().find(|key| owned.of(key).is_none());
            assert_eq!(unnamed, None, "{changes:?}: its counters belong to no Service");
            let checks = |plan: &Plan| {
                let HealthChecks { checks, addresses, .. } = plan.health_checks();
                (checks.iter().map(|(_, check)| (**check).clone()).collect::<Vec<_>>(), addresses)
            };
            assert_eq!(checks(&plan), checks(&fresh), "{changes:?}");
        }
    });
}

#[test]
fn draining_leaves_nothing_behind_when_its_time_is_over_and_connections_have_ended() {
    for_many(150, |random| {
        let setup = setup(random, &[GRACEFUL]);
        let (mut plan, mut now) = (plan(&setup), Instant::now());
        let mut world = generate::empty_world();
        for _ in 0..30 {
            let changes: Vec<String> = (0..1 + random.below(3)).map(|_| generate::change(&mut world, random)).collect();
            plan.update(&world, now);
            now += Duration::from_secs(random.below(20) as u64);
            plan.expire(now);
            only_draining_is_added(
                plan.desired(),
                after_a_start(&setup, &world, &plan.desired().marks, now).desired(),
                &changes,
            );
            let count =
                |desired: &Desired| desired.virtuals.values().map(|found| found.destinations.len()).sum::<usize>();
            let added =
                count(plan.desired()) - count(after_a_start(&setup, &world, &plan.desired().marks, now).desired());
            assert_eq!(added, plan.draining(), "every destination that drains has its time: {changes:?}");
        }
        plan.expire(now + Duration::from_secs(3600));
        end_all_connections(&mut plan);
        assert_eq!((plan.draining(), plan.deadline()), (0, None));
        assert_same(plan.desired(), after_a_start(&setup, &world, &plan.desired().marks, now).desired(), &[]);
    });
}

#[test]
fn only_what_would_close_an_address_that_routers_believe_in_stays_and_only_for_its_time() {
    for_many(150, |random| {
        let graceful = *random.pick(&["--ipvs-graceful-termination=false", GRACEFUL]);
        let setup = setup(random, &[graceful]);
        let (mut plan, mut now) = (plan(&setup), Instant::now());
        let mut world = generate::empty_world();
        for _ in 0..40 {
            let older = plan.desired().clone();
            let mut named: Vec<ServiceKey> = Vec::new();
            if random.chance(60) {
                let addresses =
                    plan.desired().virtuals.keys().filter_map(|key| address_of(&plan.desired().port_of(key)?));
                let mut believed = Table::default();
                for address in addresses.filter(|_| random.chance(60)) {
                    believed.insert(address, ());
                }
                named.extend(plan.set_believed(believed.clone()).virtuals);
                plan_believes(&plan, &believed);
            }
            let changes: Vec<String> = (0..1 + random.below(3)).map(|_| generate::change(&mut world, random)).collect();
            named.extend(plan.update(&world, now).virtuals);
            now += Duration::from_millis(random.below(200) as u64);
            named.extend(plan.expire(now).virtuals);
            names_all(&older.virtuals, &plan.desired().virtuals, &named, &format!("{changes:?}"));
            stays_only_what_serves(
                &plan,
                after_a_start(&setup, &world, &plan.desired().marks, now).desired(),
                &changes,
            );
        }
        let over = now + Duration::from_secs(3600);
        plan.expire(over);
        end_all_connections(&mut plan);
        assert!(!plan.is_closing() && plan.deadline().is_none());
        assert_same(plan.desired(), after_a_start(&setup, &world, &plan.desired().marks, now).desired(), &[]);
    });
}

/// Asserts that without graceful termination nothing drains but endpoints in slices of the Service that owns the virtual service.
fn drains_what_is_listed(plan: &Plan, world: &World, expected: &Desired, changes: &[String]) {
    for (key, found) in plan.desired().virtuals.iter() {
        let wanted = expected.virtuals.get(key).expect("only destinations are added");
        let owner = owner(plan, key).expect("somebody desires it");
        let slices = world.cluster.endpoints.get(owner).into_iter().flat_map(|its| its.slices.values());
        let listed: BTreeSet<SocketAddr> = slices
            .flat_map(|slice| {
                slice
                    .ports
                    .iter()
                    .flat_map(|port| slice.endpoints.iter().map(|it| SocketAddr::new(it.address, port.port)))
            })
            .collect();
        let added =
            found.destinations.iter().filter(|d| wanted.destinations.iter().all(|other| other.address != d.address));
        for destination in added {
            assert!(
                listed.contains(&destination.address),
                "{changes:?}: {key} keeps {destination:?}, which {owner} does not list"
            );
        }
    }
}

/// As if the last connection of each destination that drains had ended.
fn end_all_connections(plan: &mut Plan) {
    let all = plan.desired().virtuals.iter();
    let all = all.map(|(key, found)| (*key, found.destinations.iter().map(|d| d.address).collect::<Vec<_>>()));
    for (key, addresses) in all.collect::<Vec<_>>() {
        let port = plan.desired().port_of(&key).expect("it is desired");
        plan.release(port, &addresses);
    }
}

fn address_of(key: &ServiceKey) -> Option<IpAddr> {
    if let ServiceKey::Address { address, .. } = key { Some(*address) } else { None }
}

/// Asserts that each virtual service whose removal waits has an address that neighbours may still believe in.
fn plan_believes(plan: &Plan, believed: &Table<IpAddr, ()>) {
    for key in plan.closing() {
        let address = address_of(&key).expect("only addresses are announced");
        assert!(believed.get(&address).is_some(), "{key} waits for nobody");
    }
}

/// Asserts that a virtual service differs from the final plan only if its removal waits for a withdrawal, or if destinations drain.
fn stays_only_what_serves(plan: &Plan, fresh: &Desired, changes: &[String]) {
    let has_any = |found: Option<&Virtual>| found.is_some_and(|found| found.destinations.iter().any(|d| d.weight > 0));
    let serves =
        |desired: &Desired, key: &ServiceKey| has_any(desired.virtual_of(key)) && !is_inside_only(desired, key);
    for key in plan.closing() {
        assert!(serves(plan.desired(), &key), "{changes:?}: {key} is closed, and waits to be");
        assert!(!serves(fresh, &key), "{changes:?}: {key} serves, and waits to be closed");
    }
    let waiting: BTreeSet<ServiceKey> = plan.closing().collect();
    let all: BTreeSet<ServiceKey> = ports(plan.desired()).chain(ports(fresh)).collect();
    for key in all.iter().filter(|key| !waiting.contains(key)) {
        let (found, wanted) = (plan.desired().virtual_of(key), fresh.virtual_of(key));
        assert_eq!(found.is_some(), wanted.is_some(), "{changes:?}: {key}");
        assert_eq!(has_any(found), has_any(wanted), "{changes:?}: {key}");
        assert_eq!(serves(plan.desired(), key), serves(fresh, key), "{changes:?}: {key}");
    }
}

/// Whether a virtual service is for clients on this node only.
fn is_inside_only(desired: &Desired, key: &ServiceKey) -> bool {
    let ServiceKey::Address { address, protocol, port } = *key else { return false };
    let entry = Entry::IpPort(address, protocol, port);
    desired.table.contains_key(&Set::InsideOnly.object(&entry))
        || desired.elements.contains_key(&Set::InsideOnly.element(entry))
}

#[test]
fn what_an_update_does_not_name_has_not_changed() {
    for_many(150, |random| {
        let setup = setup(random, &[GRACEFUL]);
        let (mut plan, mut now) = (plan(&setup), Instant::now());
        let mut world = generate::empty_world();
        plan.update(&world, now);
        for _ in 0..30 {
            let (older, cluster, host) = (plan.desired().clone(), world.cluster.clone(), world.host.clone());
            let what = generate::change(&mut world, random);
            now += Duration::from_secs(1);
            let changed = plan.update(&world, now);
            let newer = plan.desired();
            names_all(&older.sets, &newer.sets, &changed.sets, &what);
            names_all(&older.elements, &newer.elements, &changed.elements, &what);
            names_all(&older.rules, &newer.rules, &changed.rules, &what);
            names_all(&older.table, &newer.table, &changed.table, &what);
            names_all(&older.virtuals, &newer.virtuals, &changed.virtuals, &what);
            names_all(&older.routes, &newer.routes, &changed.routes, &what);
            names_all(&older.policy_rules, &newer.policy_rules, &changed.policy_rules, &what);
            assert!(changed.settings || older.settings == newer.settings, "{what}");
            if *host == *world.host && what != "put the Node" && what != "remove the Node" {
                let most = match what.as_str() {
                    generate::OTHER_ZONE => hinted_services(&world.cluster),
                    // Those that ask for external addresses.
                    text if text.contains("ServiceCIDR") => world.cluster.services.len(),
                    _ => rows_changed(&cluster, &world.cluster),
                };
                assert!(changed.parts_computed <= most, "{what}: {changed:?}");
            }
        }
    });
}

#[test]
fn what_is_in_tunnel_mode_has_a_mark_and_is_local_for_marked_packets_alone() {
    let seen: [AtomicUsize; 4] = Default::default();
    for_many(200, |random| {
        let mut setup = setup(random, &[LOOSE]);
        setup.config = Arc::new(ProxyConfig { tunnel_mode: true, ..(*setup.config).clone() });
        let (mut plan, now) = (plan(&setup), Instant::now());
        let mut world = generate::empty_world();
        for _ in 0..60 {
            generate::change(&mut world, random);
        }
        if random.chance(50) {
            let all: Vec<_> = world.cluster.services.iter().map(|(name, it)| (name.clone(), it.clone())).collect();
            for (name, service) in all {
                let mut service = (*service).clone();
                service.annotations.scheduler = Scheduler::Mh;
                world.cluster.services.insert(name, service);
            }
        }
        plan.update(&world, now);
        let desired = plan.desired();
        for (key, mark) in &desired.marks {
            let ServiceKey::Address { address, .. } = *key else { panic!("{key} has a mark") };
            assert!((1..0x3fff).contains(mark), "{key} has {mark}");
            let found = desired.virtual_of(key).expect("it is there");
            assert!(
                found
                    .destinations
                    .iter()
                    .all(|it| it.forwarding == Forwarding::Tunnel && it.address.port() == port(key))
            );
            let routes = [local_route_key(address), marked_route_key(address)];
            assert_eq!(routes.map(|route| desired.routes.contains_key(&route)), [false, true], "{key}");
            let families: Vec<Family> = desired.policy_rules.keys().map(|rule| rule.family).collect();
            assert!(families.contains(&key.family()));
            let takes_over = desired.settings.contains_key(&Setting("net/ipv4/vs/sloppy_tcp".into()));
            assert!(takes_over || found.service.scheduler != "mh");
            let beside = desired
                .virtuals_on(address)
                .any(|(_, it)| it.destinations.iter().any(|d| d.forwarding == Forwarding::Nat));
            seen[0].fetch_add(1, Ordering::Relaxed);
            seen[1].fetch_add(usize::from(!found.destinations.is_empty()), Ordering::Relaxed);
            seen[2].fetch_add(usize::from(beside), Ordering::Relaxed);
            seen[3].fetch_add(usize::from(takes_over), Ordering::Relaxed);
        }
        for (key, found) in desired.virtuals.iter().filter(|(key, _)| matches!(key, ServiceKey::Address { .. })) {
            assert!(found.destinations.iter().all(|it| it.forwarding == Forwarding::Nat), "{key}: {found}");
        }
        let marked = desired.virtuals.keys().filter(|key| matches!(key, ServiceKey::Mark { .. })).count();
        assert_eq!(marked, desired.marks.len(), "every mark has one virtual service");
        let is_usual =
            desired.policy_rules.is_empty() && !desired.routes.keys().any(|key| key.table == DSR_TABLE.table);
        assert_eq!(desired.marks.is_empty(), is_usual, "what all of them share is there while there is one");
    });
    println!("marks, with endpoints, beside ports with NAT, with mh: {seen:?}");
    assert!(seen.iter().all(|count| count.load(Ordering::Relaxed) > 0), "{seen:?}");
}

fn port(key: &ServiceKey) -> u16 {
    if let ServiceKey::Address { port, .. } = key { *port } else { 0 }
}

#[test]
fn who_has_an_address_does_not_depend_on_who_came_first() {
    let compared = AtomicUsize::new(0);
    for_many(200, |random| {
        let setup = setup(random, &[]);
        let now = Instant::now();
        let mut complete = generate::empty_world();
        for _ in 0..30 {
            generate::change(&mut complete, random);
        }
        let mut names: Vec<ObjectName> = complete.cluster.services.iter().map(|(name, _)| name.clone()).collect();
        let expected = at_once(&setup, &complete, now);
        nobody_takes_what_a_load_balancer_gave(&expected, &complete);
        for _ in 0..3 {
            let mut plan = plan(&setup);
            let mut world = World { cluster: Cluster::default(), ..complete.clone() };
            world.cluster.nodes = complete.cluster.nodes.clone();
            world.cluster.service_cidrs = complete.cluster.service_cidrs.clone();
            for place in (1..names.len()).rev() {
                names.swap(place, random.below(place + 1));
            }
            for name in &names {
                let service = complete.cluster.services.get(name).expect("its name was listed");
                world.cluster.services.insert(name.clone(), (**service).clone());
                if random.chance(50) {
                    plan.update(&world, now);
                }
            }
            world.cluster.endpoints = complete.cluster.endpoints.clone();
            plan.update(&world, now);
            assert_eq!(owners(&plan), owners(&expected));
            if !is_contested_in_tunnel_mode(&complete) {
                assert_same(plan.desired(), expected.desired(), &[]);
                compared.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    assert!(compared.load(Ordering::Relaxed) > 0, "worlds were compared");
}

/// Whoever has an address and port of a Service's load balancer has it from the control plane, too, or from a Service's type.
fn nobody_takes_what_a_load_balancer_gave(plan: &Plan, world: &World) {
    for (name, service) in world.cluster.services.iter() {
        let given = service.external_addresses().filter(|(_, field)| *field == ExternalField::LoadBalancer);
        let given: BTreeSet<IpAddr> = given.map(|(address, _)| address).collect();
        let is_given = |key: &ServiceKey| address_of(key).is_some_and(|address| given.contains(&address));
        for claim in plan.claims_of(name).iter().filter(|claim| is_given(&claim.key)) {
            let owner = plan.owners().get(&claim.key).expect("what is claimed has an owner");
            assert!(owner.rank < Rank::External || is_refused(plan, name, claim), "{} of {name}: {owner:?}", claim.key);
        }
    }
}

/// Returns whether the load balancer's field is not served, and the other one is.
fn is_refused(plan: &Plan, name: &ObjectName, claim: &Claim) -> bool {
    let (ServiceKey::Address { address, .. }, service) = (claim.key, plan.world().cluster.services.get(name)) else {
        return false;
    };
    let refused = external_ip::refusal(address, ExternalField::LoadBalancer, plan.part_inputs()).is_some();
    refused && service.is_some_and(|service| service.external_ips.contains(&address))
}

/// Returns whether Services of several namespaces ask for one address and one of them for tunnel mode: an address keeps the mode that it has.
fn is_contested_in_tunnel_mode(world: &World) -> bool {
    let mut asking: BTreeMap<IpAddr, (BTreeSet<&str>, bool)> = BTreeMap::new();
    for (name, service) in world.cluster.services.iter() {
        let external = service.external_addresses().map(|(address, _)| address);
        for address in service.cluster_ips.iter().copied().chain(external) {
            let (namespaces, is_asked_for) = asking.entry(address).or_default();
            namespaces.insert(name.namespace.as_str());
            *is_asked_for |= service.annotations.dsr;
        }
    }
    asking.values().any(|(namespaces, is_asked_for)| namespaces.len() > 1 && *is_asked_for)
}

#[test]
fn a_table_tells_every_difference_to_an_older_one_and_no_other() {
    for_many(300, |random| {
        let mut table: Table<u64, u64> = Table::default();
        let mut model: BTreeMap<u64, u64> = BTreeMap::new();
        let mut versions = vec![(table.clone(), model.clone())];
        for _ in 0..60 {
            for _ in 0..random.below(12) {
                let (key, value) = (random.next() % 64, random.next() % 3);
                if random.chance(30) {
                    assert_eq!(table.remove(&key).map(|value| *value), model.remove(&key));
                } else {
                    assert_eq!(table.insert(key, value), model.insert(key, value) != Some(value));
                }
            }
            versions.push((table.clone(), model.clone()));
            let (older, was) = random.pick(&versions);
            assert_eq!(told(&table, older), differences(was, &model));
            assert_eq!(told(older, &table), differences(&model, was));
            assert_eq!(table.len(), model.len());
        }
    });
}

fn told(newer: &Table<u64, u64>, older: &Table<u64, u64>) -> Vec<(u64, Option<u64>, Option<u64>)> {
    let told = newer.changes_since(older).map(|change| match change {
        Change::Added(key, value) => (*key, None, Some(**value)),
        Change::Updated(key, old, new) => (*key, Some(**old), Some(**new)),
        Change::Removed(key, value) => (*key, Some(**value), None),
    });
    told.collect()
}

fn differences(was: &BTreeMap<u64, u64>, is: &BTreeMap<u64, u64>) -> Vec<(u64, Option<u64>, Option<u64>)> {
    let keys: BTreeSet<u64> = was.keys().chain(is.keys()).copied().collect();
    let both = |key: u64| (key, was.get(&key).copied(), is.get(&key).copied());
    keys.into_iter().map(both).filter(|(_, was, is)| was != is).collect()
}

/// The Service that owns a virtual service of the kernel.
fn owner<'a>(plan: &'a Plan, key: &ServiceKey) -> Option<&'a ObjectName> {
    plan.owner(&plan.desired().port_of(key)?)
}

/// All virtual services by address, protocol and port.
fn ports(desired: &Desired) -> impl Iterator<Item = ServiceKey> {
    let by_address = desired.virtuals.keys().filter(|key| matches!(key, ServiceKey::Address { .. }));
    by_address.chain(desired.marks.keys()).copied()
}

fn owners(plan: &Plan) -> BTreeMap<ServiceKey, ObjectName> {
    let published: BTreeMap<ServiceKey, ObjectName> =
        plan.owners().iter().map(|(key, owner)| (*key, owner.name.clone())).collect();
    for key in plan.desired().virtuals.keys() {
        let port = plan.desired().port_of(key).unwrap_or_else(|| panic!("{key} is of no port"));
        assert_eq!(published.get(&port), owner(plan, key), "{key}");
    }
    assert_eq!(published.len(), plan.desired().virtuals.len(), "only what is wanted has an owner");
    published
}

fn rows_changed(older: &Cluster, newer: &Cluster) -> usize {
    let mut names: BTreeSet<ObjectName> =
        newer.services.changes_since(&older.services).map(|c| c.key().clone()).collect();
    names.extend(newer.endpoints.changes_since(&older.endpoints).map(|c| c.key().clone()));
    names.len()
}

/// How many Services a zone concerns.
fn hinted_services(cluster: &Cluster) -> usize {
    let has_hints = |endpoint: Endpoint| endpoint.hints.as_ref().is_some_and(|hints| !hints.zones.is_empty());
    let of_service = |(_, its): &(&ObjectName, &Arc<Endpoints>)| {
        its.slices.values().any(|slice| slice.endpoints.iter().any(has_hints))
    };
    cluster.endpoints.iter().filter(of_service).count()
}

fn names_all<K: Ord + Debug, V: PartialEq>(
    older: &impl Sorted<K, V>,
    newer: &impl Sorted<K, V>,
    named: &[K],
    what: &str,
) {
    for (key, _) in older.entries().chain(newer.entries()) {
        assert!(
            named.contains(key) || older.value(key) == newer.value(key),
            "{what}: {key:?} changed and is not named"
        );
    }
}

/// Compares family by family, so that a failure shows the one object that differs.
fn assert_same(found: &Desired, expected: &Desired, changes: &[String]) {
    same_rows(&found.links, &expected.links, changes);
    same_rows(&found.sets, &expected.sets, changes);
    same_rows(&found.elements, &expected.elements, changes);
    same_rows(&found.rules, &expected.rules, changes);
    same_rows(&found.table, &expected.table, changes);
    same_rows(&found.virtuals, &expected.virtuals, changes);
    same_rows(&found.routes, &expected.routes, changes);
    same_rows(&found.policy_rules, &expected.policy_rules, changes);
    same_rows(&found.marks, &expected.marks, changes);
    same_rows(&found.settings, &expected.settings, changes);
    assert_eq!(found, expected);
}

fn same_rows<K: Ord + Debug, V: PartialEq + Debug>(
    found: &impl Sorted<K, V>,
    expected: &impl Sorted<K, V>,
    changes: &[String],
) {
    for (key, _) in found.entries().chain(expected.entries()) {
        assert_eq!(found.value(key), expected.value(key), "{key:?} after {changes:?}");
    }
}

/// Draining may add destinations of weight 0 to virtual services, with the flag by which `sh` and `mh` avoid them, and
/// nothing else.
fn only_draining_is_added(found: &Desired, expected: &Desired, changes: &[String]) {
    let stripped = |key: &ServiceKey, with: &Virtual| {
        let wanted = &expected.virtuals.get(key).unwrap_or_else(|| panic!("{key} is not wanted: {changes:?}"));
        let known = |address| wanted.destinations.iter().any(|d| d.address == address);
        let mut stripped = with.clone();
        stripped.destinations = with.destinations.iter().filter(|d| d.weight > 0 || known(d.address)).collect();
        if stripped.destinations.len() < with.destinations.len() && ["sh", "mh"].contains(&&*with.service.scheduler) {
            stripped.service.flags = wanted.service.flags;
        }
        if with.service.scheduler == "dh" {
            assert_eq!(with, *wanted, "nothing drains with dh: {key} {changes:?}");
        }
        let marked = found.marks.keys().find(|port| found.kernel_key(port) == *key);
        if !matches!(marked.unwrap_or(key), ServiceKey::Address { protocol: Protocol::Tcp, .. }) {
            assert_eq!(with, *wanted, "only TCP drains: {key} {changes:?}");
        }
        if marked.is_some() && with.service.scheduler == "mh" {
            assert_eq!(with, *wanted, "all directors have one table of mh: {key} {changes:?}");
        }
        stripped
    };
    let virtuals = found.virtuals.iter().map(|(key, with)| (*key, stripped(key, with))).collect();
    assert_same(&Desired { virtuals, ..found.clone() }, expected, changes);
}
