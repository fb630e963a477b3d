//! `sessionAffinity: ClientIP`: all connections of one client go to one backend.
//!
//! Kubernetes: `Service.spec.sessionAffinity` and `sessionAffinityConfig.clientIP.timeoutSeconds` (10800 by
//! default). Kernel: the persistence flag and its timeout; the template that binds a client lives as long
//! after the client's last connection. The netmask is a host's, so clients never share a template.

use crate::kernel::ipvs::flags;
use crate::model::Service;

/// Returns the persistence flag bit and the timeout in seconds; both 0 without affinity.
pub fn persistence(service: &Service) -> (u32, u32) {
    match service.affinity_seconds {
        Some(seconds) => (flags::PERSISTENT, seconds),
        None => (0, 0),
    }
}
