// SPDX-License-Identifier: GPL-2.0-only

//! Looks after a card that nobody sends commands, while somebody relies on it.
//!
//! A function that is suspended runs again when its administrative controller is reset, by whomever;
//! its owner has to know at once, because its memory may have moved by then. And what could not be
//! said to a card is said as soon as it listens. So while a function may be suspended, or waits for
//! its card, the card is looked at each second: one read of a register. Otherwise nothing runs here.

use crate::{card::Card, common::work, function::Function};
use core::cell::Cell;
use kernel::{
    impl_has_work,
    prelude::*,
    sync::{new_condvar, new_mutex, Arc, CondVar, Mutex},
    time::msecs_to_jiffies,
    workqueue::WorkItem,
};

/// Between two looks, in milliseconds.
const PERIOD_MS: u32 = 1000;

/// The watch over a card.
#[pin_data]
pub(crate) struct Watch {
    #[pin]
    state: Mutex<State>,
    #[pin]
    over: CondVar,
}

#[derive(Clone, Copy, Default)]
struct State {
    /// Somebody watches.
    running: bool,
    /// Somebody has asked for it since the last look.
    asked: bool,
}

impl_has_work! {
    impl HasWork<Self> for Card { self.watching }
}

impl Watch {
    /// Over a card that nobody relies on.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            state <- new_mutex!(State::default(), "Watch::state"),
            over <- new_condvar!("Watch::over"),
        })
    }

    /// The card was stopped: the watch ends soon.
    pub(crate) fn end(&self) {
        // Whoever is about to wait has the lock, and has seen that the card is not live if he comes
        // later.
        drop(self.state.lock());
        self.over.notify_all();
    }
}

impl Card {
    /// A function relies on the card.
    pub(crate) fn watch(this: &Arc<Self>) {
        let mut state = this.watch.state.lock();
        state.asked = true;
        if !state.running {
            state.running = true;
            drop(state);
            work::enqueue(this.clone());
        }
    }
}

impl WorkItem for Card {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        loop {
            let mut state = this.watch.state.lock();
            state.asked = false;
            if this.is_live() {
                let period = msecs_to_jiffies(PERIOD_MS);
                // A worker gets no signals, and one look too many does no harm.
                let _ = this
                    .watch
                    .over
                    .wait_interruptible_timeout(&mut state, period);
            }
            drop(state);
            let needed = Cell::new(false);
            if this.is_live() {
                this.look();
                this.for_each(|function: &Function| {
                    needed.set(function.mend() || needed.get());
                });
            }
            let mut state = this.watch.state.lock();
            if !this.is_live() || !(needed.get() || state.asked) {
                state.running = false;
                return;
            }
        }
    }
}
