//! The machine on a node in memory, whose sandboxes come and go.

mod closing;
mod setting_up;
mod taking_down;
mod walk;

use super::*;

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
