//! Negotiation: capabilities advertised by both speakers in OPEN are in use.
//!
//! RFC 4271 4.2 (the smaller hold time), RFC 5492 (capabilities), RFC 6286 (identifiers), RFC 6793, RFC 4724, RFC 8654,
//! RFC 8950.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::super::message::{
    Capabilities, Dialect, GracefulRestart, LongLivedFamily, LongLivedRestart, Notification, Open, Reason,
};
use crate::net::{Family, PerFamily};

/// Local speaker, as all neighbours see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Local {
    pub asn: u32,
    pub identifier: Ipv4Addr,
}

/// Configuration of a neighbour.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    pub local: Local,
    /// Its AS number; `None` accepts any.
    pub asn: Option<u32>,
    /// It has to be in another AS than ours, for one whose number is not given.
    pub is_external: bool,
    /// Passive: only the neighbour dials.
    pub passive: bool,
    /// Proposed hold time, in seconds; 0 or at least 3.
    pub hold_time: u16,
    /// Maximum time between two dials.
    pub connect_retry: Duration,
    /// The neighbour dials us, too, as nodes of a mesh do. The more of such neighbours do not answer, the more seldom each
    /// of them is dialled.
    pub mutual: bool,
    /// Configured address families.
    pub families: PerFamily<bool>,
    /// Graceful restart, if enabled.
    pub restart: Option<Restart>,
}

/// Configuration of graceful restart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Restart {
    /// Restart time, in seconds; at most 4,095.
    pub seconds: u16,
    /// Time limit for a restarted neighbour to send its routes again (stale path timer).
    pub stale: Duration,
    /// Long-lived graceful restart (RFC 9494): time in seconds for which the neighbour is to retain our routes after the restart time,
    /// and at most for which we retain its; 0 for no part in it.
    pub long_lived: u32,
    /// The neighbour is to retain our routes also when the session ends by a NOTIFICATION or the hold timer (RFC 8538
    /// 2): those of a node that died stay for the hold time and the restart time together.
    pub notifications: bool,
}

/// Result of the negotiation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Agreement {
    pub dialect: Dialect,
    /// Hold time in seconds; 0 without KEEPALIVEs.
    pub hold_time: u16,
    /// The peer supports route refresh.
    pub refresh: bool,
    /// Enhanced route refresh: the peer sends and understands BoRR and EoRR.
    pub enhanced_refresh: bool,
    /// Graceful restart capability of the peer, if both sides take part.
    pub restart: Option<GracefulRestart>,
    /// Long-lived graceful restart of the peer, if both sides take part, by address family: how long its routes are retained.
    pub long_lived: Option<LongLivedRestart>,
    /// OPEN of the peer.
    pub open: Open,
}

impl Settings {
    /// Builds our OPEN. `restarting`: we have restarted, and learned routes are still in the kernel. `forwarding`:
    /// forwarding state for this neighbour was preserved.
    pub(super) fn open(&self, restarting: bool, forwarding: bool) -> Open {
        let restart = self.restart.map(|restart| GracefulRestart {
            restarting,
            notifications: restart.notifications,
            seconds: restart.seconds,
            families: PerFamily::from_fn(|family| self.families.of(family).then_some(forwarding)),
        });
        Open {
            asn: self.local.asn,
            hold_time: self.hold_time,
            identifier: self.local.identifier,
            capabilities: Capabilities {
                families: self.families,
                multiprotocol: true,
                refresh: true,
                enhanced_refresh: true,
                asn: Some(self.local.asn),
                restart,
                long_lived: self.long_lived(|_| Some(forwarding)),
                extended_next_hop: self.families.v4,
                extended_message: true,
                unknown: Vec::new(),
            },
        }
    }

    /// Negotiates with the peer's OPEN; the error is the NOTIFICATION that refuses it.
    pub(super) fn agree(&self, open: Open) -> Result<Agreement, Notification> {
        if self.asn.is_some_and(|asn| asn != open.asn) {
            return Err(Notification::new(Reason::BAD_PEER_AS));
        }
        let internal = open.asn == self.local.asn;
        if internal && self.is_external {
            return Err(Notification::new(Reason::BAD_PEER_AS));
        }
        // RFC 6286 2.2: in another AS it may equal ours by chance.
        if internal && open.identifier == self.local.identifier {
            return Err(Notification::new(Reason::BAD_IDENTIFIER));
        }
        let theirs = &open.capabilities;
        let spoken = theirs.spoken();
        let families = PerFamily::from_fn(|family| *self.families.of(family) && *spoken.of(family));
        if families == PerFamily::default() {
            return Err(Notification::with(Reason::UNSUPPORTED_CAPABILITY, self.wanted_families()));
        }
        let dialect = Dialect {
            internal,
            four_octets: theirs.asn.is_some(),
            families,
            extended_next_hop: theirs.extended_next_hop && families.v4,
            extended_message: theirs.extended_message,
        };
        Ok(Agreement {
            dialect,
            hold_time: self.hold_time.min(open.hold_time),
            refresh: theirs.refresh,
            enhanced_refresh: theirs.refresh && theirs.enhanced_refresh,
            restart: theirs.restart.zip(self.restart).map(|(theirs, ours)| GracefulRestart {
                // RFC 8538 2: only if both sides set the N bit.
                notifications: theirs.notifications && ours.notifications,
                ..theirs
            }),
            long_lived: theirs.restart.and(theirs.long_lived).and_then(|theirs| {
                let forwarding = |family| theirs.families.of(family).map(|it| it.forwarding);
                let ours = self.long_lived(|family| forwarding(family).filter(|_| *families.of(family)))?;
                let shorter = |family| {
                    let theirs = (*theirs.families.of(family))?;
                    (*ours.families.of(family))
                        .map(|ours| LongLivedFamily { seconds: ours.seconds.min(theirs.seconds), ..ours })
                };
                Some(LongLivedRestart { families: PerFamily::from_fn(shorter) })
            }),
            open,
        })
    }

    /// Our long-lived graceful restart, if enabled, for the families of which the F bit is given.
    fn long_lived(&self, forwarding: impl Fn(Family) -> Option<bool>) -> Option<LongLivedRestart> {
        let seconds = self.restart.map(|restart| restart.long_lived).filter(|seconds| *seconds > 0)?;
        let of = |family: Family| {
            let forwarding = forwarding(family).filter(|_| *self.families.of(family))?;
            Some(LongLivedFamily { forwarding, seconds })
        };
        Some(LongLivedRestart { families: PerFamily::from_fn(of) })
    }

    /// RFC 5492 5: the missing capabilities, encoded as in OPEN.
    fn wanted_families(&self) -> Vec<u8> {
        let wanted = Family::BOTH.into_iter().filter(|family| *self.families.of(*family));
        wanted.flat_map(|family| [1, 4, 0, if family == Family::V4 { 1 } else { 2 }, 0, 1]).collect()
    }
}

impl Agreement {
    /// Time for which the routes of a family are retained when the connection ends (RFC 4724 4.2), if they are.
    pub(super) fn kept(&self, family: Family) -> Option<Duration> {
        let restart = self.restart.filter(|restart| restart.families.of(family).is_some());
        restart.filter(|_| *self.dialect.families.of(family)).map(|restart| Duration::from_secs(restart.seconds.into()))
    }

    /// Time for which they are retained after that (RFC 9494 4.2), if they are.
    pub(super) fn kept_long(&self, family: Family) -> Option<Duration> {
        let long_lived = (*self.long_lived?.families.of(family)).filter(|it| it.seconds > 0);
        long_lived.map(|it| Duration::from_secs(it.seconds.into()))
    }

    /// Returns whether the routes of a family are retained when the connection ends, by this or by long-lived graceful restart.
    pub fn retains(&self, family: Family) -> bool {
        self.kept(family).is_some() || self.kept_long(family).is_some()
    }

    /// Returns whether the peer has preserved forwarding state, as it says of this or of long-lived graceful restart.
    pub(super) fn forwards(&self, family: Family) -> bool {
        let restart = self.restart.filter(|_| *self.dialect.families.of(family));
        restart.is_some_and(|restart| *restart.families.of(family) == Some(true))
    }

    pub(super) fn forwards_long(&self, family: Family) -> bool {
        self.long_lived.and_then(|it| *it.families.of(family)).is_some_and(|it| it.forwarding)
    }

    /// Returns whether NOTIFICATIONs and the expiry of the hold timer count as restarts, too (RFC 8538 2).
    pub(super) fn keeps_after_notifications(&self) -> bool {
        self.restart.is_some_and(|restart| restart.notifications)
    }
}
