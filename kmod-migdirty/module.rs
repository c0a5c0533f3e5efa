// SPDX-License-Identifier: GPL-2.0-only

//! migdirty: the back end, which owns the administrative controllers of migration-capable cards.
//!
//! This file only puts the parts together. `kernel/pci.rs` binds a controller, `admin_queue.rs`
//! runs its admin queue, `card.rs` is what the rest knows of it, `registry.rs` lists all of them,
//! `chardev.rs` is `/dev/migdirty`.
//!
//! Of functions: `function.rs` is who owns one, `operations.rs`, `harvest.rs` and `state.rs` what is
//! done with it, `locate.rs` which card it belongs to; `tools.rs` and `sys/backend.rs` are the two
//! ways in. `obituary.rs` brings the news of a card's death, `watch.rs` looks for it.
//!
//! # Locks
//!
//! From the outside in; a lock is never taken while one below it is held.
//!
//! 1. the device lock of the driver core: held over probe, unbind, shutdown and before a reset, and
//!    so over telling owners that a card is lost; around it `pci_bus_sem` for reading, when that is
//!    for an error of the link: so nothing that waits here may need it;
//! 2. locks of front ends, held over operations and taken in `lost`. Nothing below is held while
//!    `lost`, `complete` or `dirty` is called;
//! 3. `Function::protocol` (mutex): held over commands, because operations of a function come one
//!    after another. Whoever waits for it waits for the card, at most until that is dead;
//! 4. `Card::functions`, `Card::descriptors`, `Card::format`, `registry::CARDS`, `Watch::state`
//!    (mutexes): never held over I/O. `descriptors` is held over the planning of a log;
//!    `Card::functions` is held while `Function::owner` is;
//! 5. `Function::owner` (mutex): who gives orders. Let go of while a front end is told. It is held
//!    while `registry::CLAIMS` (mutex) and `Function::status` are;
//! 6. `Function::dirty` (mutex): what was harvested. Never held over a command, nor while pages may
//!    be faulted;
//! 7. `AdminQueue::aborting` (mutex): one Abort at a time;
//! 8. `Function::status`, `Function::queue` (spinlocks, process context): a few loads and stores;
//! 9. `AdminQueue::state` (spinlock, interrupts off): slots, ring positions, counters, life of one
//!    queue. Taken in process and in interrupt context. Under it: DMA memory, doorbells,
//!    `complete`, and configuration space when a card dies; nothing that sleeps.
//!
//! RCU read sides (`Devres::try_access`) are entered before 9 and hold off unbind's release of DMA
//! memory and of the register mapping.
//!
//! # Who frees what when
//!
//! | what | owner | gone when |
//! |---|---|---|
//! | DMA memory, BAR0 mapping | the device (devres) | after unbind has disabled the controller and cleared bus master |
//! | interrupt | `pci::Binding` | dropped after unbind, before the memory above |
//! | buffer of a command | its waiter, while there is one; else the card | the card completes the command, or is stopped |
//! | `AdminQueue` | its users (`Arc`) | the last of binding, card, running ioctl |
//! | `Card` | the registry, its functions, its watch, running ioctls (`Arc`) | the last of them |
//! | `Function` | its card (`Arc`), claims, operations under way, running ioctls | the last of them; the card lets go when it is stopped |
//! | what was harvested, the buffer for reports | the function | the log ends, the owner leaves |
//! | a batch and its requests | the front end, but from submit to `complete` this module | as the front end likes |
//! | the text of a front end | itself | after `release`, which waits for `lost` and for `complete` |
//! | an entry of `registry::CLAIMS` | the claim | release |
//! | workqueue | this module structure | module exit, behind driver and device: nobody enqueues, and a watch ends with its card |
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
#[path = "kernel/watch.rs"]
mod watch;

/// What lives as long as the module. Dropped in this order: no new file, then no card, then the
/// work that is still under way, then the empty list.
#[pin_data]
struct Migdirty {
    #[pin]
    device: common::misc_device::Registration<chardev::Chardev>,
    #[pin]
    driver: driver::Registration<common::pci_driver::Adapter<pci::Driver>>,
    work: common::work::WorkQueue,
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
            work: unsafe { common::work::WorkQueue::new(c"migdirty") }?,
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
