// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The card as the control socket sees it.
//!
//! Takes the lock of one function at a time, for a moment.

use super::{Card, Slot};
use crate::control::{ControlTarget, FunctionInfo, Limits, Rate};
use crate::counters::Snapshot;
use crate::faults::{Death, Faults};

impl ControlTarget for Card {
    fn functions(&self) -> Vec<FunctionInfo> {
        self.slots.iter().map(describe).collect()
    }

    fn counters(&self, function: usize) -> Snapshot {
        let Some(slot) = self.slots.get(function) else {
            return Snapshot::default();
        };
        let mut snapshot = slot.function.counters.snapshot();
        let state = slot.function.lock();
        // Guest memory counts what happens to it itself.
        snapshot.memory_accesses = state.memory.accesses();
        snapshot.dirty_pages = state.memory.dirtied();
        snapshot
    }

    fn faults(&self) -> &Faults {
        &self.faults
    }

    fn release(&self, function: usize) -> u64 {
        let Some(slot) = self.slots.get(function) else {
            return 0;
        };
        let released = slot.function.lock().kind.release();
        slot.function.attention.call();
        released
    }

    fn limits(&self) -> Limits {
        self.limits.get()
    }

    fn set_limits(&self, limits: Limits) -> Result<(), String> {
        self.limits.set(limits);
        Ok(())
    }

    fn rate(&self, function: usize) -> Rate {
        match self.slots.get(function) {
            Some(slot) => slot.function.lock().kind.status().rate,
            None => Rate::default(),
        }
    }

    fn set_rate(&self, function: usize, rate: Rate) {
        if let Some(slot) = self.slots.get(function) {
            slot.function.lock().kind.set_rate(rate);
            slot.function.attention.call();
        }
    }

    fn kill(&self, function: usize, death: Option<Death>) {
        if let Some(slot) = self.slots.get(function) {
            slot.function.kill(death);
        }
    }

    fn disconnect(&self, function: usize) -> bool {
        let slot = self.slots.get(function);
        slot.is_some_and(|slot| slot.function.disconnect_client())
    }
}

fn describe(slot: &Slot) -> FunctionInfo {
    let state = slot.function.lock();
    let condition = state.kind.status();
    let log = state.memory.log();
    FunctionInfo {
        name: slot.name.clone(),
        kind: slot.kind.to_owned(),
        controller_id: slot.controller_id,
        connected: state.connected(),
        ready: condition.ready,
        suspended: condition.suspended,
        dead: state.dead(),
        stalled: condition.stalled,
        tracked_ranges: log.map_or(0, |log| log.descriptors() as u64),
    }
}
