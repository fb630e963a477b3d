//! Failures of the kernel, remains of earlier runs, and a loop that is killed.

use super::*;

#[test]
fn a_kind_that_fails_is_trouble_until_it_recovers_and_the_others_go_on() {
    Scene::new().run(async |scene| {
        scene.yard.borrow_mut().failing = Some("signs");
        scene.publish(Authority::Complete, &["a"]);
        scene.until("the post", |yard| yard.has(&["a"], &[])).await;
        let told =
            || scene.health.unready(Instant::now()).iter().any(|reason| reason.text.contains("signs of a refused"));
        scene.until("health names it", |_| told()).await;
        scene.publish(Authority::Complete, &["a", "b"]);
        scene.until("another post", |yard| yard.has(&["a", "b"], &[])).await;
        scene.yard.borrow_mut().failing = None;
        scene.until("it is retried", |yard| yard.has(&["a", "b"], &["a", "b"])).await;
        scene.until_ready().await;
    });
}

#[test]
fn what_an_earlier_run_left_is_told_while_not_all_is_known_and_then_removed() {
    Scene::new().run(async |scene| {
        scene.yard.borrow_mut().has_abandoned = true;
        scene.publish(Authority::Partial, &["a"]);
        scene.until("all of a", |yard| yard.has(&["a"], &["a"])).await;
        let told =
            |scene: &Scene| scene.health.unready(Instant::now()).iter().any(|why| why.text.contains("judge packets"));
        assert!(told(scene));
        scene.publish(Authority::Partial, &["a", "b"]);
        scene.until("all of b", |yard| yard.has(&["a", "b"], &["a", "b"])).await;
        assert!(told(scene) && scene.yard.borrow().abandoned_removed == 0);
        scene.publish(Authority::Complete, &["a", "b"]);
        scene.until("what earlier runs left is removed", |yard| yard.abandoned_removed == 1).await;
        scene.until_ready().await;
        assert!(!told(scene));
    });
}

#[test]
fn what_an_earlier_run_left_is_removed_when_it_can_be_and_health_names_it_until_then() {
    Scene::new().run(async |scene| {
        scene.yard.borrow_mut().abandoned_stays = 2;
        scene.publish(Authority::Complete, &["a"]);
        let told = || scene.health.unready(Instant::now()).iter().any(|reason| reason.text.contains("a fence in use"));
        scene.until("health names it", |yard| yard.has(&["a"], &["a"]) && told()).await;
        scene.until("it is tried again", |yard| yard.abandoned_removed == 3).await;
        scene.until_ready().await;
    });
}

#[test]
fn each_part_of_a_removal_has_a_turn_of_its_own_in_which_changes_go_first() {
    Scene::new().run(async |scene| {
        scene.yard.borrow_mut().abandoned_stays = 1;
        scene.publish(Authority::Complete, &["a"]);
        scene.until("it is tried again", |yard| yard.abandoned_removed == 2).await;
        scene.until_ready().await;
        let parts_at = scene.yard.borrow().parts_at.clone();
        assert_eq!(parts_at.len(), 6);
        assert!(parts_at.windows(2).all(|two| two[0] < two[1]), "{parts_at:?}");
    });
}

#[test]
fn a_loop_that_is_killed_leaves_what_stands_and_the_next_one_adopts_it() {
    let scene = Scene::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        scene.yard.borrow_mut().failing = Some("signs");
        let task = tokio::task::spawn_local(run(scene.subsystem(), scene.inputs(), scene.stop.subscribe()));
        scene.publish(Authority::Complete, &["a"]);
        scene.until("half of it", |yard| yard.has(&["a"], &[])).await;
        task.abort();
        assert!(task.await.is_err_and(|error| error.is_cancelled()));
    });
    assert!(scene.yard.borrow().has(&["a"], &[]), "what is programmed stays");
    scene.yard.borrow_mut().failing = None;
    let mut scene = Scene { health: Health::default(), ..scene };
    scene.take_acts();
    scene.run(async |scene| scene.until("the other half", |yard| yard.has(&["a"], &["a"])).await);
    assert_eq!(scene.take_acts(), "+signs a");
    (scene.health, scene.stop) = (Health::default(), watch::channel(false).0);
    scene.run(async |scene| scene.until_ready().await);
    assert_eq!(scene.take_acts(), "", "a restart with everything in place writes nothing");
}
