//! `fou`: the devices of [`ipip`](super::ipip), with a UDP port and a TTL of their own.

/// kube-router's TTL of tunnels inside UDP.
pub(super) const TTL: u8 = 225;
