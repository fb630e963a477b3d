//! Kernel settings by which rules see the packets between pods on one bridge.
//!
//! `br_netfilter` shows frames between two ports of a bridge to iptables, IPv4 and IPv6 by one setting each. Where pods are
//! on a bridge these settings have to be there, with their module. Elsewhere they are set where they exist, because a
//! bridge may come.
//!
//! Kernel: Documentation/networking/ip-sysctl ("bridge-nf-*").

use std::collections::BTreeMap;

use crate::kernel::sysctl::{Setting, Wanted};

/// Modules that the kernel does not load on first use.
pub const MODULES: [&str; 1] = [BRIDGE_FILTER];

const BRIDGE_FILTER: &str = "br_netfilter";

const CALLS: [&str; 2] = ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"];

/// Returns the desired settings. `pods_on_bridge`: pods of this node are, or may be, on a bridge.
pub fn settings(pods_on_bridge: bool) -> BTreeMap<Setting, Wanted> {
    let on = || "1".into();
    match pods_on_bridge {
        true => CALLS
            .into_iter()
            .map(|path| (Setting(path.into()), Wanted::OfModule { value: on(), module: BRIDGE_FILTER }))
            .collect(),
        false => CALLS.into_iter().map(|path| (Setting(path.into()), Wanted::Always(on()))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pods_on_a_bridge_need_the_module() {
        assert!(settings(true).values().all(|wanted| matches!(wanted, Wanted::OfModule { .. })));
        assert!(settings(false).values().all(|wanted| matches!(wanted, Wanted::Always(_))));
    }
}
