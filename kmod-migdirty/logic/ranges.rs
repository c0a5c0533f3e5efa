// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! From the ranges that somebody wants to have tracked to the descriptors that a card can track
//! (NVMe Base 2.1, 5.1.27: Track Memory Changes).
//!
//! Ranges are rounded out to granules; those that then touch become one; when there are still too
//! many, the ones with the smallest gaps between them are joined, and when that is not enough the
//! granule is made coarser. What comes out always covers what was wanted.

use super::span::{Span, PAGE_SHIFT};

/// The largest length of a descriptor (LEN), in granules.
const LONGEST: u64 = u32::MAX as u64;
/// The largest one that is a power of two.
const LONGEST_POWER: u64 = 1 << 31;

/// What a card can track now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Descriptors (what CMMRTD and NMMRTD leave).
    pub descriptors: u32,
    /// The finest granularity to use (MINMRTG or what was wished for): 2^n pages.
    pub finest: u8,
    /// The coarsest one (MAXMRTG).
    pub coarsest: u8,
    /// Lengths have to be powers of two (TRATTR.MRTLL).
    pub powers_of_two: bool,
}

/// What to ask a card for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Granules are 2^n pages (RMRTG).
    pub granularity: u8,
    /// How many of the spans that the caller handed in are in use.
    pub spans: usize,
    /// Descriptors that they make.
    pub descriptors: u32,
}

/// What a card that has not enough resources says that it can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// The finest granularity for these ranges.
    pub granularity: u16,
    /// Descriptors with the granularity that was asked for.
    pub descriptors: u32,
}

/// Plans the tracking of `wanted`. `spans` has room for as many, and then holds what is to be
/// tracked, ascending and apart from each other; `None` when it cannot be.
pub fn plan(wanted: &[Span], spans: &mut [Span], limits: &Limits) -> Option<Plan> {
    (limits.finest..=limits.coarsest).find_map(|granularity| {
        // Beyond this the granule is no power of two of 64 bits.
        if u32::from(granularity) + PAGE_SHIFT >= u64::BITS {
            return None;
        }
        let spans = spans.get_mut(..wanted.len())?;
        spans.copy_from_slice(wanted);
        let mut count = tidy(spans, granularity);
        loop {
            let tracked = spans.get_mut(..count)?;
            let needed = count_descriptors(tracked, granularity, limits.powers_of_two);
            if let Some(descriptors) = u32::try_from(needed)
                .ok()
                .filter(|needed| *needed <= limits.descriptors)
            {
                return (count > 0).then_some(Plan {
                    granularity,
                    spans: count,
                    descriptors,
                });
            }
            count = join_nearest(tracked)?;
        }
    })
}

/// Takes into account why a plan was refused. `false` when there is nothing left to try; otherwise
/// the next plan asks for less.
pub fn fall_back(limits: &mut Limits, refused: &Plan, offer: Capability) -> bool {
    limits.finest = refused.granularity;
    if offer.descriptors > 0 && offer.descriptors < refused.descriptors {
        limits.descriptors = offer.descriptors;
        return true;
    }
    let coarser = match u8::try_from(offer.granularity) {
        Ok(offered) if offered > refused.granularity => offered,
        // It names nothing that it was not asked for: the next step then.
        _ => refused.granularity.saturating_add(1),
    };
    limits.finest = coarser;
    coarser > refused.granularity && coarser <= limits.coarsest
}

/// The descriptors of `spans`, which are whole granules: first address and length in granules.
pub fn descriptors(
    spans: &[Span],
    granularity: u8,
    powers_of_two: bool,
) -> impl Iterator<Item = (u64, u32)> + '_ {
    let shift = u32::from(granularity) + PAGE_SHIFT;
    spans.iter().flat_map(move |span| {
        let mut next = span.first();
        let mut left = granules(span, granularity);
        core::iter::from_fn(move || {
            let length = match (left, powers_of_two) {
                (0, _) => return None,
                (_, false) => left.min(LONGEST),
                (_, true) => left.min(LONGEST_POWER),
            };
            let length = if powers_of_two {
                // The largest power of two that is not above it; `length` is not 0.
                1 << length.ilog2()
            } else {
                length
            };
            let address = next;
            left -= length;
            // Wraps behind the last one at the top of the address space, where none follows.
            next = next.wrapping_add(length << shift);
            // CAST: at most `LONGEST`.
            Some((address, length as u32))
        })
    })
}

/// Granules in a span of whole ones; at most 2^52.
fn granules(span: &Span, granularity: u8) -> u64 {
    (span.bytes_less_one() >> (u32::from(granularity) + PAGE_SHIFT)) + 1
}

fn count_descriptors(spans: &[Span], granularity: u8, powers_of_two: bool) -> u64 {
    spans.iter().fold(0, |sum: u64, span| {
        let granules = granules(span, granularity);
        sum.saturating_add(if powers_of_two {
            granules / LONGEST_POWER + u64::from((granules % LONGEST_POWER).count_ones())
        } else {
            granules.div_ceil(LONGEST)
        })
    })
}

/// Sorts spans. There are hundreds at most; the sorts of `core` can panic.
pub fn sort(spans: &mut [Span]) {
    for end in 1..spans.len() {
        let mut at = end;
        while let [.., before, after] = spans.get_mut(..=at).unwrap_or(&mut []) {
            if before <= after {
                break;
            }
            core::mem::swap(before, after);
            at -= 1;
        }
    }
}

/// Rounds out, sorts, and makes one of those that touch; returns how many are left.
fn tidy(spans: &mut [Span], granularity: u8) -> usize {
    let shift = u32::from(granularity) + PAGE_SHIFT;
    for span in spans.iter_mut() {
        *span = span.round_out(shift);
    }
    sort(spans);
    let mut count = 0usize;
    for at in 0..spans.len() {
        let Some(span) = spans.get(at).copied() else {
            break;
        };
        let before = count.checked_sub(1).and_then(|last| spans.get_mut(last));
        match before {
            Some(last) if last.touches(&span) => *last = last.around(&span),
            _ => {
                if let Some(place) = spans.get_mut(count) {
                    *place = span;
                }
                count += 1;
            }
        }
    }
    count
}

/// Joins the two neighbours with the smallest gap; returns how many are left, `None` when there are
/// no two.
fn join_nearest(spans: &mut [Span]) -> Option<usize> {
    let gap = |pair: &[Span]| match pair {
        [before, after] => after.first().saturating_sub(before.last()),
        _ => u64::MAX,
    };
    let pairs = spans.windows(2).enumerate();
    let (at, _) = pairs.min_by_key(|(_, pair)| gap(pair))?;
    let after = *spans.get(at + 1)?;
    let before = spans.get_mut(at)?;
    *before = before.around(&after);
    spans.get_mut(at + 1..)?.rotate_left(1);
    Some(spans.len() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EASY: Limits = Limits {
        descriptors: 256,
        finest: 0,
        coarsest: 9,
        powers_of_two: false,
    };

    fn span(first: u64, last: u64) -> Span {
        Span::new(first, last).unwrap()
    }

    fn planned(wanted: &[Span], limits: &Limits) -> Option<(Plan, Vec<Span>)> {
        let mut spans = vec![span(0, 0); wanted.len()];
        let plan = plan(wanted, &mut spans, limits)?;
        spans.truncate(plan.spans);
        Some((plan, spans))
    }

    #[test]
    fn spans_are_sorted() {
        for count in 0..9u64 {
            let mut spans: Vec<_> = (0..count).map(|n| span(n * 5 % 7, 20)).collect();
            let mut expected = spans.clone();
            expected.sort();
            sort(&mut spans);
            assert_eq!(spans, expected);
        }
    }

    #[test]
    fn what_fits_stays_as_it_is() {
        let wanted = [span(0x8000, 0x8fff), span(0x1000, 0x2fff)];
        let (plan, spans) = planned(&wanted, &EASY).unwrap();
        assert_eq!(spans, [span(0x1000, 0x2fff), span(0x8000, 0x8fff)]);
        assert_eq!((plan.granularity, plan.descriptors), (0, 2));
        let list: Vec<_> = descriptors(&spans, 0, false).collect();
        assert_eq!(list, [(0x1000, 2), (0x8000, 1)]);
    }

    #[test]
    fn neighbours_become_one_and_the_smallest_gap_goes_first() {
        let wanted = [
            span(0x0000, 0x0fff),
            span(0x1000, 0x1fff),
            span(0x8000, 0x8fff),
            span(0xa000, 0xafff),
        ];
        let limits = Limits {
            descriptors: 2,
            ..EASY
        };
        let (_, spans) = planned(&wanted, &limits).unwrap();
        assert_eq!(spans, [span(0, 0x1fff), span(0x8000, 0xafff)]);
        let one = Limits {
            descriptors: 1,
            ..EASY
        };
        assert_eq!(planned(&wanted, &one).unwrap().1, [span(0, 0xafff)]);
        let none = Limits {
            descriptors: 0,
            ..EASY
        };
        assert_eq!(planned(&wanted, &none), None);
        assert_eq!(planned(&[], &EASY), None);
    }

    #[test]
    fn a_coarse_granule_rounds_out() {
        let limits = Limits { finest: 9, ..EASY };
        let (plan, spans) = planned(&[span(0x1000, 0x20_0fff)], &limits).unwrap();
        assert_eq!((plan.granularity, plan.descriptors), (9, 1));
        assert_eq!(spans, [span(0, 0x3f_ffff)]);
        assert!(descriptors(&spans, 9, false).eq([(0, 2)]));
    }

    #[test]
    fn lengths_have_limits() {
        // 2^32 granules are one more than a descriptor can tell.
        let (plan, spans) = planned(&[span(0, (1 << 44) - 1)], &EASY).unwrap();
        assert_eq!(plan.descriptors, 2);
        let list: Vec<_> = descriptors(&spans, 0, false).collect();
        assert_eq!(list, [(0, u32::MAX), (u64::from(u32::MAX) << 12, 1)]);

        // All addresses, with one descriptor: no granule is coarse enough.
        let one = Limits {
            descriptors: 1,
            ..EASY
        };
        assert_eq!(planned(&[span(0, u64::MAX)], &one), None);
        let coarse = Limits {
            coarsest: 51,
            ..one
        };
        let (plan, spans) = planned(&[span(0, u64::MAX)], &coarse).unwrap();
        assert_eq!((plan.granularity, plan.descriptors), (21, 1));
        assert!(descriptors(&spans, 21, false).eq([(0, 1 << 31)]));
    }

    #[test]
    fn lengths_are_powers_of_two_for_cards_that_want_it() {
        let limits = Limits {
            powers_of_two: true,
            ..EASY
        };
        let (plan, spans) = planned(&[span(0x1000, 0xbfff)], &limits).unwrap();
        assert_eq!(plan.descriptors, 3);
        let list: Vec<_> = descriptors(&spans, 0, true).collect();
        assert_eq!(list, [(0x1000, 8), (0x9000, 2), (0xb000, 1)]);
        let (_, spans) = planned(&[span(0, (1 << 44) - 1)], &limits).unwrap();
        assert!(descriptors(&spans, 0, true).eq([(0, 1 << 31), (1 << 43, 1 << 31)]));
    }

    #[test]
    fn a_refusal_leads_to_less_until_nothing_is_left() {
        let refused = Plan {
            granularity: 0,
            spans: 4,
            descriptors: 4,
        };
        let mut limits = EASY;
        let offer = |granularity, descriptors| Capability {
            granularity,
            descriptors,
        };
        assert!(fall_back(&mut limits, &refused, offer(3, 2)));
        assert_eq!((limits.descriptors, limits.finest), (2, 0));
        let mut limits = EASY;
        assert!(fall_back(&mut limits, &refused, offer(3, 4)));
        assert_eq!((limits.descriptors, limits.finest), (256, 3));
        let mut limits = EASY;
        assert!(fall_back(&mut limits, &refused, offer(0, 0)));
        assert_eq!(limits.finest, 1, "it names nothing, so one step");
        let mut limits = EASY;
        assert!(!fall_back(&mut limits, &refused, offer(10, 0)));
        let last = Plan {
            granularity: 9,
            ..refused
        };
        assert!(!fall_back(&mut limits, &last, offer(9, 0)));

        // Whatever a card answers, it ends.
        for granularity in [0, 1, 9, 10, 300] {
            for count in [0, 1, 3, 4, 999] {
                let mut limits = EASY;
                let wanted: Vec<_> = (0..4).map(|n| span(n << 20, n << 20)).collect();
                let mut rounds = 0;
                while let Some((plan, _)) = planned(&wanted, &limits) {
                    rounds += 1;
                    assert!(rounds < 32);
                    if !fall_back(&mut limits, &plan, offer(granularity, count)) {
                        break;
                    }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn a_plan_covers_what_was_wanted(
            wanted in prop::collection::vec((0u64..1 << 40, 0u64..1 << 30), 1..20),
            descriptors_left in 1u32..24,
            finest in 0u8..10,
            powers_of_two: bool,
        ) {
            let wanted: Vec<_> = wanted.iter().map(|(at, more)| span(*at, at + more)).collect();
            let limits = Limits {
                descriptors: descriptors_left,
                finest,
                coarsest: 29,
                powers_of_two,
            };
            let Some((plan, spans)) = planned(&wanted, &limits) else {
                return Err(TestCaseError::fail("40 bits fit one descriptor of a coarse granule"));
            };
            prop_assert!(plan.granularity >= finest);
            prop_assert!(spans.windows(2).all(|pair| !pair[0].touches(&pair[1])));
            for wanted in &wanted {
                prop_assert!(spans.iter().any(|span| span.overlap(wanted) == Some(*wanted)));
            }
            let list: Vec<_> = descriptors(&spans, plan.granularity, powers_of_two).collect();
            prop_assert_eq!(list.len(), plan.descriptors as usize);
            prop_assert!(plan.descriptors <= descriptors_left);
            let shift = u32::from(plan.granularity) + PAGE_SHIFT;
            let mut covered: Vec<Span> = vec![];
            for (address, granules) in list {
                prop_assert!(!powers_of_two || granules.is_power_of_two());
                let part = Span::of_length(address, u64::from(granules) << shift).unwrap();
                prop_assert_eq!(part, part.round_out(shift));
                match covered.last_mut() {
                    Some(last) if last.touches(&part) => *last = last.around(&part),
                    _ => covered.push(part),
                }
            }
            prop_assert_eq!(covered, spans);
        }
    }
}
