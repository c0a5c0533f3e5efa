// SPDX-License-Identifier: GPL-2.0-only

//! The news that a card died, from wherever that was noticed to those who rely on it.
//!
//! A queue has one, and sends it once, in interrupt context or with a lock held; it arrives in
//! process context. Whoever unbinds a card tells them itself and does not wait for this.

use crate::{
    common::{pci_driver::Address, work},
    registry,
};
use kernel::{
    impl_has_work, new_work,
    prelude::*,
    sync::Arc,
    workqueue::{Work, WorkItem},
};

/// The news about the card at an address.
#[pin_data]
pub(crate) struct Obituary {
    address: Address,
    #[pin]
    work: Work<Self>,
}

impl_has_work! {
    impl HasWork<Self> for Obituary { self.work }
}

impl Obituary {
    /// For the card at `address`.
    pub(crate) fn new(address: Address) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                address,
                work <- new_work!("Obituary::work"),
            }),
            GFP_KERNEL,
        )
    }

    /// Sends it. Callable in any context.
    pub(crate) fn send(self: &Arc<Self>) {
        work::enqueue(self.clone());
    }
}

impl WorkItem for Obituary {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        // No card: it is being probed, and nobody relies on it, or it is being unbound.
        if let Some(card) = registry::at(this.address).filter(|card| !card.is_live()) {
            card.lose();
        }
    }
}
