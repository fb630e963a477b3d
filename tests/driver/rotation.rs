//! The key of WireGuard that changes, in the router's loop.

use sluice::router::names::{WIREGUARD, WIREGUARD_SECOND};

use super::*;

#[test]
fn a_key_that_is_due_changes_when_all_nodes_are_known_and_a_failure_is_noted_and_logged_once() {
    let (log, _guard) = logged();
    let mut setup = Setup::new(Backend::Nftables);
    let words = ["--node-routes=api", "--overlay-type=full", "--overlay-encap=wireguard"];
    setup.flags.extend(words.map(str::to_owned));
    setup.flags.push("--overlay-wireguard-rotate-key=1h".to_owned());
    setup.world.authority.router = Authority::Partial;
    let own = AddressKey { link: LinkName("eth0".into()), address: "127.0.0.1/8".parse().expect("an address") };
    setup.run(State { addresses: [(own, ())].into(), ..State::default() }, async |seen| {
        seen.kernel.with(|machine| {
            machine.key_files.age = Some(Duration::from_secs(7200));
            machine.key_files.fail = true;
        });
        let has = |seen: &Seen, name: &str| seen.kernel.state().wireguard_devices.contains_key(&LinkName(name.into()));
        seen.until("the first device is there", |seen| has(seen, WIREGUARD)).await;
        // Longer than the time between two looks.
        tokio::time::sleep(Duration::from_secs(6)).await;
        let failed = |seen: &Seen| seen.kernel.with(|machine| machine.key_files.failed);
        assert_eq!(failed(&seen), 0, "a Node that cannot be read may be one that is to be waited for");
        seen.world.send_modify(|world| world.authority.router = Authority::Complete);
        seen.until("it was tried twice", |seen| failed(seen) >= 2).await;
        let note = "the WireGuard key of this node cannot change: ";
        let is_noted = |seen: &Seen| seen.health.notes().iter().any(|text| text.to_string().contains(note));
        seen.until("it is noted", is_noted).await;
        assert_eq!(log.text().matches(note).count(), 1, "{}", log.text());
        assert!(!has(&seen, WIREGUARD_SECOND));
        seen.kernel.with(|machine| machine.key_files.fail = false);
        seen.until("the second device is there", |seen| has(seen, WIREGUARD_SECOND)).await;
        seen.until("the note is gone", |seen| !is_noted(seen)).await;
        let next = || seen.reports.borrow().annotations.get("kube-router.io/wireguard-next-public-key").cloned();
        seen.until("it is told", |_| next().is_some_and(|told| told.wanted.is_some())).await;
    });
}
