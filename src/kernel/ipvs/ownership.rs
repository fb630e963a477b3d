//! Whose a virtual service is: the kernel keeps no mark of who made it.

use super::{ServiceKey, Virtual};

/// Predicate for the virtual services that are ours.
pub type Ours = Box<dyn Fn(&ServiceKey) -> bool + Send>;

/// Says whose a virtual service is, as far as its key tells.
pub type Ownership = Box<dyn Fn(&ServiceKey) -> Whose + Send>;

/// Whose a virtual service is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Whose {
    Ours,
    /// Ours if all its destinations are in tunnel mode, and somebody else's otherwise.
    OursInTunnelMode,
    /// Ours if it has destinations and all of them are in tunnel mode, and somebody else's otherwise.
    OursWithTunnels,
    SomebodyElses,
}

impl Whose {
    /// Returns whether the content of a virtual service says whose it is.
    pub(super) fn depends_on_content(self) -> bool {
        matches!(self, Whose::OursInTunnelMode | Whose::OursWithTunnels)
    }

    /// Returns whether a virtual service with this content is ours.
    pub fn is_ours(self, found: &Virtual) -> bool {
        match self {
            Whose::Ours => true,
            Whose::OursInTunnelMode => found.is_in_tunnel_mode(),
            Whose::OursWithTunnels => found.is_in_tunnel_mode() && !found.destinations.is_empty(),
            Whose::SomebodyElses => false,
        }
    }
}

pub(super) fn of_predicate(ours: Ours) -> Ownership {
    Box::new(move |key| if ours(key) { Whose::Ours } else { Whose::SomebodyElses })
}
