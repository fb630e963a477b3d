//! A set of prefixes that can be asked which of them contains another one.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::Family;

/// Prefixes of both families. Finding the one around another takes one look for each length that occurs.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Prefixes {
    all: BTreeSet<IpNet>,
    /// Number of prefixes of each family and length.
    lengths: BTreeMap<(Family, u8), usize>,
}

impl Prefixes {
    /// Adds a prefix, whose host bits do not count. Returns whether it is new.
    pub fn insert(&mut self, prefix: IpNet) -> bool {
        let is_new = self.all.insert(prefix.trunc());
        if is_new {
            *self.lengths.entry((Family::from(prefix), prefix.prefix_len())).or_default() += 1;
        }
        is_new
    }

    /// Removes a prefix. Returns whether it was there.
    pub fn remove(&mut self, prefix: IpNet) -> bool {
        let was_there = self.all.remove(&prefix.trunc());
        let length = (Family::from(prefix), prefix.prefix_len());
        if let Some(count) = self.lengths.get_mut(&length).filter(|_| was_there) {
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&length);
            }
        }
        was_there
    }

    /// Returns whether exactly this prefix is in the set.
    pub fn contains(&self, prefix: IpNet) -> bool {
        self.all.contains(&prefix)
    }

    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Returns the longest prefix of the set that contains this one or equals it.
    pub fn around(&self, prefix: IpNet) -> Option<IpNet> {
        let family = Family::from(prefix);
        let lengths = self.lengths.range((family, 0)..=(family, prefix.prefix_len())).rev();
        let mut candidates =
            lengths.filter_map(|((_, length), _)| Some(IpNet::new(prefix.addr(), *length).ok()?.trunc()));
        candidates.find(|candidate| self.all.contains(candidate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    #[test]
    fn the_longest_prefix_around_another_is_found_in_both_families() {
        let mut prefixes = Prefixes::default();
        for text in ["10.244.0.0/16", "10.244.2.0/24", "fd00:10:244:2::/64"] {
            assert!(prefixes.insert(prefix(text)) && !prefixes.insert(prefix(text)));
        }
        for (inner, around) in [
            ("10.244.2.128/25", Some("10.244.2.0/24")),
            ("10.244.2.0/24", Some("10.244.2.0/24")),
            ("10.244.3.7/32", Some("10.244.0.0/16")),
            ("10.0.0.0/8", None),
            ("10.245.0.0/24", None),
            ("fd00:10:244:2::5/128", Some("fd00:10:244:2::/64")),
            ("fd00:10:244::/48", None),
            ("::/0", None),
        ] {
            assert_eq!(prefixes.around(prefix(inner)), around.map(prefix), "{inner}");
        }
        assert!(prefixes.remove(prefix("10.244.2.0/24")) && !prefixes.remove(prefix("10.244.2.0/24")));
        assert_eq!(prefixes.around(prefix("10.244.2.128/25")), Some(prefix("10.244.0.0/16")));
        assert!(prefixes.remove(prefix("10.244.0.0/16")));
        assert_eq!(prefixes.around(prefix("10.244.2.128/25")), None);
    }
}
