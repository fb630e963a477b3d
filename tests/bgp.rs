//! Several BGP speakers in one process, on a network and a time of our own.
//!
//! A walk lets routes come and go, breaks connections, lets hosts die with and without notice and come back, parts the
//! network, changes policies and stops and starts neighbours. When it has healed and settled, every speaker must have the
//! table that a direct computation gives, and every neighbour must have been told exactly what the speaker thinks it told.
//!
//! `BGP_SEED=n` runs one walk again; a failure names its seed. `BGP_WALKS=n` walks, each of `BGP_STEPS=n` steps.

#![allow(clippy::indexing_slicing, reason = "a test that panics has failed, which is how a test says so")]

#[path = "bgp/expected.rs"]
mod expected;
#[path = "bgp/network.rs"]
mod network;
#[path = "support/random.rs"]
#[allow(dead_code, reason = "every test program uses its own part of this module")]
mod random;
#[path = "bgp/walk.rs"]
mod walk;

use std::time::{SystemTime, UNIX_EPOCH};

use random::number;
use walk::Walk;

#[test]
fn whatever_happens_all_speakers_come_to_the_tables_that_a_direct_computation_gives() {
    let steps = number("BGP_STEPS").unwrap_or(40);
    let seeds: Vec<u64> = match number("BGP_SEED") {
        Some(seed) => vec![seed],
        None => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970").as_nanos() as u64;
            (0..number("BGP_WALKS").unwrap_or(40)).map(|walk| now.wrapping_add(walk)).collect()
        }
    };
    let mut sessions = 0;
    for seed in seeds {
        let mut walk = Walk::new(seed);
        let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| walk.run(steps)));
        if run.is_err() {
            let told = walk.network.story.join("\n  ");
            panic!("a walk failed; BGP_SEED={seed} BGP_STEPS={steps} runs it again. What happened:\n  {told}");
        }
        sessions += walk.network.sessions;
    }
    assert!(sessions > 10, "there were sessions");
}
