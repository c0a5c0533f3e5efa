// SPDX-License-Identifier: Apache-2.0 OR MIT

//! States that somebody damaged: nothing panics, nothing is half taken over, and what is taken over
//! does not make the controller do anything worse than fail.

use std::cell::RefCell;

use proptest::prelude::*;

use super::*;
use crate::pci::Parts;

const BOTH: Parts = Parts {
    standard: true,
    vendor: true,
};

impl Rig {
    /// The state of a controller with everything in it that there can be, and a fresh target.
    fn rich() -> (Self, Vec<u8>) {
        let mut rig = Self::new("memory=64K");
        rig.start(ONE, 4);
        rig.shadow(ONE);
        for cid in 0..3 {
            let request = Command {
                cid,
                ..Command::new(0x0c)
            };
            rig.hosts[ONE].driver.queue(0, &request);
            rig.hosts[ONE].ring(0);
        }
        // An event that is reported, one that is masked, an error in the log.
        rig.hosts[ONE].set(0x1000 + 8 * 9, 1);
        rig.hosts[ONE].set(0x1000, 99);
        rig.run();
        assert_eq!(rig.hosts[ONE].driver.reap(0).unwrap().cid, 0);
        rig.hosts[ONE].ring(0);
        rig.command(ONE, 1, block(0x02, 1, 0, DATA));
        // An interrupt that is masked.
        rig.hosts[ONE].function.vector(1, VectorAction::Mask);
        rig.hosts[ONE].driver.queue(1, &block(0x02, 2, 0, DATA));
        rig.hosts[ONE].ring(1);
        rig.run();
        assert_eq!(rig.status(suspend(1)), 0);
        let state = rig.state(1);
        assert_eq!(rig.status(suspend(2)), 0);
        (rig, state)
    }

    /// Loads a state into the second function as a last part does.
    fn load(&mut self, state: &[u8]) -> bool {
        let function = &self.hosts[TWO].function;
        let mut guard = function.lock();
        function.with_kind(&mut guard, |kind, bus| {
            let kind = kind.migratable().unwrap();
            kind.load(BOTH, state, bus).is_ok()
        })
    }

    fn saved(&self) -> Vec<u8> {
        let function = &self.hosts[TWO].function;
        let mut guard = function.lock();
        function.with_kind(&mut guard, |kind, bus| {
            kind.migratable().unwrap().save(BOTH, bus)
        })
    }

    /// A fresh target again.
    fn renew(&mut self) {
        let host = &self.hosts[TWO];
        host.function.reset();
        host.configure();
        let mut guard = host.function.lock();
        host.function.with_kind(&mut guard, |kind, bus| {
            kind.migratable().unwrap().suspend(bus);
        });
    }

    /// Loads a state and, if it was taken, lets the controller run with it.
    fn try_state(&mut self, state: &[u8]) -> bool {
        let before = self.saved();
        if !self.load(state) {
            assert!(self.saved() == before, "half taken over");
            return false;
        }
        {
            let function = &self.hosts[TWO].function;
            let mut guard = function.lock();
            function.with_kind(&mut guard, |kind, bus| {
                kind.migratable().unwrap().go_on(bus);
            });
        }
        for offset in [0x1000, 0x1004, 0x1008, 0x100c] {
            self.hosts[TWO].set(offset, 1);
        }
        self.run();
        self.renew();
        true
    }
}

/// The checksum that is right for what comes before it, so that damage reaches what is behind.
fn mend(state: &mut [u8]) {
    let (rest, sum) = state.split_last_chunk_mut::<4>().unwrap();
    let crc = rest.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| match sum & 1 {
            0 => sum >> 1,
            _ => sum >> 1 ^ 0xedb8_8320,
        })
    });
    *sum = (!crc).to_le_bytes();
}

#[test]
fn what_was_saved_is_what_is_loaded_and_saved_again() {
    let (mut rig, state) = Rig::rich();
    assert!(rig.load(&state));
    assert!(rig.saved() == state);
}

#[test]
fn every_flipped_byte_and_every_cut_is_refused() {
    let (mut rig, state) = Rig::rich();
    let before = rig.saved();
    for at in 0..state.len() {
        let mut flipped = state.clone();
        flipped[at] ^= 0x10;
        assert!(!rig.load(&flipped), "byte {at}");
        assert!(!rig.load(&state[..at]), "cut at {at}");
    }
    assert!(rig.saved() == before, "half taken over");
    assert!(rig.load(&state));
}

#[test]
fn every_byte_can_be_anything_even_with_the_right_checksum() {
    let (mut rig, state) = Rig::rich();
    let (mut taken, mut refused) = (0, 0);
    for at in 0..state.len() - 4 {
        for value in [state[at] ^ 1, state[at] ^ 0x80, 0xff] {
            let mut damaged = state.clone();
            damaged[at] = value;
            mend(&mut damaged);
            if rig.try_state(&damaged) {
                taken += 1;
            } else {
                refused += 1;
            }
        }
    }
    assert!(taken > 100 && refused > 1000, "{taken} {refused}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn several_bytes_can_be_anything(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12)
    ) {
        thread_local! {
            static RIG: RefCell<Option<(Rig, Vec<u8>)>> = const { RefCell::new(None) };
        }
        RIG.with_borrow_mut(|rig| {
            let (rig, state) = rig.get_or_insert_with(Rig::rich);
            let mut damaged = state.clone();
            for (at, value) in damage {
                let at = at.index(damaged.len());
                damaged[at] = value;
            }
            mend(&mut damaged);
            rig.try_state(&damaged);
        });
    }
}
