//! Audits and inspections: reading everything back, to repair it or to tell a user.

use super::*;

#[test]
fn an_audit_in_portions_finds_what_is_missing_different_and_unexpected() {
    let mut scene = Scene::new(&[]);
    let want = jars(&[("a", "1"), ("b", "2"), ("c", "3"), ("d", "4"), ("e", "5")]);
    scene.round(&want);
    scene.acts();
    scene.reads();
    let shelf = scene.shelf();
    shelf.portion = Some(2);
    shelf.jars.remove("b");
    shelf.jars.insert("d", "9");
    shelf.jars.insert("stray", "7");
    let mut found = Vec::new();
    let mut portions = 0;
    loop {
        let audited = scene.mirror.audit(scene.at());
        found.extend(audited.drift);
        portions += 1;
        if audited.finished {
            break;
        }
    }
    let expected = [Drift::Missing("b".into()), Drift::Different("d".into()), Drift::Unexpected("stray".into())];
    assert_eq!((found.as_slice(), portions, scene.reads().as_str()), (expected.as_slice(), 3, "a b, c d, e"));
    scene.round(&want);
    assert_eq!(scene.acts(), "b ->2, d 9>4, stray 7>-");
    assert!(scene.mirror.is_settled());
    assert_eq!(scene.mirror.audit(scene.at()).drift, []);
}

#[test]
fn an_audit_in_portions_finds_what_it_leaves_to_glances_although_there_were_none() {
    let mut scene = Scene::new(&[]);
    let want = jars(&[("a", "1"), ("b", "2"), ("c", "3")]);
    scene.round(&want);
    let shelf = scene.shelf();
    (shelf.portion, shelf.glances) = (Some(1), true);
    shelf.jars.insert("a", "8");
    shelf.jars.insert("c", "9");
    let mut found = Vec::new();
    while {
        let audited = scene.mirror.audit(scene.at());
        found.extend(audited.drift);
        !audited.finished
    } {}
    assert_eq!(found, [Drift::Different("a".into()), Drift::Different("c".into())]);
    scene.round(&want);
    assert_eq!(scene.shelf().jars, want);
}

#[test]
fn an_audit_leaves_alone_what_is_in_doubt_anyway() {
    let mut scene = Scene::new(&[]);
    let want = jars(&[("x", "a"), ("y", "b")]);
    scene.shelf().failing.insert("x", true);
    scene.round(&want);
    assert_eq!(scene.mirror.audit(scene.at()).drift, [], "our own failed step is no drift");
    scene.shelf().failing.clear();
    scene.wait();
    scene.round(&want);
    assert!(scene.mirror.is_settled());
}

#[test]
fn an_audit_that_cannot_read_forgets_and_the_next_round_reads_everything() {
    let mut scene = Scene::new(&[("x", "a")]);
    let want = jars(&[("x", "a")]);
    scene.round(&want);
    scene.shelf().unreadable = true;
    assert!(scene.mirror.audit(scene.at()).finished);
    assert!(scene.mirror.seen().is_none() && scene.mirror.trouble().is_some());
    scene.shelf().unreadable = false;
    scene.shelf().jars.clear();
    scene.now += Duration::from_millis(50);
    scene.round(&want);
    assert_eq!(scene.acts(), "", "its time has not come");
    scene.wait();
    scene.round(&want);
    assert_eq!(scene.acts(), "x ->a");
}

/// All that an inspection finds, as `KEY STATE DESIRED>SEEN`.
fn inspected(mirror: &mut Mirror<Shelf>) -> Vec<String> {
    mirror.begin_inspection();
    let mut found = Vec::new();
    loop {
        let portion = mirror.inspect(Room::of_differences(DESCRIBED));
        assert_eq!(portion.unreadable, None);
        found.extend(portion.differences.into_iter().map(|difference| {
            let Difference { object, state, desired, seen } = difference;
            let [desired, seen] = [desired, seen].map(|value| value.unwrap_or_else(|| "-".to_owned()));
            format!("{object} {state:?} {desired}>{seen}")
        }));
        if portion.finished {
            return found;
        }
    }
}

#[test]
fn an_inspection_tells_what_differs_and_changes_nothing() {
    for portion in [None, Some(2)] {
        let mut scene = Scene::new(&[]);
        scene.mirror.target().portion = portion;
        let want: Jars = [("a", "x"), ("b", "x"), ("c", "x"), ("d", "x"), ("e", "x")].into();
        scene.round(&want);
        assert_eq!(inspected(&mut scene.mirror), Vec::<String>::new(), "portions of {portion:?}");
        let shelf = scene.mirror.target();
        shelf.jars.remove("b");
        shelf.jars.insert("c", "y");
        shelf.jars.insert("f", "z");
        shelf.acts.clear();
        let expected = [r#"b Missing "x">-"#, r#"c Different "x">"y""#, r#"f Unexpected ->"z""#];
        for _ in 0..2 {
            assert_eq!(inspected(&mut scene.mirror), expected, "portions of {portion:?}");
            scene.round(&want);
            assert_eq!(scene.mirror.target().acts, Vec::<String>::new(), "a question changes nothing");
        }
        let at = scene.at();
        while !scene.mirror.audit(at).finished {}
        scene.round(&want);
        assert_eq!(inspected(&mut scene.mirror), Vec::<String>::new(), "an audit has put it back");
        assert_eq!(scene.mirror.target().jars, want);
    }
}

#[test]
fn an_inspection_leaves_out_what_is_at_work_and_says_what_the_kernel_refuses() {
    let mut scene = Scene::new(&[]);
    let want: Jars = [("a", "x"), ("b", "x")].into();
    scene.round(&want);
    scene.mirror.mark("a");
    scene.mirror.target().jars.remove("a");
    assert_eq!(inspected(&mut scene.mirror), Vec::<String>::new(), "it is about to be compared anyway");
    scene.mirror.begin_inspection();
    assert_eq!(scene.mirror.inspect(Room::of_differences(DESCRIBED)).waiting, 1);
    scene.mirror.target().jars.insert("a", "x");
    scene.mirror.target().failing.insert("c", false);
    scene.mirror.mark("c");
    let more: Jars = [("a", "x"), ("b", "x"), ("c", "x")].into();
    scene.round(&more);
    assert_eq!(inspected(&mut scene.mirror), [r#"c Failed("c fails") ->-"#]);
    scene.mirror.target().unreadable = true;
    scene.mirror.begin_inspection();
    assert_eq!(scene.mirror.inspect(Room::of_differences(DESCRIBED)).unreadable.as_deref(), Some("unreadable"));
}

#[test]
fn of_many_differences_only_the_first_are_described() {
    let mut scene = Scene::new(&[]);
    let want: Jars = [("a", "x"), ("b", "x"), ("c", "x")].into();
    scene.round(&want);
    scene.mirror.target().jars.clear();
    scene.mirror.begin_inspection();
    let inspected = scene.mirror.inspect(Room::of_differences(2));
    assert_eq!((inspected.differences.len(), inspected.more, inspected.compared), (2, 1, 3));
}

#[test]
fn objects_are_listed_as_the_kernel_has_them_as_far_as_there_is_room() {
    let mut scene = Scene::new(&[]);
    let want: Jars = [("a", "x"), ("b", "x"), ("c", "x")].into();
    scene.round(&want);
    scene.mirror.target().jars.insert("b", "y");
    scene.mirror.target().jars.insert("d", "z");
    let mut listed = |bytes| {
        scene.mirror.begin_inspection();
        let (mut text, mut unlisted, mut finished) = (String::new(), 0, false);
        while !finished {
            let room = Room { differences: 0, objects: Some(usize::saturating_sub(bytes, text.len())) };
            let portion = scene.mirror.inspect(room);
            text.push_str(&portion.objects);
            (unlisted, finished) = (unlisted + portion.unlisted, portion.finished);
        }
        (text, unlisted)
    };
    let all = "a: \"x\"\nb: \"y\"\nc: \"x\"\nd: \"z\"\n".to_owned();
    assert_eq!(listed(usize::MAX), (all, 0));
    assert_eq!(listed(8), ("a: \"x\"\nb: \"y\"\n".to_owned(), 2));
    assert_eq!(listed(0), (String::new(), 4));
    scene.mirror.begin_inspection();
    assert_eq!(scene.mirror.inspect(Room::of_differences(DESCRIBED)).objects, "", "nobody asks for them");
}

#[test]
fn an_audit_at_once_and_one_in_portions_find_all_that_differs_wherever_it_stands() {
    const KEYS: [&str; 3] = ["a", "b", "c"];
    const SEEN_AND_THERE: [(Option<&str>, Option<&str>); 6] = [
        (None, None),
        (None, Some("1")),
        (Some("1"), None),
        (Some("1"), Some("1")),
        (Some("1"), Some("2")),
        (Some("2"), Some("1")),
    ];
    for case in 0..6_usize.pow(3) {
        let state = |place: usize| SEEN_AND_THERE[case / 6_usize.pow(place as u32) % 6];
        let states = [0, 1, 2].map(|place| (KEYS[place], state(place)));
        let want: Jars = states.iter().filter_map(|(key, (seen, _))| Some((*key, (*seen)?))).collect();
        let expected: BTreeSet<String> = states
            .iter()
            .filter_map(|(key, state)| match state {
                (Some(_), None) => Some(Drift::Missing((*key).into())),
                (None, Some(_)) => Some(Drift::Unexpected((*key).into())),
                (seen, there) => (seen != there).then(|| Drift::Different((*key).into())),
            })
            .map(|drift| format!("{drift:?}"))
            .collect();
        for portion in [None, Some(1)] {
            let mut scene = Scene::new(&[]);
            scene.round(&want);
            let shelf = scene.shelf();
            shelf.portion = portion;
            shelf.jars = states.iter().filter_map(|(key, (_, there))| Some((*key, (*there)?))).collect();
            let mut found = Vec::new();
            while {
                let audited = scene.mirror.audit(scene.at());
                found.extend(audited.drift.iter().map(|drift| format!("{drift:?}")));
                !audited.finished
            } {}
            assert_eq!(found.len(), expected.len(), "{states:?}, {portion:?}: each once");
            assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), expected, "{states:?}, {portion:?}");
            scene.round(&want);
            assert_eq!(scene.shelf().jars, want, "{states:?}, {portion:?}");
        }
    }
}
