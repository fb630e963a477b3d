//! Facts of this host as read from the kernel, as values of the model.
//!
//! Two kinds of addresses are left out:
//! - those on devices that carry service addresses: they belong to Services, and counting them among the host's
//!   own would make the proxy leave them alone;
//! - IPv6 link-local ones, which no Service can have: every pod that starts brings a device with one, and the
//!   start of a pod must not look like a change of the host.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{info, warn};

use super::detection::Detection;
use crate::kernel::Error;
use crate::kernel::address::{HostAddress as Found, STAND_IN, Scope};
use crate::kernel::link::LinkKind;
use crate::kernel::monitor::Changes;
use crate::model::{Host, HostAddress, HostLink, OnLink};
use crate::net::PerFamily;
use crate::net::address_detection::CARRY_SERVICE_ADDRESSES;

/// Time for which the host's links are left alone after the first change of a burst.
const SETTLE: Duration = Duration::from_millis(50);
/// Delay after which addresses that could not be read are read again: at first, and at the longest.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(30);
/// Time between two lookups of the source address towards a destination: what else they depend on, as the rules of `ip rule`, the kernel may
/// change without a notification.
const LOOK_UP: Duration = Duration::from_secs(30);

/// An address of each family, where there is one.
type OnePerFamily = PerFamily<Option<IpAddr>>;

/// How the facts of the host are read. It may wait for the kernel: it runs where it blocks nobody.
#[derive(Clone, Copy)]
pub struct Reading {
    pub addresses: fn() -> Result<Vec<Found>, Error>,
    /// The source addresses of packets to others.
    pub sources_to: fn(OnePerFamily) -> Result<OnePerFamily, Error>,
}

/// Publishes the facts of the host whose Node object has this name, now and whenever the kernel notifies of a change.
///
/// # Errors
/// They cannot be read at all.
pub async fn publish_host(
    node_name: String,
    reading: Reading,
    detection: Option<Detection>,
    mut changes: watch::Receiver<Changes>,
) -> Result<watch::Receiver<Arc<Host>>, String> {
    // Changes from here on may be missing from the first reading.
    let seen = *changes.borrow_and_update();
    let mut reader = Reader { node_name, reading, detection, sources: OnePerFamily::default(), looks_in_vain: false };
    let (out, published) = watch::channel(Arc::new(reader.read().await?));
    tokio::spawn(follow(reader, changes, seen, out));
    Ok(published)
}

/// Reads the facts, and chooses among the addresses.
struct Reader {
    node_name: String,
    reading: Reading,
    detection: Option<Detection>,
    /// The last answers about the destinations. They count while lookups fail, which nothing else of the facts depends on.
    sources: OnePerFamily,
    looks_in_vain: bool,
}

impl Reader {
    async fn read(&mut self) -> Result<Host, String> {
        let (reading, targets) = (self.reading, self.targets());
        let read = spawn_blocking(move || read(reading, targets)).await.map_err(|error| error.to_string())?;
        let (found, sources) = read.map_err(|error| error.to_string())?;
        let sources = self.known(sources);
        let detected = self.detection.as_mut().map(|detection| {
            let before = detection.chosen();
            let detected = detection.choose(&found, sources);
            for (family, address) in detected.addresses.iter().filter(|(family, now)| before.of(*family) != *now) {
                let (method, address) = (detection.method(), address.map(|address| address.to_string()));
                let address = address.as_deref().unwrap_or("the InternalIP of the Node");
                info!(%family, address, %method, "Address of this node for routing chosen");
            }
            detected
        });
        Ok(Host { detected, ..host(&self.node_name, found) })
    }

    /// Returns the newest answers about the destinations.
    fn known(&mut self, answered: Result<OnePerFamily, Error>) -> OnePerFamily {
        let failed = answered.as_ref().err().map(ToString::to_string);
        match (&failed, self.looks_in_vain) {
            (Some(error), false) => warn!(error, "Lookup of source addresses failed; the last known ones count"),
            (None, true) => info!("Lookup of source addresses recovered"),
            _ => {}
        }
        self.looks_in_vain = failed.is_some();
        self.sources = answered.unwrap_or(self.sources);
        self.sources
    }

    fn targets(&self) -> OnePerFamily {
        self.detection.as_ref().map(Detection::targets).unwrap_or_default()
    }

    /// Returns whether the choice depends on routes.
    fn follows_routes(&self) -> bool {
        self.targets() != PerFamily::default()
    }
}

type Facts = (Vec<Found>, Result<OnePerFamily, Error>);

fn read(reading: Reading, targets: OnePerFamily) -> Result<Facts, Error> {
    Ok(((reading.addresses)()?, (reading.sources_to)(targets)))
}

async fn follow(
    mut reader: Reader,
    mut changes: watch::Receiver<Changes>,
    mut seen: Changes,
    out: watch::Sender<Arc<Host>>,
) {
    let follows_routes = reader.follows_routes();
    // Changes that are not about this host put it off no longer.
    let mut look_at = Instant::now() + LOOK_UP;
    let mut retry_at: Option<Instant> = None;
    let mut pause = FIRST_RETRY;
    loop {
        tokio::select! {
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
                let newest = *changes.borrow_and_update();
                let before = std::mem::replace(&mut seen, newest);
                let is_way = (before.ways, before.routes) != (newest.ways, newest.routes);
                if before.host == newest.host && !(follows_routes && is_way) {
                    continue;
                }
                // Links and addresses change in bursts; one reading serves them all.
                sleep(SETTLE).await;
            }
            () = sleep_until(retry_at.unwrap_or_else(Instant::now)), if retry_at.is_some() => {}
            () = sleep_until(look_at), if follows_routes => {}
        }
        look_at = Instant::now() + LOOK_UP;
        match reader.read().await {
            Ok(host) => {
                if retry_at.take().is_some() {
                    info!("Reading host addresses recovered");
                }
                pause = FIRST_RETRY;
                let host = Arc::new(host);
                out.send_if_modified(|known| {
                    let differs = **known != *host;
                    *known = host;
                    differs
                });
            }
            Err(error) => {
                if retry_at.is_none() {
                    warn!(error, "Reading host addresses failed; retrying");
                }
                retry_at = Some(Instant::now() + pause);
                pause = (pause * 2).min(LAST_RETRY);
            }
        }
    }
}

/// The facts of the host whose Node object has this name.
pub fn host(node_name: &str, found: Vec<Found>) -> Host {
    let own = found.into_iter().filter(|found| {
        let link_local = matches!(found.address.addr(), IpAddr::V6(address) if address.is_unicast_link_local());
        // The devices for tunnels, of which there may be one for each node, carry one that is nobody's.
        !link_local && found.address != STAND_IN && !CARRY_SERVICE_ADDRESSES.contains(&found.link.0.as_str())
    });
    let own: Vec<Found> = own.collect();
    let (on_link, links) = (on_link(&own), links(&own));
    let mut addresses: Vec<HostAddress> = own
        .into_iter()
        .map(|found| HostAddress {
            address: found.address.addr(),
            link: found.link.0,
            global: found.scope == Scope::Global,
        })
        .collect();
    addresses.sort();
    let node_name = node_name.into();
    Host { node_name, addresses, on_link, links, ..Host::default() }
}

/// The networks of the addresses. One of host length is on no network: what is behind it the routes say.
fn on_link(own: &[Found]) -> Vec<OnLink> {
    let is_network = |found: &&Found| {
        found.up && found.scope != Scope::Host && found.address.prefix_len() < found.address.max_prefix_len()
    };
    let networks = own.iter().filter(is_network);
    let all: BTreeSet<OnLink> =
        networks.map(|found| OnLink { prefix: found.address.trunc(), link: found.link.0.clone() }).collect();
    all.into_iter().collect()
}

fn links(own: &[Found]) -> Vec<HostLink> {
    let all: BTreeSet<HostLink> = own
        .iter()
        .map(|found| HostLink { name: found.link.0.clone(), mtu: found.mtu, bridge: is_bridge(found) })
        .collect();
    all.into_iter().collect()
}

fn is_bridge(found: &Found) -> bool {
    matches!(&found.kind, LinkKind::Other(kind) if kind == "bridge")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::kernel::link::LinkName;

    #[test]
    fn a_pod_that_starts_does_not_change_the_host() {
        let before = vec![found("eth0", "192.0.2.1/24", Scope::Global), found("lo", "127.0.0.1/8", Scope::Host)];
        let mut after = before.clone();
        after.push(found("veth1a2b", "fe80::1/64", Scope::Link));
        assert_eq!(host("node1", before), host("node1", after));
    }

    #[test]
    fn service_addresses_are_not_the_hosts_own() {
        let listed = vec![
            found("kube-dummy-if", "10.96.0.1/32", Scope::Link),
            found("kube-ipvs0", "10.96.0.2/32", Scope::Global),
            found("nodelocaldns", "10.96.0.10/32", Scope::Global),
            found("dummy0", "192.0.2.7/32", Scope::Global),
        ];
        let kept: Vec<String> = host("node1", listed).addresses.iter().map(|a| a.address.to_string()).collect();
        assert_eq!(kept, ["192.0.2.7"]);
    }

    #[test]
    fn a_device_for_tunnels_that_comes_does_not_change_the_host() {
        let before = vec![found("eth0", "192.0.2.1/24", Scope::Global), found("lo", "127.0.0.1/8", Scope::Host)];
        let mut after = before.clone();
        after.push(found("tun-e443169117a", &STAND_IN.to_string(), Scope::Host));
        assert_eq!(host("node1", before), host("node1", after));
    }

    #[test]
    fn networks_are_those_of_the_addresses_that_are_not_alone() {
        let listed = vec![
            found("lo", "127.0.0.1/8", Scope::Host),
            found("eth0", "192.0.2.1/24", Scope::Global),
            found("eth0", "192.0.2.9/24", Scope::Global),
            found("eth0", "2001:db8::1/64", Scope::Global),
            found("eth1", "203.0.113.1/32", Scope::Global),
        ];
        let host = host("node1", listed);
        let networks: Vec<String> = host.on_link.iter().map(|one| format!("{} {}", one.prefix, one.link)).collect();
        assert_eq!(networks, ["192.0.2.0/24 eth0", "2001:db8::/64 eth0"]);
        let links: Vec<String> = host.links.iter().map(|one| format!("{} {}", one.name, one.mtu)).collect();
        assert_eq!(links, ["eth0 1500", "eth1 1500", "lo 1500"]);
    }

    #[test]
    fn bridges_are_told_from_other_links() {
        let mut bridge = found("cni0", "10.244.1.1/24", Scope::Global);
        bridge.kind = LinkKind::Other("bridge".into());
        let links = host("node1", vec![bridge, found("eth0", "192.0.2.1/24", Scope::Global)]).links;
        let bridges: Vec<(&str, bool)> = links.iter().map(|link| (link.name.as_str(), link.bridge)).collect();
        assert_eq!(bridges, [("cni0", true), ("eth0", false)]);
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_that_cannot_be_read_are_read_again_without_another_change() {
        static READINGS: AtomicUsize = AtomicUsize::new(0);
        fn read() -> Result<Vec<Found>, Error> {
            match READINGS.fetch_add(1, Ordering::Relaxed) {
                0 => Ok(vec![found("eth0", "192.0.2.1/24", Scope::Global)]),
                1..4 => Err(Error::errno("list addresses", "", rustix::io::Errno::NOBUFS)),
                _ => Ok(vec![found("eth0", "192.0.2.9/24", Scope::Global)]),
            }
        }
        let (changes, changed) = watch::channel(Changes::default());
        let mut published =
            publish_host("node1".to_owned(), reading(read), None, changed).await.expect("the first reading");
        changes.send_modify(|changes| changes.host += 1);
        let newer = tokio::time::timeout(Duration::from_secs(60), published.changed());
        newer.await.expect("it is read again").expect("somebody reads");
        let addresses: Vec<String> = published.borrow().addresses.iter().map(|a| a.address.to_string()).collect();
        assert_eq!((addresses, READINGS.load(Ordering::Relaxed)), (vec!["192.0.2.9".to_owned()], 5));
    }

    #[tokio::test]
    async fn reading_addresses_holds_up_nobody_else() {
        static OTHERS: AtomicUsize = AtomicUsize::new(0);
        static READINGS: AtomicUsize = AtomicUsize::new(0);
        // A kernel that takes its time: it answers when others have had a turn, or not for ten seconds.
        fn read() -> Result<Vec<Found>, Error> {
            let before = OTHERS.load(Ordering::Relaxed);
            let turned = (0..10_000).any(|_| {
                std::thread::sleep(Duration::from_millis(1));
                OTHERS.load(Ordering::Relaxed) > before
            });
            let link = if turned { "eth0" } else { "nobody-else-had-a-turn" };
            let address = if READINGS.fetch_add(1, Ordering::Relaxed) == 0 { "192.0.2.1/24" } else { "192.0.2.9/24" };
            Ok(vec![found(link, address, Scope::Global)])
        }
        // On the only thread of the runtime.
        let others = tokio::spawn(async {
            loop {
                OTHERS.fetch_add(1, Ordering::Relaxed);
                sleep(Duration::from_millis(1)).await;
            }
        });
        let (changes, changed) = watch::channel(Changes::default());
        let mut published =
            publish_host("node1".to_owned(), reading(read), None, changed).await.expect("the first reading");
        let seen = |host: &Host| host.addresses.iter().map(|a| format!("{} {}", a.address, a.link)).collect::<String>();
        assert_eq!(seen(&published.borrow()), "192.0.2.1 eth0");
        changes.send_modify(|changes| changes.host += 1);
        published.changed().await.expect("somebody reads");
        assert_eq!(seen(&published.borrow()), "192.0.2.9 eth0");
        others.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn the_address_for_others_follows_those_of_the_host() {
        static READINGS: AtomicUsize = AtomicUsize::new(0);
        fn read() -> Result<Vec<Found>, Error> {
            let eth0 =
                || [found("eth0", "192.0.2.1/24", Scope::Global), found("eth0", "2001:db8::1/64", Scope::Global)];
            let eth1 = |address| found("eth1", address, Scope::Global);
            let more = match READINGS.fetch_add(1, Ordering::Relaxed) {
                0 => vec![],
                1 => vec![eth1("198.51.100.1/24"), Found { lasting: false, ..eth1("2001:db8:1::1/64") }],
                2 => vec![eth1("198.51.100.1/24"), eth1("2001:db8:1::1/64")],
                3 => vec![eth1("198.51.100.7/24"), Found { up: false, ..eth1("2001:db8:1::1/64") }],
                _ => vec![],
            };
            Ok(eth0().into_iter().chain(more).collect())
        }
        let (changes, changed) = watch::channel(Changes::default());
        let detection = || {
            let method = "interface=eth1".parse().expect("a method");
            Some(Detection::new(method, PerFamily { v4: true, v6: true }))
        };
        let mut published =
            publish_host("node1".to_owned(), reading(read), detection(), changed).await.expect("the first reading");
        for step in [
            "!IPv4 !IPv6",
            "198.51.100.1 !IPv6",
            "198.51.100.1 2001:db8:1::1",
            "198.51.100.7 2001:db8:1::1 !IPv6",
            "!IPv4 !IPv6",
        ] {
            assert_eq!(detected(&published.borrow_and_update()), step);
            changes.send_modify(|changes| changes.host += 1);
            let _ = tokio::time::timeout(Duration::from_secs(5), published.changed()).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_address_towards_a_destination_follows_routes_and_is_looked_at_from_time_to_time() {
        static LOOKUPS: AtomicUsize = AtomicUsize::new(0);
        fn read() -> Result<Vec<Found>, Error> {
            Ok(vec![found("eth0", "192.0.2.1/24", Scope::Global), found("eth1", "198.51.100.1/24", Scope::Global)])
        }
        fn sources_to(to: OnePerFamily) -> Result<OnePerFamily, Error> {
            let only = PerFamily { v4: Some(IpAddr::from([203, 0, 113, 1])), v6: None };
            assert_eq!(to, only, "nothing else is looked up");
            let sources = [Some([192, 0, 2, 1]), Some([198, 51, 100, 1]), None, Some([192, 0, 2, 1])];
            let at = LOOKUPS.fetch_add(1, Ordering::Relaxed);
            let v4 = sources.get(at).copied().unwrap_or(Some([192, 0, 2, 1])).map(IpAddr::from);
            Ok(PerFamily { v4, v6: None })
        }
        let (changes, changed) = watch::channel(Changes::default());
        let method = "can-reach=203.0.113.1,2001:db8::1".parse().expect("a method");
        let detection = Detection::new(method, PerFamily { v4: true, v6: false });
        let reading = Reading { addresses: read, sources_to };
        let mut published =
            publish_host("node1".to_owned(), reading, Some(detection), changed).await.expect("the first reading");
        assert_eq!(detected(&published.borrow_and_update()), "192.0.2.1");
        changes.send_modify(|changes| changes.ways += 1);
        published.changed().await.expect("a route is another one");
        assert_eq!(detected(&published.borrow_and_update()), "198.51.100.1");
        let before = Instant::now();
        published.changed().await.expect("without a notification");
        assert_eq!(detected(&published.borrow_and_update()), "198.51.100.1 !IPv4", "there is no route");
        published.changed().await.expect("without a notification");
        assert_eq!(detected(&published.borrow_and_update()), "192.0.2.1");
        assert!(before.elapsed() <= 2 * LOOK_UP + Duration::from_secs(1), "{:?}", before.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_lookup_that_fails_keeps_the_address_for_others_and_nothing_from_being_followed() {
        static LOOKUPS: AtomicUsize = AtomicUsize::new(0);
        fn addresses() -> Result<Vec<Found>, Error> {
            let own = [found("eth0", "192.0.2.1/24", Scope::Global), found("eth1", "198.51.100.1/24", Scope::Global)];
            let more = found("eth2", "203.0.113.1/24", Scope::Global);
            Ok(own.into_iter().chain((LOOKUPS.load(Ordering::Relaxed) > 1).then_some(more)).collect())
        }
        fn sources_to(_: OnePerFamily) -> Result<OnePerFamily, Error> {
            match LOOKUPS.fetch_add(1, Ordering::Relaxed) {
                1 => Ok(PerFamily { v4: Some([198, 51, 100, 1].into()), v6: None }),
                _ => Err(Error::errno("look up a route", "203.0.113.9", rustix::io::Errno::NOBUFS)),
            }
        }
        let (changes, changed) = watch::channel(Changes::default());
        let method = "can-reach=203.0.113.9".parse().expect("a method");
        let detection = Detection::new(method, PerFamily { v4: true, v6: true });
        let reading = Reading { addresses, sources_to };
        let mut published =
            publish_host("node1".to_owned(), reading, Some(detection), changed).await.expect("the first reading");
        let mut seen = Vec::new();
        for _ in 0..3 {
            let host = published.borrow_and_update().clone();
            seen.push((detected(&host), host.addresses.len()));
            changes.send_modify(|changes| changes.host += 1);
            let _ = tokio::time::timeout(Duration::from_secs(5), published.changed()).await;
        }
        let found = |detected: &str, addresses| (detected.to_owned(), addresses);
        assert_eq!(seen, [found("!IPv4", 2), found("198.51.100.1", 2), found("198.51.100.1", 3)]);
    }

    fn detected(host: &Host) -> String {
        let detected = host.detected.as_ref().expect("it is asked for");
        let found = detected.addresses.iter().filter_map(|(_, address)| address.map(|address| address.to_string()));
        let lacks = detected.problems.iter().filter(|(_, problem)| problem.is_some());
        found.chain(lacks.map(|(family, _)| format!("!{family}"))).collect::<Vec<_>>().join(" ")
    }

    fn reading(addresses: fn() -> Result<Vec<Found>, Error>) -> Reading {
        Reading { addresses, sources_to: |_| Ok(PerFamily::default()) }
    }

    fn found(link: &str, address: &str, scope: Scope) -> Found {
        let address = address.parse().expect("an address with its prefix length");
        let (link, kind) = (LinkName(link.into()), LinkKind::Other("".into()));
        Found { link, index: 2, kind, up: true, mtu: 1500, address, scope, lasting: true, duplicate: false }
    }
}
