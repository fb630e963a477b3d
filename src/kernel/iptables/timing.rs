//! Durations of the program runs, for those who graph them.

use std::time::{Duration, Instant};

use crate::net::Family;

/// One run of a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timing {
    pub family: Family,
    pub program: Program,
    pub took: Duration,
}

/// The program that ran.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Program {
    /// It printed tables.
    Save,
    /// It changed tables.
    Restore,
}

/// The last runs, as many as somebody may ask for at once.
#[derive(Default, Debug)]
pub(super) struct Timings(Vec<Timing>);

/// Nobody needs more; an owner that never asks keeps these.
const MOST: usize = 64;

impl Timings {
    pub fn note(&mut self, family: Family, program: Program, begun: Instant) {
        if self.0.len() < MOST {
            self.0.push(Timing { family, program, took: begun.elapsed() });
        }
    }

    pub fn take(&mut self) -> Vec<Timing> {
        std::mem::take(&mut self.0)
    }
}
