//! The Generalized TTL Security Mechanism (RFC 5082): whoever sends with the highest TTL shows by what is left of it how far away it is.

/// Returns the least TTL, or hop limit of IPv6, of packets from this many hops away; 1 is a neighbour on our link, and so is 0.
pub fn least_ttl(hops: u8) -> u8 {
    u8::MAX - hops.max(1) + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_router_on_the_way_takes_one() {
        assert_eq!([0, 1, 2, 255].map(least_ttl), [255, 255, 254, 1]);
    }
}
