//! Meaning of ipset's own error numbers.
//!
//! Kernel: `enum ipset_errno` of include/uapi/linux/netfilter/ipset/ip_set.h for the core, and above 4351
//! include/uapi/linux/netfilter/ipset/ip_set_hash.h for the hash types, which are the only ones in use here.

use rustix::io::Errno;

use crate::kernel::netlink::{Fault, Refusal};
use crate::kernel::{Cause, Error, module};

/// The error numbers above this one are ipset's own.
pub(super) const LAST_OF_SYSTEM: i32 = 4095;
pub(super) const BUSY: i32 = 4100;
pub(super) const TYPE_MISMATCH: i32 = 4102;
pub(super) const REFERENCED: i32 = 4108;
pub(super) const HASH_FULL: i32 = 4352;

/// The kernel's answer in words.
pub(super) fn cause(fault: Fault) -> Cause {
    match fault {
        Fault::Refused(refusal) if refusal.errno > LAST_OF_SYSTEM => {
            Cause::Ipset(refusal.errno, meaning(refusal.errno))
        }
        // The answer of a kernel without the subsystem; nothing that we send provokes it otherwise.
        Fault::Refused(Refusal { errno: libc::EINVAL, .. }) => {
            let text = match module::is_present("ip_set") {
                true => "the kernel refuses what was asked of ipset".to_owned(),
                false => format!(
                    "kernel module ip_set is not there, or refuses what was asked; {}",
                    module::remedy("ip_set")
                ),
            };
            Cause::Errno(Errno::OPNOTSUPP, Some(text))
        }
        other => other.into(),
    }
}

pub(super) fn error(operation: &'static str, object: &str, fault: Fault) -> Error {
    Error::new(operation, object, cause(fault))
}

fn meaning(number: i32) -> &'static str {
    match number {
        4097 => "the message is not what this version of ipset understands",
        4098 => "this kernel does not have this type of set, or not in this revision",
        4099 => "there are as many sets as the kernel can have",
        BUSY => "the set is in use",
        4101 => "a set with the second name exists already",
        TYPE_MISMATCH => "the sets are of different types",
        // For additions: it is there; for tests and deletions: it is not.
        4103 => "the element is there already, or is not there",
        4104 => "the prefix length is invalid",
        4105 => "the netmask is invalid",
        4106 => "the address family does not fit the type of the set",
        4107 => "the set was made without timeouts",
        REFERENCED => "the set is in use by another set",
        4109 => "an IPv4 address is wanted",
        4110 => "an IPv6 address is wanted",
        4111 => "the set was made without counters",
        4112 => "the set was made without comments",
        4113 => "the mask of the mark is invalid",
        4114 => "the set was made without packet information",
        HASH_FULL => "the set is full",
        4353 => "the element is empty",
        4354 => "the protocol is invalid",
        4355 => "the protocol is missing",
        4356 | 4357 => "the range is invalid",
        _ => "an error that this program does not know",
    }
}
