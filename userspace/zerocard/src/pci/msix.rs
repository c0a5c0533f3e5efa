// SPDX-License-Identifier: Apache-2.0 OR MIT

//! MSI-X: table, pending bits, masks, and the eventfds that stand for messages.
//!
//! Owned by the PCI function. A vector has up to four things in its way: MSI-X disabled (the event
//! is dropped), function mask, table mask and the client's own mask (SET_IRQS); while any mask is
//! set, or no eventfd is assigned, an event waits in its pending bit. Never blocks on a client.
//!
//! A client may keep the table to itself (QEMU does) and never write ours, whose entries are masked
//! after reset. So a table mask counts only once the client has written that entry.

use std::os::fd::OwnedFd;

/// Bytes of a table entry: message address, upper address, data, vector control.
const ENTRY: usize = 16;
/// Offset of vector control in an entry; bit 0 is the mask.
const VECTOR_CONTROL: usize = 12;

#[derive(Default)]
struct Vector {
    entry: [u8; ENTRY],
    written: bool,
    client_masked: bool,
    pending: bool,
    trigger: Option<OwnedFd>,
}

impl Vector {
    fn reset(&mut self) {
        self.entry = [0; ENTRY];
        self.entry[VECTOR_CONTROL] = 1;
        self.written = false;
        self.pending = false;
    }

    fn masked(&self) -> bool {
        self.client_masked || (self.written && self.entry[VECTOR_CONTROL] & 1 != 0)
    }
}

/// The MSI-X state of a function.
pub(crate) struct Msix {
    vectors: Vec<Vector>,
    enabled: bool,
    function_masked: bool,
    bus_master: bool,
}

impl Msix {
    /// All vectors masked and without eventfd, MSI-X disabled. `count` is 1 to 256, so that table
    /// and pending bits fit the pages that they have.
    pub(crate) fn new(count: u16) -> Self {
        let mut vectors = Vec::new();
        vectors.resize_with(usize::from(count), Vector::default);
        let mut msix = Self {
            vectors,
            enabled: false,
            function_masked: false,
            bus_master: false,
        };
        msix.reset();
        msix
    }

    /// Number of vectors.
    pub(crate) fn count(&self) -> u16 {
        self.vectors.len() as u16
    }

    /// A reset of the function. Eventfds and the client's masks belong to the client and stay.
    pub(crate) fn reset(&mut self) {
        self.enabled = false;
        self.function_masked = false;
        self.bus_master = false;
        self.vectors.iter_mut().for_each(Vector::reset);
    }

    /// The client is gone, with its eventfds and masks.
    pub(crate) fn disconnect(&mut self) {
        for vector in &mut self.vectors {
            vector.trigger = None;
            vector.client_masked = false;
        }
    }

    /// Takes over what configuration space says. Messages are writes to memory, so a function that
    /// is no bus master cannot send any.
    pub(crate) fn configure(&mut self, enabled: bool, function_masked: bool, bus_master: bool) {
        if self.enabled && !enabled {
            self.vectors
                .iter_mut()
                .for_each(|vector| vector.pending = false);
        }
        self.enabled = enabled;
        self.function_masked = function_masked;
        self.bus_master = bus_master;
        self.deliver_all();
    }

    /// An event on a vector.
    pub(crate) fn raise(&mut self, index: u16) {
        if !self.enabled {
            return;
        }
        if let Some(vector) = self.vectors.get_mut(usize::from(index)) {
            vector.pending = true;
        }
        self.deliver(usize::from(index));
    }

    /// Whether an event waits until nothing is in its way.
    pub(crate) fn is_pending(&self, index: u16) -> bool {
        let vector = self.vectors.get(usize::from(index));
        vector.is_some_and(|vector| vector.pending)
    }

    /// Signals the eventfd whatever the masks say: the client asked for it.
    pub(crate) fn trigger(&mut self, index: u16) {
        if let Some(vector) = self.vectors.get(usize::from(index)) {
            signal(vector);
        }
    }

    /// Assigns or removes the eventfd of a vector: one that does not block, which the transport has
    /// checked. What was pending is delivered.
    pub(crate) fn set_trigger(&mut self, index: u16, trigger: Option<OwnedFd>) {
        if let Some(vector) = self.vectors.get_mut(usize::from(index)) {
            vector.trigger = trigger;
        }
        self.deliver(usize::from(index));
    }

    /// Sets or clears the client's own mask of a vector. What was pending is delivered.
    pub(crate) fn set_client_mask(&mut self, index: u16, masked: bool) {
        if let Some(vector) = self.vectors.get_mut(usize::from(index)) {
            vector.client_masked = masked;
        }
        self.deliver(usize::from(index));
    }

    /// Reads table bytes; zeroes beyond the last entry.
    pub(crate) fn read_table(&self, offset: usize, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            let at = offset + i;
            *byte = self
                .vectors
                .get(at / ENTRY)
                .map_or(0, |vector| vector.entry[at % ENTRY]);
        }
    }

    /// Writes table bytes. The specification allows aligned 4 and 8 byte accesses only; for others
    /// the result is undefined, and here it is what memory would do.
    pub(crate) fn write_table(&mut self, offset: usize, data: &[u8]) {
        for (i, byte) in data.iter().enumerate() {
            let at = offset + i;
            let Some(vector) = self.vectors.get_mut(at / ENTRY) else {
                break;
            };
            vector.written = true;
            vector.entry[at % ENTRY] = match at % ENTRY {
                // Message address bits 1:0 are zero, of vector control only the mask exists.
                0 => byte & !3,
                VECTOR_CONTROL => byte & 1,
                13..=15 => 0,
                _ => *byte,
            };
        }
        self.deliver_all();
    }

    /// Reads bytes of the pending bit array, which is read-only.
    pub(crate) fn read_pending(&self, offset: usize, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            let first = (offset + i) * 8;
            let bits = self.vectors.iter().skip(first).take(8).enumerate();
            *byte = bits.fold(0, |bits, (bit, vector)| {
                bits | u8::from(vector.pending) << bit
            });
        }
    }

    fn deliver_all(&mut self) {
        for index in 0..self.vectors.len() {
            self.deliver(index);
        }
    }

    fn deliver(&mut self, index: usize) {
        let ready = self.enabled && !self.function_masked && self.bus_master;
        let Some(vector) = self.vectors.get_mut(index) else {
            return;
        };
        if ready && vector.pending && !vector.masked() && vector.trigger.is_some() {
            vector.pending = false;
            signal(vector);
        }
    }
}

fn signal(vector: &Vector) {
    let Some(trigger) = &vector.trigger else {
        return;
    };
    // An eventfd that takes no more (EAGAIN) already says what there is to say.
    let _ = rustix::io::write(trigger, &1u64.to_ne_bytes());
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use rustix::event::EventfdFlags;

    pub(crate) fn eventfd() -> (OwnedFd, OwnedFd) {
        let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        let mine = rustix::event::eventfd(0, flags).unwrap();
        let theirs = mine.try_clone().unwrap();
        (mine, theirs)
    }

    pub(crate) fn fired(eventfd: &OwnedFd) -> u64 {
        let mut count = [0; 8];
        match rustix::io::read(eventfd, &mut count) {
            Ok(_) => u64::from_ne_bytes(count),
            Err(_) => 0,
        }
    }

    fn pending(msix: &Msix) -> u8 {
        let mut byte = [0];
        msix.read_pending(0, &mut byte);
        byte[0]
    }

    #[test]
    fn the_table_is_masked_after_reset_and_counts_once_written() {
        let mut msix = Msix::new(3);
        let (mine, theirs) = eventfd();
        msix.set_trigger(1, Some(theirs));
        let mut control = [0; 4];
        msix.read_table(16 + 12, &mut control);
        assert_eq!(control, [1, 0, 0, 0]);
        msix.configure(true, false, true);
        msix.raise(1);
        assert_eq!(fired(&mine), 1, "a client that keeps the table to itself");
        msix.write_table(16 + 12, &[1, 0, 0, 0]);
        msix.raise(1);
        assert_eq!((fired(&mine), pending(&msix)), (0, 0b10));
        msix.write_table(16 + 12, &[0xfe, 0xff, 0xff, 0xff]);
        assert_eq!((fired(&mine), pending(&msix)), (1, 0));
        msix.read_table(16 + 12, &mut control);
        assert_eq!(control, [0; 4]);
    }

    #[test]
    fn every_mask_holds_an_event_back_and_none_loses_it() {
        let mut msix = Msix::new(1);
        let (mine, theirs) = eventfd();
        msix.configure(true, true, true);
        msix.set_client_mask(0, true);
        msix.raise(0);
        msix.raise(0);
        msix.set_trigger(0, Some(theirs));
        msix.configure(true, true, false);
        msix.set_client_mask(0, false);
        msix.configure(true, false, false);
        assert_eq!((fired(&mine), pending(&msix)), (0, 1));
        msix.configure(true, false, true);
        assert_eq!((fired(&mine), pending(&msix)), (1, 0));
    }

    #[test]
    fn an_eventfd_that_is_full_holds_nobody_up() {
        let mut msix = Msix::new(1);
        let (mine, theirs) = eventfd();
        let most = u64::MAX - 1;
        rustix::io::write(&mine, &most.to_ne_bytes()).unwrap();
        msix.set_trigger(0, Some(theirs));
        msix.configure(true, false, true);
        msix.raise(0);
        assert_eq!((fired(&mine), pending(&msix)), (most, 0));
    }

    #[test]
    fn disabled_drops_and_reset_forgets() {
        let mut msix = Msix::new(1);
        let (mine, theirs) = eventfd();
        msix.set_trigger(0, Some(theirs));
        msix.raise(0);
        msix.configure(true, false, true);
        assert_eq!(fired(&mine), 0);
        msix.configure(true, true, true);
        msix.raise(0);
        msix.configure(false, true, true);
        msix.configure(true, false, true);
        assert_eq!(fired(&mine), 0, "disabling forgets what was pending");
        msix.configure(true, true, true);
        msix.raise(0);
        msix.reset();
        msix.configure(true, false, true);
        assert_eq!(fired(&mine), 0);
        msix.disconnect();
        msix.raise(0);
        assert_eq!((fired(&mine), pending(&msix)), (0, 1));
    }

    #[test]
    fn accesses_beyond_the_table_do_nothing() {
        let mut msix = Msix::new(2);
        msix.write_table(30, &[0xff; 64]);
        let mut bytes = [0xaa; 8];
        msix.read_table(4096 - 8, &mut bytes);
        assert_eq!(bytes, [0; 8]);
        msix.read_pending(4096 - 8, &mut bytes);
        assert_eq!(bytes, [0; 8]);
        msix.raise(9);
        msix.trigger(9);
        msix.set_trigger(9, None);
    }
}
