//! Packet counters of rules.
//!
//! Kernel: each rule has counters, which `iptables-save -c` prints before it: `[12:840] -A CHAIN RULE`, packets and
//! bytes. A rewritten rule starts at zero. A table that holds what iptables cannot express is not printed: its counters are unknown, not zero.

use compact_str::CompactString;

use super::running::LIMIT;
use super::save::{INCOMPATIBLE, Line, lines};
use super::{Programs, Rule, Table};
use crate::kernel::program::{Call, run};
use crate::kernel::{Cause, Error, Name};
use crate::net::Family;

/// A rule with its counter.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Counted {
    pub chain: CompactString,
    pub rule: Rule,
    pub packets: u64,
}

/// The rules of the chains with these names in one family.
///
/// # Errors
/// The table cannot be listed, or holds what iptables cannot express.
pub fn counted(programs: Programs, family: Family, table: Table, chains: &[Name]) -> Result<Vec<Counted>, Error> {
    let (program, _) = programs.of(family);
    let arguments = ["-c", "-t", table.name()];
    let object = format!("{family} {}", table.name());
    let text = run(Call { program, arguments: &arguments, input: b"", limit: LIMIT })
        .map_err(|fault| fault.of("count packets", &object, program))?;
    parse(&text, chains).map_err(|reason| Error::new("count packets", object, Cause::Malformed(reason)))
}

/// Reads the rules with counters of these chains.
fn parse(text: &str, chains: &[Name]) -> Result<Vec<Counted>, &'static str> {
    let counted = |line| match line {
        Line::Rule { chain, rule, packets } if chains.iter().any(|name| name.matches(chain)) => {
            Some(Ok(Counted { chain: chain.into(), rule: (&*rule).into(), packets: packets? }))
        }
        Line::Incompatible => Some(Err(INCOMPATIBLE)),
        Line::Rule { .. } | Line::Table(_) | Line::Chain { .. } => None,
    };
    lines(text).filter_map(counted).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(printed: &str, expected: &[(&str, &str, u64)]) {
        let chains = [Name::Prefix("KUBE-POD-FW-".into())];
        let expected = expected.iter().map(|(chain, rule, packets)| Counted {
            chain: (*chain).into(),
            rule: (*rule).into(),
            packets: *packets,
        });
        assert_eq!(parse(printed, &chains), Ok(Vec::from_iter(expected)), "{printed}");
    }

    #[test]
    fn a_line_is_a_chain_a_rule_and_a_number() {
        let line = "[12:840] -A KUBE-POD-FW-A -m mark ! --mark 0x10000/0x10000 -j REJECT";
        check(line, &[("KUBE-POD-FW-A", "-m mark ! --mark 0x10000/0x10000 -j REJECT", 12)]);
        for other in ["[1:2] -A INPUT -j ACCEPT", ":INPUT ACCEPT [0:0]", "[x:1] -A KUBE-POD-FW-A -j DROP", "[", ""] {
            check(other, &[]);
        }
    }

    #[test]
    fn a_rule_whose_comment_has_a_line_break_is_counted_whole_and_its_second_line_is_no_rule() {
        let rule = "-m comment --comment \"two\n[9:9] -A KUBE-POD-FW-B lines\" -j REJECT";
        let printed = format!("[12:840] -A KUBE-POD-FW-A {rule}\n[1:60] -A KUBE-POD-FW-A -j DROP\n");
        check(&printed, &[("KUBE-POD-FW-A", rule, 12), ("KUBE-POD-FW-A", "-j DROP", 1)]);
    }

    #[test]
    fn a_table_that_is_not_printed_has_unknown_counters() {
        let printed = "# Table `mangle' is incompatible, use 'nft' tool.\n";
        assert_eq!(parse(printed, &[Name::Exact("KUBE-ROUTER-SOURCES".into())]), Err(INCOMPATIBLE));
    }
}
