//! A change of many Services' endpoints, which takes more than one round.

use sluice::model::{ObjectName, Service, World};
use sluice::proxy::apply::PORTION;

use super::support::generate;
use super::support::memory::State;
use super::{Running, put, service_at, with_running};

/// Each with one endpoint, so that exchanging all of them takes several portions.
const SERVICES: usize = 2 * PORTION;

/// Services whose endpoints are those of this turn.
pub fn all_of(turn: u8) -> World {
    let mut world = generate::empty_world();
    for number in 0..SERVICES {
        let [high, low] = u16::try_from(number).expect("a small number").to_be_bytes();
        let name = ObjectName::new("shop", &format!("s{number}"));
        let service = service_at([10, 97, high, low].into());
        let service = Service { external_ips: Vec::new(), annotations: Default::default(), ..service };
        put(&mut world, name, service, [10, 100 + turn, high, low]);
    }
    world
}

impl Running {
    /// The value of this metric, as it is served.
    fn value(&self, metric: &str) -> f64 {
        let text = self.registry.text();
        let line = text.lines().find_map(|line| line.strip_prefix(metric)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{metric} in {text}"))
    }
}

#[test]
fn a_change_that_takes_several_rounds_comes_to_its_end_without_another_wake_up_and_counts_as_one() {
    with_running(async |running| {
        // Routes have this host's address as source, and without them there is no first sync.
        running.kernel.with(|machine| machine.state.addresses = State::of_others().addresses);
        running.world.send_replace(all_of(0));
        running.settles(&all_of(0)).await;
        let (rounds, programmed) =
            ("kube_router_controller_ipvs_services_sync_time_count", "sluice_proxy_programming_seconds_count");
        let before = [running.value(rounds), running.value(programmed)];
        running.clock.note(std::time::Instant::now());
        running.world.send_replace(all_of(1));
        running.settles(&all_of(1)).await;
        running.until("it is counted", |_| running.value(programmed) > before[1]).await;
        let after = [running.value(rounds), running.value(programmed)];
        assert!(after[0] - before[0] > 3.0, "{before:?}, {after:?}: it was done in one go");
        assert_eq!(after[1] - before[1], 1.0, "{before:?}, {after:?}");
    });
}
