//! Tests of addresses on their way from a directory to the World.

use std::fs;
use std::path::Path;

use tokio::time::timeout;

use super::*;
use crate::k8s::Wanted;
use crate::k8s::manifests::{self, balanced};
use crate::k8s::outage::Outages;
use crate::load_balancer::in_memory::tests::config;
use crate::observe::health::Health;
use crate::observe::metrics::Registry;

/// Starts both readers of a directory and what stands between them and the World.
fn start(path: &Path) -> (mpsc::Receiver<Message>, Health, Registry) {
    let (health, registry) = (Health::default(), Registry::new("1", "1"));
    let (read_out, read) = watch::channel(None);
    let (from_source, messages) = mpsc::channel(64);
    let (out, world) = mpsc::channel(64);
    let pulse = health.register("address allocator", Duration::from_secs(60), Instant::now());
    let note = health.note("address allocator");
    let metrics = Metrics::register(&registry).expect("names are registered once");
    tokio::spawn(Driver { config: config(), read, messages, out, pulse, note, metrics }.run());
    let outages = Outages::new().expect("valid names");
    manifests::spawn(path.to_owned(), vec![Wanted::Services], outages, from_source).expect("a thread can be started");
    balanced::follow(path.to_owned(), "kube-system".to_owned(), read_out).expect("a thread can be started");
    (world, health, registry)
}

fn service(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{clusterIP: 10.96.0.1, type: LoadBalancer{spec}}}\n---\n"
    )
}

/// The next message about a Service, with its addresses, and whether it belongs together with others.
async fn told(world: &mut mpsc::Receiver<Message>) -> String {
    loop {
        let message = timeout(Duration::from_secs(20), world.recv()).await.expect("in time").expect("it goes on");
        match message.event {
            Event::Together(together) => return format!("together {together}"),
            Event::Object(Object::Service(name, Some(service)), _) => {
                let all: Vec<String> = service.load_balancer.iter().map(|one| one.address.to_string()).collect();
                return format!("{} {}", name.name, all.join(" "));
            }
            Event::Object(object, _) => return format!("{} gone", object.id().name.name),
            _ => {}
        }
    }
}

async fn until(world: &mut mpsc::Receiver<Message>, wanted: &str) -> Vec<String> {
    let mut all = Vec::new();
    while all.last().is_none_or(|last| last != wanted) {
        all.push(told(world).await);
    }
    all
}

#[tokio::test]
async fn a_service_of_a_file_has_its_address_when_it_is_told_first_and_is_told_again_when_it_gets_another() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = |name: &str| directory.path().join(name);
    fs::write(file("b.yaml"), service("b", "") + &service("c", "")).expect("writable");
    let (mut world, health, registry) = start(directory.path());
    assert_eq!(until(&mut world, "c 203.0.113.2").await, ["together true", "b 203.0.113.1", "c 203.0.113.2"]);
    assert!(health.unready(Instant::now()).is_empty(), "it is ready");
    let use_of = registry.text();
    assert!(
        use_of.contains("sluice_load_balancer_pool_addresses_used{family=\"IPv4\",pool=\"default\"} 2"),
        "{use_of}"
    );
    // It comes before both: the World sees their new addresses all at once.
    fs::write(file("a.yaml"), service("a", "")).expect("writable");
    let all = until(&mut world, "a 203.0.113.1").await;
    assert!(all.contains(&"a 203.0.113.1".to_owned()), "{all:?}");
    fs::remove_file(file("a.yaml")).expect("it is there");
    let all = until(&mut world, "c 203.0.113.2").await;
    // Whichever reader is the first to see that a is gone, it has no address that another one gets.
    assert!(all.iter().position(|told| told == "a " || told == "a gone") < Some(all.len() - 2), "{all:?}");
    assert!(all.contains(&"b 203.0.113.1".to_owned()), "{all:?}");
    // Another type, and back.
    fs::write(file("b.yaml"), service("b", "").replace("LoadBalancer", "ClusterIP")).expect("writable");
    until(&mut world, "b ").await;
    fs::write(file("b.yaml"), service("b", "")).expect("writable");
    until(&mut world, "b 203.0.113.1").await;
}

#[tokio::test]
async fn a_pool_that_cannot_be_read_is_noted_and_changes_nothing() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = |name: &str| directory.path().join(name);
    let pools = |field: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: kube-router-lb-pools, namespace: kube-system}}\n\
             data: {{gold: '{field}: [203.0.113.4/31]'}}\n"
        )
    };
    fs::write(file("a.yaml"), service("a", "")).expect("writable");
    fs::write(file("pools.yaml"), pools("addresses")).expect("writable");
    let (mut world, health, _) = start(directory.path());
    until(&mut world, "a 203.0.113.4").await;
    fs::write(file("pools.yaml"), pools("adresses")).expect("writable");
    let begun = Instant::now();
    while health.notes().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(10), "the mistake is noted");
        sleep(Duration::from_millis(20)).await;
    }
    fs::write(file("b.yaml"), service("b", "")).expect("writable");
    until(&mut world, "b 203.0.113.5").await;
    fs::remove_file(file("pools.yaml")).expect("it is there");
    until(&mut world, "b 203.0.113.2").await;
    assert!(health.notes().is_empty());
}
