// SPDX-License-Identifier: GPL-2.0-only

//! migdirty: the back end, which owns the administrative controllers of migration-capable cards.
//!
//! This file only puts the parts together. `kernel/pci.rs` binds a controller, `admin_queue.rs`
//! runs its admin queue, `card.rs` is what the rest knows of it, `registry.rs` lists all of them,
//! `chardev.rs` is `/dev/migdirty`.
//!
//! # Locks
//!
//! From the outside in; a lock is never taken while one below it is held.
//!
//! 1. the device lock of the driver core: held over probe, unbind and shutdown;
//! 2. `registry::CARDS` (mutex): the list of cards. Held to add, remove and find, never over I/O;
//! 3. `AdminQueue::state` (spinlock, interrupts off): slots, ring positions, counters, life of one
//!    queue. Taken in process and in interrupt context. Under it: DMA memory, doorbells,
//!    `complete`, and configuration space when a card dies; nothing that sleeps.
//!
//! RCU read sides (`Devres::try_access`) are entered before 3 and hold off unbind's release of DMA
//! memory and of the register mapping.
//!
//! # Who frees what when
//!
//! | what | owner | gone when |
//! |---|---|---|
//! | DMA memory, BAR0 mapping | the device (devres) | after unbind has disabled the controller and cleared bus master |
//! | interrupt | `pci::Binding` | dropped after unbind, before the memory above |
//! | `AdminQueue` | its users (`Arc`) | the last of binding, card, running ioctl |
//! | `Card` | the registry, running ioctls (`Arc`) | the last of them |
//! | file operations | this module structure | module exit, which an open file holds off |

use kernel::{driver, prelude::*};

#[path = "../kmod-common/kernel/mod.rs"]
// It serves more than this module.
#[allow(dead_code)]
mod common;

#[path = "../kmod-common/nvme/lib.rs"]
// The crate serves more than this module, and its root attributes mean nothing here.
#[allow(dead_code, unreachable_pub, unused_attributes)]
mod nvme;

#[path = "../kmod-common/stream/lib.rs"]
#[allow(dead_code, unreachable_pub, unused_attributes)]
mod stream;

#[path = "logic/lib.rs"]
#[allow(dead_code, unreachable_pub, unused_attributes)]
mod logic;

#[path = "uapi/lib.rs"]
#[allow(dead_code, unreachable_pub, unused_attributes)]
mod uapi;

#[path = "abi/lib.rs"]
#[allow(dead_code)]
mod abi;

#[path = "kernel/admin_queue.rs"]
mod admin_queue;
#[path = "kernel/card.rs"]
mod card;
#[path = "kernel/cause.rs"]
mod cause;
#[path = "kernel/chardev.rs"]
mod chardev;
#[path = "kernel/controller.rs"]
mod controller;
#[path = "kernel/dirty.rs"]
mod dirty;
#[path = "kernel/errno.rs"]
mod errno;
#[path = "kernel/function.rs"]
mod function;
#[path = "kernel/harvest.rs"]
mod harvest;
#[path = "kernel/identity.rs"]
mod identity;
#[path = "kernel/locate.rs"]
mod locate;
#[path = "kernel/obituary.rs"]
mod obituary;
#[path = "kernel/operations.rs"]
mod operations;
#[path = "kernel/pci.rs"]
mod pci;
#[path = "kernel/queue_memory.rs"]
mod queue_memory;
#[path = "kernel/registry.rs"]
mod registry;
#[path = "kernel/state.rs"]
mod state;
#[path = "kernel/sys/mod.rs"]
mod sys;
#[path = "kernel/tools.rs"]
mod tools;

/// What lives as long as the module. Dropped in this order: no new file, then no card, then the
/// work that is still under way, then the empty list.
#[pin_data]
struct Migdirty {
    #[pin]
    device: common::misc_device::Registration<chardev::Chardev>,
    #[pin]
    driver: driver::Registration<common::pci_driver::Adapter<pci::Driver>>,
    work: sys::work::WorkQueue,
    registry: registry::Registry,
}

impl kernel::InPlaceModule for Migdirty {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            _: {
                common::layout::check(sys::LAYOUT)?;
                card::check_parameters()?;
            },
            // SAFETY: module init runs once, and the users are registered below.
            registry: unsafe { sys::init_registry() },
            // SAFETY: as above; dropped behind the users.
            work: unsafe { sys::work::WorkQueue::new() }?,
            driver <- driver::Registration::new(<Self as kernel::ModuleMetadata>::NAME, module),
            // SAFETY: part of the module's structure, which goes at module exit.
            device <- unsafe { common::misc_device::Registration::new(module) },
        })
    }
}

module! {
    type: Migdirty,
    name: "migdirty",
    authors: ["The Zeroshift authors"],
    description: "Back end for live migration of NVMe functions by their administrative controller",
    license: "GPL v2",
    params: {
        command_timeout_ms: u32 {
            default: 30000,
            description: "Milliseconds that a card may take for an admin command",
        },
    },
}
