//! Maps by discriminators of ours: random numbers, of which each packet that comes or goes asks for one.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A map whose keys are found at once, in no order.
pub type ByDiscriminator<V> = HashMap<u32, V, BuildHasherDefault<Spread>>;

/// Hash of numbers that nobody else chooses: who sends packets with others finds nothing.
#[derive(Clone, Copy, Default, Debug)]
pub struct Spread(u64);

/// 2^64 by the golden ratio: neighbouring numbers differ in all high bits.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(FACTOR);
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.0 = u64::from(number).wrapping_mul(FACTOR);
    }
}
