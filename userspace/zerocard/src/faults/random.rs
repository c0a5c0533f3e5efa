// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The generator behind random delays and probabilities: SplitMix64 (Steele, Lea, Flood 2014).
//!
//! Written here and not taken from a crate, because a seed has to give the same faults in every
//! version. Never use it for anything that somebody must not guess.

/// A stream of numbers that its seed determines.
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    /// The stream of a seed.
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The stream of a part: `seed`, then what tells the part from others.
    pub(super) fn of(seed: u64, name: &str, id: u64) -> Self {
        let mut random = Self::new(seed);
        for byte in name.bytes() {
            random = Self::new(random.next() ^ u64::from(byte));
        }
        Self::new(random.next() ^ id)
    }

    /// The next number; all 64 bits are equally good.
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }
}

/// Maps a random number to `min..=max`, evenly but for one part in 2^64.
pub(super) fn between(random: u64, min: u64, max: u64) -> u64 {
    let span = u128::from(max.saturating_sub(min)) + 1;
    // The product's upper half is below span, so the sum is at most max.
    min + ((u128::from(random) * span) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_the_generator_that_it_is() {
        // Output of the authors' splitmix64.c for this seed.
        let mut random = Random::new(1_234_567);
        let first: Vec<u64> = (0..5).map(|_| random.next()).collect();
        assert_eq!(
            first,
            [
                6_457_827_717_110_365_317,
                3_203_168_211_198_807_973,
                9_817_491_932_198_370_423,
                4_593_380_528_125_082_431,
                16_408_922_859_458_223_821
            ]
        );
    }

    #[test]
    fn parts_have_streams_of_their_own() {
        let first = |seed, name, id| Random::of(seed, name, id).next();
        assert_eq!(first(1, "nvme1", 2), first(1, "nvme1", 2));
        assert_ne!(first(1, "nvme1", 2), first(2, "nvme1", 2));
        assert_ne!(first(1, "nvme1", 2), first(1, "nvme2", 2));
        assert_ne!(first(1, "nvme1", 2), first(1, "nvme1", 3));
    }

    #[test]
    fn ranges_include_both_ends() {
        assert_eq!(between(0, 5, 9), 5);
        assert_eq!(between(u64::MAX, 5, 9), 9);
        assert_eq!(between(u64::MAX, 0, u64::MAX), u64::MAX);
        assert_eq!(between(77, 3, 3), 3);
    }
}
