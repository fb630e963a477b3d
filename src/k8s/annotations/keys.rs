//! The keys of annotations: a contract with manifests that exist.

/// How all of ours on a Service begin.
pub const SERVICE_PREFIX: &str = "kube-router.io/service.";
pub const SERVICE_SCHEDULER: &str = "kube-router.io/service.scheduler";
pub const SERVICE_SCHEDFLAGS: &str = "kube-router.io/service.schedflags";
pub const SERVICE_LOCAL: &str = "kube-router.io/service.local";
pub const SERVICE_SKIP_LB_IPS: &str = "kube-router.io/service.skiplbips";
pub const SERVICE_ADVERTISE_CLUSTER_IP: &str = "kube-router.io/service.advertise.clusterip";
pub const SERVICE_ADVERTISE_EXTERNAL_IP: &str = "kube-router.io/service.advertise.externalip";
pub const SERVICE_ADVERTISE_LOAD_BALANCER_IP: &str = "kube-router.io/service.advertise.loadbalancerip";
pub const SERVICE_DSR: &str = "kube-router.io/service.dsr";
pub const SERVICE_HAIRPIN: &str = "kube-router.io/service.hairpin";
pub const SERVICE_HAIRPIN_EXTERNAL: &str = "kube-router.io/service.hairpin.externalips";
pub const NODE_POD_CIDR: &str = "kube-router.io/pod-cidr";
pub const NODE_POD_CIDRS: &str = "kube-router.io/pod-cidrs";
pub const NODE_ASN: &str = "kube-router.io/node.asn";
pub const NODE_REFLECTOR_SERVER: &str = "kube-router.io/rr.server";
pub const NODE_REFLECTOR_CLIENT: &str = "kube-router.io/rr.client";
pub const NODE_PREPEND_AS: &str = "kube-router.io/path-prepend.as";
pub const NODE_PREPEND_REPEAT: &str = "kube-router.io/path-prepend.repeat-n";
pub const NODE_COMMUNITIES: &str = "kube-router.io/node.bgp.communities";
pub const NODE_IMPORT_REJECT: &str = "kube-router.io/node.bgp.customimportreject";
pub const NODE_PEERS: &str = "kube-router.io/peers";
pub const NODE_PEER_IPS: &str = "kube-router.io/peer.ips";
pub const NODE_PEER_ASNS: &str = "kube-router.io/peer.asns";
pub const NODE_PEER_PORTS: &str = "kube-router.io/peer.ports";
pub const NODE_PEER_PASSWORDS: &str = "kube-router.io/peer.passwords";
pub const NODE_PEER_LOCAL_IPS: &str = "kube-router.io/peer.localips";
pub const NODE_WIREGUARD_KEY: &str = crate::model::WIREGUARD_KEY_ANNOTATION;
pub const NODE_WIREGUARD_NEXT_KEY: &str = crate::model::WIREGUARD_NEXT_KEY_ANNOTATION;
pub const NODE_ADDRESS: &str = crate::model::NODE_ADDRESS_ANNOTATION;
pub const NODE_BGP_LOCAL_ADDRESSES: &str = "kube-router.io/bgp-local-addresses";

/// Kubernetes' own, older than the field `spec.loadBalancerSourceRanges`.
pub const SERVICE_SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
/// Older than NetworkPolicy v1, and not in kube-router's own domain either.
pub const NAMESPACE_ISOLATION: &str = "net.beta.kubernetes.io/network-policy";
