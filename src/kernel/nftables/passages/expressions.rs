//! The expressions of such a rule, written as iptables would and read again.

use compact_str::{CompactString, format_compact};

use super::Passing;
use crate::kernel::netlink::{Answer, Attributes, Messages};
use crate::kernel::nftables::rule::Mark;
use crate::kernel::nftables::wire::{HEADER, ITEM, TABLE, data, rule};
use crate::net::Family;

/// The attributes of a rule that only this needs.
pub const HANDLE: u16 = 3;
pub const POSITION: u16 = 6;
/// `NFTA_EXPR_NAME`, `NFTA_EXPR_DATA`.
const NAME: u16 = 1;
const CONTENT: u16 = 2;
/// `NFTA_META_KEY` and its values for the mark and for the names of links.
const META_KEY: u16 = 2;
const MARK: u32 = 3;
const INPUT_LINK: u32 = 6;
const OUTPUT_LINK: u32 = 7;
/// `NFTA_BITWISE_MASK`, `NFTA_BITWISE_XOR`; before them are registers and length.
const BITWISE_MASK: u16 = 4;
const BITWISE_XOR: u16 = 5;
/// `NFTA_MATCH_NAME`, `NFTA_MATCH_REV`, `NFTA_MATCH_INFO`.
const MATCH_NAME: u16 = 1;
const MATCH_REVISION: u16 = 2;
const MATCH_INFO: u16 = 3;

/// How the mark of a packet is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MarkBy {
    /// The match of xtables.
    Match,
    /// `meta mark` of nf_tables.
    Meta,
}

/// One rule of the chain, as far as it matters here.
#[derive(Default, Debug)]
pub struct Found {
    pub handle: u64,
    pub comment: Option<String>,
    pub passing: Option<Passing>,
    /// The chain that it jumps to.
    pub jumps_to: Option<String>,
}

/// Returns the chain that a rule jumps to.
pub fn jumps_to(rule: &Attributes<'_>) -> Option<String> {
    reading(rule).jumps_to
}

/// Returns the packets that a rule accepts, if it can be said so.
pub fn passing(rule: &Attributes<'_>) -> Option<Passing> {
    reading(rule).passing()
}

fn reading(rule: &Attributes<'_>) -> Reading {
    let mut reading = Reading::default();
    let expressions = rule.get(rule::EXPRESSIONS).map(|list| list.attributes());
    for item in expressions.into_iter().flatten() {
        reading.is_unknown |= reading.read(&item.attributes()).is_none();
    }
    reading
}

/// Appends expressions and comment of a rule, as iptables would write it but for the comment. It is about one link at most.
pub fn write(messages: &mut Messages, passing: &Passing, comment: &str, by: MarkBy) {
    if matches!(passing, Passing::Other) {
        return;
    }
    messages.nest(rule::EXPRESSIONS);
    match (passing, by) {
        (Passing::From(link), _) => write_link(messages, INPUT_LINK, link),
        (Passing::To(link), _) => write_link(messages, OUTPUT_LINK, link),
        (Passing::AnswersTo(links), _) => {
            links.iter().for_each(|link| write_link(messages, OUTPUT_LINK, link));
            write_match(messages, "conntrack", 3, &conntrack::answers());
        }
        (Passing::MarkedTo(links, mark), _) => {
            links.iter().for_each(|link| write_link(messages, OUTPUT_LINK, link));
            write_marked(messages, *mark, by);
        }
        (Passing::Marked(mark), _) => write_marked(messages, *mark, by),
        (Passing::Other, _) => {}
    }
    messages.nest(ITEM).text(NAME, "counter").nest(CONTENT).end().end();
    messages.nest(ITEM).text(NAME, "immediate").nest(CONTENT).u32_be(1, 0);
    messages.nest(2).nest(data::VERDICT).u32_be(data::CODE, data::ACCEPT as u32).end().end().end().end();
    messages.end();
    let mut userdata = vec![rule::COMMENT, u8::try_from(comment.len() + 1).expect("a comment of ours is short")];
    userdata.extend_from_slice(comment.as_bytes());
    userdata.push(0);
    messages.attribute(rule::USERDATA, &userdata);
}

fn write_link(messages: &mut Messages, key: u32, link: &str) {
    messages.nest(ITEM).text(NAME, "meta").nest(CONTENT).u32_be(META_KEY, key).u32_be(1, 1).end().end();
    messages.nest(ITEM).text(NAME, "cmp").nest(CONTENT).u32_be(1, 1).u32_be(2, 0);
    messages.nest(3);
    match link.strip_suffix('+') {
        Some(beginning) => messages.attribute(data::VALUE, beginning.as_bytes()),
        None => messages.text(data::VALUE, link),
    };
    messages.end().end().end();
}

fn write_marked(messages: &mut Messages, mark: Mark, by: MarkBy) {
    match by {
        MarkBy::Match => write_match(messages, "mark", 1, &marked::info(mark)),
        MarkBy::Meta => write_mark(messages, mark),
    }
}

/// Appends only the match by which answers are known, and no verdict.
pub fn write_answers(messages: &mut Messages) {
    messages.nest(rule::EXPRESSIONS);
    write_match(messages, "conntrack", 3, &conntrack::answers());
    messages.end();
}

fn write_match(messages: &mut Messages, name: &str, revision: u32, info: &[u8]) {
    messages.nest(ITEM).text(NAME, "match").nest(CONTENT).text(MATCH_NAME, name);
    messages.u32_be(MATCH_REVISION, revision).attribute(MATCH_INFO, info).end().end();
}

/// `meta mark & mask == value`, in the byte order of the host.
fn write_mark(messages: &mut Messages, mark: Mark) {
    let write_value = |messages: &mut Messages, attribute: u16, value: u32| {
        messages.nest(attribute).attribute(data::VALUE, &value.to_ne_bytes()).end();
    };
    messages.nest(ITEM).text(NAME, "meta").nest(CONTENT).u32_be(META_KEY, MARK).u32_be(1, 1).end().end();
    messages.nest(ITEM).text(NAME, "bitwise").nest(CONTENT).u32_be(1, 1).u32_be(2, 1).u32_be(3, 4);
    write_value(messages, BITWISE_MASK, mark.mask);
    write_value(messages, BITWISE_XOR, 0);
    messages.end().end();
    messages.nest(ITEM).text(NAME, "cmp").nest(CONTENT).u32_be(1, 1).u32_be(2, 0);
    write_value(messages, 3, mark.value);
    messages.end().end();
}

/// The match `mark` of xtables, revision 1 (`struct xt_mark_mtinfo1`, include/uapi/linux/netfilter/xt_mark.h): mark, mask, whether it is
/// inverted, rounded up to 8 bytes.
mod marked {
    use super::Mark;

    const LENGTH: usize = 16;

    pub fn info(mark: Mark) -> [u8; LENGTH] {
        let mut info = [0; LENGTH];
        for (place, byte) in info.iter_mut().zip(mark.value.to_ne_bytes().into_iter().chain(mark.mask.to_ne_bytes())) {
            *place = byte;
        }
        info
    }

    /// `None` for an inverted one.
    pub fn read(info: &[u8]) -> Option<Mark> {
        let number = |at: usize| Some(u32::from_ne_bytes(info.get(at..at + 4)?.try_into().ok()?));
        (info.get(8) == Some(&0)).then_some(Mark { value: number(0)?, mask: number(4)? })
    }
}

/// The match `conntrack` of xtables, revision 3 (`struct xt_conntrack_mtinfo3`,
/// include/uapi/linux/netfilter/xt_conntrack.h).
mod conntrack {
    /// Rounded up to 8 bytes.
    const LENGTH: usize = 168;
    const FLAGS: usize = 146;
    const INVERTED: usize = 148;
    const STATES: usize = 150;
    /// `XT_CONNTRACK_STATE`.
    const BY_STATE: u16 = 1;
    /// `XT_CONNTRACK_STATE_BIT` of `IP_CT_ESTABLISHED` and `IP_CT_RELATED`.
    const OF_CONNECTION: u16 = 2 | 4;

    /// The content of a match for packets that belong to a connection.
    pub fn answers() -> [u8; LENGTH] {
        let mut info = [0; LENGTH];
        for (at, number) in [(FLAGS, BY_STATE), (STATES, OF_CONNECTION)] {
            for (place, byte) in info.iter_mut().skip(at).zip(number.to_ne_bytes()) {
                *place = byte;
            }
        }
        info
    }

    pub fn is_answers(info: &[u8]) -> bool {
        let number = |at: usize| info.get(at..at + 2).and_then(|two| Some(u16::from_ne_bytes(two.try_into().ok()?)));
        [(FLAGS, BY_STATE), (INVERTED, 0), (STATES, OF_CONNECTION)].iter().all(|(at, is)| number(*at) == Some(*is))
    }
}

/// Reads one rule; `None` if it is of another chain: not every kernel obeys every filter.
pub fn found(answer: &Answer<'_>, family: Family, table: &str, chain: &str) -> Option<Found> {
    let [number, ..] = *answer.header::<HEADER>()?;
    let attributes = answer.attributes(HEADER);
    let is_of_chain = attributes.get(TABLE)?.text()? == table && attributes.get(rule::CHAIN)?.text()? == chain;
    let is_of_family = number == if family == Family::V4 { 2 } else { 10 };
    if !is_of_chain || !is_of_family {
        return None;
    }
    let mut reading = reading(&attributes);
    let userdata = attributes.get(rule::USERDATA).and_then(|userdata| comment(userdata.value));
    let handle = attributes.get(HANDLE)?.u64_be()?;
    Some(Found {
        handle,
        comment: userdata.or(reading.comment.take()),
        passing: reading.passing(),
        jumps_to: reading.jumps_to,
    })
}

/// Interpretation of a rule after some of its expressions.
#[derive(Default)]
struct Reading {
    /// The field in the register, until it is compared.
    loaded: Option<u32>,
    /// Which link is compared, and its name.
    way: Option<u32>,
    link: Option<CompactString>,
    /// The number that a `cmp` of 4 bytes compares the mark with, and its mask.
    number: Option<u32>,
    mask: Option<u32>,
    /// The bits of the mark that a match of xtables compares.
    mark: Option<Mark>,
    comment: Option<String>,
    is_for_answers: bool,
    accepts: bool,
    jumps_to: Option<String>,
    is_unknown: bool,
}

impl Reading {
    fn read(&mut self, item: &Attributes<'_>) -> Option<()> {
        let content = item.get(CONTENT).map_or(Attributes::new(&[]), |content| content.attributes());
        match item.get(NAME)?.text()? {
            "meta" if self.loaded.is_none() => self.loaded = Some(content.get(META_KEY)?.u32_be()?),
            "bitwise" if self.loaded == Some(MARK) && self.mask.is_none() => {
                self.mask = Some(number(&content, BITWISE_MASK)?);
                return (number(&content, BITWISE_XOR)? == 0).then_some(());
            }
            "cmp" if content.get(2)?.u32_be()? == 0 => self.compare(&content)?,
            "match" => {
                let info = content.get(MATCH_INFO)?.value;
                match content.get(MATCH_NAME)?.text()? {
                    "comment" => self.comment = Some(text(info)?.to_owned()),
                    "conntrack" if conntrack::is_answers(info) => self.is_for_answers = true,
                    "mark" if self.mark.is_none() => self.mark = Some(marked::read(info)?),
                    _ => return None,
                }
            }
            "counter" => {}
            "immediate" => {
                let verdict = content.get(2)?.attributes().get(data::VERDICT)?.attributes();
                let code = verdict.get(data::CODE)?.u32_be()? as i32;
                self.accepts = code == data::ACCEPT;
                self.jumps_to = verdict.get(data::CHAIN).and_then(|chain| chain.text()).map(str::to_owned);
            }
            _ => return None,
        }
        Some(())
    }

    /// Reads a comparison with what was loaded last.
    fn compare(&mut self, content: &Attributes<'_>) -> Option<()> {
        match self.loaded.take()? {
            MARK if self.number.is_none() => self.number = Some(number(content, 3)?),
            way @ (INPUT_LINK | OUTPUT_LINK) if self.way.is_none() => {
                let value = content.get(3)?.attributes().get(data::VALUE)?.value;
                self.way = Some(way);
                // Without a closing zero it is the beginning of names.
                self.link = match text(value) {
                    Some(name) => Some(name.into()),
                    None => Some(format_compact!("{}+", std::str::from_utf8(value).ok()?)),
                };
            }
            _ => return None,
        }
        Some(())
    }

    fn passing(&mut self) -> Option<Passing> {
        if !self.accepts || self.is_unknown || self.loaded.is_some() {
            return None;
        }
        let mark = match (self.mark, self.number, self.mask) {
            (mark, None, None) => mark,
            (None, Some(value), Some(mask)) => Some(Mark { value, mask }),
            _ => return None,
        };
        match (self.way, self.link.take(), mark, self.is_for_answers) {
            (Some(INPUT_LINK), Some(link), None, false) => Some(Passing::From(link)),
            (Some(OUTPUT_LINK), Some(link), None, false) => Some(Passing::To(link)),
            (Some(OUTPUT_LINK), Some(link), None, true) => Some(Passing::AnswersTo([link].into())),
            (Some(OUTPUT_LINK), Some(link), Some(mark), false) => Some(Passing::MarkedTo([link].into(), mark)),
            (None, None, Some(mark), false) => Some(Passing::Marked(mark)),
            _ => None,
        }
    }
}

/// The text up to its closing zero.
fn text(bytes: &[u8]) -> Option<&str> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    std::str::from_utf8(bytes.get(..end)?).ok()
}

/// The comment in a rule's userdata: fields of a type, a length and a value.
fn comment(mut userdata: &[u8]) -> Option<String> {
    while let [kind, length, rest @ ..] = userdata {
        let value = rest.get(..usize::from(*length))?;
        if *kind == rule::COMMENT {
            return text(value).map(str::to_owned);
        }
        userdata = rest.get(usize::from(*length)..)?;
    }
    None
}

/// The number of 4 bytes, in the byte order of the host, in a nested value.
fn number(content: &Attributes<'_>, attribute: u16) -> Option<u32> {
    Some(u32::from_ne_bytes(content.get(attribute)?.attributes().get(data::VALUE)?.value.try_into().ok()?))
}
