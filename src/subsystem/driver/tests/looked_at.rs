//! Changes of others, found by glances and closer looks, and questions of users.

use super::*;

/// Returns a loop that has done all there is to do, after one turn at which a glance is due.
async fn glanced(scene: &Scene) -> Loop<Signposts> {
    scene.publish(Authority::Complete, &["a", "b"]);
    let mut turning = Loop::new(scene.subsystem(), scene.inputs(), Instant::now());
    turning.turn().await;
    assert!(scene.yard.borrow().has(&["a", "b"], &["a", "b"]));
    turning
}

#[tokio::test]
async fn a_glance_finds_drift_which_is_repaired_at_once_and_the_next_one_comes_after_a_period() {
    let scene = Scene::new();
    let mut turning = glanced(&scene).await;
    scene.yard.borrow_mut().signs.pop_first();
    let begun = Instant::now();
    let at = begun + Duration::from_secs(20);
    turning.patrol(turning.moments.at(at));
    assert!(scene.yard.borrow().has(&["a", "b"], &["a", "b"]), "it is repaired");
    assert_eq!(turning.patrol.next(at), Some(1), "no other look waits for that");
    assert!(turning.patrol.deadline() <= at + Duration::from_secs(10));
}

#[tokio::test]
async fn after_the_first_round_and_the_first_that_knows_all_nobody_looks_before_a_period_has_passed() {
    let scene = Scene::new();
    let started = Instant::now().checked_sub(Duration::from_secs(60)).expect("the clock is older");
    let mut turning = Loop::new(scene.subsystem(), scene.inputs(), started);
    for authority in [Authority::Remembered, Authority::Partial, Authority::Complete] {
        let begun = Instant::now();
        scene.publish(authority, &["a", "b"]);
        turning.turn().await;
        assert!(turning.patrol.deadline() >= begun + Duration::from_secs(10), "looks, {authority:?}");
        assert!(turning.command_looks.deadline() >= Some(begun + Duration::from_secs(5)), "the count, {authority:?}");
    }
    let first = turning.patrol.deadline();
    for authority in [Authority::Complete, Authority::Partial, Authority::Complete] {
        scene.publish(authority, &["a", "b", "c"]);
        turning.turn().await;
        assert_eq!(turning.patrol.deadline(), first, "what follows puts off no look");
    }
}

#[tokio::test]
async fn a_close_look_finds_what_a_glance_cannot_see() {
    let scene = Scene::new();
    let mut turning = glanced(&scene).await;
    {
        let mut yard = scene.yard.borrow_mut();
        yard.signs.pop_first();
        yard.signs.insert(Key("c".to_owned()));
    }
    let at = Instant::now() + Duration::from_secs(20);
    turning.patrol(turning.moments.at(at));
    assert!(scene.yard.borrow().has(&["a", "b"], &["b", "c"]), "there are as many");
    turning.patrol(turning.moments.at(turning.patrol.deadline().max(at)));
    assert!(scene.yard.borrow().has(&["a", "b"], &["a", "b"]), "it is repaired");
}

#[tokio::test]
async fn time_in_which_a_glance_waits_delays_none() {
    let scene = Scene::new();
    let mut turning = glanced(&scene).await;
    scene.yard.borrow_mut().glance_sleeps = Duration::from_millis(40);
    let at = Instant::now() + Duration::from_secs(20);
    turning.patrol(turning.moments.at(at));
    assert!(turning.patrol.deadline() <= at + Duration::from_secs(10), "it cost no processor");
}

#[test]
fn a_user_is_told_what_differs_and_it_is_put_back_at_once_only_when_asked_for() {
    let scene = Scene::new();
    scene.run(async |scene| {
        assert_eq!(scene.asked(&[]).await, Err(NOTHING_KNOWN.to_owned()));
        assert_eq!(scene.asked(&[("repair", "true")]).await, Err(NOTHING_KNOWN.to_owned()));
        scene.publish(Authority::Complete, &["a", "b"]);
        scene.until_ready().await;
        assert_eq!(scene.differing().await, "");
        scene.take_acts();
        {
            let mut yard = scene.yard.borrow_mut();
            yard.signs.remove(&Key("a".to_owned()));
            yard.posts.insert(Key("c".to_owned()));
        }
        for _ in 0..2 {
            assert_eq!(scene.differing().await, "posts c unexpected, signs a missing");
        }
        assert_eq!(scene.take_acts(), "", "a question changes nothing");
        let repaired = scene.asked(&[("repair", "true")]).await.expect("something is known");
        assert_eq!(repaired["found"], 2);
        assert_eq!((scene.differing().await, scene.take_acts()), (String::new(), "-posts c, +signs a".to_owned()));
    });
}

#[test]
fn what_the_kernel_refuses_differs_until_a_repair_finds_that_it_does_not_any_more() {
    let scene = Scene::new();
    scene.run(async |scene| {
        scene.yard.borrow_mut().failing = Some("signs");
        scene.publish(Authority::Complete, &["a"]);
        scene.until("the post stands", |yard| yard.posts.len() == 1).await;
        assert_eq!(scene.differing().await, "signs a failed");
        // It would be tried again after a while.
        tokio::time::sleep(Duration::from_millis(700)).await;
        scene.yard.borrow_mut().failing = None;
        scene.asked(&[("repair", "true")]).await.expect("something is known");
        assert_eq!(scene.differing().await, "");
    });
}

/// Exchanges a sign for another, which no glance sees.
fn exchange_a_sign(scene: &Scene) {
    let mut yard = scene.yard.borrow_mut();
    yard.signs.pop_first();
    yard.signs.insert(Key("c".to_owned()));
}

#[tokio::test]
async fn where_the_kernel_counts_commands_nothing_is_looked_at_before_somebody_gives_one() {
    let scene = Scene::new();
    let mut turning = glanced(&scene).await;
    exchange_a_sign(&scene);
    let begun = Instant::now();
    let mut turn = |seconds| {
        let at = begun + Duration::from_secs(seconds);
        turning.look_after_commands(turning.moments.at(at));
        turning.patrol(turning.moments.at(at));
    };
    scene.yard.borrow_mut().commands = Some(OthersCommands::None);
    (5..=600).step_by(5).for_each(&mut turn);
    assert!(scene.yard.borrow().has(&["a", "b"], &["b", "c"]), "nobody looked");
    scene.yard.borrow_mut().commands = Some(OthersCommands::Given);
    turn(605);
    turn(606);
    assert!(scene.yard.borrow().has(&["a", "b"], &["a", "b"]), "it is repaired a second after it was counted");
}

#[tokio::test]
async fn a_look_after_commands_that_could_not_see_everything_is_repeated() {
    let scene = Scene::new();
    let mut turning = glanced(&scene).await;
    let begun = Instant::now();
    let mut turn = |seconds| turning.look_after_commands(turning.moments.at(begun + Duration::from_secs(seconds)));
    scene.yard.borrow_mut().commands = Some(OthersCommands::Given);
    turn(5);
    exchange_a_sign(&scene);
    {
        let mut yard = scene.yard.borrow_mut();
        (yard.commands, yard.is_blind) = (Some(OthersCommands::None), true);
    }
    turn(6);
    assert!(scene.yard.borrow().has(&["a", "b"], &["b", "c"]));
    scene.yard.borrow_mut().is_blind = false;
    (7..=16).for_each(&mut turn);
    assert!(scene.yard.borrow().has(&["a", "b"], &["a", "b"]), "by the next pass");
}

#[tokio::test]
async fn while_a_look_after_commands_waits_a_glance_finds_what_it_can_see() {
    let scene = Scene::new();
    let mut turning = glanced(&scene).await;
    let begun = Instant::now();
    let mut turn = |seconds| {
        let at = begun + Duration::from_secs(seconds);
        turning.look_after_commands(turning.moments.at(at));
        turning.patrol(turning.moments.at(at));
    };
    scene.yard.borrow_mut().commands = Some(OthersCommands::None);
    (5..=60).step_by(5).for_each(&mut turn);
    scene.yard.borrow_mut().signs.pop_first();
    turn(80);
    assert!(scene.yard.borrow().has(&["a", "b"], &["b"]), "nobody gave a command");
    scene.yard.borrow_mut().commands = Some(OthersCommands::Given);
    // A pass would begin a second later.
    turn(100);
    assert!(scene.yard.borrow().has(&["a", "b"], &["a", "b"]), "a glance goes on");
}

#[tokio::test]
async fn where_commands_are_no_longer_counted_everything_is_looked_at_again() {
    let scene = Scene::new();
    let mut turning = glanced(&scene).await;
    let begun = Instant::now();
    let mut turn = |seconds| {
        let at = begun + Duration::from_secs(seconds);
        turning.look_after_commands(turning.moments.at(at));
        turning.patrol(turning.moments.at(at));
    };
    scene.yard.borrow_mut().commands = Some(OthersCommands::None);
    (5..=60).step_by(5).for_each(&mut turn);
    exchange_a_sign(&scene);
    scene.yard.borrow_mut().commands = None;
    (65..=75).step_by(1).for_each(&mut turn);
    assert!(scene.yard.borrow().has(&["a", "b"], &["a", "b"]), "by the looks at intervals");
}

#[test]
fn a_kind_that_the_kernel_tells_of_is_compared_at_once_and_no_other() {
    Scene::new().run(async |scene| {
        scene.publish(Authority::Complete, &["a", "b"]);
        scene.until_ready().await;
        let reads = scene.yard.borrow().reads.clone();
        {
            let mut yard = scene.yard.borrow_mut();
            yard.posts.pop_last();
            yard.signs.pop_last();
        }
        scene.changes.send_replace(Changes { rules: 1, ..Changes::default() });
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(scene.yard.borrow().has(&["a"], &["a"]), "nobody waits for that notice");
        scene.changes.send_replace(Changes { rules: 1, ours: 1, ..Changes::default() });
        scene.until("the post is back", |yard| yard.has(&["a", "b"], &["a"])).await;
        assert_eq!(scene.yard.borrow().reads["posts"], reads["posts"] + 1);
        assert_eq!(scene.yard.borrow().reads["signs"], reads["signs"], "who is not disturbed is not read");
    });
}

#[test]
fn an_audit_finds_what_nobody_tells_of() {
    let scene = Scene { audit_period: Duration::from_millis(30), ..Scene::new() };
    scene.run(async |scene| {
        scene.publish(Authority::Complete, &["a", "b"]);
        scene.until_ready().await;
        {
            let mut yard = scene.yard.borrow_mut();
            yard.posts.clear();
            yard.signs.clear();
        }
        scene.until("everything is back", |yard| yard.has(&["a", "b"], &["a", "b"])).await;
        scene.yard.borrow_mut().signs.insert(Key("surplus".to_owned()));
        scene.until("what is ours and not wanted goes", |yard| yard.has(&["a", "b"], &["a", "b"])).await;
        scene.until_ready().await;
    });
}
