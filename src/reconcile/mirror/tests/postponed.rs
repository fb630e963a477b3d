//! Differences that wait for a later round.

use super::*;

#[test]
fn what_is_postponed_is_done_when_it_is_taken_up_and_unsettled_until_then() {
    let mut scene = Scene::new(&[("x", "a"), ("y", "b"), ("z", "c")]);
    let mut want = jars(&[("x", "a"), ("y", "b"), ("z", "c")]);
    scene.round(&want);
    for key in ["x", "y", "z"] {
        want.insert(key, "d");
        scene.mirror.mark(key);
    }
    assert!(["x", "y"].iter().all(|key| scene.mirror.postpone(key, &want)));
    scene.round(&want);
    assert_eq!(scene.acts(), "z c>d");
    assert!(!scene.mirror.is_settled());
    assert_eq!(scene.mirror.postponed().iter().copied().collect::<Vec<_>>(), ["x", "y"]);
    assert!(scene.mirror.take_up(&"x") && !scene.mirror.take_up(&"z"));
    scene.round(&want);
    assert_eq!(scene.acts(), "x a>d");
    scene.mirror.take_up_all();
    scene.round(&want);
    assert_eq!(scene.acts(), "y b>d");
    assert!(scene.mirror.is_settled() && scene.mirror.postponed().is_empty());
}

#[test]
fn what_is_marked_again_drifts_or_is_forgotten_waits_no_longer() {
    let mut scene = Scene::new(&[("x", "a"), ("y", "b"), ("z", "c")]);
    let mut want = jars(&[("x", "a"), ("y", "b"), ("z", "c")]);
    scene.round(&want);
    let mut postpone = |scene: &mut Scene, key, value| {
        want.insert(key, value);
        scene.mirror.mark(key);
        assert!(scene.mirror.postpone(&key, &want));
        want.clone()
    };
    let now = postpone(&mut scene, "x", "d");
    scene.mirror.mark("x");
    scene.round(&now);
    assert_eq!(scene.acts(), "x a>d");
    let now = postpone(&mut scene, "y", "d");
    scene.shelf().jars.remove("y");
    let at = scene.at();
    assert_eq!(scene.mirror.audit(at).drift, [Drift::Missing("y".into())]);
    scene.round(&now);
    assert_eq!(scene.acts(), "y ->d");
    let now = postpone(&mut scene, "z", "d");
    scene.mirror.forget();
    scene.round(&now);
    assert_eq!(scene.acts(), "z c>d");
    assert!(scene.mirror.is_settled());
}

#[test]
fn what_is_missing_surplus_in_doubt_or_as_desired_cannot_wait() {
    let mut scene = Scene::new(&[("old", "a"), ("same", "b"), ("x", "c")]);
    let mut want = jars(&[("old", "a"), ("same", "b"), ("x", "c")]);
    scene.round(&want);
    want.remove("old");
    want.insert("new", "a");
    want.insert("x", "d");
    scene.shelf().failing.insert("x", false);
    scene.mirror.mark("x");
    scene.round(&want);
    for key in ["old", "new"] {
        scene.mirror.mark(key);
    }
    assert!(["old", "new", "same", "x"].iter().all(|key| !scene.mirror.postpone(key, &want)));
    scene.round(&want);
    assert_eq!(scene.acts(), "new ->a, old a>-");
}
