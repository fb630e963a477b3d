//! Rules that match what IPVS did, on a kernel with `ip_vs` and `xt_ipvs`.

use std::collections::BTreeMap;

use sluice::kernel::iptables::{Flavour, Leftovers, Ownership, Piece, Programs, Rules, Table, Tables};
use sluice::kernel::netlink::{Bus, Socket};
use sluice::kernel::nftables::host_chains::{self, HostTable};
use sluice::kernel::nftables::host_masquerades::{Masqueraded, masquerade};
use sluice::kernel::{Name, module};
use sluice::net::{Family, PerFamily};
use sluice::proxy::local_node::LocalNode;
use sluice::proxy::masquerade;
use sluice::proxy::names::Set;
use sluice::reconcile::{Growth, Mirror, Moment, Reflection};

use crate::namespace::{self, attempt, own_run, run};

/// Runs the test once for each flavour and family.
fn with_each(test: impl Fn(Flavour, Family) + Send + Sync) {
    for module in ["ip_vs", "xt_ipvs"] {
        let (loaded, _, error) = attempt(&format!("modprobe {module}"));
        assert!(loaded, "this kernel has no module {module}; run this test in the guest of the lab: {error}");
    }
    for flavour in [Flavour::Legacy, Flavour::NfTables] {
        for family in Family::BOTH {
            namespace::in_new(|| {
                own_run();
                // The rules name it.
                let name = Set::Hairpin.name(family);
                let of_family = if family == Family::V6 { "inet6" } else { "inet" };
                run(&format!("ipset create {name} hash:ip,port,net family {of_family}"));
                test(flavour, family);
            });
        }
    }
}

fn mirror(flavour: Flavour) -> Mirror<Tables> {
    let ours =
        Ownership { chains: vec![(Table::Nat, Name::Prefix("KUBE-ROUTER-".into()))], leftovers: Leftovers::Proxy };
    Mirror::new(Tables::new(PerFamily::from_fn(|_| Some(Programs { flavour, plain: false })), ours))
}

fn program(flavour: Flavour, family: Family, rest: &str) -> String {
    let six = if family == Family::V6 { "6" } else { "" };
    let flavour = if flavour == Flavour::Legacy { "legacy" } else { "nft" };
    format!("ip{six}tables-{flavour}{rest}")
}

fn postrouting(flavour: Flavour, family: Family) -> Vec<String> {
    let text = run(&program(flavour, family, "-save -t nat"));
    text.lines().filter_map(|line| line.strip_prefix("-A POSTROUTING ")).map(str::to_owned).collect()
}

fn settle(mirror: &mut Mirror<Tables>, want: &BTreeMap<Piece, Rules>) {
    let at = Moment { now: std::time::Instant::now(), jitter: 0 };
    mirror.mark_all();
    mirror.grow(want, Growth::Full, at);
    mirror.shrink(want, at);
    assert!(mirror.is_settled(), "{:?}", mirror.trouble());
}

fn addresses(family: Family) -> (&'static str, &'static str, &'static str) {
    match family {
        Family::V4 => ("10.244.0.0/24", "10.244.1.0/24", "192.0.2.1"),
        Family::V6 => ("fd00:10:244::/64", "fd00:10:244:1::/64", "2001:db8::1"),
    }
}

/// Desired masquerading rules on a node with one pod CIDR; with none, no address of the node is known.
fn wanted(family: Family, masquerade_all: bool, known: bool) -> BTreeMap<Piece, Rules> {
    let (pods, _, node) = addresses(family);
    let mut local = LocalNode::default();
    if known {
        *local.address.of_mut(family) = node.parse().ok();
        local.pod_cidrs.of_mut(family).extend(pods.parse::<ipnet::IpNet>());
    }
    masquerade::rules(&local, masquerade_all, &[179], family)
}

#[test]
fn masquerading_is_printed_as_it_was_written_so_a_restart_writes_nothing() {
    with_each(|flavour, family| {
        for (masquerade_all, known) in [(false, true), (true, true), (false, false), (true, false)] {
            let want = wanted(family, masquerade_all, known);
            settle(&mut mirror(flavour), &want);
            let mut again = mirror(flavour);
            settle(&mut again, &want);
            assert_eq!((again.seen(), again.steps_done()), (Some(&want), 0), "{flavour} {family}");
        }
    });
}

#[test]
fn kube_routers_masquerading_is_replaced_by_ours_and_foreign_rules_stay() {
    with_each(|flavour, family| {
        let (pods, others, node) = addresses(family);
        let append = |rule: &str| run(&program(flavour, family, &format!(" -t nat -A POSTROUTING {rule}")));
        let theirs = |rule: &str| {
            // An empty comment is no word for `run`.
            let rule = format!("-m ipvs --ipvs --vdir ORIGINAL --vmethod MASQ -m comment --comment '' {rule}");
            namespace::shell(&program(flavour, family, &format!(" -t nat -A POSTROUTING {rule}")));
        };
        append("-o lo -j ACCEPT");
        theirs(&format!("! -s {pods} ! -d {pods} -j SNAT --to-source {node} --random-fully"));
        theirs(&format!("! -s {others} ! -d {others} -j SNAT --to-source {node}"));
        append("-m ipvs --ipvs --vdir ORIGINAL --vmethod MASQ -j MASQUERADE");
        theirs(&format!("-j SNAT --to-source {node} --random-fully"));
        theirs("-j MASQUERADE --random-fully");
        theirs(&format!("! -s {pods} ! -d {pods} -j MASQUERADE"));
        // The same twice.
        theirs(&format!("! -s {pods} ! -d {pods} -j MASQUERADE"));
        run(&program(flavour, family, " -t nat -N KUBE-ROUTER-HAIRPIN"));
        append("-m ipvs --vdir ORIGINAL -j KUBE-ROUTER-HAIRPIN");
        assert_eq!(postrouting(flavour, family).len(), 9);

        // While the inputs are not complete nothing of theirs goes.
        let want = wanted(family, false, true);
        let mut mirror = mirror(flavour);
        let at = Moment { now: std::time::Instant::now(), jitter: 0 };
        mirror.grow(&want, Growth::Full, at);
        assert_eq!(postrouting(flavour, family).len(), 10);
        mirror.shrink(&want, at);
        assert!(mirror.is_settled(), "{:?}", mirror.trouble());
        let right = [
            "-m ipvs --vdir ORIGINAL --vmethod MASQ -j KUBE-ROUTER-SNAT",
            "-o lo -j ACCEPT",
            "-m ipvs --vdir ORIGINAL --vmethod MASQ -j MASQUERADE",
        ];
        assert_eq!(postrouting(flavour, family), right, "{flavour} {family}");

        settle(&mut mirror, &BTreeMap::new());
        assert_eq!(postrouting(flavour, family), &right[1..], "{flavour} {family}");
    });
}

#[test]
fn a_module_is_present_once_it_is_loaded() {
    // Nothing else here uses this one.
    let name = "xt_u32";
    run(&format!("modprobe --quiet --remove {name}"));
    assert!(!module::is_present(name));
    let errors = module::load(&[name, "xt-u32"]);
    assert!(errors.is_empty(), "{errors:?}");
    assert!(module::is_present(name));
    run(&format!("modprobe --remove {name}"));
    assert!(!module::is_present(name));
}

/// As on a host without the programs: read and removed over netlink alone.
#[test]
fn kube_routers_masquerading_goes_without_programs_of_iptables_and_foreign_rules_stay() {
    with_each(|flavour, family| {
        if flavour == Flavour::Legacy {
            return;
        }
        let (pods, _, node) = addresses(family);
        let wide = if family == Family::V6 { "fd00:10:244::/52" } else { "10.244.0.0/20" };
        let append =
            |rule: &str| namespace::shell(&program(flavour, family, &format!(" -t nat -A POSTROUTING {rule}")));
        let by_ipvs = "-m ipvs --ipvs --vdir ORIGINAL --vmethod MASQ";
        for range in [String::new(), format!("! -s {pods} ! -d {pods}"), format!("! -s {wide} ! -d {wide}")] {
            for translation in
                ["MASQUERADE", "MASQUERADE --random-fully", &format!("SNAT --to-source {node} --random-fully")]
            {
                append(&format!("{range} {by_ipvs} -m comment --comment '' -j {translation}"));
            }
        }
        let its = postrouting(flavour, family).len();
        append("-o lo -j ACCEPT");
        append(&format!("{by_ipvs} -j MASQUERADE"));
        append(&format!("{by_ipvs} -m comment --comment mine -j MASQUERADE"));
        append(&format!("! -s {pods} {by_ipvs} -m comment --comment '' -j MASQUERADE"));
        append("-m ipvs --vdir REPLY --vmethod MASQ -m comment --comment '' -j MASQUERADE");
        let foreign = postrouting(flavour, family).split_off(its);
        let table = HostTable { family, name: "nat" };
        let mut socket = Socket::open(Bus::Netfilter).expect("the kernel has netfilter");
        let removed = host_chains::remove_read(&mut socket, table, "POSTROUTING", masquerade, |_, found| {
            let by_ipvs = found.iter().filter(|one| one.packets == Masqueraded::ByIpvs);
            by_ipvs.map(|one| one.handle).collect()
        });
        assert_eq!(removed.expect("the kernel can be asked"), its);
        assert_eq!(postrouting(flavour, family), foreign, "{family}");
    });
}
