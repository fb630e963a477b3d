//! The chains of others that drop what policies allow, as sentences for health and for who asks.
//!
//! They are read by [`DroppingChains`], which takes the kernel a moment, so a reading is kept for a while.

use std::time::{Duration, Instant};

use tracing::debug;

use super::foreign::{DroppingChain, DroppingChains};

/// The chains of others that drop what policies allow, read at most once in a while.
#[derive(Default)]
pub struct ChainsOfOthers {
    chains: DroppingChains,
    last: Option<(Instant, Vec<DroppingChain>)>,
}

/// Validity of a reading: it holds up the firewall, by a moment, and many may ask.
const FRESH: Duration = Duration::from_secs(5);

impl ChainsOfOthers {
    /// Returns those of the chains that concern this host, each as a sentence without its end; as last known where the kernel does not tell.
    pub fn notes(&mut self, concerns: impl Fn(&DroppingChain) -> bool) -> Vec<String> {
        if self.last.as_ref().is_none_or(|(at, _)| at.elapsed() >= FRESH) {
            let read = self.chains.read().unwrap_or_else(|error| {
                debug!(%error, "Chains of other programs could not be read");
                self.last.take().map(|(_, chains)| chains).unwrap_or_default()
            });
            self.last = Some((Instant::now(), read));
        }
        let known = self.last.iter().flat_map(|(_, chains)| chains);
        known.filter(|chain| concerns(chain)).map(sentence).collect()
    }
}

fn sentence(chain: &DroppingChain) -> String {
    let drops = format!("{chain} drops what none of its own rules accepts, also what policies allow");
    let links: Vec<&str> = chain.opened.iter().map(String::as_str).collect();
    match links.is_empty() {
        true => drops,
        false => format!("{drops}, except on {}", links.join(", ")),
    }
}
