//! Service addresses as they stand with routers outside, for the machine and for who asks.

/// How service addresses stand with routers outside.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Stage {
    #[default]
    Announced,
    /// Announced with GRACEFUL_SHUTDOWN.
    Leaving,
    Withdrawn,
}

/// How service addresses stand with routers outside, for who asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outside {
    pub stage: Stage,
    /// Neighbours have been sent the withdrawals that have been decided.
    pub is_sent: bool,
    /// There are service addresses that this node announces, or would announce if it did not drain.
    pub has_addresses: bool,
    /// Those of them whose endpoints may be on other nodes wait for the routes of these ([`cut_off`](super::super::cut_off)).
    pub holds_for_nodes: bool,
}

impl Outside {
    /// Returns the stage that neighbours know of: a withdrawal that has not been sent to all of them is none yet.
    fn known(self) -> Stage {
        match self.stage {
            Stage::Withdrawn if !self.is_sent => Stage::Leaving,
            stage => stage,
        }
    }

    /// Returns the stage as the metric has it.
    pub fn number(self) -> i64 {
        match self.known() {
            Stage::Announced => 0,
            Stage::Leaving => 1,
            Stage::Withdrawn => 2,
        }
    }

    /// Returns the stage as a word for programs.
    pub fn word(self) -> &'static str {
        match self.known() {
            Stage::Announced if self.holds_for_nodes => "held",
            Stage::Announced => "announced",
            Stage::Leaving => "leaving",
            Stage::Withdrawn => "withdrawn",
        }
    }

    /// Returns a sentence for who asks; `None` where nothing is special.
    pub fn note(self) -> Option<String> {
        let text = match self.stage {
            Stage::Announced if self.holds_for_nodes && self.has_addresses => {
                "this node was cut off from all neighbours: service addresses are held back from routers outside until the routes of other nodes are there, for a limited time"
            }
            Stage::Announced => return None,
            Stage::Leaving | Stage::Withdrawn if !self.has_addresses => {
                "this node drains: it has no service addresses to announce"
            }
            Stage::Leaving => {
                "this node drains: service addresses are announced with GRACEFUL_SHUTDOWN and about to be withdrawn"
            }
            Stage::Withdrawn if !self.is_sent => {
                "this node drains: the withdrawal of service addresses has not been sent to all neighbours yet"
            }
            Stage::Withdrawn => "this node drains: service addresses are withdrawn from routers outside",
        };
        Some(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_told_that_addresses_are_withdrawn_before_neighbours_have_been_sent_it_or_that_none_are() {
        use Stage::{Announced, Leaving, Withdrawn};
        for (stage, is_sent, has_addresses, number, word, note) in [
            (Announced, true, true, 0, "announced", None),
            (Announced, true, false, 0, "announced", None),
            (Leaving, true, true, 1, "leaving", Some("about to be withdrawn")),
            (Leaving, true, false, 1, "leaving", Some("it has no service addresses to announce")),
            (Withdrawn, false, true, 1, "leaving", Some("has not been sent to all neighbours yet")),
            (Withdrawn, true, true, 2, "withdrawn", Some("are withdrawn from routers outside")),
            (Withdrawn, true, false, 2, "withdrawn", Some("it has no service addresses to announce")),
        ] {
            let outside = Outside { stage, is_sent, has_addresses, holds_for_nodes: false };
            assert_eq!((outside.number(), outside.word()), (number, word), "{outside:?}");
            let text = outside.note();
            assert_eq!(text.is_some(), note.is_some(), "{outside:?}");
            assert!(text.unwrap_or_default().contains(note.unwrap_or_default()), "{outside:?}");
            let cut_off = Outside { holds_for_nodes: true, ..outside };
            let (is_held, text) = (stage == Announced, cut_off.note().unwrap_or_default());
            assert_eq!((cut_off.number(), cut_off.word() == "held"), (number, is_held), "{cut_off:?}");
            assert_eq!(text.contains("are held back"), is_held && has_addresses, "{cut_off:?}: {text}");
        }
    }
}
