//! Rules of iptables that masquerade, read as `iptables-nft` writes them into nf_tables.
//!
//! Two shapes are read, and everything else is somebody else's:
//!
//! ```text
//! -m set --match-set kube-router-pod-subnets src -m set ! --match-set kube-router-pod-subnets dst -j MASQUERADE
//! ! -s 10.244.0.0/24 ! -d 10.244.0.0/24 -m ipvs --vdir ORIGINAL --vmethod MASQ -m comment --comment "" -j SNAT --to-source 192.0.2.1
//! ```
//!
//! Matches and targets of iptables are structures of their modules inside nf_tables (`nft_compat`); addresses are expressions of
//! nf_tables, with as many bytes as the prefix has, or with a mask.

use super::wire::{data, rule};
use crate::kernel::netlink::{Attribute, Attributes};

/// `NFTA_RULE_HANDLE`.
pub(super) const HANDLE: u16 = 3;
/// `NFTA_EXPR_NAME`, `NFTA_EXPR_DATA`.
const NAME: u16 = 1;
const CONTENT: u16 = 2;
/// `NFTA_MATCH_NAME`, `NFTA_MATCH_REV`, `NFTA_MATCH_INFO`; a target has the same.
const MATCH_NAME: u16 = 1;
const MATCH_REVISION: u16 = 2;
const MATCH_INFO: u16 = 3;
/// `NFTA_PAYLOAD_BASE`, `NFTA_PAYLOAD_OFFSET`, `NFTA_PAYLOAD_LEN`.
const BASE: u16 = 2;
const OFFSET: u16 = 3;
const LENGTH: u16 = 4;
/// `NFTA_BITWISE_MASK`, `NFTA_BITWISE_XOR`.
const MASK: u16 = 4;
const XOR: u16 = 5;
/// `NFTA_CMP_OP`, `NFTA_CMP_DATA`.
const OPERATION: u16 = 2;
const COMPARED: u16 = 3;
/// `NFTA_IMMEDIATE_DREG`, `NFTA_NAT_TYPE`.
const REGISTER: u16 = 1;
const NAT_KIND: u16 = 1;

/// A rule that masquerades, and does nothing else.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Masquerade {
    /// Its number in the table.
    pub handle: u64,
    pub packets: Masqueraded,
}

/// The packets that such a rule is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Masqueraded {
    /// Those that all of these look-ups find.
    InSets(Vec<InSet>),
    /// Packets that IPVS sends to endpoints by address translation, but for what is from or to one range, with an empty comment: as
    /// kube-router writes it, and nobody else by accident.
    ByIpvs,
}

/// A look-up of one address of a packet in a set of ipset (`struct xt_set_info`, include/uapi/linux/netfilter/xt_set.h).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InSet {
    /// The kernel's number of the set.
    pub number: u16,
    /// Of the source address; else of the destination.
    pub is_source: bool,
    pub negated: bool,
}

/// The state after some expressions of a rule.
#[derive(Default)]
struct Reading<'a> {
    sets: Vec<InSet>,
    by_ipvs: bool,
    /// Whether the comment is empty, where there is one.
    empty_comment: Option<bool>,
    /// Values in registers, which only the translation to a given address needs.
    loads: bool,
    translation: Option<Translation>,
    /// Ranges in which an address must not be.
    outside: Vec<Range<'a>>,
    loaded: Option<Range<'a>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Translation {
    Masquerade,
    ToAddress,
}

/// A part of the packet's header, and its value.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
struct Range<'a> {
    offset: u32,
    length: u32,
    mask: &'a [u8],
    value: &'a [u8],
}

/// Reads a rule; `None` if it asks or does anything else.
pub fn masquerade(of_rule: &Attributes<'_>) -> Option<Masquerade> {
    let mut reading = Reading::default();
    for item in of_rule.get(rule::EXPRESSIONS)?.attributes() {
        reading.expression(&item.attributes())?;
    }
    Some(Masquerade { handle: of_rule.get(HANDLE)?.u64_be()?, packets: reading.packets()? })
}

impl<'a> Reading<'a> {
    /// Reads the next expression; `None` if no rule of these shapes has it.
    fn expression(&mut self, item: &Attributes<'a>) -> Option<()> {
        let content = item.get(CONTENT).map_or(Attributes::new(&[]), |content| content.attributes());
        match item.get(NAME)?.text()? {
            "counter" => {}
            "masq" => self.translation = Some(Translation::Masquerade),
            "immediate" => self.loads = content.get(REGISTER)?.u32_be().filter(|register| *register != 0).is_some(),
            "nat" => self.translation = Some(Translation::ToAddress).filter(|_| is_number(&content, NAT_KIND, 0)),
            "target" => self.translation = Some(translation(content.get(MATCH_NAME)?.text()?)?),
            "match" => self.matching(&content)?,
            "payload" => {
                let [offset, length] = [OFFSET, LENGTH].map(|of| content.get(of).and_then(|one| one.u32_be()));
                let range = Range { offset: offset?, length: length?, ..Range::default() };
                self.loaded = Some(range).filter(|_| is_number(&content, BASE, 1));
            }
            "bitwise" => {
                let is_kept = value(&content, XOR)?.iter().all(|byte| *byte == 0);
                self.loaded.as_mut().filter(|_| is_kept)?.mask = value(&content, MASK)?;
            }
            "cmp" => {
                let is_outside = is_number(&content, OPERATION, 1);
                let range = self.loaded.take().filter(|_| is_outside)?;
                self.outside.push(Range { value: value(&content, COMPARED)?, ..range });
            }
            _ => return None,
        }
        Some(())
    }

    fn matching(&mut self, of_match: &Attributes<'a>) -> Option<()> {
        let info = of_match.get(MATCH_INFO)?;
        match of_match.get(MATCH_NAME)?.text()? {
            "set" => self.sets.push(in_set(of_match, info)?),
            "ipvs" => self.by_ipvs = Some(is_by_ipvs(info.value)).filter(|is| *is)?,
            "comment" => self.empty_comment = Some(info.value.first() == Some(&0)),
            _ => return None,
        }
        Some(())
    }

    fn packets(self) -> Option<Masqueraded> {
        let translation = self.translation?;
        let is_one_range = match *self.outside {
            [] => true,
            [from, to] => {
                // Source and destination of IPv4, and of IPv6.
                [(12, 16), (8, 24)].contains(&(from.offset, to.offset)) && Range { offset: from.offset, ..to } == from
            }
            _ => false,
        };
        if self.by_ipvs {
            let is_its = is_one_range && self.empty_comment == Some(true) && self.sets.is_empty();
            return is_its.then_some(Masqueraded::ByIpvs);
        }
        let more = self.empty_comment.is_some()
            || self.loads
            || !self.outside.is_empty()
            || translation != Translation::Masquerade;
        (!self.sets.is_empty() && !more).then_some(Masqueraded::InSets(self.sets))
    }
}

fn translation(target: &str) -> Option<Translation> {
    match target {
        "MASQUERADE" => Some(Translation::Masquerade),
        "SNAT" => Some(Translation::ToAddress),
        _ => None,
    }
}

/// Returns whether a match is `--vdir ORIGINAL --vmethod MASQ`, with `--ipvs` or without (`struct xt_ipvs_mtinfo`,
/// include/uapi/linux/netfilter/xt_ipvs.h).
fn is_by_ipvs(info: &[u8]) -> bool {
    /// `XT_IPVS_IPVS_PROPERTY`, `XT_IPVS_DIR`, `XT_IPVS_METHOD`.
    const PROPERTY: u8 = 1;
    const DIRECTION: u8 = 1 << 4;
    const METHOD: u8 = 1 << 5;
    let at = |place: usize| info.get(place).copied();
    let (method, inverted, asked) = (at(35), at(38), at(39));
    // `IP_VS_CONN_F_MASQ` is 0; the other direction is this one inverted.
    method == Some(0) && inverted == Some(0) && asked.is_some_and(|asked| asked & !PROPERTY == DIRECTION | METHOD)
}

fn in_set(of_match: &Attributes<'_>, info: Attribute<'_>) -> Option<InSet> {
    /// `IPSET_INV_MATCH` and `IPSET_DIM_ONE_SRC`.
    const NEGATED: u8 = 1;
    const SOURCE: u8 = 2;
    // Revision 0 is written otherwise, and is older than all that wrote rules of ours.
    of_match.get(MATCH_REVISION)?.u32_be().filter(|revision| *revision > 0)?;
    let [first, second, dimensions, flags, ..] = *info.value else { return None };
    (dimensions == 1 && flags & !(NEGATED | SOURCE) == 0).then_some(InSet {
        number: u16::from_ne_bytes([first, second]),
        is_source: flags & SOURCE != 0,
        negated: flags & NEGATED != 0,
    })
}

fn is_number(content: &Attributes<'_>, of: u16, wanted: u32) -> bool {
    content.get(of).and_then(|one| one.u32_be()) == Some(wanted)
}

fn value<'a>(content: &Attributes<'a>, of: u16) -> Option<&'a [u8]> {
    Some(content.get(of)?.attributes().get(data::VALUE)?.value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::netlink::Messages;
    use crate::kernel::nftables::wire::{HEADER, ITEM};

    type Writes<'w> = &'w dyn Fn(&mut Messages);

    /// Reads a rule of these expressions.
    fn read(expressions: &[(&str, Writes<'_>)]) -> Option<Masqueraded> {
        let mut messages = Messages::new();
        messages.begin(0, 0).header(&[2, 0, 0, 0]).attribute(HANDLE, &7_u64.to_be_bytes()).nest(rule::EXPRESSIONS);
        for (name, write) in expressions {
            messages.nest(ITEM).text(NAME, name).nest(CONTENT);
            write(&mut messages);
            messages.end().end();
        }
        messages.end();
        let found = masquerade(&Attributes::new(&messages.bytes()[16 + HEADER..]))?;
        assert_eq!(found.handle, 7);
        Some(found.packets)
    }

    fn load(messages: &mut Messages, offset: u32) {
        messages.u32_be(BASE, 1).u32_be(OFFSET, offset).u32_be(LENGTH, 3);
    }

    fn compare(messages: &mut Messages, operation: u32, range: [u8; 3]) {
        messages.u32_be(OPERATION, operation).nest(COMPARED).attribute(data::VALUE, &range).end();
    }

    fn extension(messages: &mut Messages, name: &str, info: &[u8]) {
        messages.text(MATCH_NAME, name).u32_be(MATCH_REVISION, 0).attribute(MATCH_INFO, info);
    }

    fn ipvs(messages: &mut Messages, inverted: u8, asked: u8) {
        let mut info = [0; 40];
        (info[38], info[39]) = (inverted, asked);
        extension(messages, "ipvs", &info);
    }

    #[test]
    fn kube_routers_rule_for_what_ipvs_sends_is_read_and_what_only_looks_alike_is_not() {
        let pods = [10, 244, 0];
        let (from, to): (Writes<'_>, Writes<'_>) = (&|m| load(m, 12), &|m| load(m, 16));
        let (not_pods, pods_alone): (Writes<'_>, Writes<'_>) = (&|m| compare(m, 1, pods), &|m| compare(m, 0, pods));
        let others: Writes<'_> = &|m| compare(m, 1, [10, 245, 0]);
        let (sent, sent_too): (Writes<'_>, Writes<'_>) = (&|m| ipvs(m, 0, 0x30), &|m| ipvs(m, 0, 0x31));
        let (answers, any): (Writes<'_>, Writes<'_>) = (&|m| ipvs(m, 0x10, 0x30), &|m| ipvs(m, 0, 0x10));
        let (empty, mine): (Writes<'_>, Writes<'_>) =
            (&|m| extension(m, "comment", &[0; 256]), &|m| extension(m, "comment", b"mine\0\0\0\0"));
        let (counter, snat): (Writes<'_>, Writes<'_>) = (&|_| {}, &|m| extension(m, "SNAT", &[0; 40]));
        let masquerade: Writes<'_> = &|m| extension(m, "MASQUERADE", &[0; 24]);
        let accept: Writes<'_> = &|m| {
            m.u32_be(REGISTER, 0);
        };
        let to_address: Writes<'_> = &|m| {
            m.u32_be(REGISTER, 1);
        };
        let source: Writes<'_> = &|m| {
            m.u32_be(NAT_KIND, 0);
        };

        let range = [("payload", from), ("cmp", not_pods), ("payload", to), ("cmp", not_pods)];
        let end = [("match", empty), ("counter", counter)];
        let rule = |head: &[(&'static str, Writes<'_>)], by: Writes<'_>, end: &[(&'static str, Writes<'_>)]| {
            read(&[head, &[("match", by)], end].concat())
        };
        for by in [sent, sent_too] {
            for last in [
                &[("target", snat)][..],
                &[("target", masquerade)],
                &[("masq", counter)],
                &[("immediate", to_address), ("nat", source)],
            ] {
                let end = [&end[..], last].concat();
                assert_eq!(rule(&range, by, &end), Some(Masqueraded::ByIpvs));
                assert_eq!(rule(&[], by, &end), Some(Masqueraded::ByIpvs));
            }
        }
        let its = [&end[..], &[("target", snat)]].concat();
        for head in [
            &[("payload", from), ("cmp", not_pods)][..],
            &[("payload", from), ("cmp", not_pods), ("payload", to), ("cmp", others)],
            &[("payload", from), ("cmp", pods_alone), ("payload", to), ("cmp", pods_alone)],
            &[("payload", to), ("cmp", not_pods), ("payload", from), ("cmp", not_pods)],
            &[("meta", counter)],
        ] {
            assert_eq!(rule(head, sent, &its), None);
        }
        for by in [answers, any, empty] {
            assert_eq!(rule(&range, by, &its), None);
        }
        for end in [
            &[("match", mine), ("target", snat)][..],
            &[("target", snat)],
            &[("match", empty), ("immediate", accept)],
            &[("match", empty)],
        ] {
            assert_eq!(rule(&range, sent, end), None);
        }
    }

    #[test]
    fn a_rule_with_sets_and_a_comment_is_somebody_elses_whatever_the_comment_says() {
        let set: Writes<'_> = &|m| {
            m.text(MATCH_NAME, "set").u32_be(MATCH_REVISION, 4).attribute(MATCH_INFO, &[7, 0, 1, 2, 0, 0, 0, 0]);
        };
        let (empty, mine): (Writes<'_>, Writes<'_>) =
            (&|m| extension(m, "comment", &[0; 256]), &|m| extension(m, "comment", b"ours, keep\0\0"));
        let masquerade: Writes<'_> = &|_| {};
        let found = InSet { number: u16::from_ne_bytes([7, 0]), is_source: true, negated: false };
        let rule = |between: &[(&'static str, Writes<'_>)]| {
            read(&[&[("match", set)], between, &[("masq", masquerade)]].concat())
        };
        assert_eq!(rule(&[]), Some(Masqueraded::InSets(vec![found])));
        for comment in [empty, mine] {
            assert_eq!(rule(&[("match", comment)]), None);
        }
    }
}
