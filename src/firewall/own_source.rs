//! IPv6 packets that come to this host from elsewhere with an address of the host itself as source.
//!
//! Linux takes no IPv4 packet with such a source from a link (a martian, `fib_validate_source`, unless `accept_local` is set). For IPv6 it looks
//! at loopback and multicast alone. What the host sends to its pods passes whatever their policies say, for the kubelet's probes, and IPVS sends on
//! what arrives for a Service with its source unchanged. So a pod that sends to a Service with an address of its node would reach every
//! endpoint on the node, past that pod's policies; so would anybody outside from whom such packets get here.
//!
//! They are dropped where they enter the host, before IPVS, from all links but `lo`: what the host sends to itself comes by that one. Not those that belong to
//! a connection; not link-local sources, because another host may have the same one on another link (`fe80::1` is common); not
//! those to groups, because the kernel gives the host its own packets to a group back by the link that they leave by.
//!
//! Answers of direct server return have a service address as source. It is no address of the host: an address in tunnel mode is local for marked packets
//! alone (`proxy/dsr/rules.rs`), for the sake of IPv4, and neither backend asks with the mark. Other service addresses, which every node has as
//! its own, nobody sends from but a node to itself.
//!
//! The road not taken: the same for packets that the host routes on, or that pass a bridge. No pod is reached past its policies there, because what is forwarded is
//! judged whatever its source is; and a host may be a port of its own bridge (a veth pair), whose packets show up there with its address. That a
//! pod poses as its node to others is what `--netpol-source-guard` prevents.

/// The link by which the host sends to itself.
pub const LOOPBACK: &str = "lo";

/// The words of the rule, for who reads the kernel's rules.
pub const SAID: &str = "from elsewhere with an address of this host";
