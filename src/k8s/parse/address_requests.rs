//! Annotations with which a Service asks for addresses, and those that look like one and are none: a request that is never heard looks like one
//! that was granted otherwise.

use std::collections::BTreeMap;

use crate::k8s::annotations::distance;

/// Annotations that ask for addresses, one for each family, with commas between them.
pub const ADDRESS_ANNOTATIONS: [&str; 4] = [
    "metallb.io/loadBalancerIPs",
    "metallb.universe.tf/loadBalancerIPs",
    "lbipam.cilium.io/ips",
    "io.cilium/lb-ipam-ips",
];
/// Annotations that ask for the addresses of one pool.
pub const POOL_ANNOTATIONS: [&str; 2] = ["metallb.io/address-pool", "metallb.universe.tf/address-pool"];
/// Annotations with which a Service agrees to share its address.
pub const SHARING_ANNOTATIONS: [&str; 4] = [
    "metallb.io/allow-shared-ip",
    "metallb.universe.tf/allow-shared-ip",
    "lbipam.cilium.io/sharing-key",
    "io.cilium/lb-ipam-sharing-key",
];

/// Annotations of these domains ask for addresses.
const DOMAINS: [&str; 4] = ["metallb.io/", "metallb.universe.tf/", "lbipam.cilium.io/", "io.cilium/lb-ipam-"];
/// Annotations that MetalLB itself writes.
const WRITTEN: [&str; 2] = ["metallb.io/ip-allocated-from-pool", "metallb.universe.tf/ip-allocated-from-pool"];
/// Cilium's, with which a Service shares its address across namespaces.
const ACROSS_NAMESPACES: [&str; 2] =
    ["lbipam.cilium.io/sharing-cross-namespace", "io.cilium/lb-ipam-sharing-cross-namespace"];
/// A key that has none of these words, in any case, is not looked at any further: an object may have thousands of annotations.
const WORDS: [&str; 8] =
    ["metal", "cilium", "lbipam", "lb-ipam", "loadbalancerip", "address-pool", "allow-shared", "sharing-key"];
/// Most letters by which a key may differ from the one that was meant.
const NEAR: usize = 2;
/// Most keys of one object that are named.
const MOST: usize = 8;
/// Most keys of one object that are compared with those that are known: whoever may write one object must not keep everybody waiting.
const COMPARED: usize = 64;

/// Returns a sentence about each annotation that is misspelt, or has no effect here.
pub fn misspelt(annotations: &BTreeMap<String, String>) -> Vec<String> {
    let similar = annotations.keys().filter(|key| is_similar(key)).take(COMPARED);
    similar.filter_map(|key| remark(key)).take(MOST).collect()
}

fn is_similar(key: &str) -> bool {
    let lower = key.to_ascii_lowercase();
    WORDS.iter().any(|word| lower.contains(word))
}

fn remark(key: &str) -> Option<String> {
    let known = || [&ADDRESS_ANNOTATIONS[..], &POOL_ANNOTATIONS, &SHARING_ANNOTATIONS].into_iter().flatten();
    if known().any(|known| known == &key) || WRITTEN.contains(&key) {
        return None;
    }
    if ACROSS_NAMESPACES.contains(&key) {
        return Some(format!("{key} has no effect: Services of one namespace alone share an address"));
    }
    if !is_similar(key) {
        return None;
    }
    let lower = key.to_ascii_lowercase();
    let near = known().filter(|known| known.len().abs_diff(key.len()) <= NEAR);
    let nearest = near.map(|known| (distance(&lower, &known.to_ascii_lowercase()), known)).min();
    let meant = nearest.filter(|(far, _)| *far <= NEAR).map(|(_, known)| known);
    let is_of_domain = DOMAINS.iter().any(|domain| lower.starts_with(domain));
    let text = || format!("{key}: no annotation that asks for an address is called so, and it has no effect");
    match meant {
        Some(meant) => Some(format!("{}; {meant} may be meant", text())),
        None => is_of_domain.then(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_request_is_named_with_what_may_be_meant() {
        for (key, meant) in [
            ("metallb.io/loadBalancerIP", "metallb.io/loadBalancerIPs"),
            ("metallb.io/loadbalancerips", "metallb.io/loadBalancerIPs"),
            ("metalb.io/loadBalancerIPs", "metallb.io/loadBalancerIPs"),
            ("metallb.universe.tf/adress-pool", "metallb.universe.tf/address-pool"),
            ("lbipam.cilium.io/ip", "lbipam.cilium.io/ips"),
            ("io.cilium/lb-ipam-ip", "io.cilium/lb-ipam-ips"),
            ("lbipam.cilium.io/sharing-keys", "lbipam.cilium.io/sharing-key"),
            ("metallb.io/allow-shared-ips", "metallb.io/allow-shared-ip"),
        ] {
            let remark = remark(key).expect(key);
            assert!(remark.starts_with(key) && remark.ends_with(&format!("; {meant} may be meant")), "{remark}");
        }
        let far = remark("metallb.io/addresses-of-mine").expect("it is of that domain");
        assert!(far.ends_with("has no effect"), "{far}");
        assert!(
            remark("lbipam.cilium.io/sharing-cross-namespace").is_some_and(|text| text.contains("one namespace alone"))
        );
    }

    #[test]
    fn what_is_right_and_what_is_no_request_is_not_named() {
        let others =
            ["metallb.io/ip-allocated-from-pool", "kube-router.io/service.dsr", "service.cilium.io/global", "a"];
        for key in [&ADDRESS_ANNOTATIONS[..], &POOL_ANNOTATIONS, &SHARING_ANNOTATIONS, &others].concat() {
            assert_eq!(remark(key), None, "{key}");
        }
    }

    #[test]
    fn of_very_many_keys_a_few_are_named() {
        let all = (0..100).map(|number| (format!("metallb.io/x{number}"), String::new())).collect();
        assert_eq!(misspelt(&all).len(), MOST);
        // Many that are near something known are no remark; what comes behind them is not looked at.
        let mut all: BTreeMap<_, _> =
            (0..COMPARED).map(|number| (format!("a-metal/{number:02}"), String::new())).collect();
        all.insert("metallb.io/loadBalancerIP".to_owned(), String::new());
        assert_eq!(misspelt(&all), [""; 0]);
        all.pop_first();
        assert_eq!(misspelt(&all).len(), 1);
    }
}
