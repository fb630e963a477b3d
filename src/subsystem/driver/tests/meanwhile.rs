//! Changes and the order to end that come while the loop is in the middle of a turn.

use super::*;

const PARTS_OF_A_TURN: [&str; 4] = ["taking", "calculating", "programming", "telling"];

impl Scene {
    /// Has this happen when the loop comes to this part of a turn.
    fn meanwhile(&self, part: &'static str, happens: impl FnOnce() + 'static) {
        self.yard.borrow_mut().comes_meanwhile = Some((part, Box::new(happens)));
    }

    /// The same for another cluster.
    fn publish_meanwhile(&self, part: &'static str, names: &[&str]) {
        let (sender, world) = (self.world.clone(), cluster(Authority::Complete, names));
        self.meanwhile(part, move || drop(sender.send_replace(world)));
    }
}

#[test]
fn a_change_that_comes_at_whatever_part_of_a_turn_is_taken_without_another_wake_up() {
    for part in PARTS_OF_A_TURN {
        Scene::new().run(async |scene| {
            scene.publish(Authority::Complete, &["a"]);
            scene.until("all of a", |yard| yard.has(&["a"], &["a"])).await;
            scene.publish_meanwhile(part, &["a", "b", "c"]);
            scene.publish(Authority::Complete, &["a", "b"]);
            scene.until(part, |yard| yard.has(&["a", "b", "c"], &["a", "b", "c"])).await;
        });
    }
}

#[test]
fn a_change_that_comes_while_the_first_cluster_is_being_done_is_taken_without_another_wake_up() {
    for part in PARTS_OF_A_TURN {
        Scene::new().run(async |scene| {
            scene.publish_meanwhile(part, &["a", "b"]);
            scene.publish(Authority::Complete, &["a"]);
            scene.until(part, |yard| yard.has(&["a", "b"], &["a", "b"])).await;
        });
    }
}

#[test]
fn a_loop_that_is_told_to_end_at_whatever_part_of_a_turn_ends_after_it() {
    for part in PARTS_OF_A_TURN {
        Scene::new().run(async |scene| {
            scene.publish(Authority::Complete, &["a"]);
            scene.until("all of a", |yard| yard.has(&["a"], &["a"])).await;
            let stop = scene.stop.clone();
            scene.meanwhile(part, move || _ = stop.send_replace(true));
            scene.publish(Authority::Complete, &["a", "b"]);
            scene.until(part, |yard| yard.has(&["a", "b"], &["a", "b"])).await;
        });
    }
}
