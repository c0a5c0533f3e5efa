// SPDX-License-Identifier: GPL-2.0-only

//! What changes the state of a function without its user's asking: a reset, and the loss of its
//! card.

use super::states::Migration;
use crate::{backend::Listener, common::pci_driver::clear_master, logic::arcs::State};
use kernel::prelude::*;

impl Migration {
    /// The function was reset: it runs, and its data files are dead. Its log goes on.
    ///
    /// The VFIO core may hold its memory lock, for which page faults wait; nothing in here, nor
    /// what holds the mutex elsewhere, accesses user memory, and the card needs no lock of VFIO to
    /// answer.
    pub(super) fn was_reset(&self) {
        let mut inner = self.inner.lock();
        let Some(claim) = inner.claim.clone() else {
            return;
        };
        inner.end_files();
        inner.state = State::Running;
        if inner.lost {
            return;
        }
        if let Err(error) = claim.was_reset() {
            dev_warn!(
                self.pdev,
                "its card was not told that it was reset ({:?}); start its log again\n",
                error,
            );
        }
    }
}

impl Listener for Migration {
    fn lost(&self) {
        let mut inner = self.inner.lock();
        inner.lost = true;
        if inner.claim.is_none() {
            // Not open yet, or not any more.
            return;
        }
        let state = inner.state.when_card_is_lost();
        if state == State::Error {
            // It was suspended, and may go on by itself from now on.
            clear_master(&self.pdev);
            inner.end_files();
            inner.state = state;
            dev_warn!(
                self.pdev,
                "its card was lost in the middle of a migration; reset the function\n",
            );
        } else {
            dev_warn!(
                self.pdev,
                "its card was lost; it goes on, and cannot migrate until it is opened again\n",
            );
        }
    }
}
