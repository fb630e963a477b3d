//! Matches and targets that the kernel lacks, as the programs tell of them.
//!
//! The programs ask the kernel for each match and target before they hand in a rule, warn of one that it does not have, and then fail with a number of a line or an errno that says
//! nothing of it. Both variants warn alike; the variant `nft` reaches all of xtables through the module `nft_compat`.

use super::Flavour;
use crate::kernel::module::{self, ModuleState, Modules};
use crate::net::Family;

const WARNING: &str = "Warning: Extension ";

/// Returns which modules the kernel lacks by these words of a program, and where this host gets them from, for the end of a sentence; empty where they
/// complain of something else.
pub(super) fn lacking(words: &str, flavour: Flavour, family: Family) -> Vec<String> {
    let mut asked: Vec<String> = extensions(words).map(|name| module_of(name, family)).collect();
    if asked.is_empty() {
        return Vec::new();
    }
    asked.extend((flavour == Flavour::NfTables).then(|| "nft_compat".to_owned()));
    asked.sort();
    asked.dedup();
    let modules = Modules::of_host();
    let lacks = |name: &String| match modules.state(name) {
        ModuleState::Missing | ModuleState::OnDisk => true,
        // A kernel has the match, and not in a form that the program knows.
        ModuleState::Present => false,
        // Where the host's lists are not mounted, the match itself is what is known to be missing.
        ModuleState::Unknown => name != "nft_compat",
    };
    let lacking = asked.into_iter().filter(lacks);
    lacking.map(|name| format!("the kernel has no {name}: {}", module::remedy(&name))).collect()
}

/// The names of matches and targets that these words warn of.
fn extensions(words: &str) -> impl Iterator<Item = &str> {
    words.lines().filter_map(|line| {
        let (name, rest) = line.trim().strip_prefix(WARNING)?.split_once(' ')?;
        rest.contains("missing kernel module").then_some(name)
    })
}

/// The module of a match or target of xtables.
fn module_of(extension: &str, family: Family) -> String {
    match extension {
        "SNAT" | "DNAT" => "xt_nat".to_owned(),
        "REJECT" if family == Family::V6 => "ip6t_REJECT".to_owned(),
        "REJECT" => "ipt_REJECT".to_owned(),
        "tcp" | "udp" => "xt_tcpudp".to_owned(),
        "MARK" | "CONNMARK" | "SET" => format!("xt_{}", extension.to_ascii_lowercase()),
        // The others have the name that is written in a rule, the targets in capital letters.
        _ => format!("xt_{extension}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_warns_of_is_told_by_module_and_where_to_get_it() {
        let words = "Warning: Extension nosuch revision 0 not supported, missing kernel module?\n\
            iptables-nft-restore v1.8.9 (nf_tables): \nline 3: RULE_APPEND failed (No such file or directory): rule in chain A";
        let legacy = lacking(words, Flavour::Legacy, Family::V4);
        assert_eq!(legacy.len(), 1, "{legacy:?}");
        assert!(legacy[0].starts_with("the kernel has no xt_nosuch: ") && legacy[0].len() > 40, "{legacy:?}");
        let nft = lacking(words, Flavour::NfTables, Family::V4);
        assert!(nft.iter().any(|one| one.contains("xt_nosuch")), "{nft:?}");
        let other = "iptables-nft-restore v1.8.9 (nf_tables): Set nope doesn't exist.\n\nError occurred at line: 3";
        assert_eq!(lacking(other, Flavour::NfTables, Family::V4), Vec::<String>::new());
        let without_revision = "Warning: Extension set is not supported, missing kernel module?";
        assert_eq!(extensions(without_revision).collect::<Vec<_>>(), ["set"]);
    }

    #[test]
    fn modules_have_the_names_of_matches_but_for_some_targets() {
        for (extension, family, module) in [
            ("set", Family::V4, "xt_set"),
            ("physdev", Family::V6, "xt_physdev"),
            ("MARK", Family::V4, "xt_mark"),
            ("mark", Family::V4, "xt_mark"),
            ("SNAT", Family::V6, "xt_nat"),
            ("MASQUERADE", Family::V4, "xt_MASQUERADE"),
            ("REJECT", Family::V4, "ipt_REJECT"),
            ("REJECT", Family::V6, "ip6t_REJECT"),
            ("NFLOG", Family::V4, "xt_NFLOG"),
            ("tcp", Family::V4, "xt_tcpudp"),
        ] {
            assert_eq!(module_of(extension, family), module);
        }
    }
}
