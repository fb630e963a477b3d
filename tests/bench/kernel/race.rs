//! Several ways to the same state, which take turns.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// One way: brings the state about, and answers how long that took. What it checks afterwards does not count.
pub struct Way<'a> {
    name: &'static str,
    run: Box<dyn FnMut() -> Duration + 'a>,
}

impl<'a> Way<'a> {
    pub fn new(name: &'static str, run: impl FnMut() -> Duration + 'a) -> Way<'a> {
        Way { name, run: Box::new(run) }
    }
}

/// Runs every way once in each round, with `reset` after each, and prints the best of each beside the first.
pub fn race(title: &str, rounds: usize, ways: &mut [Way<'_>], reset: impl Fn()) {
    let mut best = vec![Duration::MAX; ways.len()];
    for _ in 0..rounds {
        for (way, best) in ways.iter_mut().zip(&mut best) {
            *best = (way.run)().min(*best);
            reset();
        }
    }
    println!("\n{title}; best of {rounds}");
    for (way, took) in ways.iter().zip(&best) {
        let ratio = best[0].as_secs_f64() / took.as_secs_f64();
        println!("  {:<62} {:>11.3} ms {ratio:>9.2}", way.name, took.as_secs_f64() * 1e3);
    }
}

pub fn timed(run: impl FnOnce()) -> Duration {
    let begun = Instant::now();
    run();
    begun.elapsed()
}

/// How long a program runs that reads this file.
pub fn fed(program: &str, arguments: &[&str], input: &Path) -> Duration {
    let input = File::open(input).expect("the input was written");
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::from(input));
    timed(|| {
        let status = command.status().unwrap_or_else(|error| panic!("start {program}: {error}"));
        assert!(status.success(), "{program} failed");
    })
}

/// The kernel, and what else the processors have to do.
pub fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).expect("Linux has /proc").trim().to_owned();
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let load = read("/proc/loadavg");
    let load = load.split(' ').next().expect("a load");
    format!("Linux {}, {processors} processors, load {load}", read("/proc/sys/kernel/osrelease"))
}
