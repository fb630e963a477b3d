//! Kernel settings that the service proxy needs.
//!
//! Kernel: Documentation/networking/ipvs-sysctl.rst, ip-sysctl.rst. Settings are written only where they differ, and
//! never restored: their earlier values are not known.
//!
//! - `vs/conntrack`: connections that IPVS translates are tracked, so that rules and masquerading apply to them.
//! - `vs/expire_nodest_conn`: a connection to a destination that is gone ends, in place of being dropped silently.
//! - `vs/expire_quiescent_template`: session affinity does not bind a client to a destination of weight 0.
//! - `vs/conn_reuse_mode`: before Linux 5.9 a reused port cost a second of delay unless this was 0; since then
//!   0 only sends clients that reuse a port to backends that are gone, so there it is 1.
//! - `vs/sloppy_tcp`: a segment in the middle of an unknown connection is scheduled as if it opened one. So a client whose packets come to another
//!   node finds the same endpoint there, where the scheduler is `mh` and answers do not pass the node: from the first Service on that is served in that way.
//!   Where it stays behind it does no harm: such a segment to a Service with NAT is answered with a reset by an endpoint, in place of this host.
//! - `vs/pmtu_disc`: 0 while an IPv4 port is in tunnel mode: a packet that is too long for the tunnel, and may not be fragmented, is sent on in fragments of the packet around it, and the
//!   pod gets it whole. With 1 the kernel drops it and would tell the client by ICMP, for which it takes no address in tunnel mode as source, so the client would hear nothing. It concerns IPv4 in tunnel mode alone,
//!   so it does no harm where it stays behind. (IPv6 has no such setting: clients are told.)
//! - `arp_ignore`, `arp_announce`: a service address is not announced by ARP from the wrong device.
//! - `rp_filter`: strict filtering drops replies that come another way than the request left; it is made
//!   loose where it is strict, and left off where it is off, on the links of all addresses of the Node. While an IPv4 port is in tunnel mode, pods answer with its address as source, to which no route leads where
//!   they are: such an answer leaves its pod by any link of a pod, and comes to a pod of another node by any tunnel between the nodes. Of `all` and of a device the larger number counts, so `all` is 2 then where any device, or
//!   `default`, is 1: also for links of pods and tunnels that come later, between which and their first packet nobody has to be fast. Where nothing is strict it stays off. To set the links of these pods alone would leave the
//!   others strict, and needs the way to each pod; it would be too late for the first packets of each new one. Where distributions have `all` at 1 every device is loose with this program in any case.
//! - `bridge-nf-call-*`: what pods of one node send each other through a service passes IPVS on its way back.

use std::collections::BTreeMap;

use compact_str::{CompactString, format_compact};

use crate::kernel::sysctl::{Setting, WantedSetting};

use super::local_node::LocalNode;
use super::names::{BRIDGE, DEVICE};

/// The first kernel version that handles reused ports by itself: 5.9.
const REUSE_FIXED_IN: (u32, u32) = (5, 9);

/// Ports in tunnel mode, as far as settings follow from them.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct InTunnelMode {
    /// Any port of an IPv4 address.
    pub is_any_v4: bool,
    /// Connections that another director has opened are taken over.
    pub takes_over: bool,
}

/// Returns the desired value of each setting, on a kernel of this version (major, minor).
pub fn settings(node: &LocalNode, kernel: (u32, u32), tunnels: InTunnelMode) -> BTreeMap<Setting, WantedSetting> {
    let mut settings = BTreeMap::new();
    let mut always = |path: &str, value: &str| {
        settings.insert(Setting(path.into()), WantedSetting::Always(value.into()));
    };
    always("net/ipv4/vs/conntrack", "1");
    always("net/ipv4/vs/expire_nodest_conn", "1");
    always("net/ipv4/vs/expire_quiescent_template", "1");
    always("net/ipv4/vs/conn_reuse_mode", if kernel < REUSE_FIXED_IN { "0" } else { "1" });
    if tunnels.takes_over {
        always("net/ipv4/vs/sloppy_tcp", "1");
    }
    if tunnels.is_any_v4 {
        always("net/ipv4/vs/pmtu_disc", "0");
    }
    if node.families.v4 {
        always("net/ipv4/conf/all/arp_ignore", "1");
        always("net/ipv4/conf/all/arp_announce", "2");
        always("net/bridge/bridge-nf-call-iptables", "1");
        let of_node = node.links.iter().filter(|(address, _)| address.is_ipv4()).map(|(_, link)| link.clone());
        for device in ["all", BRIDGE, DEVICE].into_iter().map(CompactString::from).chain(of_node) {
            let strict_to_loose = WantedSetting::InsteadOf { old: "1".into(), new: "2".into() };
            settings.insert(Setting(format_compact!("net/ipv4/conf/{device}/rp_filter")), strict_to_loose);
        }
        if tunnels.is_any_v4 {
            let of_any = WantedSetting::InsteadOfAny { old: "1".into(), new: "2".into() };
            settings.insert(Setting("net/ipv4/conf/all/rp_filter".into()), of_any);
        }
    }
    if node.families.v6 {
        settings.insert(Setting("net/bridge/bridge-nf-call-ip6tables".into()), WantedSetting::Always("1".into()));
    }
    settings
}

/// Parses the major and minor version of a kernel release: `6.1.0-56-cloud-amd64` is (6, 1).
pub fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions_are_read_from_their_release() {
        assert_eq!(kernel_version("6.1.0-56-cloud-amd64"), Some((6, 1)));
        assert_eq!(kernel_version("5.10"), Some((5, 10)));
        assert_eq!(kernel_version("nonsense"), None);
    }

    #[test]
    fn reused_ports_are_left_to_kernels_that_can() {
        let mode = |kernel| {
            let settings = settings(&LocalNode::default(), kernel, InTunnelMode::default());
            settings[&Setting("net/ipv4/vs/conn_reuse_mode".into())].clone()
        };
        assert_eq!(mode((5, 8)), WantedSetting::Always("0".into()));
        assert_eq!(mode((6, 1)), WantedSetting::Always("1".into()));
    }
}
