//! What the proxy keeps in memory.

use super::*;

/// The quiet moment after a first sync, and the loop's longest sleep.
const QUIET: Duration = Duration::from_millis(6_500);

#[test]
fn what_the_kernel_holds_as_desired_is_in_memory_once() {
    for netfilter in ["--netfilter=iptables", "--netfilter=nftables"] {
        let flags = [&FLAGS[..], &[netfilter]].concat();
        let proxy = with_flags(&flags, async |running| {
            let world = served();
            running.world.send_replace(world.clone());
            running.until("a Service is served", |state| state.holds(ADDRESS)).await;
            tokio::time::sleep(QUIET).await;
        });
        assert_eq!(proxy.standing_twice(), [""; 0], "{netfilter}");
    }
}
