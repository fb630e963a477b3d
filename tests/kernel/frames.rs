//! Frames that no rule of a policy sees, on a kernel whose nf_tables know by which bridge a frame came (`nft_meta_bridge`).

use sluice::firewall::frames;
use sluice::kernel::nftables::probe_bridge;
use sluice::model::ObjectName;

use crate::namespace::attempt;
use crate::native::firewall::{app, ingress};
use crate::native::firewall_link_local::with_each;
use crate::native::firewall_multicast::{Listeners, unicast};
use crate::native::frame::Frame;

fn assert_that_kernel_knows_bridges() {
    let probed = probe_bridge(&frames::frames(&["kube-bridge".into()]).tags);
    assert!(
        probed.is_ok(),
        "this kernel has no module nft_meta_bridge; run this test in the guest of the lab: {probed:?}"
    );
}

/// The kernel takes off one tag, and rules see nothing behind a second one; the pod takes off both.
#[test]
fn a_second_tag_leads_past_no_policy_whichever_vlans_they_are_of() {
    with_each(|bridged| {
        assert_that_kernel_knows_bridges();
        let listeners = Listeners::of(bridged);
        let tagged = |frame: Frame, tags: &[u16]| Frame { tags: tags.into(), ..frame };
        bridged.settle();
        listeners.assert_heard("without policies", ("db", &tagged(unicast("db", "web"), &[0, 0])), &["web"]);
        bridged.world.cluster.policies.insert(ObjectName::new("shop", "in"), ingress(app("web"), &[]));
        bridged.settle();
        for tags in [&[0, 0][..], &[0, 0, 0], &[1, 0]] {
            for frame in [unicast("db", "web"), unicast("db", "plain")] {
                listeners.assert_heard("tagged twice", ("db", &tagged(frame, tags)), &[]);
            }
        }
        listeners.assert_heard("tagged once", ("db", &tagged(unicast("db", "plain"), &[0])), &["plain"]);
        listeners.assert_heard("untagged", ("db", &unicast("db", "plain")), &["plain"]);
        let text = bridged.refused();
        let line = "sluice_firewall_bridge_dropped_packets_total{reason=\"vlan-tags\"} ";
        let count = text.lines().find_map(|one| one.strip_prefix(line)).and_then(|count| count.parse::<u64>().ok());
        assert!(count >= Some(6), "{text}");
        bridged.world.cluster.policies.remove(&ObjectName::new("shop", "in"));
        bridged.settle();
        assert!(!attempt("nft list table bridge sluice_frames").0, "nothing is left over");
        listeners.assert_heard("without policies", ("db", &tagged(unicast("db", "web"), &[0, 0])), &["web"]);
    });
}
