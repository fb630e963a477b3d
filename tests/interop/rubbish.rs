//! Neighbours that send rubbish, in every field of every message, over sessions that stand.
//!
//! Each table is one kind of message, each row one case: where it is written, what is wrong, what is sent, what is to become of
//! it. Beside the neighbour there is another one, outside: its session stays whatever the first one does, and it has the routes
//! that are right at any time.

#[path = "rubbish/messages.rs"]
mod messages;
#[path = "rubbish/passed_on.rs"]
mod passed_on;
#[path = "rubbish/updates.rs"]
mod updates;
#[path = "rubbish/volume.rs"]
mod volume;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use sluice::bgp::driver::Event;
use sluice::bgp::message::{Attributes, Notification, Origin, Reason};
use sluice::bgp::session::State;
use sluice::bgp::speaker::{Fact, Order};
use sluice::bgp::transport::TimeToLive;
use sluice::net::{Family, PerFamily};

use crate::cell::{Cell, Daemon};
use crate::ground::{Host, Topology, eventually, with_hosts};
use crate::ours::{Ours, wanted};
use crate::raw::{Raw, Who, bytes, written};

/// Routes that the neighbour announces before a case: of each family the one that the case is about, and one that it is not about.
const BEFORE: [&str; 3] = ["10.244.1.0/24", "10.244.9.0/24", "fd00:10:244:1::/64"];
/// Routes that the neighbour announces after a case: they arrive if its session goes on.
const AFTER: [&str; 2] = ["10.244.255.0/24", "fd00:10:244:ff::/64"];
/// Route of the other neighbour.
const OTHERS: &str = "203.0.113.128/25";

/// A speaker of ours, the neighbour that it does not know yet, and another one with a session that stands.
struct Stage<'a> {
    hosts: &'a [Host],
    ours: Ours,
    other: Ours,
}

/// Plays all rows of a table, and shows all of them that end in another way than they should.
fn play<Row>(rows: &[Row], mut case: impl FnMut(&Stage, &Row) -> (String, String, String) + Send)
where
    Row: Sync,
{
    with_hosts(3, Topology::Link, |hosts| {
        let stage = Stage::new(hosts);
        let mut wrong = Vec::new();
        for row in rows {
            let (title, expected, found) = case(&stage, row);
            if expected != found {
                wrong.push(format!("{title}:\n    expected {expected}\n    found    {found}"));
            }
        }
        stage.others_are_untouched();
        assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
    });
}

impl<'a> Stage<'a> {
    fn new(hosts: &'a [Host]) -> Stage<'a> {
        let ours = Ours::start(&hosts[0], 65001, false);
        let other = Ours::start(&hosts[2], 65003, false);
        let [there, back] = [[65001, 65003], [65003, 65001]].map(|asns| Cell {
            asns,
            families: PerFamily { v4: true, v6: true },
            ..Cell::with(Daemon::Bird)
        });
        ours.want(wanted(&there, &hosts[0], &hosts[2]));
        other.want(wanted(&back, &hosts[2], &hosts[0]));
        let route = Attributes::local(hosts[2].address(Family::V4));
        other.order(vec![Order::Originate(OTHERS.parse().expect("a prefix"), Box::new(route))]);
        let stage = Stage { hosts, ours, other };
        eventually("what the other one announces", &BTreeSet::from([OTHERS.to_owned()]), || stage.has());
        stage
    }

    fn neighbour(&self) -> IpAddr {
        self.hosts[1].address(Family::V4)
    }

    /// The neighbour is wanted, as if it had never been there. It may be in any system unless one is expected.
    fn anew(&self, expected: Option<u32>) {
        let cell = Cell { asns: [65001, 65002], ..Cell::with(Daemon::Bird) };
        let mut wanted = wanted(&cell, &self.hosts[0], &self.hosts[1]);
        wanted.transport.time_to_live = TimeToLive::System;
        wanted.settings.asn = expected;
        wanted.settings.passive = true;
        wanted.settings.connect_retry = Duration::from_millis(10);
        let gone = Order::Remove(wanted.address, Notification::new(Reason::DECONFIGURED));
        self.ours.order(vec![gone, Order::Want(Arc::new(wanted))]);
        self.ours.heard().clear();
    }

    fn dial(&self, who: Who) -> Raw {
        Raw::dial(&self.hosts[1], &self.hosts[0], who)
    }

    fn session(&self, who: Who) -> Raw {
        Raw::session(&self.hosts[1], &self.hosts[0], who)
    }

    /// The prefixes that we have from others.
    fn has(&self) -> BTreeSet<String> {
        prefixes(&self.ours)
    }

    /// The session of the neighbour stands.
    fn stands(&self) -> bool {
        self.ours.state(self.neighbour()) == State::Established
    }

    /// Routes of the neighbour, as it usually announces them; `origin` tells older ones from newer ones.
    fn announce(&self, raw: &mut Raw, who: Who, origin: Origin, prefixes: &[&str]) {
        for prefix in prefixes {
            let prefix: IpNet = prefix.parse().expect("a prefix");
            let family = Family::from(prefix);
            if *who.families.of(family) {
                raw.say(&who.update(&self.attributes(who, origin, family), &[prefix]));
            }
        }
    }

    fn attributes(&self, who: Who, origin: Origin, family: Family) -> Attributes {
        let mut attributes = Attributes::local(self.hosts[1].address(family));
        attributes.origin = origin;
        if who.asn != 65001 {
            attributes.as_path = attributes.as_path.prepended(who.asn, 1);
        }
        attributes
    }

    /// Asserts that the other neighbour has exactly our routes of the neighbour, and that its session never ended.
    fn others_are_untouched(&self) {
        let right = || {
            let ours: BTreeSet<String> = self.has().into_iter().filter(|prefix| prefix != OTHERS).collect();
            (self.has().contains(OTHERS), ours == prefixes(&self.other))
        };
        eventually("that others have what is right", &(true, true), right);
        let flops = self.ours.of(self.hosts[2].address(Family::V4), |neighbour| neighbour.flops());
        assert!(flops <= 1, "the session of another neighbour has ended {flops} times");
    }
}

fn prefixes(ours: &Ours) -> BTreeSet<String> {
    ours.table().iter().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

/// Facts about neighbours that were told since.
fn facts<T>(ours: &Ours, which: impl Fn(&Fact) -> Option<T>) -> Vec<T> {
    let fact = |event: &Event| if let Event::Fact(_, fact) = event { which(fact) } else { None };
    ours.heard().iter().filter_map(fact).collect()
}
