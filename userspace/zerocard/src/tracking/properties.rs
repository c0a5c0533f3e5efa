// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Random ranges, marks and harvests, held against a plain record of what was written.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::{DirtyLog, Limits, Range};

#[derive(Clone, Debug)]
enum Step {
    /// Bytes from an offset to the start of a range, or to its end.
    Mark {
        range: prop::sample::Index,
        from_end: bool,
        offset: i64,
        len: u64,
    },
    MarkAll,
    Harvest {
        room: usize,
    },
}

/// Ranges in any order: lengths and gaps from the bottom, or up to the end of the address space.
fn layouts() -> impl Strategy<Value = (u8, Vec<Range>)> {
    let granules = prop_oneof![3 => 1..200u32, 2 => 1..100_000u32, 1 => 1..1u32 << 27];
    let gap = prop_oneof![Just(0u64), 0..1000u64];
    let spans = prop::collection::vec((gap, granules), 1..5);
    (
        12..=21u8,
        spans,
        any::<bool>(),
        any::<prop::sample::Index>(),
    )
        .prop_map(|(shift, spans, at_top, turn)| {
            let total: u64 = spans.iter().map(|(gap, len)| gap + u64::from(*len)).sum();
            let base = if at_top {
                0u64.wrapping_sub(total << shift)
            } else {
                0
            };
            let mut at = base;
            let mut ranges = Vec::new();
            for (gap, granules) in spans {
                at = at.wrapping_add(gap << shift);
                ranges.push(Range {
                    start: at,
                    granules,
                });
                at = at.wrapping_add(u64::from(granules) << shift);
            }
            let turn = turn.index(ranges.len());
            ranges.rotate_left(turn);
            (shift, ranges)
        })
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let len = prop_oneof![1..3u64, 1..10_000u64, 1..9u64 << 20, Just(4096u64)];
    let offset = prop_oneof![-9000..9000i64, -(1i64 << 22)..(1i64 << 22), 0..1i64 << 39];
    let mark = (any::<prop::sample::Index>(), any::<bool>(), offset, len).prop_map(
        |(range, from_end, offset, len)| Step::Mark {
            range,
            from_end,
            offset,
            len,
        },
    );
    let room = prop_oneof![0..4usize, 0..100usize, Just(usize::MAX)];
    let harvest = room.prop_map(|room| Step::Harvest { room });
    prop::collection::vec(
        prop_oneof![20 => mark, 5 => harvest, 1 => Just(Step::MarkAll)],
        0..60,
    )
}

/// What was written: addresses of granules.
struct Record<'a> {
    shift: u8,
    ranges: &'a [Range],
    dirty: BTreeSet<u64>,
}

impl Record<'_> {
    fn bounds(&self, range: &Range) -> (u128, u128) {
        let start = u128::from(range.start);
        (start, start + (u128::from(range.granules) << self.shift))
    }

    fn mark(&mut self, iova: u64, len: u64) {
        let (from, to) = (u128::from(iova), u128::from(iova) + u128::from(len));
        for range in self.ranges {
            let (start, end) = self.bounds(range);
            let mut granule = from.max(start) >> self.shift << self.shift;
            while granule < to.min(end) {
                self.dirty.insert(granule as u64);
                granule += 1 << self.shift;
            }
        }
    }

    /// Checks one harvest and takes out what it reported.
    fn harvest(&mut self, log: &DirtyLog, room: usize) {
        let mut runs = Vec::new();
        let more = log.harvest(room, &mut |start, count| runs.push((start, count)));
        assert!(runs.len() <= room);
        assert!(
            !more || runs.len() == room,
            "stopped before the room was used up"
        );
        let ranges: Vec<usize> = runs.iter().map(|run| self.range_of(*run)).collect();
        let ends: Vec<u128> = runs.iter().map(|run| self.end(*run)).collect();
        let mut turns = 0;
        for next in 1..runs.len() {
            let start = u128::from(runs[next].0);
            if start < ends[next - 1] {
                turns += 1;
            } else if start == ends[next - 1] {
                assert_ne!(
                    ranges[next],
                    ranges[next - 1],
                    "two runs where one would do"
                );
            }
        }
        assert!(turns <= 1, "not in ascending order");
        for (start, count) in runs {
            for granule in 0..u64::from(count) {
                let address = start + (granule << self.shift);
                assert!(self.dirty.remove(&address), "{address:#x} was not written");
            }
        }
        assert_eq!(more, !self.dirty.is_empty(), "more to report");
    }

    fn end(&self, (start, count): (u64, u32)) -> u128 {
        u128::from(start) + (u128::from(count) << self.shift)
    }

    /// The one range that holds all of the run.
    fn range_of(&self, run: (u64, u32)) -> usize {
        assert_ne!(run.1, 0);
        let inside = |range: &Range| {
            let (start, end) = self.bounds(range);
            start <= u128::from(run.0) && self.end(run) <= end
        };
        self.ranges
            .iter()
            .position(inside)
            .expect("a run in one range")
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn harvests_report_what_was_marked((shift, ranges) in layouts(), steps in steps()) {
        let log = DirtyLog::start(&ranges, shift, Limits::default()).unwrap();
        let mut record = Record { shift, ranges: &ranges, dirty: BTreeSet::new() };
        let small = ranges.iter().all(|range| range.granules < 200);
        for step in steps {
            match step {
                Step::Mark { range, from_end, offset, len } => {
                    let range = range.get(&ranges);
                    let span = u64::from(range.granules) << shift;
                    let from = if from_end { range.start.wrapping_add(span) } else { range.start };
                    let iova = from.wrapping_add_signed(offset);
                    log.mark(iova, len);
                    record.mark(iova, len);
                }
                Step::MarkAll if small => {
                    log.mark(0, u64::MAX);
                    for range in &ranges {
                        record.mark(range.start, u64::from(range.granules) << shift);
                    }
                }
                Step::MarkAll => {}
                Step::Harvest { room } => record.harvest(&log, room),
            }
        }
        record.harvest(&log, usize::MAX);
        prop_assert!(log.is_clean());
    }
}
