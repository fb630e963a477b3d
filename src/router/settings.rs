//! Kernel settings and modules that pod networking needs.
//!
//! Packets between pods of one node over the bridge shall pass the same rules as everything else
//! (`bridge-nf-call-iptables`, which the module `br_netfilter` provides). Where IPv6 is enabled, the kernel shall not
//! have it disabled. Forwarding itself is enabled by the CNI plugin, with the first pod.

use std::collections::BTreeMap;

use crate::config::RouterConfig;
use crate::kernel::sysctl::{Setting, WantedSetting};
use crate::net::PerFamily;

/// Returns the desired settings.
pub fn settings(families: PerFamily<bool>) -> BTreeMap<Setting, WantedSetting> {
    let always = |name: &str, value: &str| (Setting(name.into()), WantedSetting::Always(value.into()));
    let mut settings = BTreeMap::from([always("net/bridge/bridge-nf-call-iptables", "1")]);
    if families.v6 {
        settings.extend([
            always("net/bridge/bridge-nf-call-ip6tables", "1"),
            always("net/ipv6/conf/all/disable_ipv6", "0"),
        ]);
    }
    settings
}

/// Returns the modules that are loaded at the start.
pub fn modules(config: &RouterConfig, families: PerFamily<bool>) -> Vec<&'static str> {
    let is_udp = config.overlay.is_some_and(|overlay| overlay.encapsulation.gue_port().is_some());
    let mut modules = vec!["br_netfilter"];
    modules.extend((is_udp && families.v4).then_some("fou"));
    modules.extend((is_udp && families.v6).then_some("fou6"));
    let is_vxlan = config.overlay.is_some_and(|overlay| overlay.encapsulation.vxlan().is_some());
    modules.extend(is_vxlan.then_some("vxlan"));
    let is_wireguard = config.overlay.is_some_and(|overlay| overlay.encapsulation.wireguard().is_some());
    modules.extend(is_wireguard.then_some("wireguard"));
    modules
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::router::given::config;

    #[test]
    fn only_what_is_on_is_asked_for() {
        let names = |v6| settings(PerFamily { v4: true, v6 }).len();
        assert_eq!((names(false), names(true)), (1, 3));
        let modules = |words: &[&str], v6| modules(&config(words), PerFamily { v4: true, v6 });
        assert_eq!(modules(&[], true), ["br_netfilter"]);
        assert_eq!(modules(&["--overlay-encap=vxlan"], true), ["br_netfilter", "vxlan"]);
        assert_eq!(modules(&["--overlay-encap=wireguard"], true), ["br_netfilter", "wireguard"]);
        assert_eq!(modules(&["--overlay-encap=fou"], false), ["br_netfilter", "fou"]);
        assert_eq!(modules(&["--overlay-encap=fou"], true), ["br_netfilter", "fou", "fou6"]);
        assert_eq!(modules(&["--overlay-encap=fou", "--enable-overlay=false"], true), ["br_netfilter"]);
    }
}
