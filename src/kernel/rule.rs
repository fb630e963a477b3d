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

pub use policy::{Packets, Place, PolicyRule, PolicyRules};
pub use target::SourceRules;

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
