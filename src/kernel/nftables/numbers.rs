//! The kernel's numbers in expressions (include/uapi/linux/netfilter/nf_tables.h).

/// Where bytes of a packet are counted from.
pub mod base {
    pub const LINK: u32 = 0;
    pub const NETWORK: u32 = 1;
    pub const TRANSPORT: u32 = 2;
}

pub mod meta {
    pub const ETHER_TYPE: u32 = 1;
    pub const MARK: u32 = 3;
    pub const INPUT_LINK: u32 = 6;
    pub const OUTPUT_LINK: u32 = 7;
    pub const INPUT_TYPE: u32 = 8;
    pub const FAMILY: u32 = 15;
    pub const PROTOCOL: u32 = 16;
    pub const INPUT_BRIDGE: u32 = 17;
}

pub mod connection {
    pub const STATE: u32 = 0;
    pub const DIRECTION: u32 = 1;
    pub const MARK: u32 = 3;
    pub const DESTINATION_PORT: u32 = 12;
    pub const DESTINATION_IPV4: u32 = 20;
    pub const DESTINATION_IPV6: u32 = 22;
    pub const ORIGINAL: u8 = 0;
    pub const REPLY: u8 = 1;
}

pub mod fib {
    pub const ADDRESS_TYPE: u32 = 3;
    pub const SOURCE: u32 = 1;
    pub const DESTINATION: u32 = 2;
    /// `RTN_LOCAL`, `RTN_BROADCAST`, `RTN_MULTICAST` (include/uapi/linux/rtnetlink.h).
    pub const LOCAL: u32 = 2;
    pub const BROADCAST: u32 = 3;
    pub const MULTICAST: u32 = 5;
}

pub mod compare {
    pub const EQUAL: u32 = 0;
    pub const UNEQUAL: u32 = 1;
    pub const AT_MOST: u32 = 3;
    pub const AT_LEAST: u32 = 5;
}

pub mod tcp {
    /// `TCPOPT_MSS` (include/net/tcp.h), `NFT_EXTHDR_OP_TCPOPT`, and where its value stands: offset, length, kind of header.
    pub const MSS: u8 = 2;
    pub const IN_OPTION: u32 = 1;
    pub const MSS_PLACE: [Option<u32>; 3] = [Some(2), Some(2), Some(IN_OPTION)];
    /// Where the flags stand in the header (RFC 9293 3.1).
    pub const FLAGS: u32 = 13;
}

pub mod nat {
    /// The kernel adds this itself.
    pub const ADDRESSES: u32 = 1;
    /// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`.
    pub const RANDOM_PORTS: u32 = 16;
}

pub mod reject {
    /// `NFT_REJECT_ICMPX_UNREACH`: the code is the kernel's own and means the same in both families.
    pub const ANY_FAMILY: u32 = 2;
    pub const PORT_UNREACHABLE: u8 = 1;
}
