//! Desired rules that choose the routing table of a packet by its source.
//!
//! ```text
//! ip rule add from 10.244.1.0/24 lookup 77
//! ```
//!
//! Kernel: rtnetlink `RTM_*RULE` (include/uapi/linux/fib_rules.h). Ours: every rule with a source that leads to one of our own
//! tables. Their priority is whatever it is: kube-router leaves it to the kernel, which counts down from 32765, and no two of
//! ours concern the same packet. It takes a rule several times, too; deleting one deletes all that are alike.
//!
//! [`PolicyRules`] are those that ask for no address: the packet's mark, or nothing.

mod policy;
mod target;

use std::fmt;

use ipnet::IpNet;

use super::netlink::Answer;

pub use policy::{Packets, Place, PolicyRule, PolicyRules};
pub use target::SourceRules;

const NEW_RULE: u16 = 32;
const DELETE_RULE: u16 = 33;
const GET_RULE: u16 = 34;
/// Length of `struct fib_rule_hdr`.
const HEADER: usize = 12;
const TABLE: u16 = 15;
const PROTOCOL: u16 = 21;
/// `FR_ACT_TO_TBL`.
const TO_TABLE: u8 = 1;
/// `RTPROT_BOOT`, as `ip rule` and kube-router set it.
const BOOT: u8 = 3;

/// Key of a rule, which is all there is to it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RuleKey {
    /// Host bits are zero.
    pub source: IpNet,
    pub table: u32,
}

impl fmt::Display for RuleKey {
    /// As `ip rule` prints it: `from 10.244.1.0/24 lookup 77`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "from {} lookup {}", self.source, self.table)
    }
}

/// Returns the table that a notification of a rule says it leads to, whatever else the rule asks; `None` of anything else.
pub(super) fn told_table(answer: &Answer<'_>) -> Option<u32> {
    if answer.kind != NEW_RULE && answer.kind != DELETE_RULE {
        return None;
    }
    let [_, _, _, _, table, _, _, action, ..] = *answer.header::<HEADER>()?;
    let table = answer.attributes(HEADER).get(TABLE).and_then(|table| table.u32()).unwrap_or_else(|| table.into());
    (action == TO_TABLE).then_some(table)
}
