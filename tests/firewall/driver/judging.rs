//! How far the firewall has come, as the service proxy is told: the number of the World whose refusals the kernel holds.

use sluice::kernel::iptables::Piece;

use super::*;

/// The shop, in which `db` may send nowhere but to itself, as the World of this number.
fn isolated(number: u64) -> World {
    let world = Case(shop()).policy("shop/db", "app=db", [None, Some(&[rule(&[pods("app=db")], &[])])]).0;
    World { number, ..world }
}

fn told(running: &Running) -> u64 {
    *running.judged.borrow()
}

async fn judges(running: &Running, number: u64) {
    running.until(&format!("World {number} is judged, not {}", told(running)), || told(running) == number).await;
}

#[test]
fn each_world_is_told_when_it_is_in_the_kernel_and_worlds_that_change_nothing_are() {
    with_each(false, async |running| {
        running.world.send_replace(isolated(1));
        judges(running, 1).await;
        running.world.send_replace(World { number: 2, ..shop() });
        judges(running, 2).await;
        running.world.send_replace(World { number: 7, ..shop() });
        judges(running, 7).await;
    });
}

#[test]
fn nothing_is_told_of_a_world_of_which_nothing_is_done() {
    with_each(false, async |running| {
        running.world.send_replace(World { authority: Authorities::default(), ..isolated(1) });
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(told(running), 0);
    });
}

#[test]
fn a_world_that_is_known_in_part_is_told_although_what_absence_does_not_prove_stays() {
    with_each(false, async |running| {
        running.world.send_replace(isolated(1));
        judges(running, 1).await;
        let firewall = Authority::Partial;
        let authority = Authorities { firewall, ..Authorities::default() };
        let mut world = World { number: 2, authority, ..isolated(1) };
        world.cluster.pods.remove(&sluice::model::ObjectName::new("shop", "web"));
        world.cluster.policies.remove(&sluice::model::ObjectName::new("shop", "web"));
        running.world.send_replace(world);
        judges(running, 2).await;
    });
}

#[test]
fn chains_that_are_to_be_removed_later_hold_up_nobody() {
    with(Backend::Iptables, async |running| {
        running.world.send_replace(isolated(1));
        judges(running, 1).await;
        let chains = |in_force: InForce| match in_force {
            InForce::Chains(chains) => chains,
            InForce::Table(table) => panic!("{table:?}"),
        };
        let wanted = chains(running.desired(&shop()));
        let is_left = || {
            let of_policies = |piece: &&Piece| piece.to_string().contains("KUBE-NWPLCY-");
            chains(running.in_force()).keys().filter(of_policies).any(|piece| !wanted.contains_key(piece))
        };
        assert!(is_left());
        let mut judged = running.judged.subscribe();
        running.world.send_replace(World { number: 2, ..shop() });
        judged.wait_for(|number| *number == 2).await.expect("it runs");
        assert!(is_left(), "it was told before they were removed");
        running.until("they are removed", || !is_left()).await;
    });
}

#[test]
fn nothing_is_told_while_the_kernel_does_not_take_the_rules() {
    with_each(false, async |running| {
        running.breaks(true);
        running.world.send_replace(isolated(1));
        running.until_unready("network policies", "rules: ").await;
        assert_eq!(told(running), 0);
        running.breaks(false);
        judges(running, 1).await;
    });
}
