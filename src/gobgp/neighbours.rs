//! Neighbours as clients display them.
//!
//! The client aborts where a message part that it reads is missing, so that all parts are sent, even empty ones.
//! Configuration and state are two messages with much the same fields. A password is never sent.

use std::net::IpAddr;
use std::time::Duration;

use super::capabilities::capabilities;
use super::clock::Clock;
use super::version::{Version, spoken};
use super::wire::messages::{
    AfiSafi, AfiSafiConfig, AfiSafiState, BfdPeerConfig, BfdPeerState, EbgpMultihop, GracefulRestart, Message,
    Messages, Peer, PeerConf, PeerState, PrefixLimit, Queues, RouteReflector, RouteServer, Timers, TimersConfig,
    TimersState, Transport, TtlSecurity,
};
use crate::bfd::{self, Status, Wanted};
use crate::bgp::rib::Count;
use crate::bgp::session::State;
use crate::bgp::speaker::{Liveness, Neighbour, Speaker};
use crate::bgp::transport::TimeToLive;
use crate::net::{Family, PerFamily};

/// Client version, and the time of the request.
#[derive(Clone, Copy, Debug)]
pub struct RequestContext {
    pub version: Version,
    pub clock: Clock,
}

/// Up to `most` neighbours in the order of their addresses, from behind `after` on.
pub fn peers(asked: RequestContext, speaker: &Speaker, after: Option<IpAddr>, most: usize) -> Vec<(IpAddr, Peer)> {
    let known = speaker.neighbours().filter(|(_, neighbour)| neighbour.is_known());
    let rest = known.filter(|(address, _)| after.is_none_or(|after| *address > after));
    rest.take(most).map(|(address, neighbour)| (address, peer(asked, speaker, address, neighbour))).collect()
}

/// Encodes one neighbour. The number of routes advertised to it is counted elsewhere.
pub fn peer(asked: RequestContext, speaker: &Speaker, address: IpAddr, neighbour: &Neighbour) -> Peer {
    let RequestContext { version, clock } = asked;
    let wanted = neighbour.wanted();
    let settings = &wanted.settings;
    let restart = settings.restart;
    let agreed = neighbour.peer().agreement();
    let their_restart = agreed.and_then(|agreement| agreement.restart);
    let seconds = |time: Option<Duration>| time.map_or(0, |time| u32::try_from(time.as_secs()).unwrap_or(u32::MAX));
    let (hops, secured) = match wanted.transport.time_to_live {
        TimeToLive::System => (0, 0),
        TimeToLive::Hops(hops) => (u32::from(hops), 0),
        TimeToLive::Secured { .. } => (0, u32::from(wanted.transport.time_to_live.least().unwrap_or_default())),
    };
    let cluster = wanted.client.then(|| speaker.rib().own().cluster.to_string());
    let own = wanted.own.of(Family::from(address));
    Peer {
        conf: Some(conf(version, speaker, neighbour)),
        ebgp_multihop: Some(EbgpMultihop { enabled: hops > 1, multihop_ttl: hops }),
        route_reflector: Some(RouteReflector {
            route_reflector_client: wanted.client,
            route_reflector_cluster_id: cluster.unwrap_or_default(),
        }),
        state: Some(state(version, speaker, neighbour)),
        timers: Some(timers(clock, neighbour)),
        transport: Some(Transport {
            local_address: wanted
                .transport
                .local
                .or(*own)
                .map(|local| wanted.link_names().text(local))
                .unwrap_or_default(),
            passive_mode: settings.passive,
            remote_address: wanted.name(),
            remote_port: wanted.transport.port.into(),
        }),
        route_server: Some(RouteServer { route_server_client: false }),
        graceful_restart: Some(GracefulRestart {
            enabled: restart.is_some(),
            restart_time: restart.map_or(0, |restart| restart.seconds.into()),
            notification_enabled: restart.is_some_and(|restart| restart.notifications),
            stale_routes_time: seconds(restart.map(|restart| restart.stale)),
            peer_restart_time: their_restart.map_or(0, |restart| restart.seconds.into()),
            peer_restarting: their_restart.is_some_and(|restart| restart.restarting),
            local_restarting: speaker.is_restarting(),
        }),
        afi_safis: families(speaker, neighbour),
        ttl_security: Some(TtlSecurity { enabled: secured > 0, ttl_min: secured }),
        bfd: wanted.liveness.filter(|_| version == Version::V4).map(|liveness| bfd(&liveness)),
    }
}

fn bfd(liveness: &Liveness) -> BfdPeerConfig {
    let Wanted { settings, port, .. } = liveness.wanted;
    let microseconds = |time: Duration| u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
    BfdPeerConfig {
        enabled: true,
        port: port.into(),
        desired_minimum_tx_interval: microseconds(settings.send),
        required_minimum_receive: microseconds(settings.receive),
        detection_multiplier: settings.multiplier.into(),
    }
}

fn bfd_state(status: &Status) -> BfdPeerState {
    let number = |state| match state {
        bfd::State::Up => 1,
        bfd::State::Down => 2,
        bfd::State::AdminDown => 3,
        bfd::State::Init => 4,
    };
    BfdPeerState {
        session_state: number(status.state),
        remote_session_state: number(status.remote_state),
        failure_transitions: status.failures,
        local_discriminator: status.mine,
        remote_discriminator: status.yours,
    }
}

const INTERNAL: i32 = 0;
const EXTERNAL: i32 = 1;

fn kind(version: Version, speaker: &Speaker, asn: u32) -> i32 {
    version.number(if asn == speaker.rib().own().asn { INTERNAL } else { EXTERNAL })
}

fn conf(version: Version, speaker: &Speaker, neighbour: &Neighbour) -> PeerConf {
    let settings = &neighbour.wanted().settings;
    let asn = settings.asn.unwrap_or_default();
    PeerConf {
        local_asn: settings.local.asn,
        neighbor_address: neighbour.wanted().name(),
        peer_asn: asn,
        r#type: kind(version, speaker, asn),
        admin_down: neighbour.peer().is_stopped(),
        ..PeerConf::default()
    }
}

fn state(version: Version, speaker: &Speaker, neighbour: &Neighbour) -> PeerState {
    const UP: i32 = 0;
    const DOWN: i32 = 1;
    let peer = neighbour.peer();
    let settings = &neighbour.wanted().settings;
    let open = peer.agreement().map(|agreement| &agreement.open);
    let asn = open.map(|open| open.asn).or(settings.asn).unwrap_or_default();
    let theirs = open.map(|open| capabilities(version, &open.capabilities));
    PeerState {
        local_asn: settings.local.asn,
        messages: Some(Messages { received: Some(counts(peer.received())), sent: Some(counts(neighbour.sent())) }),
        neighbor_address: neighbour.wanted().name(),
        peer_asn: asn,
        r#type: kind(version, speaker, asn),
        queues: Some(Queues::default()),
        session_state: number_of(peer.state()),
        admin_state: version.number(if peer.is_stopped() { DOWN } else { UP }),
        flops: neighbour.flops(),
        remote_cap: theirs.unwrap_or_default(),
        local_cap: capabilities(version, &peer.own_open().capabilities),
        router_id: open.map(|open| open.identifier.to_string()).unwrap_or_default(),
        bfd_state: neighbour.path().filter(|_| version == Version::V4).as_ref().map(bfd_state),
        ..PeerState::default()
    }
}

/// Number of a state, the same in both versions.
pub fn number_of(state: State) -> i32 {
    match state {
        State::Idle => 1,
        State::Connect => 2,
        State::Active => 3,
        State::OpenSent => 4,
        State::OpenConfirm => 5,
        State::Established => 6,
    }
}

/// Message counters, indexed by type code (RFC 4271 4.1, RFC 2918 3).
fn counts([_, open, update, notification, keepalive, refresh]: [u64; 6]) -> Message {
    let total = open + update + notification + keepalive + refresh;
    Message { notification, update, open, keepalive, refresh, discarded: 0, total }
}

fn timers(clock: Clock, neighbour: &Neighbour) -> Timers {
    let settings = &neighbour.wanted().settings;
    let agreed = neighbour.peer().agreement().map(|agreement| u64::from(agreement.hold_time));
    let (connect_retry, hold_time) = (settings.connect_retry.as_secs(), u64::from(settings.hold_time));
    Timers {
        config: Some(TimersConfig { connect_retry, hold_time, keepalive_interval: hold_time / 3 }),
        state: Some(TimersState {
            connect_retry,
            hold_time,
            keepalive_interval: agreed.unwrap_or(hold_time) / 3,
            negotiated_hold_time: agreed.unwrap_or_default(),
            uptime: neighbour.began().map(|began| clock.at(began)),
            downtime: neighbour.ended().map(|ended| clock.at(ended)),
        }),
    }
}

fn families(speaker: &Speaker, neighbour: &Neighbour) -> Vec<AfiSafi> {
    let wanted = neighbour.wanted();
    let is_up = neighbour.peer().state() == State::Established;
    let known: PerFamily<Count> =
        if is_up { speaker.rib().table().count(neighbour.id()) } else { PerFamily::default() };
    let offered = Family::BOTH.into_iter().filter(|family| *wanted.settings.families.of(*family));
    offered
        .map(|family| AfiSafi {
            config: Some(AfiSafiConfig { family: Some(spoken(family)), enabled: true }),
            state: Some(AfiSafiState {
                family: Some(spoken(family)),
                enabled: neighbour.speaks(family),
                received: known.of(family).received.into(),
                accepted: known.of(family).used.into(),
                advertised: 0,
            }),
            prefix_limits: wanted
                .most
                .of(family)
                .map(|max_prefixes| PrefixLimit { family: Some(spoken(family)), max_prefixes }),
        })
        .collect()
}
