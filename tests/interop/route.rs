//! A route as everybody shows it, in one notation, so that what is expected can be compared as text.

use std::collections::BTreeSet;
use std::fmt;

/// One route. Numbers and addresses are text as the daemons write it.
#[derive(Clone, Default)]
pub struct Route {
    pub prefix: String,
    pub next_hop: String,
    pub path: String,
    pub origin: String,
    pub med: Option<u64>,
    /// Without one it is 100; nobody tells the two apart.
    pub preference: Option<u64>,
    pub communities: BTreeSet<String>,
    pub extended: BTreeSet<String>,
    pub large: BTreeSet<String>,
    pub originator: Option<String>,
    pub clusters: Vec<String>,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} via {}", self.prefix, self.next_hop)?;
        if !self.path.is_empty() {
            write!(f, " path {}", self.path)?;
        }
        if self.origin != "igp" {
            write!(f, " origin {}", self.origin)?;
        }
        if let Some(med) = self.med.filter(|med| *med != 0) {
            write!(f, " med {med}")?;
        }
        if let Some(preference) = self.preference.filter(|preference| *preference != 100) {
            write!(f, " pref {preference}")?;
        }
        for (name, values) in [("community", &self.communities), ("extended", &self.extended), ("large", &self.large)] {
            for value in values {
                write!(f, " {name} {value}")?;
            }
        }
        if let Some(originator) = &self.originator {
            write!(f, " originator {originator}")?;
        }
        for cluster in &self.clusters {
            write!(f, " cluster {cluster}")?;
        }
        Ok(())
    }
}

/// Whether a prefix is announced by speakers of ours.
pub fn is_ours(prefix: &str) -> bool {
    prefix.starts_with("10.244.") || prefix.starts_with("fd00:10:244:")
}

/// The routes of ours, as lines.
pub fn ours_of(routes: impl IntoIterator<Item = Route>) -> BTreeSet<String> {
    routes.into_iter().filter(|route| is_ours(&route.prefix)).map(|route| route.to_string()).collect()
}
