//! `--cleanup-kube-proxy` where nobody serves, on any kernel; with a service proxy that serves: `tests/kernel/cleanup_kube_proxy.rs`.

use crate::cleanup_kube_proxy::{CLEANUP, SERVED, mark, put_those_of_iptables, rules};
use crate::namespace::{attempt, in_new, own_run};

#[test]
fn where_a_service_proxy_has_marked_what_it_does_not_serve_nothing_goes() {
    in_new(|| {
        own_run();
        put_those_of_iptables("nft");
        // An agent on a kernel without IPVS does so, and never becomes ready.
        mark(SERVED);
        let before = rules("nft");
        let (succeeded, _, said) = attempt(CLEANUP);
        assert!(!succeeded && said.contains("has not taken over on this host"), "{said}");
        assert_eq!(rules("nft"), before);
    });
}
