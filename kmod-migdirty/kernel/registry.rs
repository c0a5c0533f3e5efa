// SPDX-License-Identifier: GPL-2.0-only

//! The list of cards that are bound and were found good, in the order of their addresses.
//!
//! Besides, which functions a front end has: that outlives the card, which may be bound anew meanwhile.
//!
//! Probe adds a card as its last step, unbind removes it as its first. Whoever finds one holds a
//! reference, not the list: a card may be unbound at any time, and then refuses commands. The lock
//! is never held over I/O.

use crate::{card::Card, common::pci_driver::Address};
use kernel::{prelude::*, sync::Arc};

kernel::sync::global_lock! {
    /// Sorted by address.
    // SAFETY: `sys::init_registry` initialises it before anything can use it.
    pub(crate) unsafe(uninit) static CARDS: Mutex<KVec<Arc<Card>>> = KVec::new();
}

kernel::sync::global_lock! {
    /// In no order.
    // SAFETY: as above.
    pub(crate) unsafe(uninit) static CLAIMS: Mutex<KVec<Address>> = KVec::new();
}

/// A front end has the function at this address. `EBUSY` when one has it already.
pub(crate) fn claim(address: Address) -> Result {
    let mut claims = CLAIMS.lock();
    if claims.contains(&address) {
        return Err(EBUSY);
    }
    Ok(claims.push(address, GFP_KERNEL)?)
}

/// It has it no longer.
pub(crate) fn unclaim(address: Address) {
    CLAIMS.lock().retain(|claimed| *claimed != address);
}

/// Whether a front end has the function at this address.
pub(crate) fn is_claimed(address: Address) -> bool {
    CLAIMS.lock().contains(&address)
}

/// The life of the lists: gives their storage back when the module goes.
pub(crate) struct Registry;

impl Drop for Registry {
    fn drop(&mut self) {
        let cards = core::mem::replace(&mut *CARDS.lock(), KVec::new());
        drop(cards);
        *CLAIMS.lock() = KVec::new();
    }
}

/// Adds a card.
pub(crate) fn add(card: Arc<Card>) -> Result {
    let mut cards = CARDS.lock();
    let place = cards
        .iter()
        .position(|other| other.address() > card.address())
        .unwrap_or(cards.len());
    cards.reserve(1, GFP_KERNEL)?;
    cards
        .insert_within_capacity(place, card)
        .map_err(|_| ENOMEM)
}

/// Removes a card, if it is there.
pub(crate) fn remove(card: &Arc<Card>) {
    let mut cards = CARDS.lock();
    let Some(place) = cards.iter().position(|other| Arc::ptr_eq(other, card)) else {
        return;
    };
    let removed = cards.remove(place);
    drop(cards);
    // Outside of the lock: this may be the last reference.
    drop(removed);
}

/// The card at `address`.
pub(crate) fn at(address: Address) -> Option<Arc<Card>> {
    at_or_after(address).filter(|card| card.address() == address)
}

/// The card with this Device Serial Number. `ENODEV` when there is none, or more than one: then
/// nobody can tell which of them manages what.
pub(crate) fn with_serial_number(serial: u64) -> Result<Arc<Card>> {
    let cards = CARDS.lock();
    let mut found = cards
        .iter()
        .filter(|card| card.serial_number() == Some(serial));
    let card = found.next().ok_or(ENODEV)?;
    if let Some(other) = found.next() {
        pr_warn!(
            "cards {} and {} have the same Device Serial Number {:#x}, so their functions cannot be \
             told apart\n",
            card.address(),
            other.address(),
            serial,
        );
        return Err(ENODEV);
    }
    Ok(card.clone())
}

/// The card with the lowest address that is not below `address`.
pub(crate) fn at_or_after(address: Address) -> Option<Arc<Card>> {
    CARDS
        .lock()
        .iter()
        .find(|card| card.address() >= address)
        .cloned()
}
