//! Removal from chains of iptables without its programs while others change them.

use std::cell::Cell;

use sluice::kernel::netlink::{Bus, Socket};
use sluice::kernel::nftables::host_chains::{self, HostTable, Jumps, Removed};
use sluice::kernel::nftables::host_masquerades::masquerade as masquerades;
use sluice::net::Family;

use crate::namespace::{in_new, run};

const NAT: HostTable<'static> = HostTable { family: Family::V4, name: "nat" };
const CHAIN: &str = "POSTROUTING";

/// Puts a rule that masquerades into a new table, so that it has the number that the first rule of each such table has.
fn masquerade(set: &str) {
    run(&format!("iptables-nft -t nat -A POSTROUTING -m set --match-set {set} src -j MASQUERADE"));
}

fn socket() -> Socket {
    Socket::open(Bus::Netfilter).expect("the kernel has netfilter")
}

fn saved() -> String {
    run("iptables-nft-save -t nat")
}

#[test]
fn a_rule_that_got_the_number_of_one_of_ours_meanwhile_stays() {
    in_new(|| {
        run("ipset create ours hash:net");
        run("ipset create theirs hash:net");
        masquerade("ours");
        let mut numbers = Vec::new();
        let removed = host_chains::remove_read(&mut socket(), NAT, CHAIN, masquerades, |_, found| {
            numbers.push(found.iter().map(|one| one.handle).collect::<Vec<_>>());
            if numbers.len() > 1 {
                return Vec::new();
            }
            run("nft delete table ip nat");
            masquerade("theirs");
            found.iter().map(|one| one.handle).collect()
        });
        assert_eq!(removed.expect("the kernel can be asked"), 0);
        assert!(numbers.len() == 2 && numbers[0] == numbers[1], "read again, and of the same number: {numbers:?}");
        assert!(saved().contains("--match-set theirs"), "{}", saved());
    });
}

#[test]
fn rules_and_chains_of_ours_go_although_others_change_tables_meanwhile() {
    in_new(|| {
        run("ipset create ours hash:net");
        masquerade("ours");
        run("iptables-nft -t nat -N KUBE-OURS");
        run("iptables-nft -t nat -A POSTROUTING -j KUBE-OURS");
        let times = Cell::new(0);
        let others_change = || {
            times.set(times.get() + 1);
            if times.get() <= 3 {
                run(&format!("nft add table ip others{}", times.get()));
            }
        };
        let removed = host_chains::remove_read(&mut socket(), NAT, CHAIN, masquerades, |_, found| {
            others_change();
            found.iter().map(|one| one.handle).collect()
        });
        assert_eq!((removed.expect("in the end nobody changes anything"), times.take()), (1, 4));
        let removed = host_chains::remove(&mut socket(), NAT, Jumps::Removed, |name| {
            if name == "KUBE-OURS" {
                others_delete(&times);
            }
            name == "KUBE-OURS"
        });
        assert_eq!((removed.expect("in the end nobody changes anything").chains, times.take()), (1, 4));
        assert!(!saved().contains("ours") && !saved().contains("KUBE-OURS"), "{}", saved());
    });
}

#[test]
fn chains_that_rules_of_others_jump_to_stay_with_what_they_jump_to_themselves() {
    in_new(|| {
        for chain in ["KUBE-OURS", "KUBE-HELD", "KUBE-BEHIND", "CNI-OTHERS"] {
            run(&format!("iptables-nft -t nat -N {chain}"));
        }
        for (from, to) in [
            ("POSTROUTING", "KUBE-OURS"),
            ("POSTROUTING", "KUBE-HELD"),
            ("KUBE-OURS", "KUBE-HELD"),
            ("KUBE-HELD", "KUBE-BEHIND"),
            ("CNI-OTHERS", "KUBE-HELD"),
        ] {
            run(&format!("iptables-nft -t nat -A {from} -j {to}"));
        }
        let remove = || host_chains::remove(&mut socket(), NAT, Jumps::Spared, |name| name.starts_with("KUBE-"));
        let held = ["KUBE-BEHIND", "KUBE-HELD"].map(str::to_owned).into();
        assert_eq!(remove().expect("the kernel takes it"), Removed { chains: 1, held });
        let mut left: Vec<String> = saved().lines().filter(|line| line.starts_with("-A")).map(str::to_owned).collect();
        left.sort();
        assert_eq!(left, ["-A CNI-OTHERS -j KUBE-HELD", "-A KUBE-HELD -j KUBE-BEHIND"]);
        assert_eq!(remove().expect("there is nothing more").chains, 0);
    });
}

fn others_delete(times: &Cell<u32>) {
    times.set(times.get() + 1);
    if times.get() <= 3 {
        run(&format!("nft delete table ip others{}", times.get()));
    }
}
