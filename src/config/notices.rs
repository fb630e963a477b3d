//! Flags that are accepted and do nothing: logged once at the start, so that nobody relies on them.
//!
//! Manifests written for kube-router name flags that mean nothing here.

use super::command_line::defaults;
use super::flags::Flags;
use super::mistakes::Mistakes;
use super::value::prefix;

/// A flag that does nothing with these flags.
struct Idle {
    flag: &'static str,
    /// Whether it was given, as far as can be known: with another value than its default.
    is_given: fn(&Flags, &Flags) -> bool,
    reason: &'static str,
}

const NO_ALLOCATOR: &str = "the address allocator does not run";
const NO_SESSIONS: &str = "with --enable-ibgp=false nodes have no sessions with each other";
const NO_BFD: &str = "neither --enable-bfd nor --enable-bfd-mesh is on";

fn watches(flags: &Flags) -> bool {
    flags.enable_bfd || flags.enable_bfd_mesh
}

/// Whether the source guard runs, which drops what a pod sends with a service address.
fn guards(flags: &Flags) -> bool {
    flags.netpol_source_guard && flags.netpol_cni && flags.run_firewall
}

/// Whether packets between nodes are encrypted, which a node takes from no other source than its peer's own addresses and pods.
fn encrypts(flags: &Flags) -> bool {
    flags.enable_overlay && flags.overlay_encap == "wireguard"
}

const IDLE: [Idle; 23] = [
    Idle {
        flag: "cluster-cidr",
        is_given: |typed, default| typed.cluster_cidr != default.cluster_cidr,
        reason: "pod ranges are read from the Node objects",
    },
    Idle {
        flag: "config-sync-period",
        is_given: |typed, default| typed.config_sync_period != default.config_sync_period,
        reason: "changes arrive as they happen",
    },
    Idle {
        flag: "runtime-endpoint",
        is_given: |typed, default| {
            // Beside the source guard the other flag says it.
            let is_used = typed.cleanup_config
                || typed.enable_direct_server_return && (typed.run_service_proxy || typed.run_firewall);
            !is_used && typed.runtime_endpoint != default.runtime_endpoint
        },
        reason: "direct server return needs --enable-direct-server-return, and the service proxy or the firewall",
    },
    Idle {
        flag: "enable-direct-server-return",
        is_given: |typed, _| typed.enable_direct_server_return && typed.run_service_proxy && guards(typed),
        reason: "--netpol-source-guard drops what pods send with a service address, so Services with kube-router.io/service.dsr are served with NAT",
    },
    Idle {
        flag: "enable-direct-server-return",
        is_given: |typed, _| typed.enable_direct_server_return && typed.run_service_proxy && encrypts(typed),
        reason: "with --overlay-encap=wireguard a node takes from another one what that node's own addresses and pods send, and an answer comes from a service address, so Services with \
                 kube-router.io/service.dsr are served with NAT",
    },
    Idle {
        flag: "loadbalancer-default-class",
        is_given: |typed, default| {
            !typed.run_loadbalancer && typed.loadbalancer_default_class != default.loadbalancer_default_class
        },
        reason: NO_ALLOCATOR,
    },
    Idle {
        flag: "loadbalancer-sync-period",
        is_given: |typed, default| {
            !typed.run_loadbalancer && typed.loadbalancer_sync_period != default.loadbalancer_sync_period
        },
        reason: NO_ALLOCATOR,
    },
    Idle {
        flag: "advertise-external-ip",
        is_given: |typed, _| {
            let is_on = typed.run_router && typed.advertise_external_ip;
            is_on && typed.strict_external_ip_validation && typed.service_external_ip_range.is_empty()
        },
        reason: "no address is in a range of --service-external-ip-range, which names none",
    },
    Idle {
        flag: "advertise-loadbalancer-ip",
        is_given: |typed, _| {
            let is_on = typed.run_router && typed.advertise_loadbalancer_ip;
            is_on && typed.strict_external_ip_validation && typed.loadbalancer_ip_range.is_empty()
        },
        reason: "no address is in a range of --loadbalancer-ip-range, which names none",
    },
    Idle {
        flag: "bgp-mesh-holdtime",
        is_given: |typed, default| !typed.enable_ibgp && typed.bgp_mesh_holdtime != default.bgp_mesh_holdtime,
        reason: NO_SESSIONS,
    },
    Idle {
        flag: "bgp-mesh-max-prefixes",
        is_given: |typed, default| !typed.enable_ibgp && typed.bgp_mesh_max_prefixes != default.bgp_mesh_max_prefixes,
        reason: NO_SESSIONS,
    },
    Idle {
        flag: "bgp-mesh-ttl-security",
        is_given: |typed, _| !typed.enable_ibgp && typed.bgp_mesh_ttl_security != 0,
        reason: NO_SESSIONS,
    },
    Idle {
        flag: "bgp-mesh-password-file",
        is_given: |typed, _| !typed.enable_ibgp && !typed.bgp_mesh_password_file.is_empty(),
        reason: NO_SESSIONS,
    },
    Idle {
        flag: "node-ip-autodetect",
        is_given: |typed, _| !typed.node_ip_autodetect.is_empty() && !typed.run_router,
        reason: "the router does not run",
    },
    Idle {
        flag: "enable-bfd-mesh",
        is_given: |typed, _| !typed.enable_ibgp && typed.enable_bfd_mesh,
        reason: NO_SESSIONS,
    },
    Idle {
        flag: "bfd-port",
        is_given: |typed, default| !watches(typed) && typed.bfd_port != default.bfd_port,
        reason: NO_BFD,
    },
    Idle {
        flag: "bfd-detection-multiplier",
        is_given: |typed, default| {
            !watches(typed) && typed.bfd_detection_multiplier != default.bfd_detection_multiplier
        },
        reason: NO_BFD,
    },
    Idle {
        flag: "bfd-desired-min-tx-interval",
        is_given: |typed, default| {
            !watches(typed) && typed.bfd_desired_min_tx_interval != default.bfd_desired_min_tx_interval
        },
        reason: NO_BFD,
    },
    Idle {
        flag: "bfd-required-min-rx-interval",
        is_given: |typed, default| {
            !watches(typed) && typed.bfd_required_min_rx_interval != default.bfd_required_min_rx_interval
        },
        reason: NO_BFD,
    },
    Idle { flag: "enable-pprof", is_given: |typed, _| typed.enable_pprof, reason: "this build has no profiler" },
    Idle {
        flag: "hairpin-mode",
        is_given: |typed, _| typed.hairpin_mode && !typed.run_service_proxy,
        reason: "the service proxy does not run",
    },
    Idle {
        flag: "netpol-cni",
        is_given: |typed, _| typed.netpol_cni && !typed.run_firewall,
        reason: "the firewall does not run",
    },
    Idle {
        flag: "netpol-source-guard",
        is_given: |typed, _| typed.netpol_source_guard && !typed.run_firewall,
        reason: "the firewall does not run",
    },
];

/// One sentence for each flag that does nothing. The values of such flags are checked all the same.
pub(super) fn notices(flags: &Flags, mistakes: &mut Mistakes) -> Vec<String> {
    for text in flags.cluster_cidr.split(',').filter(|_| !flags.cluster_cidr.is_empty()) {
        if prefix(text).is_none() {
            mistakes
                .add(format!("--cluster-cidr must be a range like 10.244.0.0/16, or be removed; {text:?} is none."));
        }
    }
    if let Some(period) = flags.config_sync_period {
        mistakes.longer_than_zero("config-sync-period", period, "1m");
    }
    let defaults = defaults();
    let idle = IDLE.iter().filter(|idle| (idle.is_given)(flags, &defaults));
    idle.map(|Idle { flag, reason, .. }| format!("--{flag} has no effect: {reason}.")).collect()
}
