//! What two speakers agree on: each says in OPEN what it can do, and both do what both can.
//!
//! RFC 4271 4.2 (the smaller hold time), RFC 5492 (capabilities), RFC 6286 (identifiers), RFC 6793, RFC 4724, RFC 8654,
//! RFC 8950.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::super::message::{Capabilities, Dialect, GracefulRestart, Notification, Open, Reason};
use crate::net::{Family, PerFamily};

/// Ourselves, as all neighbours see us.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Local {
    pub asn: u32,
    pub identifier: Ipv4Addr,
}

/// A neighbour, as it is configured.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    pub local: Local,
    /// Its autonomous system; `None` takes any.
    pub asn: Option<u32>,
    /// It is to dial; we only listen.
    pub passive: bool,
    /// What we offer, in seconds; 0 or at least 3.
    pub hold_time: u16,
    /// The longest time between two dials.
    pub connect_retry: Duration,
    /// The families that we want to speak.
    pub families: PerFamily<bool>,
    /// Graceful restart, if we take part in it.
    pub restart: Option<Restart>,
}

/// Our part in graceful restarts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Restart {
    /// How long we may be away, in seconds; at most 4,095.
    pub seconds: u16,
    /// How long a neighbour that is back may take to send its routes again.
    pub stale: Duration,
    /// The neighbour shall keep our routes also when the session ends by a notification or by silence (RFC 8538 2): those of a node
    /// that died stay for the hold time and the restart time together.
    pub notifications: bool,
}

/// What both sides do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Agreement {
    pub dialect: Dialect,
    /// In seconds; 0 for no keepalives.
    pub hold_time: u16,
    /// It answers when we ask for its routes again.
    pub refresh: bool,
    /// It marks the beginning and the end of its answer, and understands our marks.
    pub enhanced_refresh: bool,
    /// What it says of its restarts, if both sides take part in them.
    pub restart: Option<GracefulRestart>,
    /// Who it is and what it can do, as it said.
    pub open: Open,
}

impl Settings {
    /// Our OPEN. `restarting`: we have restarted, and learned routes are still in the kernel. `forwarding`: what was forwarded for
    /// this neighbour before still is.
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
                extended_next_hop: self.families.v4,
                extended_message: true,
                unknown: Vec::new(),
            },
        }
    }

    /// What comes of its OPEN, or what it is refused with.
    pub(super) fn agree(&self, open: Open) -> Result<Agreement, Notification> {
        if self.asn.is_some_and(|asn| asn != open.asn) {
            return Err(Notification::new(Reason::BAD_PEER_AS));
        }
        let internal = open.asn == self.local.asn;
        // RFC 6286 2.2: in another autonomous system it may be ours by chance.
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
                // RFC 8538 2: only where both say so.
                notifications: theirs.notifications && ours.notifications,
                ..theirs
            }),
            open,
        })
    }

    /// RFC 5492 5: the capabilities that we miss, as they are written in OPEN.
    fn wanted_families(&self) -> Vec<u8> {
        let wanted = Family::BOTH.into_iter().filter(|family| *self.families.of(*family));
        wanted.flat_map(|family| [1, 4, 0, if family == Family::V4 { 1 } else { 2 }, 0, 1]).collect()
    }
}

impl Agreement {
    /// The families whose routes outlive the connection (RFC 4724 4.2).
    pub(super) fn kept(&self) -> PerFamily<bool> {
        let kept = |family| {
            let named = self.restart.is_some_and(|restart| restart.families.of(family).is_some());
            named && *self.dialect.families.of(family)
        };
        PerFamily::from_fn(kept)
    }

    /// Whether notifications and silence count as restarts too (RFC 8538 2).
    pub(super) fn keeps_after_notifications(&self) -> bool {
        self.restart.is_some_and(|restart| restart.notifications)
    }
}
