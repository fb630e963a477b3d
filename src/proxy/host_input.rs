//! Lets packets for ports of Services pass a host's own chain `INPUT` that drops (ufw makes it so), as kube-router's rules do.
//!
//! With iptables the guard stands at the top of that chain. With nftables it is in a table of our own, and what that accepts the host's
//! may still drop. So the guard marks what it accepts, one rule in `INPUT` of iptables-nft lets the mark pass
//! (`kernel::nftables::passages`), and a chain behind it takes the mark away before IPVS looks at it:
//!
//! ```text
//! chain service_guard  { type filter hook input priority filter - 5; ip daddr . meta l4proto . th dport @ports4 meta mark set meta mark | 0x20000 accept … }
//! iptables -I INPUT -m mark --mark 0x20000/0x20000 -m comment --comment "allow traffic to ports of Services" -j ACCEPT
//! chain service_marks { type filter hook input priority filter + 1; meta mark & 0x20000 == 0x20000 meta mark set meta mark & ~0x20000 }
//! ```
//!
//! Chains of legacy iptables and tables of others (firewalld) that drop cannot be opened so (`docs/differences.md`).

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::kernel::nftables::passages::{Passage, Passing};
use crate::kernel::nftables::rule::Mark;
use crate::kernel::nftables::{Base, BaseKind, Chain, Content, Hook, Match, Object, Rule, Statement};
use crate::net::Family;

use super::names::NFT_MARKS;

/// The bit by which the host's chain knows what the guard has accepted: kube-router's for packets that passed. No packet has it from us anywhere else.
const ACCEPTED: Mark = Mark { value: 0x20000, mask: 0x20000 };

/// Behind the host's own rules, before IPVS, which looks for virtual services by marks too.
const PRIORITY: i32 = 1;

const SERVICES: &str = "allow traffic to ports of Services";

/// The comments of the rules, by which ours are known.
pub const COMMENTS: [&str; 1] = [SERVICES];

/// Returns the statement by which the guard marks what it accepts.
pub fn accepted() -> Statement {
    Statement::SetMark(ACCEPTED)
}

/// Returns the rules in the host's own chain `INPUT`.
pub fn passages(families: &[Family]) -> BTreeMap<Passage, Passing> {
    let key = |family: &Family| Passage { family: *family, comment: SERVICES };
    families.iter().map(|family| (key(family), Passing::Marked(ACCEPTED))).collect()
}

/// Returns the chain that takes the mark away.
pub fn table_chains() -> BTreeMap<Object, Content> {
    let marked = Match::Mark { mark: ACCEPTED, negated: false };
    let cleared = Statement::SetMark(Mark { value: 0, ..ACCEPTED });
    let rules = vec![Rule::with([marked], [cleared], None)];
    let base = Base { kind: BaseKind::Filter, hook: Hook::Input, priority: PRIORITY };
    BTreeMap::from([(Object::Chain(NFT_MARKS.into()), Content::Chain(Arc::new(Chain { base: Some(base), rules })))])
}
