// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The set of DMA maps: which IOVAs are mapped, and to what.
//!
//! Owned by `memory`. Keeps maps apart from each other and bounds their number. Finding one is what
//! every access starts with, so the last one found is tried first.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use crate::sys::Mapping;

/// Maps that one client may have. Far above what we announce (`max_dma_maps`), because a guest with
/// an IOMMU and small pages has been seen to need 655,511, and a client does not always count.
const MAX_MAPS: usize = 1 << 20;

/// A contiguous range of IOVAs.
#[derive(Clone)]
pub(super) struct Map {
    pub(super) first: u64,
    /// Inclusive: a map may end at 2^64.
    pub(super) last: u64,
    /// Where `first` lies in the file.
    pub(super) offset: u64,
    pub(super) file: Option<Arc<Mapping>>,
    pub(super) readable: bool,
    pub(super) writable: bool,
}

impl Map {
    /// Contains nothing: it fills a place that is free.
    const NONE: Self = Self {
        first: 1,
        last: 0,
        offset: 0,
        file: None,
        readable: false,
        writable: false,
    };

    fn contains(&self, iova: u64) -> bool {
        self.first <= iova && iova <= self.last
    }
}

/// Why a map was not added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    Overlap,
    Full,
}

/// All maps of one client.
pub(super) struct Maps {
    /// Place of each map by its first IOVA.
    index: BTreeMap<u64, usize>,
    places: Vec<Map>,
    free: Vec<usize>,
    /// Place of the map found last. Whatever is there says itself what it contains, so a value
    /// that is out of date costs a search.
    hint: AtomicUsize,
    max: usize,
}

impl Default for Maps {
    fn default() -> Self {
        Self {
            index: BTreeMap::new(),
            places: Vec::new(),
            free: Vec::new(),
            hint: AtomicUsize::new(0),
            max: MAX_MAPS,
        }
    }
}

impl Maps {
    /// The map that contains an IOVA.
    #[inline]
    pub(super) fn find(&self, iova: u64) -> Option<&Map> {
        match self.places.get(self.hint.load(Ordering::Relaxed)) {
            Some(map) if map.contains(iova) => Some(map),
            _ => self.search(iova),
        }
    }

    #[cold]
    fn search(&self, iova: u64) -> Option<&Map> {
        let (_, place) = self.index.range(..=iova).next_back()?;
        let map = self.places.get(*place).filter(|map| map.contains(iova))?;
        self.hint.store(*place, Ordering::Relaxed);
        Some(map)
    }

    /// Whether [`Maps::insert`] would take a map of this range.
    pub(super) fn check(&self, first: u64, last: u64) -> Result<(), Refused> {
        let same = self
            .find(first)
            .is_some_and(|map| (map.first, map.last) == (first, last));
        if same {
            Ok(())
        } else if self.overlapping(first, last).next().is_some() {
            Err(Refused::Overlap)
        } else if self.index.len() >= self.max {
            Err(Refused::Full)
        } else {
            Ok(())
        }
    }

    /// Adds a map that [`Maps::check`] let pass. It replaces one with the same first IOVA.
    pub(super) fn insert(&mut self, map: Map) {
        if let Some(&place) = self.index.get(&map.first) {
            self.places[place] = map;
            return;
        }
        let place = match self.free.pop() {
            Some(place) => place,
            None => {
                self.places.push(Map::NONE);
                self.places.len() - 1
            }
        };
        self.index.insert(map.first, place);
        self.places[place] = map;
    }

    /// Removes whatever is mapped in a range: several maps, parts of maps, or nothing. At the limit
    /// of maps, what lies above a hole in a map goes with the hole.
    pub(super) fn remove(&mut self, first: u64, last: u64) {
        if self.is_all(first, last) {
            return self.clear();
        }
        let hit: Vec<u64> = self.overlapping(first, last).map(|map| map.first).collect();
        for start in hit {
            let Some(place) = self.index.remove(&start) else {
                continue;
            };
            let map = std::mem::replace(&mut self.places[place], Map::NONE);
            self.free.push(place);
            // Cutting a hole makes two maps of one. An unmap never fails, so where there is no
            // room for both, the upper one goes as well.
            let room = start >= first || self.index.len() + 2 <= self.max;
            if map.last > last && room {
                // last < map.last, so the next address exists and lies above start.
                let next = last + 1;
                self.insert(Map {
                    first: next,
                    offset: map.offset + (next - start),
                    ..map.clone()
                });
            }
            if start < first {
                self.insert(Map {
                    last: first - 1,
                    ..map
                });
            }
        }
    }

    /// Removes every map and the memory that they took.
    pub(super) fn clear(&mut self) {
        *self = Self {
            max: self.max,
            ..Self::default()
        };
    }

    /// Whether the range takes in all maps, as a client's last unmap does.
    fn is_all(&self, first: u64, last: u64) -> bool {
        let lowest = self.index.keys().next();
        let highest = self.index.values().next_back();
        let within = |place: &usize| self.places[*place].last <= last;
        lowest.is_some_and(|lowest| *lowest >= first) && highest.is_some_and(within)
    }

    fn overlapping(&self, first: u64, last: u64) -> impl Iterator<Item = &Map> {
        let before = self.index.range(..first).next_back();
        before
            .into_iter()
            .chain(self.index.range(first..=last))
            .map(|(_, place)| &self.places[*place])
            .filter(move |map| map.last >= first)
    }

    #[cfg(test)]
    pub(super) fn limit(&mut self, max: usize) {
        self.max = max;
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.index.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against one slot per address, with look-ups in between that leave hints behind.
        #[test]
        fn every_address_leads_to_the_map_that_was_put_there_last(
            steps in proptest::collection::vec((any::<bool>(), 0u64..64, 1u64..24), 1..60)
        ) {
            let mut maps = Maps::default();
            let mut model = [None; 96];
            for (i, (insert, first, len)) in steps.into_iter().enumerate() {
                let last = first + len - 1;
                let range = first as usize..=last as usize;
                // A file offset far from the others tells whose byte it is.
                let offset = (i as u64 + 1) << 32;
                if insert && maps.check(first, last).is_ok() {
                    maps.insert(Map { first, last, offset, ..Map::NONE });
                    for address in range {
                        model[address] = Some(offset + (address as u64 - first));
                    }
                } else if !insert {
                    maps.remove(first, last);
                    model[range].fill(None);
                }
                for (address, expected) in model.iter().enumerate() {
                    let iova = address as u64;
                    let found = maps.find(iova).map(|map| map.offset + (iova - map.first));
                    prop_assert_eq!(found, *expected, "address {}", address);
                }
            }
        }
    }
}
