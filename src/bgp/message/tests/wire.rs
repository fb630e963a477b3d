//! Messages captured from other daemons (`tests/support/wire/bgp.txt`): decoded as meant, and harmless however damaged.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::chance::cases;
use super::*;

/// Captured message of another daemon.
struct Said {
    daemon: &'static str,
    session: &'static str,
    kind: u8,
    body: Vec<u8>,
}

fn all() -> Vec<Said> {
    let lines = include_str!("../../../../tests/support/wire/bgp.txt").lines().filter(|line| !line.starts_with('#'));
    let said = |line: &'static str| {
        let [daemon, session, text] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let (kind, body) = text.split_at(2);
        Said { daemon, session, kind: bytes(kind)[0], body: bytes(body) }
    };
    lines.map(said).collect()
}

impl Said {
    fn dialect(&self) -> Dialect {
        Dialect { internal: self.session == "inside", four_octets: self.session != "two-octets", ..EXTERNAL }
    }

    fn read(&self) -> Message {
        let read = decode(Frame { kind: self.kind, body: &self.body }, Some(&self.dialect()));
        read.unwrap_or_else(|error| panic!("{} {}: {error}", self.daemon, self.session))
    }
}

/// Formats a route as one line, with every attribute that one of the daemons sends.
fn line(prefix: ipnet::IpNet, of: &Attributes) -> String {
    let rare = of.rare();
    let path = of.as_path.to_string();
    format!(
        "{prefix} via {} path [{path}] pref {:?} {:?} {:?} {:?}",
        of.next_hop, of.local_pref, of.communities, rare.extended, rare.large
    )
}

#[test]
fn all_daemons_say_the_same_and_it_is_read_without_a_remark() {
    let mut told: BTreeMap<(&str, &str), BTreeSet<String>> = BTreeMap::new();
    for said in all() {
        let Message::Update(update) = said.read() else { continue };
        assert_eq!(update.remarks, [], "{} {}", said.daemon, said.session);
        assert!(update.withdrawn.is_empty());
        let routes = told.entry((said.session, said.daemon)).or_default();
        for Announced { attributes, prefixes } in update.announced {
            routes.extend(prefixes.into_iter().map(|prefix| line(prefix, &attributes)));
        }
    }
    assert_eq!(told.len(), 9, "three daemons in three sessions");
    for ((session, daemon), routes) in &told {
        assert_eq!(routes.len(), 4, "{daemon} {session}");
        assert_eq!(*routes, told[&(*session, "bird")], "{daemon} {session}");
    }
    let [first, second, ..] = &told[&("outside", "gobgp")].iter().collect::<Vec<_>>()[..] else {
        panic!("there are four")
    };
    assert_eq!(
        *first,
        "2001:db8:113:1::/64 via 2001:db8::2 path [65002] pref None [Community(4259971142)] [ExtendedCommunity(842131417596604)] [LargeCommunity([65002, 7, 8])]"
    );
    assert_eq!(*second, "2001:db8:113::/64 via 2001:db8::2 path [65002] pref None [] [] []");
}

#[test]
fn who_they_are_what_they_can_and_why_they_end_is_read() {
    for said in all() {
        let who = format!("{} {}", said.daemon, said.session);
        match said.read() {
            Message::Open(open) => {
                let asn = if said.session == "inside" { 65001 } else { 65002 };
                assert_eq!((open.asn, open.identifier.to_string()), (asn, "192.0.2.2".to_owned()), "{who}");
                assert!(open.capabilities.families.v4 && open.capabilities.families.v6 && open.capabilities.refresh);
                let restart = open.capabilities.restart.filter(|restart| restart.families.v6.is_some());
                assert!(said.session != "inside" || restart.is_some_and(|restart| restart.seconds == 600), "{who}");
            }
            Message::Notification(said) => {
                assert_eq!((said.reason, said.text().as_deref()), (Reason::SHUTDOWN, Some("back at noon")), "{who}");
            }
            Message::Keepalive | Message::Update(_) | Message::Refresh(_) => {}
            Message::Ignored => panic!("{who}: a refresh that nobody knows"),
        }
    }
}

#[test]
fn updates_are_written_as_bird_writes_them() {
    let mut compared = 0;
    for said in all().into_iter().filter(|said| said.daemon == "bird") {
        let Message::Update(update) = said.read() else { continue };
        for Announced { attributes, prefixes } in &update.announced {
            let mut packing = Packing::new(said.dialect());
            assert!(packing.announce(Family::from(prefixes[0]), attributes, prefixes));
            assert_eq!(packing.finish(), (message(UPDATE, &said.body), 1));
            compared += 1;
        }
    }
    assert_eq!(compared, 12);
}

proptest! {
    #![proptest_config(cases(4096))]

    #[test]
    fn what_others_have_said_breaks_nothing_however_it_is_damaged(
        which in any::<prop::sample::Index>(),
        wrong in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        (from, to, copied) in any::<(prop::sample::Index, prop::sample::Index, bool)>(),
        other in any::<bool>(),
    ) {
        let said = &all()[which.index(all().len())];
        let mut body = said.body.clone();
        for (at, byte) in wrong.iter().filter(|_| !said.body.is_empty()) {
            let at = at.index(body.len());
            body[at] = *byte;
        }
        // Removes or duplicates a piece.
        let (from, to) = (from.index(body.len() + 1), to.index(body.len() + 1));
        let piece = body[from.min(to)..from.max(to)].to_vec();
        if copied {
            body.splice(to..to, piece);
        } else if other {
            body.drain(from.min(to)..from.max(to));
        }
        let dialect = if other { TWO_OCTETS } else { said.dialect() };
        let _ = decode(Frame { kind: said.kind, body: &body }, Some(&dialect));
        let mut framing = Framing::default();
        framing.push(&message(said.kind, &body));
        while let Ok(Some(frame)) = framing.next(false) {
            let _ = decode(frame, Some(&dialect));
        }
    }
}
