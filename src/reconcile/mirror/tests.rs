//! The mirror on a shelf of jars: each key holds a set of letters, which grow and shrink.

mod audited;
mod postponed;

use std::time::Duration;

use super::super::target::{Failure, Glance, Step};
use super::*;

type Jars = BTreeMap<&'static str, &'static str>;

/// A kind of objects that fails where it is told to.
#[derive(Default)]
struct Shelf {
    jars: Jars,
    /// These steps fail; true where they do their work all the same.
    failing: BTreeMap<&'static str, bool>,
    unreadable: bool,
    portion: Option<usize>,
    /// Number of steps performed at once, and the numbers seen.
    at_once: Option<usize>,
    performed: Vec<usize>,
    /// The reads, key by key or `all`.
    reads: Vec<String>,
    acts: Vec<String>,
    sees_all_at_a_glance: bool,
    /// A glance sees every change, and audits read nothing else.
    glances: bool,
}

impl Target for Shelf {
    type Key = &'static str;
    type Value = &'static str;
    type Error = String;

    fn name(&self) -> &'static str {
        "jars"
    }

    fn read(&mut self) -> Result<Jars, String> {
        self.reads.push("all".to_owned());
        if self.unreadable { Err("unreadable".to_owned()) } else { Ok(self.jars.clone()) }
    }

    fn read_some(&mut self, keys: &[&'static str]) -> Result<Jars, String> {
        self.reads.push(keys.join(" "));
        if self.unreadable {
            return Err("unreadable".to_owned());
        }
        Ok(keys.iter().filter_map(|key| self.jars.get_key_value(key)).map(|(key, value)| (*key, *value)).collect())
    }

    fn keys(&mut self) -> Result<BTreeSet<&'static str>, String> {
        Ok(self.jars.keys().copied().collect())
    }

    fn glance(&mut self, seen: &impl Sorted<&'static str, &'static str>) -> Glance<&'static str> {
        let differs = |key: &&'static str| seen.value(key) != self.jars.get(key);
        let differing: Vec<&'static str> = seen.entries().map(|(key, _)| *key).filter(differs).collect();
        if !self.glances || differing.is_empty() { Glance::Alike } else { Glance::These(differing) }
    }

    fn to_audit(&mut self, _: &impl Sorted<&'static str, &'static str>, keys: &[&'static str]) -> Vec<&'static str> {
        if self.glances { Vec::new() } else { keys.to_vec() }
    }

    fn sees_all_at_a_glance(&self) -> bool {
        self.sees_all_at_a_glance
    }

    fn audit_portion(&self) -> usize {
        self.portion.unwrap_or(usize::MAX)
    }

    fn portion(&self) -> usize {
        self.at_once.unwrap_or(usize::MAX)
    }

    fn apply(&mut self, _: Phase, steps: &[Step<'_, &'static str, &'static str>]) -> Vec<Failure<String>> {
        self.performed.push(steps.len());
        let mut failures = Vec::new();
        for (index, step) in steps.iter().enumerate() {
            let failing = self.failing.get(step.key).copied();
            if failing != Some(false) {
                let (from, to) = (step.have.unwrap_or(&"-"), step.want.unwrap_or(&"-"));
                self.acts.push(format!("{} {from}>{to}", step.key));
                match step.want {
                    Some(want) => self.jars.insert(step.key, want),
                    None => self.jars.remove(step.key),
                };
            }
            if failing.is_some() {
                failures.push(Failure { step: index, error: format!("{} fails", step.key) });
            }
        }
        failures
    }

    /// `ab` on its way to `bc` is `abc`.
    fn grown(have: &&'static str, want: &&'static str) -> &'static str {
        match (*have, *want) {
            ("ab", "bc") | ("abc", "bc") => "abc",
            (_, want) => want,
        }
    }
}

/// A mirror and its clock.
struct Scene {
    mirror: Mirror<Shelf>,
    now: Instant,
}

impl Scene {
    fn new(jars: &[(&'static str, &'static str)]) -> Scene {
        let shelf = Shelf { jars: jars.iter().copied().collect(), ..Shelf::default() };
        Scene { mirror: Mirror::new(shelf), now: Instant::now() }
    }

    fn at(&self) -> Moment {
        Moment { now: self.now, jitter: 0 }
    }

    fn round(&mut self, want: &Jars) {
        let at = self.at();
        self.mirror.grow(want, Growth::Full, at);
        self.mirror.shrink(want, at);
    }

    fn shelf(&mut self) -> &mut Shelf {
        self.mirror.target()
    }

    fn acts(&mut self) -> String {
        std::mem::take(&mut self.shelf().acts).join(", ")
    }

    fn reads(&mut self) -> String {
        std::mem::take(&mut self.shelf().reads).join(", ")
    }

    /// Lets the time pass that the mirror wants to wait; returns it in milliseconds.
    fn wait(&mut self) -> u128 {
        let at = self.mirror.retry_at().expect("something failed, so there is a time to wait for");
        let waited = at - self.now;
        self.now = at;
        waited.as_millis()
    }
}

fn jars(jars: &[(&'static str, &'static str)]) -> Jars {
    jars.iter().copied().collect()
}

#[test]
fn what_exists_as_wanted_is_adopted_without_a_step() {
    let mut scene = Scene::new(&[("x", "a"), ("y", "b")]);
    scene.round(&jars(&[("x", "a"), ("y", "b")]));
    assert_eq!((scene.acts().as_str(), scene.reads().as_str()), ("", "all"));
    assert!(scene.mirror.is_settled());
}

#[test]
fn a_kind_whose_glance_sees_all_is_not_read_after_a_notice() {
    let mut scene = Scene::new(&[("x", "a")]);
    scene.round(&jars(&[("x", "a")]));
    scene.reads();
    let at = scene.at();
    assert!(scene.mirror.compare_after_notice(at).is_empty());
    assert_eq!(scene.reads(), "all");
    scene.shelf().sees_all_at_a_glance = true;
    assert!(scene.mirror.compare_after_notice(at).is_empty());
    assert_eq!(scene.reads(), "");
}

#[test]
fn a_round_looks_only_at_what_was_marked() {
    let mut scene = Scene::new(&[]);
    let mut want = jars(&[("x", "a"), ("y", "b")]);
    scene.round(&want);
    scene.acts();
    want.insert("x", "c");
    want.insert("y", "d");
    scene.mirror.mark("x");
    scene.round(&want);
    assert_eq!(scene.acts(), "x a>c");
}

#[test]
fn a_failed_step_that_did_its_work_is_not_done_twice() {
    let mut scene = Scene::new(&[]);
    let want = jars(&[("x", "a")]);
    scene.shelf().failing.insert("x", true);
    scene.round(&want);
    assert_eq!(scene.acts(), "x ->a");
    assert!(!scene.mirror.is_settled() && scene.mirror.trouble().is_some());
    scene.reads();
    scene.wait();
    scene.round(&want);
    assert_eq!((scene.acts().as_str(), scene.reads().as_str()), ("", "x"));
    assert!(scene.mirror.is_settled() && scene.mirror.trouble().is_none());
}

#[test]
fn an_object_whose_step_failed_may_be_as_before_or_as_it_was_to_be_and_of_one_that_others_changed_nothing_is_known() {
    let mut scene = Scene::new(&[("x", "a"), ("y", "b")]);
    let possible = |scene: &Scene| scene.mirror.possible().map(|them| them.copied().collect::<BTreeSet<&str>>());
    assert_eq!(possible(&scene), None, "nothing was read");
    scene.shelf().failing.extend([("w", false), ("x", false)]);
    scene.round(&jars(&[("w", "e"), ("x", "c"), ("y", "b")]));
    assert_eq!(possible(&scene), Some(["a", "b", "c", "e"].into()));
    scene.mirror.doubt("y");
    assert_eq!(possible(&scene), None);
    scene.shelf().failing.clear();
    scene.round(&jars(&[("w", "e"), ("x", "c")]));
    assert_eq!(possible(&scene), Some(["c", "e"].into()));
}

#[test]
fn steps_are_performed_in_portions_and_a_failure_in_any_of_them_is_its_own_steps() {
    let mut scene = Scene::new(&[]);
    scene.shelf().at_once = Some(2);
    scene.shelf().failing.insert("y", false);
    scene.shelf().failing.insert("z", false);
    let want = jars(&[("v", "a"), ("w", "b"), ("x", "c"), ("y", "d"), ("z", "e")]);
    scene.round(&want);
    assert_eq!(scene.acts(), "v ->a, w ->b, x ->c");
    assert_eq!(std::mem::take(&mut scene.shelf().performed), [2, 2, 1]);
    assert_eq!(scene.mirror.doubts().copied().collect::<Vec<_>>(), ["y", "z"]);
    scene.shelf().failing.clear();
    scene.wait();
    scene.round(&want);
    assert_eq!(scene.acts(), "y ->d, z ->e");
    assert!(scene.mirror.is_settled());
}

#[test]
fn a_failed_step_waits_for_its_time_while_other_keys_go_on() {
    let mut scene = Scene::new(&[]);
    let mut want = jars(&[("x", "a"), ("y", "b")]);
    scene.shelf().failing.insert("x", false);
    scene.round(&want);
    assert_eq!(scene.acts(), "y ->b");
    want.insert("z", "c");
    scene.mirror.mark("z");
    scene.mirror.mark("x");
    scene.reads();
    scene.round(&want);
    assert_eq!((scene.acts().as_str(), scene.reads().as_str()), ("z ->c", ""));
    scene.shelf().failing.clear();
    scene.wait();
    scene.round(&want);
    assert_eq!((scene.acts().as_str(), scene.reads().as_str()), ("x ->a", "x"));
    assert!(scene.mirror.is_settled());
    assert_eq!(scene.mirror.steps_done(), 3);
}

#[test]
fn what_fails_again_waits_longer_whichever_half_of_a_round_it_fails_in() {
    for (jar, want) in [(jars(&[]), jars(&[("x", "a")])), (jars(&[("x", "a")]), jars(&[]))] {
        let mut scene = Scene::new(&[]);
        scene.shelf().jars = jar;
        scene.shelf().failing.insert("x", false);
        scene.round(&want);
        let since = scene.mirror.trouble().expect("a step failed").since;
        let mut waited = Vec::new();
        for _ in 0..4 {
            waited.push(scene.wait());
            scene.round(&want);
        }
        assert_eq!(waited, [100, 200, 400, 800]);
        assert_eq!(scene.mirror.trouble().expect("it still fails").since, since, "it is one trouble");
        scene.shelf().failing.clear();
        scene.wait();
        scene.round(&want);
        assert!(scene.mirror.is_settled() && scene.mirror.trouble().is_none() && scene.mirror.retry_at().is_none());
    }
}

#[test]
fn a_trouble_ends_when_what_failed_is_done_although_something_is_left_to_shrink() {
    let mut scene = Scene::new(&[("x", "ab")]);
    let (want, at) = (jars(&[("x", "bc")]), scene.at());
    scene.shelf().failing.insert("x", false);
    scene.mirror.grow(&want, Growth::Full, at);
    scene.shelf().failing.clear();
    scene.wait();
    let at = scene.at();
    scene.mirror.grow(&want, Growth::Full, at);
    assert_eq!(scene.acts(), "x ab>abc");
    assert!(!scene.mirror.is_settled() && scene.mirror.trouble().is_none() && scene.mirror.retry_at().is_none());
}

#[test]
fn a_kind_that_cannot_be_read_is_asked_again_ever_later_and_nothing_is_done_blindly() {
    let mut scene = Scene::new(&[("x", "a")]);
    let want = jars(&[("x", "b")]);
    scene.shelf().unreadable = true;
    let mut waited = Vec::new();
    for _ in 0..3 {
        scene.round(&want);
        waited.push(scene.wait());
    }
    assert_eq!((waited, scene.acts()), (vec![100, 200, 400], String::new()));
    assert_eq!(scene.mirror.trouble().map(|trouble| trouble.error.as_str()), Some("unreadable"));
    scene.shelf().unreadable = false;
    scene.round(&want);
    assert_eq!(scene.acts(), "x a>b");
    assert!(scene.mirror.is_settled() && scene.mirror.trouble().is_none());
}

#[test]
fn a_memory_may_be_filled_in_and_changes_nothing_that_exists() {
    let mut scene = Scene::new(&[("x", "a"), ("y", "b")]);
    let (want, at) = (jars(&[("x", "c"), ("z", "d")]), scene.at());
    scene.mirror.grow(&want, Growth::OnlyMissing, at);
    assert_eq!(scene.acts(), "z ->d");
    assert!(!scene.mirror.is_settled(), "what differs is still to be done");
    scene.round(&want);
    assert_eq!(scene.acts(), "x a>c, y b>-");
}

#[test]
fn parts_are_added_in_one_half_of_a_round_and_taken_away_in_the_other() {
    let mut scene = Scene::new(&[("x", "ab")]);
    let (want, at) = (jars(&[("x", "bc")]), scene.at());
    scene.mirror.grow(&want, Growth::Full, at);
    assert_eq!(scene.acts(), "x ab>abc");
    scene.mirror.grow(&want, Growth::Full, at);
    assert_eq!(scene.acts(), "", "what has grown has nothing left to grow");
    assert!(!scene.mirror.is_settled());
    assert_eq!(scene.mirror.shrink(&want, at), ["x"]);
    assert_eq!(scene.acts(), "x abc>bc");
    assert!(scene.mirror.is_settled());
}

#[test]
fn parts_that_could_not_be_added_are_not_taken_away_either() {
    let mut scene = Scene::new(&[("x", "ab")]);
    let want = jars(&[("x", "bc")]);
    scene.shelf().failing.insert("x", false);
    scene.round(&want);
    assert_eq!(scene.shelf().jars, jars(&[("x", "ab")]));
    scene.shelf().failing.clear();
    scene.wait();
    scene.round(&want);
    assert_eq!(scene.acts(), "x ab>abc, x abc>bc");
}

#[test]
fn what_needs_others_comes_when_they_are_there_and_goes_when_they_are_gone() {
    let mut scene = Scene::new(&[("old", "a")]);
    let (want, at) = (jars(&[("new", "b"), ("other", "c")]), scene.at());
    scene.mirror.grow_where(&want, Growth::Full, at, |key| *key != "new");
    scene.mirror.shrink_where(&want, at, |_, seen| !seen.contains_key("other"));
    assert_eq!(scene.acts(), "other ->c");
    assert!(!scene.mirror.is_settled() && scene.mirror.trouble().is_none());
    scene.round(&want);
    assert_eq!(scene.acts(), "new ->b, old a>-");
}

#[test]
fn a_key_in_doubt_neither_exists_for_certain_nor_is_it_certainly_absent() {
    let mut scene = Scene::new(&[("x", "a")]);
    assert!(!scene.mirror.has(&"x") && !scene.mirror.lacks("y"..="y"), "nothing is known yet");
    scene.shelf().failing.insert("y", false);
    scene.round(&jars(&[("x", "a"), ("y", "b")]));
    assert!(scene.mirror.has(&"x") && !scene.mirror.has(&"y"));
    assert!(!scene.mirror.lacks("y"..="y") && scene.mirror.lacks("z"..="z"));
    assert_eq!(scene.mirror.known_keys().copied().collect::<Vec<_>>(), ["x", "y"]);
}

#[test]
fn keys_that_were_known_before_a_failed_reading_stay_known_until_the_next() {
    let mut scene = Scene::new(&[("x", "a")]);
    scene.shelf().failing.insert("y", false);
    let want = jars(&[("x", "a"), ("y", "b")]);
    scene.round(&want);
    scene.shelf().unreadable = true;
    let at = scene.at();
    scene.mirror.audit(at);
    assert!(scene.mirror.seen().is_none());
    assert_eq!(scene.mirror.known_keys().copied().collect::<Vec<_>>(), ["x", "y"]);
    scene.shelf().unreadable = false;
    scene.shelf().jars.remove("x");
    scene.shelf().jars.insert("y", "b");
    scene.wait();
    scene.round(&jars(&[("y", "b")]));
    assert_eq!(scene.mirror.known_keys().copied().collect::<Vec<_>>(), ["y"]);
}

#[test]
fn what_is_missing_is_counted_before_and_after_a_failure() {
    let want = jars(&[("one", "a"), ("two", "b"), ("three", "c")]);
    let mut scene = Scene::new(&[("one", "z")]);
    assert_eq!(scene.mirror.missing(&want, |_| true), 3, "nothing is known yet");
    scene.shelf().failing.insert("two", true);
    scene.round(&want);
    assert_eq!(scene.mirror.missing(&want, |_| true), 1);
    assert_eq!(scene.mirror.missing(&want, |key| *key != "two"), 0);
    scene.shelf().failing.clear();
    scene.wait();
    scene.round(&want);
    assert_eq!(scene.mirror.missing(&want, |_| true), 0);
}

#[test]
fn a_transaction_grows_and_shrinks_together_and_shrinks_only_where_it_may() {
    let mut scene = Scene::new(&[("old", "a"), ("other", "ab")]);
    let want = jars(&[("new", "n"), ("other", "bc")]);
    let at = scene.at();
    scene.mirror.transact(&want, Growth::Full, false, at);
    assert_eq!(scene.acts(), "new ->n, other ab>abc");
    assert_eq!(scene.shelf().performed, [2]);
    assert!(!scene.mirror.is_settled());
    scene.mirror.transact(&want, Growth::Full, true, at);
    assert_eq!(scene.acts(), "old a>-, other abc>bc");
    assert_eq!(scene.shelf().performed, [2, 2]);
    assert!(scene.mirror.is_settled());
}

#[test]
fn a_transaction_waits_while_anything_is_in_doubt_and_goes_on_when_what_was_at_fault_is_left_out() {
    let mut scene = Scene::new(&[("old", "a")]);
    scene.shelf().failing.insert("bad", false);
    let at = scene.at();
    scene.mirror.transact(&jars(&[("bad", "b"), ("old", "a")]), Growth::Full, true, at);
    scene.mirror.mark("good");
    assert_eq!(scene.mirror.transact(&jars(&[("good", "g"), ("old", "a")]), Growth::Full, true, at), [""; 0]);
    assert_eq!(scene.mirror.failing_to_grow().collect::<Vec<_>>(), [&"bad"]);
    scene.mirror.try_at_once();
    assert_eq!(scene.mirror.transact(&jars(&[("good", "g"), ("old", "a")]), Growth::Full, true, at), ["good"]);
    assert!(scene.mirror.is_settled() && scene.mirror.trouble().is_none());
}

#[test]
fn what_fails_while_a_try_waits_is_no_further_failed_try() {
    let mut scene = Scene::new(&[]);
    let mut want = jars(&[]);
    scene.round(&want);
    for key in ["x", "y", "z"] {
        scene.shelf().failing.insert(key, false);
        want.insert(key, "a");
        scene.mirror.mark(key);
        scene.round(&want);
        scene.now += Duration::from_millis(10);
    }
    assert_eq!(scene.mirror.trouble().map(|trouble| trouble.objects), Some(3));
    assert_eq!(scene.wait(), 70, "as if all had failed with the first one");
    scene.round(&want);
    assert_eq!(scene.wait(), 200, "the second try of all of them");
    scene.shelf().failing.clear();
    scene.round(&want);
    assert!(scene.mirror.is_settled() && scene.mirror.trouble().is_none());
}

#[test]
fn a_reading_that_fails_while_a_step_fails_for_good_is_tried_again_soon_and_others_go_on() {
    let mut scene = Scene::new(&[]);
    let mut want = jars(&[("bad", "a")]);
    scene.shelf().failing.insert("bad", false);
    scene.round(&want);
    while scene.wait() < 30_000 {
        scene.round(&want);
    }
    scene.round(&want);
    scene.shelf().unreadable = true;
    let at = scene.at();
    scene.mirror.audit(at);
    want.insert("good", "b");
    scene.mirror.mark("good");
    scene.round(&want);
    let waited = [scene.wait(), {
        scene.round(&want);
        scene.wait()
    }];
    assert_eq!(waited, [100, 200], "readings that fail again wait longer");
    scene.shelf().unreadable = false;
    scene.round(&want);
    assert_eq!(scene.acts(), "good ->b");
    assert_eq!(scene.wait(), 30_000, "what fails for good has waited no less for its next try");
    scene.shelf().failing.clear();
    scene.round(&want);
    assert!(scene.mirror.is_settled() && scene.mirror.trouble().is_none() && scene.mirror.retry_at().is_none());
}
