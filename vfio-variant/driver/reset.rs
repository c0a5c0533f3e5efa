// SPDX-License-Identifier: GPL-2.0-only

//! What changes the state of a function without its user's asking: a reset, and the loss of its
//! card.

use super::states::{Inner, Migration};
use crate::{backend::Listener, logic::arcs::State};
use kernel::prelude::*;

impl Migration {
    /// The function was reset: it runs, and its data files are dead. Its log goes on.
    ///
    /// The VFIO core may hold its memory lock, for which page faults wait; nothing in here, nor
    /// what holds the mutex elsewhere, accesses user memory, and the card needs no lock of VFIO to
    /// answer.
    pub(super) fn was_reset(&self) {
        let mut inner = self.inner.lock();
        inner.was_reset(&self.pdev);
        self.tell_card(&mut inner);
    }

    /// Tells the card that the function was reset, and gives the function up when the card does not
    /// let it run.
    fn tell_card(&self, inner: &mut Inner) {
        // No card, or none any more: then nothing suspends it.
        let Ok(claim) = inner.card() else {
            return;
        };
        if let Err(error) = claim.was_reset() {
            inner.fence(&self.pdev);
            dev_warn!(
                self.pdev,
                "it was reset, and its card does not let it run ({:?}); reset it again\n",
                error,
            );
        }
    }

    /// The way to the function broke down (AER, DPC), and what it was told is gone or going to be.
    pub(super) fn cut_off(&self) {
        self.inner.lock().fail();
    }

    /// It was reset with its link. Its user does not know, and may have reset it too early himself:
    /// he has to do that now. The log goes on, as at any reset, so the card is told.
    pub(super) fn link_reset(&self) {
        let mut inner = self.inner.lock();
        // It may have got its bus master back with the rest of its configuration space.
        inner.fence(&self.pdev);
        self.tell_card(&mut inner);
    }
}

impl Listener for Migration {
    fn lost(&self) {
        let mut inner = self.inner.lock();
        inner.lost = true;
        if inner.state.when_card_is_lost() == State::Error {
            // It was suspended, and may go on by itself from now on.
            inner.fence(&self.pdev);
            dev_warn!(
                self.pdev,
                "its card was lost in the middle of a migration; reset the function\n",
            );
        } else {
            // In PRE_COPY the user is to learn at once that nothing will come of it.
            inner.end_files();
            dev_warn!(
                self.pdev,
                "its card was lost; it goes on, and cannot migrate until its card is back\n",
            );
        }
    }
}
