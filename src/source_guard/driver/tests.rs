//! The source guard with a kernel in memory, which may refuse to be read.

use std::cell::RefCell;
use std::rc::Rc;

use super::*;
use crate::kernel::bridge::OfBridges;
use crate::kernel::nftables::{Content, Key, Object};
use crate::observe::health::Health;
use crate::observe::metrics::Registry;
use crate::reconcile::{Failure, Phase, Step, Target};
use crate::source_guard::table::Contents;
use crate::subsystem::Kinds;

/// A kernel in memory, as far as the source guard needs one.
#[derive(Default)]
struct Machine {
    tables: BTreeMap<&'static str, Contents>,
    /// Bridges whose option is set.
    set: BTreeMap<LinkName, NoGroupLearning>,
    links: Vec<PodLink>,
    /// How often they were listed.
    lists: usize,
    are_links_unknown: bool,
    /// Tables that cannot be read.
    unreadable: &'static [&'static str],
}

type Shared = Rc<RefCell<Machine>>;

struct InMemory(Shared);
struct MemoryTable(Shared, &'static str);
struct Options(Shared);

impl Kernel for InMemory {
    type Table = MemoryTable;
    type Learning = Options;

    fn pod_links(&mut self) -> Result<Vec<PodLink>, String> {
        let mut machine = self.0.borrow_mut();
        machine.lists += 1;
        if machine.are_links_unknown {
            return Err("links change all the time".to_owned());
        }
        Ok(machine.links.clone())
    }
}

impl Target for MemoryTable {
    type Key = Object;
    type Value = Content;
    type Error = String;

    fn name(&self) -> &'static str {
        self.1
    }

    fn read(&mut self) -> Result<Contents, String> {
        let machine = self.0.borrow();
        if machine.unreadable.contains(&self.1) {
            return Err("others change it all the time".to_owned());
        }
        Ok(machine.tables.get(self.1).cloned().unwrap_or_default())
    }

    fn apply(&mut self, _phase: Phase, steps: &[Step<'_, Object, Content>]) -> Vec<Failure<String>> {
        let mut machine = self.0.borrow_mut();
        let table = machine.tables.entry(self.1).or_default();
        for step in steps {
            match step.want {
                Some(want) => drop(table.insert(step.key.clone(), want.clone())),
                None => drop(table.remove(step.key)),
            }
        }
        Vec::new()
    }
}

impl Target for Options {
    type Key = LinkName;
    type Value = NoGroupLearning;
    type Error = String;

    fn name(&self) -> &'static str {
        "bridge options"
    }

    fn read(&mut self) -> Result<BTreeMap<LinkName, NoGroupLearning>, String> {
        Ok(self.0.borrow().set.clone())
    }

    fn apply(&mut self, _phase: Phase, steps: &[Step<'_, LinkName, NoGroupLearning>]) -> Vec<Failure<String>> {
        let wanted = steps.iter().filter(|step| step.want.is_some());
        self.0.borrow_mut().set.extend(wanted.map(|step| (step.key.clone(), NoGroupLearning)));
        Vec::new()
    }
}

impl OfBridges for Options {
    fn of(&mut self, _bridges: BTreeSet<LinkName>) {}
}

/// A host, and the directory of its file.
struct Scene {
    machine: Shared,
    directory: tempfile::TempDir,
    began: Instant,
    seconds: u64,
}

impl Scene {
    /// A host with these links, each on that bridge.
    fn new(links: &[(&str, Option<&str>)]) -> Scene {
        let machine = Shared::default();
        machine.borrow_mut().links = links
            .iter()
            .map(|(name, bridge)| PodLink { name: (*name).into(), bridge: bridge.map(Into::into) })
            .collect();
        Scene { machine, directory: tempfile::tempdir().expect("a directory"), began: Instant::now(), seconds: 0 }
    }

    fn file(&self) -> PortsFile {
        PortsFile::beside(&self.directory.path().join("cni.sock"))
    }

    fn start(&self) -> Driver<InMemory> {
        let registry = Registry::new("1", "1");
        let context = GuardContext {
            calls: mpsc::channel(1).1,
            file: self.file(),
            metrics: Metrics::register(&registry).expect("the names are free"),
            note: Health::default().note("source guard"),
        };
        let table = |name| MemoryTable(self.machine.clone(), name);
        let targets = Targets {
            kernel: InMemory(self.machine.clone()),
            table: table("bridge"),
            by_port: table("inet"),
            arp: table("arp"),
            learning: Options(self.machine.clone()),
        };
        Driver::new(targets, context)
    }

    /// A turn, some seconds after the last.
    fn turn(&mut self, driver: &mut Driver<InMemory>) {
        self.seconds += 5;
        let at = Moment { now: self.began + Duration::from_secs(self.seconds), jitter: 0 };
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(driver.calculate(at));
        driver.round(Authority::Complete, at);
        driver.publish(&Standing { now: at.now, authority: Authority::Complete, is_well: true, synced: true });
    }

    /// ADD of a pod with this link. Returns what it hears.
    fn add(&mut self, driver: &mut Driver<InMemory>, link: &str) -> watch::Receiver<Result<(), String>> {
        let (outcome, told) = watch::channel(Err("not heard yet".to_owned()));
        driver.take(Call::Add(StartingPort {
            id: AttachmentId { container: format!("of {link}").into(), interface: "eth0".into() },
            network: "mynet".into(),
            links: [link.into()].into(),
            link_address: LinkAddress([2, 0, 0, 0, 0, 1]),
            addresses: ["10.244.1.7", "fd00::7"].map(|text| text.parse().expect("an address")).into(),
            outcome,
        }));
        driver.take_over(self.began + Duration::from_secs(self.seconds));
        told
    }

    /// The kernel tells that somebody else changed this.
    fn disturb(&self, driver: &mut Driver<InMemory>, notice: Notice) {
        let at = Moment { now: self.began + Duration::from_secs(self.seconds), jitter: 0 };
        driver.mirrors.audit_after(notice, at);
        driver.disturbed(notice);
    }

    fn put_on(&self, link: &str, bridge: Option<&str>) {
        let mut machine = self.machine.borrow_mut();
        let there = machine.links.iter_mut().filter(|one| one.name == link);
        there.for_each(|one| one.bridge = bridge.map(Into::into));
    }

    /// The links that a table guards.
    fn guarded(&self, table: &str) -> Vec<String> {
        let machine = self.machine.borrow();
        let link = |object: &Object| match object {
            Object::Element(_, Key::Link(link)) => Some(link.as_str().to_owned()),
            _ => None,
        };
        machine.tables.get(table).into_iter().flat_map(|table| table.keys().filter_map(link)).collect()
    }

    fn written(&self) -> Vec<String> {
        let restored = self.file().read().expect("it is readable");
        restored.ports.into_iter().map(|port| port.link.to_string()).collect()
    }
}

const KUBE_BRIDGE: Option<&str> = Some("kube-bridge");

const TABLES: [&str; 3] = ["bridge", "inet", "arp"];

/// A host on which two ports are guarded by a run that is over.
fn guarded_before() -> Scene {
    let mut scene = Scene::new(&[("veth1", KUBE_BRIDGE), ("veth2", KUBE_BRIDGE)]);
    let mut driver = scene.start();
    let told = ["veth1", "veth2"].map(|link| scene.add(&mut driver, link));
    scene.turn(&mut driver);
    assert!(told.iter().all(|told| told.borrow().is_ok()));
    for table in ["bridge", "inet", "arp"] {
        assert_eq!(scene.guarded(table), ["veth1", "veth2"], "{table}");
    }
    scene
}

#[test]
fn nothing_is_written_while_the_kernel_does_not_tell_what_it_guards() {
    let mut scene = guarded_before();
    std::fs::write(scene.file().path(), "[{").expect("writable");
    scene.machine.borrow_mut().unreadable = &TABLES;
    let mut driver = scene.start();
    scene.machine.borrow_mut().links.push(PodLink { name: "veth3".into(), bridge: KUBE_BRIDGE.map(Into::into) });
    let told = scene.add(&mut driver, "veth3");
    scene.turn(&mut driver);
    assert_eq!(std::fs::read_to_string(scene.file().path()).expect("it is there"), "[{", "it is as it was");
    assert_eq!(scene.guarded("bridge"), ["veth1", "veth2"]);
    let why = told.borrow().clone().expect_err("its port is not guarded");
    assert!(why.contains("cannot be read: others change it all the time"), "{why}");

    scene.machine.borrow_mut().unreadable = &[];
    scene.turn(&mut driver);
    assert_eq!(scene.guarded("bridge"), ["veth1", "veth2", "veth3"]);
    assert_eq!(scene.written(), ["veth1", "veth2", "veth3"]);
    assert_eq!(*told.borrow(), Ok(()));
}

#[test]
fn a_file_that_is_gone_or_empty_opens_nothing_that_the_kernel_guards() {
    for is_gone in [true, false] {
        let mut scene = guarded_before();
        if is_gone {
            assert!(scene.file().remove().expect("it can be removed"));
        } else {
            std::fs::write(scene.file().path(), "[]").expect("writable");
        }
        scene.machine.borrow_mut().links.retain(|link| link.name != "veth2");
        let mut driver = scene.start();
        scene.turn(&mut driver);
        assert_eq!(scene.guarded("bridge"), ["veth1"], "but what is of a link that is gone");
        assert_eq!(scene.written(), ["veth1"]);
    }
}

#[test]
fn a_bridge_that_was_made_anew_has_its_option_before_a_pod_on_it_starts() {
    let mut scene = Scene::new(&[("veth1", KUBE_BRIDGE), ("veth2", KUBE_BRIDGE)]);
    let mut driver = scene.start();
    scene.add(&mut driver, "veth1");
    scene.turn(&mut driver);
    assert_eq!(scene.machine.borrow().set.len(), 1);
    // A bridge of the same name, and both links put on it.
    scene.machine.borrow_mut().set.clear();
    let told = scene.add(&mut driver, "veth2");
    scene.turn(&mut driver);
    assert_eq!(*told.borrow(), Ok(()));
    assert_eq!(scene.machine.borrow().set.len(), 1);
}

#[test]
fn the_host_takes_what_comes_by_a_link_that_is_on_no_bridge() {
    let mut scene = guarded_before();
    scene.machine.borrow_mut().links[0].bridge = None;
    let mut driver = scene.start();
    scene.turn(&mut driver);
    assert_eq!(scene.guarded("bridge"), ["veth1", "veth2"], "as soon as it is on one again, it is guarded there");
    for table in ["inet", "arp"] {
        assert_eq!(scene.guarded(table), ["veth2"], "{table}");
    }
    // Another pod has the link, by which its packets are routed.
    let told = scene.add(&mut driver, "veth1");
    scene.turn(&mut driver);
    assert_eq!((told.borrow().clone(), scene.guarded("bridge")), (Ok(()), vec!["veth2".to_owned()]));
}

#[test]
fn a_port_that_is_put_on_a_bridge_again_is_guarded_for_its_own_frames_as_soon_as_the_kernel_tells() {
    let mut scene = guarded_before();
    let mut driver = scene.start();
    scene.turn(&mut driver);
    scene.put_on("veth1", None);
    scene.disturb(&mut driver, Notice::Ports);
    scene.turn(&mut driver);
    assert_eq!(scene.guarded("arp"), ["veth2"], "what comes by it is routed");
    scene.put_on("veth1", KUBE_BRIDGE);
    scene.disturb(&mut driver, Notice::Ports);
    scene.turn(&mut driver);
    for table in ["bridge", "inet", "arp"] {
        assert_eq!(scene.guarded(table), ["veth1", "veth2"], "{table}");
    }
}

#[test]
fn a_bridge_that_was_made_anew_has_its_option_as_soon_as_the_kernel_tells() {
    let mut scene = guarded_before();
    let mut driver = scene.start();
    scene.turn(&mut driver);
    scene.machine.borrow_mut().set.clear();
    scene.disturb(&mut driver, Notice::Ports);
    scene.turn(&mut driver);
    assert_eq!(scene.machine.borrow().set.len(), 1);
}

#[test]
fn two_agents_that_overlap_take_away_nothing_that_the_other_one_guards() {
    let mut scene = guarded_before();
    let (mut older, mut younger) = (scene.start(), scene.start());
    for driver in [&mut older, &mut younger] {
        scene.turn(driver);
    }
    let links = ["veth3", "veth4"].map(|link| PodLink { name: link.into(), bridge: KUBE_BRIDGE.map(Into::into) });
    scene.machine.borrow_mut().links.extend(links);
    for (driver, link) in [(&mut older, "veth3"), (&mut younger, "veth4")] {
        let told = scene.add(driver, link);
        scene.turn(driver);
        assert_eq!(*told.borrow(), Ok(()));
    }
    for driver in [&mut older, &mut younger] {
        scene.disturb(driver, Notice::Rules);
        scene.turn(driver);
    }
    let all = ["veth1", "veth2", "veth3", "veth4"];
    for table in ["bridge", "inet", "arp"] {
        assert_eq!(scene.guarded(table), all, "{table}");
    }
    assert_eq!(scene.written(), all);
    drop(older);
    // What ends, ends: whoever was told of it.
    younger.take(Call::Delete(AttachmentId { container: "of veth1".into(), interface: "eth0".into() }));
    younger.take_over(scene.began);
    scene.turn(&mut younger);
    assert_eq!(scene.guarded("bridge"), all[1..]);
    scene.machine.borrow_mut().links.retain(|link| link.name != "veth3");
    younger.audited(Moment { now: scene.began, jitter: 0 });
    scene.turn(&mut younger);
    assert_eq!(scene.guarded("bridge"), ["veth2", "veth4"]);
}

/// A host with two agents, of which the older one alone was told of `veth3`.
fn overlapping() -> (Scene, Driver<InMemory>, Driver<InMemory>) {
    let mut scene = guarded_before();
    let (mut older, mut younger) = (scene.start(), scene.start());
    for driver in [&mut older, &mut younger] {
        scene.turn(driver);
    }
    scene.machine.borrow_mut().links.push(PodLink { name: "veth3".into(), bridge: KUBE_BRIDGE.map(Into::into) });
    let told = scene.add(&mut older, "veth3");
    scene.turn(&mut older);
    assert_eq!(*told.borrow(), Ok(()));
    (scene, older, younger)
}

#[test]
fn what_another_agent_guards_stays_while_the_links_are_not_known() {
    let (mut scene, _older, mut younger) = overlapping();
    scene.machine.borrow_mut().are_links_unknown = true;
    scene.disturb(&mut younger, Notice::Rules);
    for _ in 0..3 {
        scene.turn(&mut younger);
        for table in TABLES {
            assert_eq!(scene.guarded(table), ["veth1", "veth2", "veth3"], "{table}");
        }
    }
    assert!(younger.deadline().is_some(), "they are listed again");
    scene.machine.borrow_mut().are_links_unknown = false;
    scene.turn(&mut younger);
    assert_eq!(scene.guarded("bridge"), ["veth1", "veth2", "veth3"]);
    assert_eq!(scene.written(), ["veth1", "veth2", "veth3"], "it is taken over");
    assert!(younger.mirrors.is_settled());
}

#[test]
fn what_another_agent_guards_stays_while_one_table_cannot_be_read() {
    for unreadable in [&["bridge"], &["inet"], &["arp"]] {
        let (mut scene, _older, mut younger) = overlapping();
        scene.machine.borrow_mut().unreadable = unreadable;
        scene.disturb(&mut younger, Notice::Rules);
        scene.turn(&mut younger);
        for table in TABLES {
            assert_eq!(scene.guarded(table), ["veth1", "veth2", "veth3"], "{table} without {unreadable:?}");
        }
        scene.machine.borrow_mut().unreadable = &[];
        for _ in 0..3 {
            scene.turn(&mut younger);
        }
        for table in TABLES {
            assert_eq!(scene.guarded(table), ["veth1", "veth2", "veth3"], "{table} after {unreadable:?}");
        }
        assert!(younger.ports.has("veth3") && younger.mirrors.is_settled());
    }
}

#[test]
fn links_are_not_listed_for_rules_of_others() {
    let mut scene = guarded_before();
    let mut driver = scene.start();
    scene.turn(&mut driver);
    let before = scene.machine.borrow().lists;
    scene.disturb(&mut driver, Notice::Rules);
    scene.turn(&mut driver);
    assert_eq!(scene.machine.borrow().lists, before);
    scene.disturb(&mut driver, Notice::Ports);
    scene.turn(&mut driver);
    assert_eq!(scene.machine.borrow().lists, before + 1);
}

#[test]
fn a_port_that_one_of_two_agents_ended_is_not_put_back_by_the_other_one() {
    let (mut scene, mut older, mut younger) = overlapping();
    scene.disturb(&mut younger, Notice::Rules);
    scene.turn(&mut younger);
    younger.take(Call::Delete(AttachmentId { container: "of veth1".into(), interface: "eth0".into() }));
    younger.take_over(scene.began);
    scene.turn(&mut younger);
    // The plugin that made the link removes it.
    scene.machine.borrow_mut().links.retain(|link| link.name != "veth1");
    for driver in [&mut older, &mut younger] {
        scene.disturb(driver, Notice::Ports);
    }
    for _ in 0..3 {
        for driver in [&mut older, &mut younger] {
            scene.disturb(driver, Notice::Rules);
            scene.turn(driver);
            for table in TABLES {
                assert_eq!(scene.guarded(table), ["veth2", "veth3"], "{table}");
            }
        }
    }
}
