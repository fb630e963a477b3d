//! Packet counters of rules.
//!
//! Kernel: each rule has counters, which `iptables-save -c` prints before it: `[12:840] -A CHAIN RULE`, packets and
//! bytes. A rewritten rule starts at zero.

use compact_str::CompactString;

use super::running::LIMIT;
use super::{Programs, Rule, Table};
use crate::kernel::program::{Call, run};
use crate::kernel::{Error, Name};
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
/// The table cannot be listed.
pub fn counted(programs: Programs, family: Family, table: Table, chains: &[Name]) -> Result<Vec<Counted>, Error> {
    let (program, _) = programs.of(family);
    let arguments = ["-c", "-t", table.name()];
    let text = run(Call { program, arguments: &arguments, input: b"", limit: LIMIT })
        .map_err(|fault| fault.of("count packets", &format!("{family} {}", table.name()), program))?;
    Ok(text.lines().filter_map(|line| parse(line, chains)).collect())
}

fn parse(line: &str, chains: &[Name]) -> Option<Counted> {
    let (counters, rest) = line.strip_prefix('[')?.split_once("] -A ")?;
    let (chain, rule) = rest.split_once(' ')?;
    if !chains.iter().any(|name| name.matches(chain)) {
        return None;
    }
    let (packets, _) = counters.split_once(':')?;
    Some(Counted { chain: chain.into(), rule: rule.into(), packets: packets.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_chain_a_rule_and_a_number() {
        let chains = [Name::Prefix("KUBE-POD-FW-".into())];
        let read = |line| parse(line, &chains).map(|counted| (counted.chain, counted.rule, counted.packets));
        let line = "[12:840] -A KUBE-POD-FW-A -m mark ! --mark 0x10000/0x10000 -j REJECT";
        let rule = "-m mark ! --mark 0x10000/0x10000 -j REJECT";
        assert_eq!(read(line), Some(("KUBE-POD-FW-A".into(), rule.into(), 12)));
        for other in ["[1:2] -A INPUT -j ACCEPT", ":INPUT ACCEPT [0:0]", "[x:1] -A KUBE-POD-FW-A -j DROP", "[", ""] {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
