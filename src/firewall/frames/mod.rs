//! Frames that lead past the rules of policies, dropped: those with more than one tag of a VLAN where a pod's bridge receives them, and those to the groups
//! that bridges do not forward where the host takes what is in them.
//!
//! ```text
//! table bridge sluice_frames {
//!     set bridges { type ifname; elements = { "kube-bridge" } }
//!     chain two_tags {
//!         type filter hook prerouting priority filter
//!         meta protocol 8021q meta ibrname @bridges counter name two_tags drop
//!         meta protocol 8021ad meta ibrname @bridges counter name two_tags drop
//!     }
//! }
//! ```
//!
//! A kernel takes off the tag of a frame that it receives, one, and `br_netfilter` shows what is behind it to the rules where it is IPv4 or
//! IPv6 (`settings`). Behind a second tag it shows nothing, whatever its settings. The pod that receives the frame takes off both, if they
//! are of VLAN 0, and has a packet that nobody has judged. So nothing with a second tag passes a bridge on which policies are in force
//! (`bridges`). Frames with one tag go on, those of a VLAN inside a pod too.
//!
//! The table is the same with both backends, because iptables has no rules for frames: it needs nf_tables with the family `bridge`
//! (`CONFIG_NF_TABLES_BRIDGE`) that tells by which bridge a frame came (`nft_meta_bridge`). Where the kernel has none, that is said at the start, and such frames pass.
//!
//! ```text
//! table inet sluice_frames {
//!     chain bridge_group {
//!         type filter hook prerouting priority -450
//!         ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00 counter name bridge_group drop
//!     }
//! }
//! ```
//!
//! A bridge keeps frames to 01:80:c2:00:00:00 to 0f to itself (IEEE 802.1Q 8.6.3), and the host takes them as ones that came by the port: no
//! hook of the family `bridge` sees all of them, and rules about what comes from the bridge (`link_local`) see none. No packet of IPv4 or IPv6 is ever
//! sent to these groups (RFC 1112 6.4, RFC 2464 7), so what comes in such a frame is dropped, whatever link it comes by. Before connection tracking puts fragments
//! together.

use std::collections::BTreeMap;
use std::fmt;

use compact_str::CompactString;

use crate::kernel::nftables::{
    Base, BaseKind, Chain, Content, Fields, Hook, Key, Kind, Lookup, Match, Name, Object, OwnTable, Rule, SetSpec,
    Statement, Verdict,
};
use crate::model::{Authority, ObjectName};
use crate::reconcile::{Growth, Mirror, Moment, Optional, Reflection, Target};

use super::link_local;
use super::rules::RuleSet;

pub mod linux;

/// The contents of a table.
pub type Contents = BTreeMap<Object, Content>;

/// The desired contents of both tables.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Frames {
    /// Of the family `bridge`.
    pub tags: Contents,
    /// Of the family `inet`.
    pub groups: Contents,
}

/// A table as a kind of kernel objects; not used where the kernel has none.
pub type FrameTable = Optional<OwnTable>;

/// The tables, one of the family `bridge` and one of the family `inet`.
pub const TABLE: &str = "sluice_frames";

/// The names of the kinds.
pub const NAME: &str = "bridge rules";
pub const GROUPS_NAME: &str = "bridge group rules";

/// Why packets are dropped here, in the metrics.
pub const REASONS: [&str; 2] = ["vlan-tags", "bridge-group"];

const TWO_TAGS: &str = "two_tags";
const BRIDGE_GROUP: &str = "bridge_group";
const BRIDGES: &str = "pod_bridges";

/// The EtherTypes of tags: 802.1Q and 802.1ad.
const TAGS: [u16; 2] = [0x8100, 0x88a8];

/// `filter` of the family `bridge` (`NF_BR_PRI_FILTER_BRIDGED`): before `br_netfilter`.
const PRIORITY: i32 = -200;

/// `NF_IP_PRI_RAW_BEFORE_DEFRAG`: before fragments are put together.
const BEFORE_FRAGMENTS: i32 = -450;

/// Returns the contents of the tables where policies are in force on these bridges.
pub fn frames(bridges: &[CompactString]) -> Frames {
    if bridges.is_empty() {
        return Frames::default();
    }
    Frames { tags: tags(bridges), groups: groups() }
}

fn groups() -> Contents {
    let counter = Name::from(BRIDGE_GROUP);
    let base = Base { kind: BaseKind::Filter, hook: Hook::Prerouting, priority: BEFORE_FRAGMENTS };
    let rule = Rule::with([Match::ToBridgeGroup], [Statement::Count(counter.clone())], Some(Verdict::Drop));
    let chain = Chain { base: Some(base), rules: vec![rule] };
    [(Object::Counter(counter.clone()), Content::Counter), (Object::Chain(counter), Content::Chain(chain.into()))]
        .into()
}

fn tags(bridges: &[CompactString]) -> Contents {
    let (counter, set) = (Name::from(TWO_TAGS), Name::from(BRIDGES));
    let with_tag = |number| {
        let tagged = Match::EtherType { number, negated: false };
        let by_pods = Match::InSet { lookup: Lookup::InputBridge, set: set.clone(), negated: false };
        Rule::with([tagged, by_pods], [Statement::Count(counter.clone())], Some(Verdict::Drop))
    };
    let base = Base { kind: BaseKind::Filter, hook: Hook::Prerouting, priority: PRIORITY };
    let chain = Chain { base: Some(base), rules: TAGS.map(with_tag).into() };
    let spec = SetSpec { fields: Fields::Link, kind: Kind::Set, intervals: false };
    let element =
        |bridge: &CompactString| (Object::Element(set.clone(), Key::Link(bridge.as_str().into())), Content::Element);
    let fixed = [
        (Object::Counter(counter.clone()), Content::Counter),
        (Object::Set(set.clone()), Content::Set(spec)),
        (Object::Chain(TWO_TAGS.into()), Content::Chain(chain.into())),
    ];
    fixed.into_iter().chain(bridges.iter().map(element)).collect()
}

/// A table of frames: in the kernel, or in memory for tests.
pub trait FrameRules: Target<Key = Object, Value = Content> {
    /// Returns whether the kernel has such tables.
    fn is_used(&self) -> bool;
}

impl<T: Target<Key = Object, Value = Content>> FrameRules for Optional<T> {
    fn is_used(&self) -> bool {
        Optional::is_used(self)
    }
}

/// Brings a table about as far as `authority` allows.
pub fn keep<T: FrameRules>(mirror: &mut Mirror<T>, desired: &Contents, authority: Authority, at: Moment) {
    if mirror.target().is_used() {
        mirror.transact(desired, Growth::Full, authority == Authority::Complete, at);
    } else {
        mirror.transact(&Contents::new(), Growth::Full, true, at);
    }
}

/// Adds what a table lacks, and changes nothing that exists: where a remembered cluster is older than the kernel. It opens nothing.
pub fn add_missing<T: FrameRules>(mirror: &mut Mirror<T>, desired: &Contents, at: Moment) {
    if mirror.target().is_used() {
        mirror.transact(desired, Growth::OnlyMissing, false, at);
    }
}

/// Frames that pass without a table, as a sentence without its end.
#[derive(Clone, Copy)]
pub struct Passing {
    what: &'static str,
    /// Part of the kernel that may be missing.
    lacking: &'static str,
}

/// Notes that say what passes without the tables.
pub const TAGS_PASS: Passing = Passing {
    what: "frames with two VLAN tags pass between pods without network policies",
    lacking: "the kernel has no nf_tables for bridges (CONFIG_NF_TABLES_BRIDGE, module nft_meta_bridge)",
};
pub const GROUPS_PASS: Passing = Passing {
    what: "packets of pods in frames to groups that bridges do not forward reach this host's link-local addresses without network policies",
    lacking: "the kernel has no nf_tables of the family inet (CONFIG_NF_TABLES_INET)",
};

impl fmt::Display for Passing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.lacking)
    }
}

/// A table that the kernel has refused so many times in a row, half a minute to a minute, holds up no starting pod any more. A kernel
/// that refuses it for good is then what one is that has none: pods start, and what passes is told.
const MOST_REFUSALS: u32 = 10;

/// Returns what passes because the kernel has no such table, or refuses it, if anything would be dropped by one.
pub fn note<T: FrameRules>(mirror: &Mirror<T>, desired: &Contents, passing: Passing) -> Option<String> {
    if desired.is_empty() {
        return None;
    }
    if !mirror.peek().is_used() {
        return Some(passing.to_string());
    }
    let trouble = mirror.trouble().filter(|_| is_given_up(mirror, desired))?;
    Some(format!("{}, of pods that start too: the kernel refuses the table: {}", passing.what, trouble.error))
}

/// Returns whether a pod may start only when such frames are dropped: they lead past rules that refuse it, or others on its behalf, something.
pub fn concern(rules: &RuleSet, pod: &ObjectName) -> bool {
    rules.pods.get(pod).is_some_and(|pod| link_local::closes_for(rules, pod))
}

/// Returns what the kernel lacks of a table, where it has such tables and does not refuse this one again and again, as a sentence
/// without its end.
///
/// # Errors
/// That sentence.
pub fn enforced<T: FrameRules>(mirror: &Mirror<T>, desired: &Contents) -> Result<(), String> {
    if desired.is_empty() || !mirror.peek().is_used() || is_given_up(mirror, desired) {
        return Ok(());
    }
    let Some(lacking) = lacking(mirror, desired) else { return Ok(()) };
    Err(match mirror.trouble() {
        Some(trouble) => format!("{lacking}: {}", trouble.error),
        None => lacking,
    })
}

/// Returns whether starting pods are not held up although the kernel lacks something of the table, because it refuses it again and again. What
/// cannot be read may be there or not, and is not given up.
pub fn is_given_up<T: FrameRules>(mirror: &Mirror<T>, desired: &Contents) -> bool {
    let is_refused = mirror.failures() >= MOST_REFUSALS && mirror.seen().is_some();
    is_refused && !desired.is_empty() && mirror.peek().is_used() && lacking(mirror, desired).is_some()
}

fn lacking<T: FrameRules>(mirror: &Mirror<T>, desired: &Contents) -> Option<String> {
    let Some(seen) = mirror.seen() else {
        return Some("what the kernel drops of frames is not known at the moment".to_owned());
    };
    let missing = desired.iter().find(|(object, content)| seen.get(*object) != Some(*content));
    missing.map(|(object, _)| format!("{object}, which drops frames, is not as it must be"))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use rustix::io::Errno;

    use super::*;
    use crate::kernel::Error;
    use crate::reconcile::{Failure, Phase, Step};

    #[test]
    fn another_bridge_is_one_element_and_without_bridges_there_is_nothing() {
        assert_eq!(frames(&[]), Frames::default());
        let (one, two) = (frames(&["cni0".into()]), frames(&["cni0".into(), "kube-bridge".into()]));
        assert_eq!(one.groups, two.groups);
        let (one, two) = (one.tags, two.tags);
        let added: Vec<&Object> = two.keys().filter(|object| !one.contains_key(*object)).collect();
        assert_eq!(added, [&Object::Element(BRIDGES.into(), Key::Link("kube-bridge".into()))]);
        assert!(one.iter().all(|(object, content)| two.get(object) == Some(content)));
    }

    /// A kernel that refuses to change a table, or takes it.
    struct Refusing(bool);

    impl Target for Refusing {
        type Key = Object;
        type Value = Content;
        type Error = Error;

        fn name(&self) -> &'static str {
            NAME
        }

        fn read(&mut self) -> Result<Contents, Error> {
            Ok(Contents::new())
        }

        fn apply(&mut self, _: Phase, steps: &[Step<'_, Object, Content>]) -> Vec<Failure<Error>> {
            let refused = |step| Failure { step, error: Error::errno("change", "table", Errno::PERM) };
            if self.0 { (0..steps.len()).map(refused).collect() } else { Vec::new() }
        }
    }

    impl FrameRules for Refusing {
        fn is_used(&self) -> bool {
            true
        }
    }

    #[test]
    fn a_table_that_the_kernel_refuses_for_good_holds_pods_up_for_a_minute_at_most_and_is_told() {
        let (desired, begun) = (frames(&["cni0".into()]).tags, Instant::now());
        let mut mirror = Mirror::new(Refusing(true));
        let (mut now, mut waited) = (begun, None);
        while waited.is_none() {
            keep(&mut mirror, &desired, Authority::Complete, Moment { now, jitter: 0 });
            match enforced(&mirror, &desired) {
                Ok(()) => waited = Some(now - begun),
                Err(said) => {
                    assert!(said.contains("which drops frames, is not as it must be: change table: "), "{said}");
                    assert_eq!(note(&mirror, &desired, TAGS_PASS), None, "it may come yet");
                }
            }
            now = mirror.retry_at().expect("it is tried again");
            assert!(now - begun < Duration::from_secs(180), "pods would wait for ever");
        }
        assert!(waited.is_some_and(|waited| waited > Duration::from_secs(10) && waited <= Duration::from_secs(60)));
        let said = note(&mirror, &desired, TAGS_PASS).expect("it is told");
        assert!(
            said.contains("two VLAN tags") && said.contains("the kernel refuses the table: change table"),
            "{said}"
        );
        // It is tried on, and as soon as the kernel takes it nothing passes.
        mirror.target().0 = false;
        keep(&mut mirror, &desired, Authority::Complete, Moment { now, jitter: 0 });
        assert_eq!((enforced(&mirror, &desired), note(&mirror, &desired, TAGS_PASS)), (Ok(()), None));
    }
}
