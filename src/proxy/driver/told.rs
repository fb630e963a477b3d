//! Log messages about a change of the cluster, bounded however large it is.

use tracing::{info, warn};

use crate::proxy::desired::ProxyChanges;
use crate::proxy::external_ip::NAMED;
use crate::proxy::unallocated::Judged;

/// Logs what Services ask for and do not get, of each kind the first ones and how many more there are, and the ranges in which free cluster IPs are refused.
pub(super) fn tell(changed: &ProxyChanges) {
    for note in changed.notes.iter().take(NAMED) {
        warn!(reason = %note, "A Service does not get all that it asks for");
    }
    if let Some(more) = changed.notes.len().checked_sub(NAMED).filter(|more| *more > 0) {
        warn!(reasons = more, "Services do not get more of what they ask for");
    }
    for (service, refused) in &changed.refused.named {
        warn!(%service, address = %refused.address, reason = %refused.reason, "External address is not served");
    }
    if changed.refused.others > 0 {
        warn!(addresses = changed.refused.others, "More external addresses are not served");
    }
    if let Some(Judged { refused, left_out }) = &changed.ranges {
        let refused: Vec<String> = refused.iter().flat_map(|(_, its)| its).map(ToString::to_string).collect();
        info!(
            ranges = refused.join(","),
            "Cluster IPs that no Service has are refused in these ranges, once all Services are known"
        );
        for (range, reason) in left_out {
            warn!(%range, %reason, "Cluster IPs that no Service has are not refused in a range that others have addresses in");
        }
    }
}
