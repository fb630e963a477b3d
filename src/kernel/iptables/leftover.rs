//! Rules that kube-router left directly in a built-in chain.
//!
//! Its masquerading stands in `POSTROUTING` of the table `nat`, one rule for each pod range of the node or one
//! for everything:
//!
//! ```text
//! ! -s 10.244.0.0/24 ! -d 10.244.0.0/24 -m ipvs --vdir ORIGINAL --vmethod MASQ -m comment --comment "" -j SNAT --to-source 192.0.2.1 --random-fully
//! ```
//!
//! and older versions masqueraded by `MASQUERADE`. Ours is in a chain of its own, so what has exactly this shape,
//! the empty comment included, is a leftover whoever took over has to remove. Nothing else has an empty
//! comment by accident.

use super::Table;
use super::save::Words;

/// Whether a rule of a built-in chain is one that kube-router wrote and nobody needs any more.
pub(super) fn is_leftover(table: Table, chain: &str, rule: &str) -> bool {
    (table, chain) == (Table::Nat, "POSTROUTING") && is_masquerade(rule)
}

fn is_masquerade(rule: &str) -> bool {
    let words: Vec<_> = Words::of(rule).collect();
    let words: Vec<&str> = words.iter().map(|word| word.as_str()).collect();
    let rest = match words.as_slice() {
        ["!", "-s", source, "!", "-d", destination, rest @ ..] if source == destination => rest,
        rest => rest,
    };
    // Tools print `--ipvs` only where it stands alone; it says no more than the two behind it.
    let rest = match rest {
        ["-m", "ipvs", "--ipvs", rest @ ..] | ["-m", "ipvs", rest @ ..] => rest,
        _ => return false,
    };
    let ["--vdir", "ORIGINAL", "--vmethod", "MASQ", "-m", "comment", "--comment", "", "-j", verdict @ ..] = rest else {
        return false;
    };
    matches!(
        verdict,
        ["SNAT", "--to-source", _]
            | ["SNAT", "--to-source", _, "--random-fully"]
            | ["MASQUERADE"]
            | ["MASQUERADE", "--random-fully"]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const GLOBAL: &str = r#"-m ipvs --vdir ORIGINAL --vmethod MASQ -m comment --comment """#;
    const RANGE: &str =
        r#"! -s 10.244.0.0/24 ! -d 10.244.0.0/24 -m ipvs --vdir ORIGINAL --vmethod MASQ -m comment --comment """#;

    #[test]
    fn kube_routers_masquerade_rules_are_known_by_their_shape() {
        for head in [
            GLOBAL,
            RANGE,
            &RANGE.replace("--vdir", "--ipvs --vdir"),
            &RANGE.replace("10.244.0.0/24", "fd00:10:244::/64"),
        ] {
            for verdict in [
                "SNAT --to-source 192.0.2.1",
                "SNAT --to-source 192.0.2.1 --random-fully",
                "MASQUERADE",
                "MASQUERADE --random-fully",
            ] {
                let rule = format!("{head} -j {verdict}");
                assert!(is_leftover(Table::Nat, "POSTROUTING", &rule), "{rule}");
                assert!(!is_leftover(Table::Nat, "PREROUTING", &rule), "{rule}");
                assert!(!is_leftover(Table::Mangle, "POSTROUTING", &rule), "{rule}");
            }
        }
    }

    #[test]
    fn what_only_looks_alike_is_foreign() {
        let foreign = [
            "-m ipvs --vdir ORIGINAL --vmethod MASQ -j KUBE-ROUTER-SNAT".to_owned(),
            "-m ipvs --vdir ORIGINAL -j KUBE-ROUTER-HAIRPIN".to_owned(),
            "-m ipvs --vdir ORIGINAL --vmethod MASQ -j MASQUERADE".to_owned(),
            "-m ipvs --vdir ORIGINAL --vmethod MASQ -m comment --comment mine -j MASQUERADE".to_owned(),
            format!("{GLOBAL} -j SNAT --to-source 192.0.2.1 --persistent"),
            format!("{GLOBAL} -j ACCEPT"),
            format!("-o eth0 {GLOBAL} -j MASQUERADE"),
            format!("{} -j MASQUERADE", RANGE.replacen("10.244.0.0/24", "10.245.0.0/24", 1)),
            format!("{} -j MASQUERADE", RANGE.replacen("! -s", "-s", 1)),
            String::new(),
        ];
        for rule in foreign {
            assert!(!is_leftover(Table::Nat, "POSTROUTING", &rule), "{rule}");
        }
    }
}
