// SPDX-License-Identifier: GPL-2.0-only

//! A card as the rest of the module sees it: an administrative controller that answered Identify.
//!
//! Made by probe, shared by the registry and whoever is using it. Outlives its device's binding:
//! then its queue refuses commands, and what was read stays readable.

use crate::{
    admin_queue::{AdminQueue, Counters},
    common::pci_driver::Address,
    nvme::{
        command::{cns, Command},
        identify::{self, IdentifyController},
    },
    uapi::{
        MigdirtyCard, MIGDIRTY_CARD_LIVE, MIGDIRTY_CARD_LIVE_MIGRATION, MIGDIRTY_CARD_TRACKS_MEMORY,
    },
};
use kernel::{device::Bound, fmt, pci, prelude::*, sync::Arc};

/// An administrative controller.
pub(crate) struct Card {
    address: Address,
    queue: Arc<AdminQueue>,
    /// What it said at probe.
    described: MigdirtyCard,
}

impl Card {
    /// Asks the controller behind `queue` who it is.
    pub(crate) fn identify(address: Address, queue: Arc<AdminQueue>) -> Result<Self> {
        let described = ask(address, &queue)?.ok_or(EIO)?;
        Ok(Self {
            address,
            queue,
            described,
        })
    }

    /// Where it is.
    pub(crate) fn address(&self) -> Address {
        self.address
    }

    /// Describes the card. Asks it again, so that `LIVE` is true now and not only was at probe.
    ///
    /// `ENODEV` when the card was unbound meanwhile. For a card that is dead, what it said at
    /// probe, without `LIVE`.
    pub(crate) fn describe(&self) -> Result<MigdirtyCard> {
        let (mut described, live) = match ask(self.address, &self.queue) {
            Ok(Some(described)) => (described, MIGDIRTY_CARD_LIVE),
            // Whoever answers with an error is alive.
            Ok(None) => (self.described, MIGDIRTY_CARD_LIVE),
            Err(error) if error == EIO => (self.described, 0),
            Err(error) => return Err(error),
        };
        described.flags |= live;
        let Counters {
            commands,
            failures,
            interrupts,
        } = self.queue.counters();
        described.commands = commands;
        described.failures = failures;
        described.interrupts = interrupts;
        Ok(described)
    }

    /// Ends the card's work: see [`AdminQueue::stop`].
    pub(crate) fn stop(&self, pdev: &pci::Device<Bound>) {
        self.queue.stop(pdev);
    }

    /// What the card says it is called, for a log message: printable ASCII only.
    pub(crate) fn names(&self) -> (Printable<'_>, Printable<'_>, Printable<'_>) {
        (
            Printable(&self.described.model),
            Printable(&self.described.serial),
            Printable(&self.described.firmware),
        )
    }

    /// CNTRLTYPE.
    pub(crate) fn controller_type(&self) -> u8 {
        self.described.controller_type
    }

    /// OACS.HMLMS.
    pub(crate) fn live_migration(&self) -> bool {
        self.described.flags & MIGDIRTY_CARD_LIVE_MIGRATION != 0
    }
}

/// The time limit for a command, in milliseconds.
fn command_timeout_ms() -> u32 {
    *crate::module_parameters::command_timeout_ms.value()
}

/// Refuses module parameters that no card could live with.
pub(crate) fn check_parameters() -> Result {
    if command_timeout_ms() == 0 {
        pr_err!("command_timeout_ms=0 gives cards no time at all; leave it out for 30000\n");
        return Err(EINVAL);
    }
    Ok(())
}

/// Sends Identify Controller and takes the answer apart; `None` when the answer is an error status.
fn ask(address: Address, queue: &AdminQueue) -> Result<Option<MigdirtyCard>> {
    // Zeroed in place: it is too large for the stack.
    let mut page = KBox::<[u8; identify::SIZE]>::init(pin_init::init_zeroed(), GFP_KERNEL)?;
    let command = Command::identify(cns::CONTROLLER, 0, 0, 0);
    let reply = queue.execute(command, &mut page[..], command_timeout_ms())?;
    if !reply.status.is_success() {
        queue.report_status("Identify Controller", reply.status);
        return Ok(None);
    }
    let data = IdentifyController::new(&page);
    let mut flags = 0;
    if data.hmlms() {
        flags |= MIGDIRTY_CARD_LIVE_MIGRATION;
    }
    if data.thmcs() {
        flags |= MIGDIRTY_CARD_TRACKS_MEMORY;
    }
    Ok(Some(MigdirtyCard {
        argsz: crate::uapi::MIN_ARGSZ,
        flags,
        address: address.0,
        controller_id: data.cntlid(),
        controller_type: data.cntrltype(),
        min_granule: data.minmrtg(),
        max_granule: data.maxmrtg(),
        max_ranges: data.cmmrtd(),
        max_ranges_subsystem: data.nmmrtd(),
        version: queue.version().0,
        vectors: 1,
        serial: data.sn(),
        model: data.mn(),
        firmware: data.fr(),
        subnqn: data.subnqn(),
        ..MigdirtyCard::ZERO
    }))
}

/// Text of a card that may hold anything.
pub(crate) struct Printable<'a>(&'a [u8]);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0.trim_ascii_end() {
            let shown = match byte {
                b' '..=b'~' => char::from(*byte),
                _ => '?',
            };
            write!(f, "{shown}")?;
        }
        Ok(())
    }
}
