// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! Positions in a submission queue and a completion queue (NVMe Base 2.1, 3.3.1).
//!
//! Only positions: the entries themselves live in DMA memory that the kernel glue owns. What a
//! card reports is checked here before it is believed.

/// The smallest queue that the specification allows.
pub const MIN_DEPTH: u16 = 2;

/// Positions in a submission queue: the host moves the tail, the card reports the head.
///
/// # Invariants
///
/// `depth >= MIN_DEPTH`, `head < depth`, `tail < depth`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubmissionRing {
    depth: u16,
    head: u16,
    tail: u16,
}

/// The card reported a submission queue head that it cannot have reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadHead {
    /// What it reported (SQHD).
    pub reported: u16,
}

impl SubmissionRing {
    /// An empty queue of `depth` entries; a depth that is too small is raised to the smallest.
    pub const fn new(depth: u16) -> Self {
        // INVARIANT: `depth` is raised to `MIN_DEPTH`, and 0 is below it.
        Self {
            depth: at_least_minimum(depth),
            head: 0,
            tail: 0,
        }
    }

    /// The value for the tail doorbell.
    pub const fn tail(&self) -> u16 {
        self.tail
    }

    /// Takes the next free entry and returns its index, or `None` when the queue is full (one
    /// entry always stays free).
    pub fn push(&mut self) -> Option<u16> {
        let next = next_index(self.tail, self.depth);
        if next == self.head {
            return None;
        }
        let index = self.tail;
        // INVARIANT: `next_index` stays below `depth`.
        self.tail = next;
        Some(index)
    }

    /// Takes note of the head that a completion carries (SQHD).
    ///
    /// Refused when it is outside of the queue. A head that is not between the last one and the
    /// tail is an older one and changes nothing: a card that makes completions in parallel may
    /// post them in another order than it read its head.
    pub fn report_head(&mut self, reported: u16) -> Result<(), BadHead> {
        if reported >= self.depth {
            return Err(BadHead { reported });
        }
        let fetched = distance(self.head, reported, self.depth);
        if fetched <= distance(self.head, self.tail, self.depth) {
            // INVARIANT: just checked to be below `depth`.
            self.head = reported;
        }
        Ok(())
    }

    /// Entries that the card has not reported as fetched.
    pub fn occupied(&self) -> u16 {
        distance(self.head, self.tail, self.depth)
    }
}

/// Position in a completion queue: the phase tag tells a new entry from an old one.
///
/// # Invariants
///
/// `depth >= MIN_DEPTH`, `head < depth`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompletionRing {
    depth: u16,
    head: u16,
    phase: bool,
}

impl CompletionRing {
    /// An empty queue of `depth` zeroed entries; a depth that is too small is raised to the
    /// smallest.
    pub const fn new(depth: u16) -> Self {
        // INVARIANT: `depth` is raised to `MIN_DEPTH`, and 0 is below it.
        Self {
            depth: at_least_minimum(depth),
            head: 0,
            // The entries are zero, and the card's first pass writes ones.
            phase: true,
        }
    }

    /// Index of the entry to look at next; also the value for the head doorbell.
    pub const fn head(&self) -> u16 {
        self.head
    }

    /// Whether an entry at [`Self::head`] with this phase tag is a new one.
    pub const fn is_new(&self, phase: bool) -> bool {
        self.phase == phase
    }

    /// Moves past the entry at the head; the phase turns over with each pass.
    pub fn advance(&mut self) {
        // INVARIANT: `next_index` stays below `depth`.
        self.head = next_index(self.head, self.depth);
        if self.head == 0 {
            self.phase = !self.phase;
        }
    }
}

const fn at_least_minimum(depth: u16) -> u16 {
    if depth < MIN_DEPTH {
        MIN_DEPTH
    } else {
        depth
    }
}

/// The index after `index` in a ring of `depth`, for `index < depth`.
const fn next_index(index: u16, depth: u16) -> u16 {
    // `index + 1 == depth`, written so that nothing can overflow.
    if index >= depth.wrapping_sub(1) {
        0
    } else {
        index.wrapping_add(1)
    }
}

/// Steps forward from `from` to `to` in a ring of `depth`, for both below `depth`.
const fn distance(from: u16, to: u16, depth: u16) -> u16 {
    if to >= from {
        to.wrapping_sub(from)
    } else {
        // Below `depth`, because `from` is: no wrap-around reaches the result.
        depth.wrapping_sub(from).wrapping_add(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    #[test]
    fn one_entry_stays_free() {
        let mut ring = SubmissionRing::new(4);
        assert_eq!(
            [ring.push(), ring.push(), ring.push(), ring.push()],
            [Some(0), Some(1), Some(2), None]
        );
        assert_eq!(ring.tail(), 3);
        ring.report_head(1).unwrap();
        assert_eq!(ring.push(), Some(3));
        assert_eq!(ring.tail(), 0);
        assert_eq!(ring.occupied(), 3);
    }

    #[test]
    fn heads_outside_are_refused_and_older_ones_ignored() {
        let mut ring = SubmissionRing::new(8);
        for _ in 0..5 {
            ring.push().unwrap();
        }
        ring.report_head(3).unwrap();
        for reported in [8, 9, 0x7fff, 0xffff] {
            assert_eq!(ring.report_head(reported), Err(BadHead { reported }));
        }
        for reported in [0, 1, 2, 6, 7] {
            ring.report_head(reported).unwrap();
            assert_eq!(ring.occupied(), 2);
        }
        for (reported, left) in [(3, 2), (4, 1), (5, 0)] {
            ring.report_head(reported).unwrap();
            assert_eq!(ring.occupied(), left);
        }
    }

    #[test]
    fn a_tiny_depth_is_raised() {
        for depth in [0, 1, 2] {
            let mut ring = SubmissionRing::new(depth);
            assert_eq!((ring.push(), ring.push()), (Some(0), None));
            let mut ring = CompletionRing::new(depth);
            ring.advance();
            ring.advance();
            assert_eq!((ring.head(), ring.is_new(false)), (0, true));
        }
    }

    #[test]
    fn the_phase_turns_with_each_pass() {
        let mut ring = CompletionRing::new(3);
        for pass in 0..5 {
            for index in 0..3 {
                assert_eq!(ring.head(), index);
                assert!(ring.is_new(pass % 2 == 0));
                assert!(!ring.is_new(pass % 2 == 1));
                ring.advance();
            }
        }
    }

    #[test]
    fn the_largest_depth_wraps() {
        let mut ring = CompletionRing::new(u16::MAX);
        for _ in 0..u16::MAX {
            assert!(ring.is_new(true));
            ring.advance();
        }
        assert_eq!((ring.head(), ring.is_new(false)), (0, true));
    }

    /// Against a queue that is kept as a list, over every depth that is small and many orders.
    #[test]
    fn agrees_with_a_list() {
        let mut random = crate::slots::tests::Random(0x5eed);
        for depth in 2..20u16 {
            let mut ring = SubmissionRing::new(depth);
            let mut list = VecDeque::new();
            let mut next = 0;
            for _ in 0..2000 {
                if random.below(2) == 0 {
                    let index = ring.push();
                    if list.len() < usize::from(depth) - 1 {
                        assert_eq!(index, Some(next));
                        list.push_back(next);
                        next = (next + 1) % depth;
                    } else {
                        assert_eq!(index, None);
                    }
                } else {
                    let fetched = random.below(list.len() as u64 + 1) as usize;
                    list.drain(..fetched);
                    ring.report_head(list.front().copied().unwrap_or(next))
                        .unwrap();
                }
                assert_eq!(usize::from(ring.occupied()), list.len());
                assert_eq!(ring.tail(), next);
            }
        }
    }
}
