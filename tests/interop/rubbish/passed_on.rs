//! Attributes and communities of a route that are passed on to a third speaker, and those that are not.

use sluice::bgp::message::{Message, Update};
use sluice::bgp::speaker::Speaker;

use super::*;
use crate::raw::{IN, OLD, OUT, framed};

const PREFIX: &str = BEFORE[0];

/// One more neighbour, inside of our system.
fn inside(stage: &Stage, host: &Host) -> Ours {
    let cell = Cell { families: PerFamily { v4: true, v6: true }, ..Cell::inside(Daemon::Bird) };
    let third = Ours::start(host, 65001, false);
    stage.ours.want(wanted(&cell, &stage.hosts[0], host));
    third.want(wanted(&cell, host, &stage.hosts[0]));
    stage.ours.is_up(host.address(Family::V4));
    third
}

/// An IPv4 route with these attributes besides the mandatory ones.
fn with(who: Who, more: &str) -> Vec<u8> {
    let path = if who.asn == 65001 { "400200" } else { "40020602010000fdea" };
    let attributes = bytes(&format!("40010100 {path} 400304c0000202 {more}"));
    let length = (attributes.len() as u16).to_be_bytes();
    framed(2, &[&[0, 0], &length[..], &attributes, &bytes("180af401")].concat())
}

#[test]
fn communities_keep_a_route_where_they_say() {
    with_hosts(4, Topology::Link, |hosts| {
        let stage = Stage::new(hosts);
        let third = inside(&stage, &hosts[3]);
        // Who sends it, its community, whether it goes outside, whether it goes on inside.
        for (who, community, outside, onwards) in [
            (OUT, "", true, true),
            (OUT, "c00804 ffffff01", false, true),  // NO_EXPORT
            (OUT, "c00804 ffffff02", false, false), // NO_ADVERTISE
            (OUT, "c00804 ffffff03", false, true),  // NO_EXPORT_SUBCONFED
            (OUT, "c00804 ffffff04", true, true),   // NOPEER, RFC 3765
            (OUT, "c00808 fdea0001 ffffff01", false, true),
            (IN, "", true, false),
            (IN, "c00804 ffffff01", false, false),
            (IN, "c00804 ffffff02", false, false),
        ] {
            stage.anew(None);
            let mut raw = stage.session(who);
            // It is taken away again from those that are not to have it any more.
            raw.say(&with(who, ""));
            eventually("the route", &true, || prefixes(&stage.other).contains(PREFIX));
            raw.say(&with(who, community));
            stage.announce(&mut raw, who, Origin::Igp, &AFTER);
            eventually("what comes after it", &true, || prefixes(&stage.other).contains(AFTER[1]));
            assert!(stage.has().contains(PREFIX), "{community}: we use it ourselves");
            eventually(&format!("{who:?} {community} outside"), &outside, || prefixes(&stage.other).contains(PREFIX));
            eventually(&format!("{who:?} {community} inside"), &onwards, || prefixes(&third).contains(PREFIX));
        }
        stage.anew(None);
        stage.others_are_untouched();
    });
}

#[test]
fn attributes_that_we_do_not_know_go_on_marked_when_they_may() {
    with_hosts(4, Topology::Link, |hosts| {
        let stage = Stage::new(hosts);
        let third = inside(&stage, &hosts[3]);
        stage.anew(None);
        let mut raw = stage.session(OUT);
        raw.say(&with(OUT, "c0630201 02 80640100 d0650002 0304 e0660105"));
        let unknown = |speaker: &mut Speaker| -> Vec<(u8, u8, Vec<u8>)> {
            let prefix = PREFIX.parse().expect("a prefix");
            let best = speaker.rib().table().best(prefix);
            let unknown = best.map(|best| best.attributes.rare().unknown.clone()).unwrap_or_default();
            unknown.iter().map(|one| (one.number, one.flags, one.value.to_vec())).collect()
        };
        // RFC 4271 5: optional, transitive, and partial, because we did not know them.
        let expected = vec![(99, 0xe0, vec![1, 2]), (101, 0xe0, vec![3, 4]), (102, 0xe0, vec![5])];
        eventually("outside", &expected, || stage.other.ask(unknown));
        eventually("inside", &expected, || third.ask(unknown));
        stage.others_are_untouched();
    });
}

/// Prefixes that the third speaker has received and not lost again.
#[derive(Default)]
struct HandedOn {
    has: BTreeSet<IpNet>,
    withdrawn: BTreeSet<IpNet>,
}

impl HandedOn {
    /// Hears until there is a route to this prefix.
    fn until(&mut self, raw: &mut Raw, last: &str) {
        let last: IpNet = last.parse().expect("a prefix");
        while !self.has.contains(&last) {
            match raw.hear().expect("the session stays") {
                Message::Update(update) => self.take(update),
                Message::Keepalive => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn take(&mut self, update: Update) {
        for prefix in update.withdrawn {
            self.has.remove(&prefix);
            self.withdrawn.insert(prefix);
        }
        self.has.extend(update.announced.into_iter().flat_map(|announced| announced.prefixes));
    }
}

#[test]
fn attributes_that_do_not_fit_the_next_neighbours_messages_cost_that_route_there_and_are_told() {
    with_hosts(4, Topology::Link, |hosts| {
        let stage = Stage::new(hosts);
        let prefix: IpNet = PREFIX.parse().expect("a prefix");
        stage.anew(None);
        let short = Who { asn: 65004, ..OLD };
        let cell = Cell { asns: [65001, 65004], ..Cell::with(Daemon::Bird) };
        let mut listener = wanted(&cell, &hosts[0], &hosts[3]);
        listener.settings.passive = true;
        stage.ours.want(listener);
        let mut raw = stage.session(OUT);
        stage.announce(&mut raw, OUT, Origin::Igp, &BEFORE);
        let mut third = Raw::session(&hosts[3], &hosts[0], short);
        let mut told = HandedOn::default();
        told.until(&mut third, BEFORE[2]);
        assert!(told.has.contains(&prefix));

        // 6,000 octets of communities came in one long message.
        let communities: String = (0..1500_u32).map(|one| format!("{:08x}", 0xfdea_0000 | one)).collect();
        raw.say(&with(OUT, &format!("d0081770 {communities}")));
        stage.announce(&mut raw, OUT, Origin::Igp, &AFTER);
        told.until(&mut third, AFTER[1]);
        assert!(!told.has.contains(&prefix) && told.withdrawn.contains(&prefix));
        let lost = stage.ours.learns("that it is not told", |fact| match fact {
            Fact::Unfit(routes) => Some(*routes),
            _ => None,
        });
        assert_eq!(lost, 1);
        let communities = move |speaker: &mut Speaker| {
            speaker.rib().table().best(prefix).map(|best| best.attributes.communities.len())
        };
        eventually("who takes long messages has it", &Some(1500), || stage.other.ask(communities));

        // Who comes later is told everything else.
        drop(third);
        let mut third = Raw::session(&hosts[3], &hosts[0], short);
        let mut told = HandedOn::default();
        told.until(&mut third, AFTER[1]);
        assert!(!told.has.contains(&prefix) && told.has.len() == 5, "{:?}", told.has);
        raw.say(&with(OUT, ""));
        told.until(&mut third, PREFIX);
        stage.others_are_untouched();
    });
}
