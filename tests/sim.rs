//! The service proxy walks at random between worlds, on a kernel in memory.
//!
//! A walk changes the cluster, lets time pass, ends and starts the program (also with the last known state, or
//! with a partial one), damages what is ours behind its back, and lets steps and reads fail, before the act and
//! after it. [`watch`] looks at the kernel after every single act; when things have settled the walk compares the kernel
//! with what is wanted.
//!
//! - `SIM_SEED=n` runs one walk again; a failure names its seed and tells what happened.
//! - `SIM_WALKS=n` walks (by default a few), each of `SIM_STEPS=n` steps, with seeds from `FIRST_SEED` on or of the day's
//!   clock.

#![allow(clippy::indexing_slicing, reason = "a test that panics has failed, which is how a test says so")]

#[path = "support/mod.rs"]
mod support;

#[path = "sim/agent.rs"]
mod agent;
#[path = "sim/cost.rs"]
mod cost;
#[path = "sim/damage.rs"]
mod damage;
#[path = "sim/flows.rs"]
mod flows;
#[path = "sim/portions.rs"]
mod portions;
#[path = "sim/refused.rs"]
mod refused;
#[path = "sim/routing_address.rs"]
mod routing_address;
#[path = "sim/source_ranges.rs"]
mod source_ranges;
#[path = "sim/takeover.rs"]
mod takeover;
#[path = "sim/tunnels.rs"]
mod tunnels;
#[path = "sim/unallocated.rs"]
mod unallocated;
#[path = "sim/walk.rs"]
mod walk;
#[path = "sim/watch.rs"]
mod watch;

use sluice::model::Authority;
use support::random::{number, seeds};
use walk::Walk;

const BACKENDS: [&str; 2] = ["--netfilter=iptables", "--netfilter=nftables"];

#[test]
fn whatever_happens_the_kernel_becomes_what_is_wanted_by_a_way_that_hurts_nobody() {
    let steps = number("SIM_STEPS").unwrap_or(150);
    let seeds = seeds("SIM_SEED", number("SIM_WALKS").unwrap_or(60));
    println!("seeds {} to {}, {steps} steps each", seeds[0], seeds[seeds.len() - 1]);
    let mut totals = walk::Counts::default();
    for seed in seeds {
        let mut walk = Walk::new(seed);
        let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| walk.run(steps)));
        if run.is_err() {
            let told = walk.story.join("\n  ");
            panic!("a walk failed; SIM_SEED={seed} SIM_STEPS={steps} runs it again. What happened:\n  {told}");
        }
        totals.add(&walk.counts);
    }
    println!("{totals:?}");
    // One walk that is run again need not see everything.
    if number("SIM_SEED").is_none() {
        totals.must_have_seen_everything(steps);
    }
}

#[test]
fn new_endpoints_behind_tunnels_wait_for_the_firewall_whatever_happens() {
    let mut held_back = 0;
    for seed in seeds("SIM_SEED", number("SIM_WALKS").unwrap_or(20)) {
        let mut walk = Walk::new(seed).with_a_late_firewall(seed);
        let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| walk.run(100)));
        let told = walk.story.join("\n  ");
        assert!(run.is_ok(), "a walk failed; SIM_SEED={seed} runs it again. What happened:\n  {told}");
        held_back += walk.counts.held_back;
    }
    assert!(held_back > 0, "nothing had to wait");
}

/// Each of them ended with packets that went wrong, or with something of ours that stayed.
#[test]
fn walks_that_failed_once_do_so_no_more() {
    let long =
        [1_795_404_063_990_110_523, 1_795_412_653_246_867_005, 1_795_414_773_439_571_468, 1_795_423_694_281_111_017];
    // The marks of the other packet filter went while the kernel refused to delete virtual services that nothing else marked.
    let unmarked = [1_795_804_095_603_967_444, 1_795_804_095_590_649_035];
    for seed in [118, 5009, 5473, 7226].into_iter().chain(long).chain(unmarked) {
        Walk::new(seed).run(150);
    }
}

/// In the first the last endpoint left in the World that brought another one: nobody takes connections until the firewall has judged that. In the second one drained with `sh` while not
/// everything was known.
#[test]
fn walks_with_a_late_firewall_that_failed_once_do_so_no_more() {
    for seed in [1_795_556_462_757_294_235, 1_795_616_985_872_725_065] {
        Walk::new(seed).with_a_late_firewall(seed).run(100);
    }
}

#[test]
fn what_kube_router_left_is_taken_over_and_no_connection_ends() {
    for seed in 0..20 {
        BACKENDS.iter().for_each(|backend| Walk::new(seed).takes_over_from_kube_router(backend));
    }
}

#[test]
fn a_cleanup_leaves_nothing_of_kube_routers_direct_server_return() {
    (0..20).for_each(|seed| Walk::new(seed).cleans_up_behind_kube_router());
}

#[test]
fn the_other_backend_takes_over_and_no_connection_ends() {
    for seed in 0..10 {
        let [iptables, nftables] = BACKENDS;
        Walk::new(seed).changes_the_backend([iptables, nftables]);
        Walk::new(seed).changes_the_backend([nftables, iptables]);
    }
}

#[test]
fn the_former_backend_takes_over_again_before_the_other_has_removed_its_guard() {
    for seed in 0..10 {
        let [iptables, nftables] = BACKENDS;
        Walk::new(seed).returns_to_a_backend_whose_guard_stands([iptables, nftables]);
        Walk::new(seed).returns_to_a_backend_whose_guard_stands([nftables, iptables]);
    }
}

#[test]
fn while_it_is_not_known_what_the_other_backend_marks_there_is_trouble() {
    for seed in 0..10 {
        Walk::new(seed).does_not_know_what_the_other_backend_marks();
    }
}

#[test]
fn a_remembered_service_is_put_into_an_empty_kernel_only() {
    for seed in 0..20 {
        Walk::new(seed).remembers_more_than_the_kernel_holds();
    }
}

#[test]
fn what_a_service_in_the_kernel_needs_is_put_back_from_the_last_known_state() {
    for seed in 0..20 {
        Walk::new(seed).puts_back_what_a_service_in_the_kernel_needs();
    }
}

#[test]
fn a_virtual_service_without_any_destination_is_filled_from_the_last_known_state() {
    for seed in 0..20 {
        Walk::new(seed).fills_a_virtual_service_without_destinations();
    }
}

#[test]
fn a_udp_flow_that_began_before_its_service_had_an_endpoint_is_forgotten() {
    for authority in [Authority::Complete, Authority::Partial] {
        Walk::new(1).flows_that_began_too_early_are_forgotten(authority);
    }
}

#[test]
fn a_udp_flow_that_an_earlier_run_should_have_forgotten_is_forgotten_at_the_next_start() {
    Walk::new(1).flows_that_an_earlier_run_did_not_forget_are_forgotten();
}

#[test]
fn a_udp_flow_that_cannot_be_forgotten_is_given_up() {
    Walk::new(1).flows_that_cannot_be_forgotten_are_given_up();
}

#[test]
fn a_set_becomes_smaller_when_its_elements_have_gone() {
    Walk::new(1).a_set_is_made_smaller();
}

#[test]
fn every_kind_of_damage_is_found_by_an_audit_and_repaired() {
    for kind in damage::Kind::ALL {
        BACKENDS.iter().for_each(|backend| Walk::new(1).damage_is_found_and_repaired(kind, backend));
    }
}

#[test]
fn a_service_that_goes_after_somebody_deleted_its_elements_goes_although_reads_fail() {
    for seed in 0..10 {
        BACKENDS.iter().for_each(|backend| Walk::new(seed).goes_without_its_elements(backend));
    }
}

#[test]
fn a_range_that_is_taken_away_goes_although_not_everything_is_known() {
    BACKENDS.iter().for_each(|backend| Walk::new(1).takes_a_range_away_while_not_everything_is_known(backend));
}

#[test]
fn clients_of_a_service_that_cannot_be_read_still_come_in() {
    BACKENDS.iter().for_each(|backend| Walk::new(1).keeps_the_ranges_of_a_service_that_cannot_be_read(backend));
}

#[test]
fn a_chain_of_source_ranges_that_somebody_deleted_comes_back_with_the_ranges_of_services_that_cannot_be_read() {
    Walk::new(1).puts_back_the_lengths_of_a_service_that_cannot_be_read();
}

#[test]
fn older_source_ranges_do_not_come_back_from_the_last_known_state() {
    BACKENDS.iter().for_each(|backend| Walk::new(1).remembers_older_ranges(backend));
}

#[test]
fn source_ranges_are_in_force_while_the_other_backend_is_replaced() {
    let [iptables, nftables] = BACKENDS;
    Walk::new(1).restricts_while_it_takes_over([iptables, nftables]);
    Walk::new(1).restricts_while_it_takes_over([nftables, iptables]);
}

#[test]
fn what_source_ranges_close_stays_closed_to_its_end_where_its_family_is_switched_off() {
    BACKENDS.iter().for_each(|backend| Walk::new(1).closes_a_family_that_is_switched_off_to_its_end(backend));
}

#[test]
fn a_cluster_ip_without_a_service_is_refused_when_all_services_are_known() {
    BACKENDS.iter().for_each(|backend| Walk::new(1).refuses_free_cluster_ips_when_all_services_are_known(backend));
}

#[test]
fn the_ranges_whose_free_addresses_are_refused_are_those_of_the_cluster() {
    BACKENDS.iter().for_each(|backend| Walk::new(1).follows_the_ranges_of_cluster_ips(backend));
}

#[test]
fn a_range_ceases_to_be_refused_although_the_cluster_is_only_remembered() {
    BACKENDS.iter().for_each(|backend| Walk::new(1).ceases_to_refuse_while_the_cluster_is_remembered(backend));
}

#[test]
fn whatever_happens_to_ranges_nothing_is_refused_that_may_be_a_services() {
    for seed in 0..12 {
        for backend in BACKENDS {
            let mut walk = Walk::new(seed);
            let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| walk.goes_between_ranges(80, backend)));
            let last = walk.story.len().saturating_sub(20);
            assert!(
                run.is_ok(),
                "seed {seed}, {backend}; what happened at last:\n  {}",
                walk.story[last..].join("\n  ")
            );
        }
    }
}

#[test]
fn services_change_between_nat_and_tunnels_and_marks_between_services_whenever_the_program_is_killed() {
    for backend in BACKENDS {
        let mut walk = Walk::new(1);
        let run =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| walk.changes_between_nat_and_tunnels(backend)));
        let last = walk.story.len().saturating_sub(20);
        assert!(run.is_ok(), "{backend}; what happened at last:\n  {}", walk.story[last..].join("\n  "));
    }
}

#[test]
fn others_keep_virtual_services_with_marks_that_a_port_may_have() {
    for destinations in [&["203.0.113.50:9999"][..], &[]] {
        BACKENDS
            .iter()
            .for_each(|backend| Walk::new(1).leaves_those_of_others_with_likely_marks(backend, destinations));
    }
}

#[test]
fn a_virtual_service_of_somebody_else_with_a_mark_that_is_wanted_is_left_alone_and_is_trouble() {
    for authority in [Authority::Remembered, Authority::Partial, Authority::Complete] {
        BACKENDS.iter().for_each(|backend| Walk::new(1).waits_for_a_mark_that_somebody_else_has(backend, authority));
    }
}

#[test]
fn packets_get_no_mark_from_the_last_known_state_that_others_have_in_the_kernel() {
    BACKENDS.iter().for_each(|backend| Walk::new(1).remembers_another_owner_of_a_mark(backend));
}

#[test]
fn nobody_loses_a_mark_to_an_older_service() {
    BACKENDS.iter().for_each(|backend| Walk::new(1).takes_no_mark_from_whoever_has_it(backend));
}

#[test]
fn a_mark_that_one_service_cannot_have_keeps_no_other_from_its_own() {
    BACKENDS.iter().for_each(|backend| Walk::new(1).a_mark_that_cannot_be_had_concerns_its_port_alone(backend));
}

#[test]
fn a_mark_that_one_service_has_to_keep_keeps_no_other_from_going() {
    BACKENDS.iter().for_each(|backend| Walk::new(1).a_mark_that_stays_keeps_no_other(backend));
}

#[test]
fn a_service_that_waits_for_a_tunnel_follows_its_endpoints() {
    for authority in [Authority::Partial, Authority::Complete] {
        BACKENDS.iter().for_each(|backend| Walk::new(1).follows_its_endpoints_while_it_waits(backend, authority));
    }
}

#[test]
fn a_start_goes_on_with_the_marks_that_packets_are_given() {
    BACKENDS.iter().for_each(|backend| Walk::new(1).goes_on_with_a_mark_that_follows_from_nothing(backend));
}

#[test]
fn a_virtual_service_for_a_mark_comes_when_packets_are_given_it_and_so_is_known_as_ours() {
    Walk::new(1).leaves_no_virtual_service_for_a_mark_that_nobody_was_given();
}

#[test]
fn an_empty_virtual_service_for_a_mark_is_known_as_ours_although_reads_fail_at_the_start() {
    BACKENDS.iter().for_each(|backend| Walk::new(1).knows_its_virtual_services_although_reads_fail(backend));
}

#[test]
fn udp_flows_of_what_others_deleted_are_forgotten_although_a_read_fails_beside_a_tunnel() {
    BACKENDS
        .iter()
        .for_each(|backend| Walk::new(1).forgets_flows_of_what_others_deleted_although_a_read_fails(backend));
}

#[test]
fn services_with_nat_are_served_while_rules_that_mark_packets_cannot_be_read() {
    Walk::new(1).serves_with_nat_while_rules_cannot_be_read();
}

#[test]
fn what_a_failed_step_leaves_of_a_virtual_service_for_a_mark_is_known_as_ours() {
    Walk::new(1).knows_what_a_failed_step_leaves();
}

#[test]
fn packets_with_marks_of_kube_router_go_to_no_other_service() {
    Walk::new(1).leaves_a_mark_to_whom_kube_router_gave_it("--netfilter=iptables");
}

#[test]
fn a_service_leaves_its_tunnel_while_the_other_backend_is_replaced() {
    let [iptables, nftables] = BACKENDS;
    Walk::new(1).ends_tunnels_of_the_other_backend([iptables, nftables]);
    Walk::new(1).ends_tunnels_of_the_other_backend([nftables, iptables]);
}

#[test]
fn a_mark_that_the_other_backend_gives_to_a_service_that_is_gone_is_nobody_elses() {
    let [iptables, nftables] = BACKENDS;
    Walk::new(1).takes_no_mark_that_the_other_backend_gives([iptables, nftables]);
    Walk::new(1).takes_no_mark_that_the_other_backend_gives([nftables, iptables]);
}

#[test]
fn packets_that_others_mark_do_not_end_in_the_table_of_kube_router() {
    BACKENDS.iter().for_each(|backend| Walk::new(1).leads_no_packets_to_the_route_of_kube_router(backend));
}

#[test]
fn a_namespace_takes_no_marks_from_others_and_is_told() {
    BACKENDS.iter().for_each(|backend| Walk::new(1).leaves_marks_to_other_namespaces(backend));
}

#[test]
fn each_port_of_an_address_is_served_as_its_own_service_asks_on_nodes_with_history_and_without() {
    BACKENDS
        .iter()
        .for_each(|backend| Walk::new(1).serves_each_port_as_its_service_asks_with_history_and_without(backend));
}

#[test]
fn a_rule_of_routing_that_stays_concerns_no_service_with_nat() {
    BACKENDS.iter().for_each(|backend| Walk::new(1).rules_of_routing_concern_nobody_without_a_tunnel(backend));
}

#[test]
fn a_service_of_many_endpoints_costs_as_much_for_each_as_one_of_few() {
    let [few, many] = [250, 4_000].map(cost::of_an_endpoint_among);
    assert!(many < few * 64, "{few:?} with 250 endpoints, {many:?} with 16 times as many");
}

#[test]
fn a_look_at_health_checks_costs_the_same_while_few_services_wait_for_their_turn_and_while_many_do() {
    let [few, many] = [200, 6_000].map(cost::of_a_look_at_health_checks);
    assert!(many < few * 4, "{few:?} while 200 wait, {many:?} while 6,000 do");
}

#[test]
fn a_service_that_goes_costs_the_same_among_few_and_among_many() {
    for tunnel_mode in [false, true] {
        let [few, many] = [200, 6_000].map(|count| cost::of_a_service_that_goes(count, tunnel_mode));
        assert!(many < few * 4, "tunnel mode {tunnel_mode}: {few:?} among 200, {many:?} among 6,000");
    }
}
