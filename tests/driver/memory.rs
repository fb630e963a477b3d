//! Objects that the proxy keeps in memory.

use super::*;

/// The quiet moment after a first sync, and time for a busy machine to come to it.
const QUIET: Duration = Duration::from_millis(6_500);

#[test]
fn what_the_kernel_holds_as_desired_is_in_memory_once() {
    for netfilter in ["--netfilter=iptables", "--netfilter=nftables"] {
        let flags = [&FLAGS[..], &[netfilter]].concat();
        let proxy = with_flags(&flags, async |running| {
            running.kernel.with(|machine| machine.state.addresses = State::of_others().addresses);
            running.world.send_replace(asked::shop());
            running.until("all is in place", |_| running.health.unready(Instant::now()).is_empty()).await;
            tokio::time::sleep(QUIET).await;
        });
        assert_eq!(proxy.standing_twice(), [""; 0], "{netfilter}");
    }
}
