// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! Which commands are with the card, and what became of them.
//!
//! A slot belongs to a waiter from [`SlotTable::claim`] until the same waiter's
//! [`SlotTable::release`]; nothing that a card sends shortens or extends that. A completion finds
//! its slot through the command identifier, of which a part counts the slot's uses: a completion
//! that comes too late names a use that is over, and is refused instead of waking somebody else.

/// Bits of a command identifier that hold the slot's index; the others count its uses.
const INDEX_BITS: u32 = 6;
const INDEX_MASK: u16 = (1 << INDEX_BITS) - 1;

/// The most slots that a table can have. One less than the index could name, so that FFFFh, which
/// the specification keeps for "no command", is never an identifier.
pub const MAX_SLOTS: usize = INDEX_MASK as usize;

/// Identifier of one use of a slot (CID).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CommandId(u16);

impl CommandId {
    /// The value for the submission entry.
    pub const fn raw(self) -> u16 {
        self.0
    }

    /// Index of the slot.
    pub const fn index(self) -> usize {
        // CAST: widens.
        (self.0 & INDEX_MASK) as usize
    }

    const fn new(index: usize, uses: u16) -> Self {
        // CAST: the index is below `MAX_SLOTS`, which fits its bits.
        Self((index as u16 & INDEX_MASK) | (uses << INDEX_BITS))
    }
}

/// A completion named a command that is not with the card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownCommand {
    /// The identifier that it carried.
    pub raw: u16,
}

#[derive(Clone, Copy, Debug)]
enum State<T> {
    Free,
    /// A waiter is preparing its command; the card knows nothing of it.
    Claimed,
    /// The card has it.
    InFlight,
    /// The card has it, and nobody waits for it any more.
    Abandoned,
    /// It ended; the waiter has not released the slot.
    Ended(T),
}

#[derive(Clone, Copy, Debug)]
struct Slot<T> {
    /// How often the slot was claimed; wraps.
    uses: u16,
    state: State<T>,
}

/// A table of `SLOTS` commands that end with a `T` each.
#[derive(Debug)]
pub struct SlotTable<T, const SLOTS: usize> {
    slots: [Slot<T>; SLOTS],
}

impl<T: Copy, const SLOTS: usize> SlotTable<T, SLOTS> {
    const FITS: () = assert!(SLOTS > 0 && SLOTS <= MAX_SLOTS);

    /// A table in which every slot is free.
    pub const fn new() -> Self {
        let () = Self::FITS;
        Self {
            slots: [Slot {
                uses: 0,
                state: State::Free,
            }; SLOTS],
        }
    }

    /// Takes a free slot, or `None` when no more than `reserved` are free.
    pub fn claim(&mut self, reserved: usize) -> Option<CommandId> {
        let free = |slot: &&Slot<T>| matches!(slot.state, State::Free);
        if self.slots.iter().filter(free).count() <= reserved {
            return None;
        }
        let (index, slot) = self
            .slots
            .iter_mut()
            .enumerate()
            .find(|(_, slot)| matches!(slot.state, State::Free))?;
        slot.uses = slot.uses.wrapping_add(1);
        slot.state = State::Claimed;
        Some(CommandId::new(index, slot.uses))
    }

    /// The command goes to the card now. `false` when it was ended before ([`Self::end_all`]);
    /// then it must not go.
    #[must_use]
    pub fn launch(&mut self, id: CommandId) -> bool {
        match self.slot(id) {
            Some(slot) if matches!(slot.state, State::Claimed) => {
                slot.state = State::InFlight;
                true
            }
            _ => false,
        }
    }

    /// The card completed the command with identifier `raw`. Returns the index of the slot whose
    /// waiter is to be woken; `None` when there is none and the slot became free.
    pub fn complete(&mut self, raw: u16, outcome: T) -> Result<Option<usize>, UnknownCommand> {
        let id = CommandId(raw);
        match self.slot(id) {
            Some(slot) if matches!(slot.state, State::InFlight) => {
                slot.state = State::Ended(outcome);
                Ok(Some(id.index()))
            }
            Some(slot) if matches!(slot.state, State::Abandoned) => {
                slot.state = State::Free;
                Ok(None)
            }
            _ => Err(UnknownCommand { raw }),
        }
    }

    /// The waiter gives up on a command that the card has. The slot, and so its buffer, is not free
    /// before the card completes it. `false` when it has ended: then there is an outcome.
    #[must_use]
    pub fn abandon(&mut self, id: CommandId) -> bool {
        match self.slot(id) {
            Some(slot) if matches!(slot.state, State::InFlight) => {
                slot.state = State::Abandoned;
                true
            }
            _ => false,
        }
    }

    /// Commands that were abandoned and that the card still has.
    pub fn abandoned(&self) -> usize {
        let slots = self.slots.iter();
        slots
            .filter(|slot| matches!(slot.state, State::Abandoned))
            .count()
    }

    /// Whether the card still has this command, which was abandoned.
    pub fn is_abandoned(&mut self, id: CommandId) -> bool {
        let slot = self.slot(id);
        slot.is_some_and(|slot| matches!(slot.state, State::Abandoned))
    }

    /// Ends every command that has not ended, and calls `wake` with the slot of each. The card must
    /// not reach the buffers any more.
    pub fn end_all(&mut self, outcome: T, mut wake: impl FnMut(usize)) {
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if matches!(slot.state, State::Abandoned) {
                slot.state = State::Free;
            }
            if matches!(slot.state, State::Claimed | State::InFlight) {
                slot.state = State::Ended(outcome);
                wake(index);
            }
        }
    }

    /// How the command ended, or `None` while it has not.
    pub fn outcome(&mut self, id: CommandId) -> Option<T> {
        match self.slot(id)?.state {
            State::Ended(outcome) => Some(outcome),
            _ => None,
        }
    }

    /// The waiter is done with a slot. Refused (`false`) while the card has the command: its
    /// buffer may still be written.
    #[must_use]
    pub fn release(&mut self, id: CommandId) -> bool {
        match self.slot(id) {
            Some(slot) if matches!(slot.state, State::Claimed | State::Ended(_)) => {
                slot.state = State::Free;
                true
            }
            _ => false,
        }
    }

    /// Number of commands that are with the card.
    pub fn in_flight(&self) -> usize {
        self.slots
            .iter()
            .filter(|slot| matches!(slot.state, State::InFlight))
            .count()
    }

    /// The slot in the use that `id` names.
    fn slot(&mut self, id: CommandId) -> Option<&mut Slot<T>> {
        let slot = self.slots.get_mut(id.index())?;
        (CommandId::new(id.index(), slot.uses) == id).then_some(slot)
    }
}

impl<T: Copy, const SLOTS: usize> Default for SlotTable<T, SLOTS> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::collections::HashMap;

    /// A small generator (xorshift*), so that a failing order can be had again.
    pub(crate) struct Random(pub(crate) u64);

    impl Random {
        pub(crate) fn below(&mut self, limit: u64) -> u64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
        }
    }

    #[test]
    fn a_command_runs_through() {
        let mut table = SlotTable::<u8, 2>::new();
        let id = table.claim(0).unwrap();
        assert_eq!(table.in_flight(), 0);
        assert!(table.launch(id));
        assert_eq!(table.in_flight(), 1);
        assert_eq!(table.outcome(id), None);
        assert!(!table.release(id), "the card still has it");
        assert_eq!(table.complete(id.raw(), 7), Ok(Some(id.index())));
        assert_eq!(table.outcome(id), Some(7));
        assert!(table.release(id));
        assert!(!table.release(id), "only once");
        assert_eq!(table.outcome(id), None);
    }

    #[test]
    fn what_the_card_does_not_have_is_unknown() {
        let mut table = SlotTable::<u8, 2>::new();
        let id = table.claim(0).unwrap();
        let unknown = |raw| Err(UnknownCommand { raw });
        assert_eq!(table.complete(id.raw(), 1), unknown(id.raw()), "claimed");
        assert!(table.launch(id));
        for raw in 0..=u16::MAX {
            if raw != id.raw() {
                assert_eq!(table.complete(raw, 1), unknown(raw));
            }
        }
        assert!(table.complete(id.raw(), 1).is_ok());
        assert_eq!(table.complete(id.raw(), 2), unknown(id.raw()), "twice");
        assert_eq!(table.outcome(id), Some(1));
    }

    #[test]
    fn a_late_completion_does_not_reach_the_next_use() {
        let mut table = SlotTable::<u8, 1>::new();
        let first = table.claim(0).unwrap();
        assert!(table.launch(first));
        table.end_all(0xee, |_| ());
        assert!(table.release(first));
        let second = table.claim(0).unwrap();
        assert!(table.launch(second));
        assert_eq!(second.index(), first.index());
        assert_eq!(
            table.complete(first.raw(), 1),
            Err(UnknownCommand { raw: first.raw() })
        );
        assert_eq!(table.outcome(second), None);
        assert!(!table.release(first), "the first use is over");
    }

    #[test]
    fn ending_all_wakes_each_once_and_stops_launches() {
        let mut table = SlotTable::<u8, 4>::new();
        let claimed = table.claim(0).unwrap();
        let flying = table.claim(0).unwrap();
        let ended = table.claim(0).unwrap();
        assert!(table.launch(flying) && table.launch(ended));
        table.complete(ended.raw(), 1).unwrap();
        let mut woken = vec![];
        table.end_all(9, |index| woken.push(index));
        assert_eq!(woken, [claimed.index(), flying.index()]);
        assert!(!table.launch(claimed));
        assert_eq!(table.outcome(ended), Some(1), "what ended well stays so");
        table.end_all(9, |_| panic!("nobody is left to wake"));
    }

    #[test]
    fn an_abandoned_slot_is_free_when_the_card_is_done() {
        let mut table = SlotTable::<u8, 2>::new();
        let id = table.claim(0).unwrap();
        assert!(!table.abandon(id), "the card does not have it");
        assert!(table.launch(id));
        assert!(table.abandon(id));
        assert!(!table.abandon(id) && !table.release(id) && !table.launch(id));
        assert_eq!((table.abandoned(), table.outcome(id)), (1, None));
        assert!(table.is_abandoned(id));
        let other = table.claim(0).unwrap();
        assert_ne!(other.index(), id.index());
        assert_eq!(table.complete(id.raw(), 7), Ok(None));
        assert_eq!(table.abandoned(), 0);
        assert!(!table.is_abandoned(id));
        assert!(table.complete(id.raw(), 7).is_err(), "twice");
        let again = table.claim(0).unwrap();
        assert!(table.launch(again) && table.abandon(again));
        assert!(!table.is_abandoned(id), "another use of its slot");
        table.end_all(9, |index| assert_eq!(index, other.index()));
        assert_eq!(table.abandoned(), 0);
        assert_eq!(table.claim(0).unwrap().index(), id.index());
    }

    #[test]
    fn some_slots_are_reserved() {
        let mut table = SlotTable::<u8, 2>::new();
        assert!(table.claim(2).is_none());
        assert!(table.claim(1).is_some());
        assert!(table.claim(1).is_none());
        assert!(table.claim(0).is_some());
        assert!(table.claim(0).is_none());
    }

    #[test]
    fn no_identifier_is_ffff() {
        let mut table = SlotTable::<u8, MAX_SLOTS>::new();
        for _ in 0..2000 {
            let mut ids = vec![];
            while let Some(id) = table.claim(0) {
                assert_ne!(id.raw(), 0xffff);
                ids.push(id);
            }
            assert_eq!(ids.len(), MAX_SLOTS);
            assert!(ids.into_iter().all(|id| table.release(id)));
        }
    }

    /// Random orders of everything, against a map that says what should be.
    #[test]
    fn agrees_with_a_map() {
        #[derive(Clone, Copy, PartialEq, Debug)]
        enum Want {
            Claimed,
            Flying,
            Ended(u64),
        }
        for seed in 1..40 {
            let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ seed);
            let mut table = SlotTable::<u64, 5>::new();
            let mut want: HashMap<CommandId, Want> = HashMap::new();
            let mut old: Vec<CommandId> = vec![];
            for step in 0..3000u64 {
                let pick = |random: &mut Random| {
                    let mut ids: Vec<_> = want.keys().copied().collect();
                    ids.sort_by_key(|id| id.raw());
                    ids.extend(old.iter().rev().take(3));
                    (!ids.is_empty()).then(|| ids[random.below(ids.len() as u64) as usize])
                };
                match random.below(12) {
                    0..=3 => match table.claim(0) {
                        Some(id) => {
                            assert!(want.len() < 5);
                            assert_eq!(want.insert(id, Want::Claimed), None);
                        }
                        None => assert_eq!(want.len(), 5),
                    },
                    4..=5 => {
                        if let Some(id) = pick(&mut random) {
                            let launched = table.launch(id);
                            assert_eq!(launched, want.get(&id) == Some(&Want::Claimed));
                            if launched {
                                want.insert(id, Want::Flying);
                            }
                        }
                    }
                    6..=8 => {
                        if let Some(id) = pick(&mut random) {
                            let result = table.complete(id.raw(), step);
                            if want.get(&id) == Some(&Want::Flying) {
                                assert_eq!(result, Ok(Some(id.index())));
                                want.insert(id, Want::Ended(step));
                            } else {
                                assert_eq!(result, Err(UnknownCommand { raw: id.raw() }));
                            }
                        }
                    }
                    9..=10 => {
                        if let Some(id) = pick(&mut random) {
                            let may = matches!(want.get(&id), Some(Want::Claimed | Want::Ended(_)));
                            assert_eq!(table.release(id), may);
                            if may {
                                want.remove(&id);
                                old.push(id);
                            }
                        }
                    }
                    _ if random.below(20) == 0 => {
                        let mut woken = vec![];
                        table.end_all(step, |index| woken.push(index));
                        for (id, state) in &mut want {
                            let waits = matches!(state, Want::Claimed | Want::Flying);
                            assert_eq!(woken.contains(&id.index()), waits);
                            if waits {
                                *state = Want::Ended(step);
                            }
                        }
                    }
                    _ => {}
                }
                for (id, state) in &want {
                    let ended = match state {
                        Want::Ended(step) => Some(*step),
                        _ => None,
                    };
                    assert_eq!(table.outcome(*id), ended);
                }
                let flying = want.values().filter(|state| **state == Want::Flying);
                assert_eq!(table.in_flight(), flying.count());
            }
        }
    }
}
