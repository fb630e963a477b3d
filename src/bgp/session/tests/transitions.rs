//! The complete table as text: every state, and the effects of every event in it.
//!
//! `UPDATE=1` writes it anew; a change of behaviour then appears in the diff.

use super::*;

const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/bgp/session/transitions.txt");

/// A state, and the way to reach it.
struct Situation {
    name: &'static str,
    reach: fn(&mut Bench),
}

/// An event.
struct Happening {
    name: &'static str,
    act: fn(&mut Bench) -> Vec<Effect>,
}

const SITUATIONS: &[Situation] = &[
    Situation { name: "Idle, stopped", reach: |_| {} },
    Situation {
        name: "Idle, for a while",
        reach: |bench| {
            bench.step(Event::Start);
            bench.step(Event::Refuse(Notification::new(Reason::MAXIMUM_PREFIXES), Duration::from_secs(30)));
        },
    },
    Situation { name: "Connect", reach: |bench| drop(bench.step(Event::Start)) },
    Situation {
        name: "Active",
        reach: |bench| {
            bench.step(Event::Start);
            bench.step(Event::DialFailed);
        },
    },
    Situation { name: "OpenSent on ours", reach: ours_sent },
    Situation { name: "OpenSent on theirs", reach: theirs_sent },
    Situation {
        name: "OpenSent on both",
        reach: |bench| {
            ours_sent(bench);
            bench.step(Event::Accepted(THEIRS));
        },
    },
    Situation {
        name: "OpenConfirm on ours",
        reach: |bench| {
            ours_sent(bench);
            bench.open(OURS);
        },
    },
    Situation {
        name: "OpenConfirm on theirs, OpenSent on ours",
        reach: |bench| {
            ours_sent(bench);
            bench.step(Event::Accepted(THEIRS));
            bench.open(THEIRS);
        },
    },
    Situation {
        name: "Confirmed on ours, OpenSent on theirs, which would win",
        reach: |bench| {
            ours_sent(bench);
            bench.step(Event::Accepted(THEIRS));
            bench.open(OURS);
            bench.keepalive(OURS);
        },
    },
    Situation {
        name: "OpenConfirm on both, of which theirs would win",
        reach: |bench| {
            ours_sent(bench);
            bench.step(Event::Accepted(THEIRS));
            bench.open(OURS);
            bench.open(THEIRS);
        },
    },
    Situation {
        name: "Confirmed on ours, OpenConfirm on theirs, which would win",
        reach: |bench| {
            ours_sent(bench);
            bench.step(Event::Accepted(THEIRS));
            bench.open(OURS);
            bench.keepalive(OURS);
            bench.open(THEIRS);
        },
    },
    Situation { name: "Established on ours", reach: established },
    Situation {
        name: "Established on ours, OpenSent on theirs",
        reach: |bench| {
            established(bench);
            bench.step(Event::Accepted(THEIRS));
        },
    },
    Situation {
        name: "Established on ours, OPEN come on theirs",
        reach: |bench| {
            established(bench);
            bench.step(Event::Accepted(THEIRS));
            bench.open(THEIRS);
        },
    },
];

fn ours_sent(bench: &mut Bench) {
    bench.step(Event::Start);
    bench.step(Event::Dialled(OURS));
}

fn theirs_sent(bench: &mut Bench) {
    bench.step(Event::Start);
    bench.step(Event::DialFailed);
    bench.step(Event::Accepted(THEIRS));
}

fn established(bench: &mut Bench) {
    ours_sent(bench);
    bench.open(OURS);
    bench.keepalive(OURS);
}

const ADMINISTRATION: &[Happening] = &[
    Happening { name: "started", act: |bench| bench.step(Event::Start) },
    Happening { name: "stopped", act: |bench| bench.step(Event::Stop(Notification::new(Reason::SHUTDOWN))) },
    Happening { name: "restarted", act: |bench| bench.step(Event::Restart(Notification::new(Reason::RESET))) },
    Happening {
        name: "refused",
        act: |bench| bench.step(Event::Refuse(Notification::new(Reason::MAXIMUM_PREFIXES), Duration::from_secs(30))),
    },
    Happening { name: "dialled", act: |bench| bench.step(Event::Dialled(THIRD)) },
    Happening { name: "dial failed", act: |bench| bench.step(Event::DialFailed) },
    Happening { name: "accepted", act: |bench| bench.step(Event::Accepted(THIRD)) },
    Happening { name: "others are back", act: |bench| bench.step(Event::DialNow) },
    Happening {
        name: "deadline",
        act: |bench| {
            let Some(deadline) = bench.peer.deadline() else { return Vec::new() };
            bench.now = deadline;
            bench.step(Event::Tick)
        },
    },
    Happening {
        name: "silence",
        act: |bench| {
            // The wait for OPEN is four minutes; meanwhile dials are repeated and fail.
            let silent = |effect: &Effect| !matches!(effect, Effect::Dial | Effect::AbandonDial);
            let mut effects = Vec::new();
            for _ in 0..1000 {
                let Some(deadline) = bench.peer.deadline() else { break };
                bench.now = deadline;
                let mut now = bench.step(Event::Tick);
                now.retain(silent);
                now.retain(|effect| !matches!(effect, Effect::Send(_, bytes) if said(bytes) == "KEEPALIVE"));
                effects.extend(now);
                bench.step(Event::DialFailed);
                if !effects.is_empty() {
                    break;
                }
            }
            effects
        },
    },
];

/// An event on one connection.
type OnLink = fn(&mut Bench, LinkId) -> Vec<Effect>;

const MESSAGES: &[(&str, OnLink)] = &[
    ("closed", |bench, link| bench.step(Event::Closed(link))),
    ("stuck", |bench, link| bench.step(Event::Stuck(link))),
    ("OPEN", |bench, link| bench.open(link)),
    ("OPEN after a restart", |bench, link| bench.receive(link, &message::open(&theirs().open(true, true)))),
    ("OPEN of a stranger", |bench, link| bench.receive(link, &message::open(&Open { asn: 64999, ..strange() }))),
    ("KEEPALIVE", |bench, link| bench.keepalive(link)),
    ("UPDATE", |bench, link| bench.receive(link, &message::end_of_rib(Family::V4))),
    ("ROUTE-REFRESH", |bench, link| {
        let refresh = Refresh { family: Family::V4, kind: RefreshKind::Request };
        bench.receive(link, &message::refresh(&refresh))
    }),
    ("NOTIFICATION", |bench, link| bench.receive(link, &message::notification(&Notification::new(Reason::RESET)))),
    ("hard reset", |bench, link| {
        bench.receive(link, &message::notification(&Notification::new(Reason::RESET).hardened()))
    }),
    ("rubbish", |bench, link| bench.receive(link, &[7; 19])),
];

fn strange() -> Open {
    let mut open = their_open();
    open.capabilities.asn = Some(64999);
    open
}

fn table() -> String {
    let mut text = String::from(
        "What happens to a neighbour: state, event -> next state: effects. Nothing behind the colon: no effect.\n\
         Written by the tests of bgp::session; UPDATE=1 writes it anew.\n",
    );
    for situation in SITUATIONS {
        text.push_str(&format!("\n{}\n", situation.name));
        let line = |name: &str, bench: &Bench, effects: &[Effect]| {
            format!("  {name:<32} -> {:?}: {}\n", bench.peer.state(), words(effects)).replace(": \n", ":\n")
        };
        for happening in ADMINISTRATION {
            let mut bench = Bench::new(settings());
            (situation.reach)(&mut bench);
            let effects = (happening.act)(&mut bench);
            text.push_str(&line(happening.name, &bench, &effects));
        }
        for (link, side) in [(OURS, "ours"), (THEIRS, "theirs")] {
            if !situation.name.contains(side) {
                continue;
            }
            for (name, act) in MESSAGES {
                let mut bench = Bench::new(settings());
                (situation.reach)(&mut bench);
                let effects = act(&mut bench, link);
                text.push_str(&line(&format!("{name} on {side}"), &bench, &effects));
            }
        }
    }
    text
}

#[test]
fn the_table_is_the_one_that_is_written_down() {
    let table = table();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(TABLE, &table).expect("the table can be written");
    }
    let written = std::fs::read_to_string(TABLE).expect("the table is beside the code");
    for (now, then) in table.lines().zip(written.lines()) {
        assert_eq!(now, then, "left: what the code does, right: transitions.txt; UPDATE=1 writes it anew");
    }
    assert_eq!(table.lines().count(), written.lines().count());
}

#[test]
fn whatever_happens_in_whatever_order_nothing_breaks() {
    // Every state of a neighbour has a way out: stopped, or with a deadline, or with a connection.
    let mut seed: u64 = 7;
    let mut next = move |end: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % end
    };
    let mut reached = std::collections::BTreeSet::new();
    let mut bench = Bench::new(settings());
    for _ in 0..30_000 {
        match next(4) {
            0 => drop((ADMINISTRATION[next(ADMINISTRATION.len())].act)(&mut bench)),
            1 => drop(bench.step([Event::Dialled(OURS), Event::Accepted(THEIRS)][next(2)].clone())),
            _ => drop((MESSAGES[next(MESSAGES.len())].1)(&mut bench, [OURS, THEIRS, THIRD][next(3)])),
        }
        reached.insert(bench.peer.state());
        assert!(bench.peer.is_stopped() || bench.peer.deadline().is_some(), "{:?}", bench.peer);
    }
    assert_eq!(reached.len(), 6, "all states are reached");
}
