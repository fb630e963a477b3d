use super::*;
use crate::pod_tunnels::compare;

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn addresses(text: &str) -> BTreeSet<IpAddr> {
    text.split_whitespace().map(address).collect()
}

fn wanted(pods: &[(&str, &str)]) -> WantedTunnels {
    pods.iter().map(|(pod, services)| (address(pod), addresses(services))).collect()
}

/// A node: namespaces at places, with the pod's address and the services of our device.
#[derive(Default)]
struct Node {
    namespaces: BTreeMap<PathBuf, Inside>,
    made: u64,
    /// The runtime answers.
    answers: bool,
    /// The number of its socket, and that at the last search.
    socket: u64,
    saw_socket: u64,
    /// The kernel refuses everything in this pod.
    refuses: Option<IpAddr>,
    searches: usize,
    brings: usize,
    /// Whether each of them asked the runtime.
    surveys: Vec<bool>,
}

struct Inside {
    id: u64,
    pod: IpAddr,
    services: Option<BTreeSet<IpAddr>>,
    /// Its sandbox is gone.
    is_left: bool,
}

impl Node {
    fn start(&mut self, pod: &str) {
        self.made += 1;
        let place = PathBuf::from(format!("/run/netns/{}", self.made));
        self.namespaces.insert(place, Inside { id: self.made, pod: address(pod), services: None, is_left: false });
    }

    fn stop(&mut self, pod: &str) {
        self.namespaces.retain(|_, inside| inside.pod != address(pod));
    }

    /// The sandbox goes, and its namespace does not.
    fn leave(&mut self, pod: &str) {
        self.namespaces
            .values_mut()
            .filter(|inside| inside.pod == address(pod))
            .for_each(|inside| inside.is_left = true);
    }

    /// As text: each pod with what it answers for.
    fn shown(&self) -> String {
        let line = |inside: &Inside| {
            let services =
                inside.services.as_ref().map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
            format!("{}: {}", inside.pod, services.unwrap_or_else(|| "none".to_owned()))
        };
        let mut lines: Vec<String> = self.namespaces.values().map(line).collect();
        lines.sort();
        lines.join("; ")
    }

    fn act(&mut self, machine: &mut Machine, act: Act, now: Instant) {
        match act {
            Act::Bring { want, places } => {
                self.brings += 1;
                let place =
                    places.iter().find(|place| self.namespaces.get(*place).is_some_and(|one| one.pod == want.pod));
                let outcome = match place.cloned() {
                    None => Err(("not found".to_owned(), Hindrance::NotFound)),
                    Some(_) if self.refuses == Some(want.pod) => Err(("refused".to_owned(), Hindrance::Other)),
                    Some(place) => {
                        let inside = self.namespaces.get_mut(&place).expect("it was found");
                        let mut services = want.services.clone();
                        if !want.shrinks {
                            services.extend(inside.services.iter().flatten());
                        }
                        inside.services = (!services.is_empty()).then_some(services);
                        Ok(Done { place, namespace: id(inside.id), changes: 1 })
                    }
                };
                machine.brought(&want, outcome, now);
            }
            Act::Search(lost) => {
                self.searches += 1;
                let mut found: BTreeMap<IpAddr, Vec<PathBuf>> = BTreeMap::new();
                for (place, inside) in self.namespaces.iter().filter(|(_, inside)| !inside.is_left) {
                    found.entry(inside.pod).or_default().push(place.clone());
                }
                let mut result = |address: &IpAddr| match found.remove(address) {
                    Some(places) if self.answers => Ok(places),
                    _ if self.answers => Err(NoPlace::NoSandbox("no sandbox".to_owned())),
                    _ => Err(NoPlace::Unknown("no container runtime".to_owned())),
                };
                let found = lost.iter().map(|address| (*address, result(address))).collect();
                machine.runtime_answered(self.answers, now);
                machine.found(&lost, &found, now);
                self.saw_socket = self.socket;
            }
            Act::Check(settled) => {
                let mut told: BTreeMap<IpAddr, BTreeSet<NamespaceId>> = BTreeMap::new();
                let is_told = |inside: &&Inside| self.answers && !inside.is_left && settled.contains(&inside.pod);
                for inside in self.namespaces.values().filter(is_told) {
                    told.entry(inside.pod).or_default().insert(id(inside.id));
                }
                machine.runtime_answered(self.answers, now);
                machine.checked(&told, now);
            }
            Act::Look(all) => {
                let is_there = |place: &PathBuf, wanted: NamespaceId| {
                    self.namespaces.get(place).is_some_and(|inside| id(inside.id) == wanted)
                };
                let gone = all.into_iter().filter(|(_, place, id)| !is_there(place, *id));
                let gone: BTreeSet<IpAddr> = gone.map(|(address, ..)| address).collect();
                machine.looked(&gone, now);
            }
            Act::LookAtSockets => {
                let is_another = std::mem::replace(&mut self.saw_socket, self.socket) != self.socket;
                machine.looked_at_sockets(is_another, now);
            }
            Act::Survey { asks } => {
                self.surveys.push(asks);
                let lacking = (asks && !self.answers).then(|| "no container runtime".to_owned());
                // Without the runtime nobody knows of some of them.
                let is_seen = |place: &&PathBuf| lacking.is_none() || !place.starts_with("/hidden");
                machine.surveyed(self.namespaces.keys().filter(is_seen).cloned().collect(), lacking);
            }
            Act::Clear(place) => {
                let inside = self.namespaces.get_mut(&place);
                inside.filter(|inside| !machine.is_wanted(inside.pod)).into_iter().for_each(|one| one.services = None);
            }
        }
    }

    /// Lets this much time pass. Fails where the machine never waits.
    fn pass(&mut self, machine: &mut Machine, now: &mut Instant, time: Duration) {
        let end = *now + time;
        for _ in 0..100_000 {
            match machine.next(*now) {
                Next::Act(act) => self.act(machine, act, *now),
                Next::Wait(Some(at)) if at <= end => *now = at.max(*now),
                Next::Wait(_) => {
                    *now = end;
                    return;
                }
            }
        }
        panic!("the machine never waits");
    }
}

fn id(number: u64) -> NamespaceId {
    NamespaceId { device: 4, inode: number }
}

fn node() -> Node {
    Node { answers: true, ..Node::default() }
}

const MOMENT: Duration = Duration::from_millis(1);
const POD: &str = "10.244.1.5";
const POD_V6: &str = "fd00:10:244:1::5";

#[test]
fn a_pod_is_found_set_up_and_taken_down_at_once() {
    let (mut node, mut machine, mut now) = (node(), Machine::default(), Instant::now());
    node.start(POD);
    node.start(POD_V6);
    machine.want(&wanted(&[(POD, "203.0.113.7"), (POD_V6, "2001:db8:1::7")]), true, now);
    node.pass(&mut machine, &mut now, MOMENT);
    assert_eq!(node.shown(), "10.244.1.5: 203.0.113.7; fd00:10:244:1::5: 2001:db8:1::7");
    assert_eq!(machine.standing().set_up.len(), 2);
    machine.want(&wanted(&[(POD, "203.0.113.8")]), true, now);
    node.pass(&mut machine, &mut now, MOMENT);
    assert_eq!(node.shown(), "10.244.1.5: 203.0.113.8; fd00:10:244:1::5: none");
    machine.want(&WantedTunnels::new(), true, now);
    node.pass(&mut machine, &mut now, MOMENT);
    assert_eq!(node.shown(), "10.244.1.5: none; fd00:10:244:1::5: none");
    // One last look.
    node.pass(&mut machine, &mut now, LOOK);
    assert_eq!(machine.next(now), Next::Wait(None), "who has nothing to do sleeps");
    assert_eq!(machine.standing(), Standing::default());
}

#[test]
fn a_sandbox_that_is_made_anew_is_set_up_within_two_seconds() {
    let (mut node, mut machine, mut now) = (node(), Machine::default(), Instant::now());
    node.start(POD);
    machine.want(&wanted(&[(POD, "203.0.113.7")]), true, now);
    node.pass(&mut machine, &mut now, Duration::from_secs(10));
    // At once.
    node.stop(POD);
    node.start(POD);
    node.pass(&mut machine, &mut now, Duration::from_secs(2));
    assert_eq!(node.shown(), "10.244.1.5: 203.0.113.7");
    // After a while without any.
    node.stop(POD);
    node.pass(&mut machine, &mut now, Duration::from_secs(20));
    assert_eq!(machine.standing().left_out.len(), 1);
    node.start(POD);
    node.pass(&mut machine, &mut now, Duration::from_secs(2));
    assert_eq!(node.shown(), "10.244.1.5: 203.0.113.7");
    // Announced, while no runtime answers.
    node.answers = false;
    node.stop(POD);
    node.pass(&mut machine, &mut now, Duration::from_secs(600));
    node.start(POD);
    machine.announced(address(POD), PathBuf::from(format!("/run/netns/{}", node.made)), now);
    node.pass(&mut machine, &mut now, MOMENT);
    assert_eq!(node.shown(), "10.244.1.5: 203.0.113.7");
}

#[test]
fn a_pod_whose_namespace_outlives_its_sandbox_is_set_up_in_the_new_one() {
    let (mut node, mut machine, mut now) = (node(), Machine::default(), Instant::now());
    node.start(POD);
    machine.want(&wanted(&[(POD, "203.0.113.7")]), true, now);
    node.pass(&mut machine, &mut now, Duration::from_secs(10));
    node.leave(POD);
    node.start(POD);
    node.pass(&mut machine, &mut now, CHECK);
    assert_eq!(node.shown(), "10.244.1.5: 203.0.113.7; 10.244.1.5: 203.0.113.7", "the older one leads nowhere");
    assert_eq!((node.searches, machine.standing().left_out), (2, Vec::new()));
    // What is where it was is not searched for, and who does not answer says nothing.
    node.pass(&mut machine, &mut now, CHECK * 10);
    node.answers = false;
    node.pass(&mut machine, &mut now, CHECK * 10);
    assert_eq!((node.searches, machine.standing().set_up.len()), (2, 1));
}

#[test]
fn a_pod_that_cannot_be_set_up_is_named_and_holds_up_no_other() {
    let (mut node, mut machine, mut now) = (node(), Machine::default(), Instant::now());
    node.start(POD);
    node.start("10.244.1.6");
    node.refuses = Some(address(POD));
    machine.want(
        &wanted(&[("10.244.1.4", "203.0.113.7"), (POD, "203.0.113.7"), ("10.244.1.6", "203.0.113.7")]),
        true,
        now,
    );
    node.pass(&mut machine, &mut now, MOMENT);
    assert_eq!(node.shown(), "10.244.1.5: none; 10.244.1.6: 203.0.113.7");
    let left_out: Vec<String> =
        machine.standing().left_out.iter().map(|one| format!("{}: {}", one.pod, one.reason)).collect();
    assert_eq!(left_out, ["10.244.1.4: no sandbox", "10.244.1.5: refused"]);
    (node.brings, node.searches) = (0, 0);
    node.pass(&mut machine, &mut now, Duration::from_secs(3600));
    assert!(node.brings < 250 && node.searches < 250, "{} {}: a bounded price", node.brings, node.searches);
    node.refuses = None;
    node.pass(&mut machine, &mut now, Duration::from_secs(31));
    assert_eq!(node.shown(), "10.244.1.5: 203.0.113.7; 10.244.1.6: 203.0.113.7");
}

#[test]
fn nothing_is_taken_away_before_the_cluster_is_known_completely_and_what_an_earlier_run_left_goes_then() {
    let (mut node, mut machine, mut now) = (node(), Machine::default(), Instant::now());
    node.start(POD);
    node.start("10.244.1.6");
    for inside in node.namespaces.values_mut() {
        inside.services = Some(addresses("203.0.113.9"));
    }
    machine.want(&wanted(&[(POD, "203.0.113.7")]), false, now);
    node.pass(&mut machine, &mut now, Duration::from_secs(300));
    assert_eq!(node.shown(), "10.244.1.5: 203.0.113.7 203.0.113.9; 10.244.1.6: 203.0.113.9");
    machine.want(&wanted(&[(POD, "203.0.113.7")]), true, now);
    node.pass(&mut machine, &mut now, MOMENT);
    assert_eq!(node.shown(), "10.244.1.5: 203.0.113.7; 10.244.1.6: none");
}

#[test]
fn a_pod_that_policies_close_loses_the_tunnel_of_an_earlier_run_also_where_not_all_services_are_known() {
    for is_late in [false, true] {
        let (mut node, mut machine, mut now) = (node(), Machine::default(), Instant::now());
        node.start(POD);
        node.start("10.244.1.6");
        for inside in node.namespaces.values_mut() {
            inside.services = Some(addresses("203.0.113.9"));
        }
        machine.set_policies_known(!is_late, now);
        machine.want(&wanted(&[(POD, ""), ("10.244.1.6", "203.0.113.9")]), false, now);
        node.pass(&mut machine, &mut now, MOMENT);
        let before = if is_late { "203.0.113.9" } else { "none" };
        assert_eq!(node.shown(), format!("10.244.1.5: {before}; 10.244.1.6: 203.0.113.9"));
        machine.set_policies_known(true, now);
        node.pass(&mut machine, &mut now, MOMENT);
        assert_eq!(node.shown(), "10.244.1.5: none; 10.244.1.6: 203.0.113.9", "{is_late}");
    }
}

#[test]
fn a_pod_whose_namespace_refuses_is_tried_no_more_often_however_often_its_services_change() {
    for pod in [POD, POD_V6] {
        let (mut node, mut machine, mut now) = (node(), Machine::default(), Instant::now());
        let service = |last: u64| if pod == POD { format!("203.0.113.{last}") } else { format!("2001:db8:1::{last}") };
        node.start(pod);
        node.refuses = Some(address(pod));
        machine.want(&wanted(&[(pod, &service(1))]), true, now);
        node.pass(&mut machine, &mut now, Duration::from_secs(600));
        node.brings = 0;
        for second in 0..600 {
            machine.want(&wanted(&[(pod, &service(second % 2 + 1))]), true, now);
            node.pass(&mut machine, &mut now, Duration::from_secs(1));
        }
        assert!(node.brings <= 21, "{} tries in ten minutes", node.brings);
        // Closing it is tried at once.
        machine.want(&wanted(&[(pod, "")]), true, now);
        node.brings = 0;
        node.pass(&mut machine, &mut now, MOMENT);
        assert_eq!(node.brings, 1);
        node.refuses = None;
        machine.want(&wanted(&[(pod, &service(3))]), true, now);
        node.pass(&mut machine, &mut now, SELDOM);
        assert_eq!(node.shown(), format!("{pod}: {}", service(3)));
    }
}

#[test]
fn the_second_address_of_a_pod_has_the_tunnel_as_soon_as_the_first_gives_it_up() {
    for (first, second) in [(POD, "10.244.1.6"), (POD_V6, "fd00:10:244:1::6")] {
        for (left, is_over) in
            [(vec![(first, ""), (second, "203.0.113.8")], false), (vec![(second, "203.0.113.8")], true)]
        {
            let (mut machine, mut now) = (Machine::default(), Instant::now());
            machine.want(&wanted(&[(first, "203.0.113.7"), (second, "203.0.113.8")]), true, now);
            [first, second].iter().for_each(|pod| machine.announced(address(pod), "/run/netns/1".into(), now));
            let mut has_first = true;
            let mut turn = |machine: &mut Machine, now| {
                let mut tried = Vec::new();
                while let Next::Act(act) = machine.next(now) {
                    let want = match act {
                        Act::Bring { want, .. } => want,
                        Act::Survey { .. } => {
                            machine.surveyed(BTreeSet::new(), None);
                            continue;
                        }
                        _ => continue,
                    };
                    let is_first = want.pod == address(first);
                    has_first = if is_first { !want.services.is_empty() } else { has_first };
                    let done = Done { place: "/run/netns/1".into(), namespace: id(1), changes: 1 };
                    let taken = Err(("taken".to_owned(), Hindrance::Taken));
                    machine.brought(&want, if !is_first && has_first { taken } else { Ok(done) }, now);
                    tried.push(want.pod);
                }
                tried
            };
            for _ in 0..100 {
                turn(&mut machine, now);
                now += SELDOM;
            }
            turn(&mut machine, now);
            now += MOMENT;
            assert_eq!(machine.standing().left_out.len(), 1, "the other address has it");
            machine.want(&wanted(&left), true, now);
            assert_eq!(turn(&mut machine, now), [address(first), address(second)], "over: {is_over}");
            assert_eq!(machine.standing().set_up.keys().copied().collect::<Vec<_>>(), [address(second)]);
        }
    }
}

#[test]
fn a_sweep_that_could_not_ask_everybody_is_told_and_goes_on_until_it_could() {
    let (mut node, mut machine, mut now) = (node(), Machine::default(), Instant::now());
    node.start(POD);
    node.start("10.244.1.9");
    let (_, mut inside) = node.namespaces.pop_last().expect("it was started");
    inside.services = Some(addresses("203.0.113.9"));
    node.namespaces.insert("/hidden/9".into(), inside);
    node.answers = false;
    machine.want(&wanted(&[(POD, "203.0.113.7")]), true, now);
    node.pass(&mut machine, &mut now, SELDOM - MOMENT);
    assert_eq!(machine.standing().unswept, None, "a runtime may start later than the agent");
    node.pass(&mut machine, &mut now, SELDOM);
    assert_eq!(machine.standing().unswept.as_deref(), Some("no container runtime"));
    node.pass(&mut machine, &mut now, Duration::from_secs(3600));
    assert!((8..15).contains(&node.surveys.len()), "{} in an hour", node.surveys.len());
    assert!(machine.standing().unswept.is_some(), "it is not over");
    node.answers = true;
    node.socket += 1;
    node.pass(&mut machine, &mut now, Duration::from_secs(2));
    assert_eq!(node.shown(), "10.244.1.5: 203.0.113.7; 10.244.1.9: none", "at once, when the runtime answers");
    assert_eq!(machine.standing().unswept, None);
    let count = node.surveys.len();
    node.pass(&mut machine, &mut now, Duration::from_secs(3600));
    assert_eq!(node.surveys.len(), count, "it is over");
}

#[test]
fn a_pod_that_an_earlier_run_set_up_and_this_one_never_found_is_taken_down_when_nothing_is_wanted_of_it() {
    let (mut node, mut machine, mut now) = (node(), Machine::default(), Instant::now());
    node.start(POD);
    node.namespaces.values_mut().for_each(|inside| inside.services = Some(addresses("203.0.113.7")));
    node.answers = false;
    machine.want(&wanted(&[(POD, "203.0.113.7")]), true, now);
    node.pass(&mut machine, &mut now, Duration::from_secs(600));
    assert_eq!(node.shown(), "10.244.1.5: 203.0.113.7", "it is wanted, so no sweep takes it");
    machine.want(&WantedTunnels::new(), true, now);
    node.pass(&mut machine, &mut now, MOMENT);
    assert_eq!(node.shown(), "10.244.1.5: none");
}

#[test]
fn a_pod_that_is_to_have_no_tunnel_loses_that_of_an_earlier_run_and_is_set_up_again_without_a_search() {
    let (mut node, mut machine, mut now) = (node(), Machine::default(), Instant::now());
    // No sweep finds it.
    machine.want(&WantedTunnels::new(), true, now);
    node.pass(&mut machine, &mut now, Duration::from_secs(1));
    node.start(POD);
    node.namespaces.values_mut().for_each(|inside| inside.services = Some(addresses("203.0.113.7")));
    (machine.sweep, machine.has_wanted) = (Sweep::over(), true);
    machine.want(&wanted(&[(POD, "")]), true, now);
    node.pass(&mut machine, &mut now, MOMENT);
    assert_eq!((node.shown().as_str(), node.searches), ("10.244.1.5: none", 1));
    assert_eq!(machine.standing(), Standing::default(), "nothing is lacking");
    machine.want(&wanted(&[(POD, "203.0.113.7")]), true, now);
    node.pass(&mut machine, &mut now, MOMENT);
    assert_eq!((node.shown().as_str(), node.searches), ("10.244.1.5: 203.0.113.7", 1));
    machine.want(&wanted(&[(POD, "")]), true, now);
    node.pass(&mut machine, &mut now, MOMENT);
    assert_eq!((node.shown().as_str(), node.searches), ("10.244.1.5: none", 1));
    machine.want(&WantedTunnels::new(), true, now);
    node.pass(&mut machine, &mut now, Duration::from_secs(2));
    assert_eq!(machine.next(now), Next::Wait(None), "who has nothing to do sleeps");
}

#[test]
fn a_pod_that_is_to_have_no_tunnel_and_cannot_be_looked_into_is_named_until_it_was_or_is_gone() {
    let (mut node, mut machine, mut now) = (node(), Machine::default(), Instant::now());
    node.start(POD);
    node.start("10.244.1.6");
    node.namespaces.values_mut().for_each(|inside| inside.services = Some(addresses("203.0.113.7")));
    node.refuses = Some(address(POD));
    machine.want(&wanted(&[(POD, ""), ("10.244.1.6", "")]), true, now);
    node.pass(&mut machine, &mut now, Duration::from_secs(2));
    assert_eq!(machine.standing(), Standing::default(), "a short failure is none");
    node.pass(&mut machine, &mut now, Duration::from_secs(10));
    let named = |machine: &Machine| -> Vec<String> {
        machine.standing().not_closed.iter().map(|one| format!("{}: {}", one.pod, one.reason)).collect()
    };
    assert_eq!(named(&machine), ["10.244.1.5: refused"]);
    assert_eq!((machine.standing().left_out.len(), machine.standing().set_up.len()), (0, 0));
    node.pass(&mut machine, &mut now, Duration::from_secs(600));
    assert_eq!(named(&machine).len(), 1, "it is still so");
    node.refuses = None;
    node.pass(&mut machine, &mut now, SELDOM);
    assert_eq!((named(&machine), node.shown().as_str()), (vec![], "10.244.1.5: none; 10.244.1.6: none"));
    // It goes before it could be looked into.
    node.answers = false;
    machine.want(&wanted(&[("10.244.1.7", "")]), true, now);
    node.pass(&mut machine, &mut now, Duration::from_secs(20));
    assert_eq!(named(&machine), ["10.244.1.7: no container runtime"]);
    machine.want(&WantedTunnels::new(), true, now);
    assert_eq!(machine.standing(), Standing::default());
}

#[test]
fn a_pod_that_is_to_have_no_tunnel_and_has_no_sandbox_has_nothing_that_could_answer() {
    let (mut node, mut machine, mut now) = (node(), Machine::default(), Instant::now());
    machine.want(&wanted(&[(POD, "")]), true, now);
    node.pass(&mut machine, &mut now, Duration::from_secs(60));
    assert_eq!(machine.standing(), Standing::default());
    // The runtime is gone, and what it told is no longer true.
    node.answers = false;
    node.pass(&mut machine, &mut now, Duration::from_secs(60));
    let named: Vec<String> = machine.standing().not_closed.into_iter().map(|one| one.reason).collect();
    assert_eq!(named, ["no container runtime"]);
    node.answers = true;
    node.start(POD);
    node.namespaces.values_mut().for_each(|inside| inside.services = Some(addresses("203.0.113.7")));
    node.pass(&mut machine, &mut now, Duration::from_secs(60));
    assert_eq!((machine.standing(), node.shown().as_str()), (Standing::default(), "10.244.1.5: none"));
}

#[test]
fn a_runtime_that_does_not_answer_once_says_nothing_about_a_pod_that_has_no_sandbox_for_long() {
    let (mut node, mut machine, mut now) = (node(), Machine::default(), Instant::now());
    machine.want(&wanted(&[(POD, "")]), true, now);
    node.pass(&mut machine, &mut now, Duration::from_secs(120));
    assert_eq!(machine.standing(), Standing::default());
    // The runtime starts again.
    let before = node.searches;
    node.answers = false;
    while node.searches == before {
        node.pass(&mut machine, &mut now, FIRST);
    }
    assert_eq!(machine.standing(), Standing::default(), "it is one search");
    node.answers = true;
    node.pass(&mut machine, &mut now, SEARCH);
    assert!(node.searches > before + 1, "it is searched again at once");
    node.pass(&mut machine, &mut now, Duration::from_secs(120));
    assert_eq!(machine.standing(), Standing::default());
    assert!(node.searches < before + 10, "and then seldom again");
}

#[test]
fn a_runtime_that_is_back_after_minutes_is_asked_within_two_seconds() {
    for has_new_socket in [true, false] {
        let (mut node, mut machine, mut now) = (node(), Machine::default(), Instant::now());
        node.answers = false;
        machine.want(&wanted(&[(POD, "203.0.113.7"), ("10.244.1.6", "203.0.113.7")]), true, now);
        node.pass(&mut machine, &mut now, Duration::from_secs(600));
        node.searches = 0;
        node.pass(&mut machine, &mut now, Duration::from_secs(600));
        assert!(node.searches < 50, "{} in 10 minutes without it", node.searches);
        node.answers = true;
        node.start(POD);
        node.start("10.244.1.6");
        if has_new_socket {
            node.socket += 1;
        } else {
            // Another pod has it asked.
            machine.want(
                &wanted(&[(POD, "203.0.113.7"), ("10.244.1.6", "203.0.113.7"), ("10.244.1.7", "203.0.113.7")]),
                true,
                now,
            );
        }
        node.pass(&mut machine, &mut now, Duration::from_secs(2));
        assert_eq!(node.shown(), "10.244.1.5: 203.0.113.7; 10.244.1.6: 203.0.113.7", "{has_new_socket}");
    }
}

#[test]
fn a_tunnel_that_cannot_be_taken_down_is_named_until_it_is() {
    let (mut node, mut machine, mut now) = (node(), Machine::default(), Instant::now());
    node.start(POD);
    machine.want(&wanted(&[(POD, "203.0.113.7"), ("10.244.1.4", "203.0.113.7")]), true, now);
    node.pass(&mut machine, &mut now, Duration::from_secs(10));
    node.refuses = Some(address(POD));
    machine.want(&WantedTunnels::new(), true, now);
    assert!(machine.standing().not_taken_down.is_empty(), "nobody has tried yet");
    node.pass(&mut machine, &mut now, Duration::from_secs(10));
    let named: Vec<String> =
        machine.standing().not_taken_down.iter().map(|one| format!("{}: {}", one.pod, one.reason)).collect();
    assert_eq!(named, ["10.244.1.5: refused"]);
    assert!(machine.standing().left_out.is_empty());
    node.refuses = None;
    node.pass(&mut machine, &mut now, SELDOM);
    assert_eq!((node.shown().as_str(), machine.standing()), ("10.244.1.5: none", Standing::default()));
}

#[test]
fn a_place_that_is_gone_has_a_sweep_look_whether_the_tunnel_is() {
    let (mut node, mut machine, mut now) = (node(), Machine::default(), Instant::now());
    node.start(POD);
    machine.want(&wanted(&[(POD, "203.0.113.7")]), true, now);
    node.pass(&mut machine, &mut now, Duration::from_secs(40));
    // The pause process is dead: its place leads nowhere, while a container has the namespace.
    let inside = node.namespaces.pop_first().expect("it runs").1;
    machine.want(&WantedTunnels::new(), true, now);
    match machine.next(now) {
        Next::Act(act @ Act::Bring { .. }) => node.act(&mut machine, act, now),
        other => panic!("{other:?}"),
    }
    node.namespaces.insert("/proc/7/ns/net".into(), inside);
    assert_eq!(node.shown(), "10.244.1.5: 203.0.113.7");
    node.pass(&mut machine, &mut now, SELDOM);
    assert_eq!(node.shown(), "10.244.1.5: none");
}

#[test]
fn pods_that_go_before_they_are_found_have_all_sandboxes_asked_for_once_in_a_while() {
    let (mut node, mut machine, mut now) = (node(), Machine::default(), Instant::now());
    for _ in 0..100 {
        machine.want(&wanted(&[(POD, "203.0.113.7")]), true, now);
        node.pass(&mut machine, &mut now, Duration::from_millis(500));
        machine.want(&WantedTunnels::new(), true, now);
        node.pass(&mut machine, &mut now, Duration::from_millis(500));
    }
    assert!((2..=5).contains(&node.surveys.len()), "{} in 100 s", node.surveys.len());
    node.start(POD);
    node.namespaces.values_mut().for_each(|inside| inside.services = Some(addresses("203.0.113.7")));
    machine.want(&wanted(&[("10.244.1.6", "203.0.113.7")]), true, now);
    machine.want(&WantedTunnels::new(), true, now);
    node.pass(&mut machine, &mut now, SELDOM);
    assert_eq!(node.shown(), "10.244.1.5: none");
}

#[test]
fn the_runtime_is_not_asked_before_something_is_wanted() {
    let (mut node, mut machine, mut now) = (node(), Machine::default(), Instant::now());
    node.start(POD);
    node.namespaces.values_mut().for_each(|inside| inside.services = Some(addresses("203.0.113.7")));
    machine.want(&WantedTunnels::new(), true, now);
    node.pass(&mut machine, &mut now, Duration::from_secs(600));
    assert_eq!((node.shown().as_str(), node.searches), ("10.244.1.5: none", 0));
    assert_eq!(node.surveys, [false]);
    for _ in 0..2 {
        machine.want(&wanted(&[(POD, "203.0.113.7")]), true, now);
        node.pass(&mut machine, &mut now, Duration::from_secs(600));
    }
    assert_eq!(node.surveys, [false, true]);
}

#[test]
fn what_happens_in_any_order_ends_as_wanted_also_over_restarts() {
    for seed in 0..400_u64 {
        walk(seed);
    }
}

fn walk(seed: u64) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut chance = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let pods = ["10.244.1.4", POD, "10.244.1.6", POD_V6];
    let (mut node, mut machine, mut now) = (node(), Machine::default(), Instant::now());
    let mut want = WantedTunnels::new();
    for _ in 0..40 {
        let pod = pods.get(usize::try_from(chance(4)).expect("it is small")).expect("one of them");
        match chance(8) {
            0 => {
                node.stop(pod);
                node.start(pod);
            }
            1 => node.stop(pod),
            2 => {
                let last = chance(3) + 7;
                want.insert(address(pod), addresses(&format!("203.0.113.{last} 203.0.113.20")));
            }
            3 => drop(want.remove(&address(pod))),
            7 => drop(want.insert(address(pod), BTreeSet::new())),
            4 => node.answers = chance(2) == 0,
            5 => node.refuses = (chance(2) == 0).then(|| address(pod)),
            _ => machine = Machine::default(),
        }
        machine.want(&want, chance(4) > 0, now);
        // It may end in the middle of its acts.
        for _ in 0..chance(6) {
            match machine.next(now) {
                Next::Act(act) => node.act(&mut machine, act, now),
                Next::Wait(_) => break,
            }
        }
        node.pass(&mut machine, &mut now, Duration::from_millis(chance(3000)));
    }
    (node.answers, node.refuses) = (true, None);
    machine.want(&want, true, now);
    node.pass(&mut machine, &mut now, Duration::from_secs(62));
    for inside in node.namespaces.values() {
        let expected = want.get(&inside.pod).filter(|services| !services.is_empty()).cloned();
        assert_eq!(inside.services, expected, "seed {seed}: {} {:?}", inside.pod, machine.standing());
    }
    let left_out: BTreeSet<IpAddr> = machine.standing().left_out.iter().map(|one| one.pod).collect();
    let is_there = |pod: &IpAddr| node.namespaces.values().any(|inside| inside.pod == *pod);
    let lacks = |(pod, services): &(&IpAddr, &BTreeSet<IpAddr>)| !services.is_empty() && !is_there(pod);
    let missing: BTreeSet<IpAddr> = want.iter().filter(lacks).map(|(pod, _)| *pod).collect();
    assert_eq!(left_out, missing, "seed {seed}");
    assert_eq!(compare::device_of(address(POD)), "kube-tunnel-if");
}
