//! Kernel settings by which rules see the packets between pods on one bridge.
//!
//! `br_netfilter` shows frames between two ports of a bridge to iptables: IPv4 and IPv6 by one setting each, and tagged
//! frames by another. A frame with a tag of VLAN 0 belongs to no VLAN (IEEE 802.1Q: a priority tag), so every pod takes it
//! as untagged, and none of the rules would see it.
//!
//! Where pods are on a bridge these settings have to be there, with their module. Elsewhere they are set where they exist,
//! because a bridge may come; tagged frames stay as they are there, since they are those of other bridges.
//!
//! Kernel: Documentation/networking/ip-sysctl ("bridge-nf-*").

use std::collections::BTreeMap;

use crate::kernel::sysctl::{Setting, WantedSetting};

/// Modules that the kernel does not load on first use.
pub const MODULES: [&str; 1] = [BRIDGE_FILTER];

const BRIDGE_FILTER: &str = "br_netfilter";

const CALLS: [&str; 2] = ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"];
const TAGGED: &str = "net/bridge/bridge-nf-filter-vlan-tagged";

/// Returns the desired settings. `pods_on_bridge`: pods of this node are, or may be, on a bridge.
pub fn settings(pods_on_bridge: bool) -> BTreeMap<Setting, WantedSetting> {
    let on = || "1".into();
    match pods_on_bridge {
        true => CALLS
            .into_iter()
            .chain([TAGGED])
            .map(|path| (Setting(path.into()), WantedSetting::OfModule { value: on(), module: BRIDGE_FILTER }))
            .collect(),
        false => CALLS.into_iter().map(|path| (Setting(path.into()), WantedSetting::Always(on()))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tagged_frames_of_others_stay_as_they_are() {
        let names = |pods_on_bridge| settings(pods_on_bridge).into_keys().map(|setting| setting.to_string());
        assert!(names(true).any(|name| name == TAGGED) && !names(false).any(|name| name == TAGGED));
        assert!(
            settings(false).values().all(|wanted| matches!(wanted, WantedSetting::Always(_))),
            "no bridge, no module"
        );
    }
}
