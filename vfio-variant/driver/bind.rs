// SPDX-License-Identifier: GPL-2.0-only

//! Binding, opening and closing an NVMe function.
//!
//! Whether a function can migrate is decided at each open: its card may be bound to migdirty, or
//! go, at any time while the function is bound. Without a card it is plain VFIO.

use super::states::Migration;
use crate::{
    backend::Claim,
    common::pci_config,
    stream::registers::Registers,
    vfio::{
        config::Hidden,
        pci::{device_table, override_class, Features, Operations},
        Device,
    },
};
use kernel::{
    bindings, pci,
    prelude::*,
    sync::{
        atomic::{AtomicFlag, Relaxed},
        Arc,
    },
};

/// NVM Express, I/O controller. (Administrative controllers, 010803h, are migdirty's.)
const CLASS: u32 = 0x01_08_02;
const CLASS_MASK: u32 = 0xff_ff_ff;

/// BAR0 offsets: NVMe Base 2.1, section 3.1.4.
const CAP: u64 = 0x00;
const VS: u64 = 0x08;

device_table!(IDS, override_class(CLASS, CLASS_MASK));

/// A function that is bound to this driver.
#[pin_data]
pub(crate) struct Function {
    pub(super) migration: Arc<Migration>,
    /// Where in configuration space its controller id is: another one on the destination.
    controller_id: Option<Hidden>,
    /// The log says already why it cannot migrate.
    said: AtomicFlag,
}

impl Function {
    /// Says, once for each binding, why the function is plain VFIO.
    fn say_why_not(&self, device: &Device<Self>, error: Error) {
        if self.said.xchg(true, Relaxed) {
            return;
        }
        let pdev = device.pdev();
        if error == ENODEV {
            dev_info!(
                pdev,
                "no card manages it, so it cannot migrate and works as plain VFIO; to migrate, \
                 bind its card's administrative controller to migdirty, then open it again\n",
            );
        } else if error.to_errno() == -EOPNOTSUPP {
            dev_info!(
                pdev,
                "its card has no live migration, tracks no memory, or knows no format of states \
                 that migdirty knows, so it cannot migrate and works as plain VFIO\n",
            );
        } else {
            dev_warn!(
                pdev,
                "its card does not answer ({:?}), so it cannot migrate and works as plain VFIO\n",
                error,
            );
        }
    }
}

/// `EOPNOTSUPP`, which `kernel::error` lacks.
// CAST: a small constant.
pub(super) const EOPNOTSUPP: i32 = bindings::EOPNOTSUPP as i32;

impl Operations for Function {
    const NAME: &'static CStr = c"zeroshift_vfio_pci";
    const ID_TABLE: &'static [bindings::pci_device_id; 2] = &IDS;

    fn new(pdev: &pci::Device) -> impl PinInit<Self, Error> {
        let migration = Migration::new(pdev);
        try_pin_init!(Self {
            migration: migration?,
            controller_id: pci_config::controller_dvsec(pdev)
                .and_then(|at| at.checked_add(pci_config::DVSEC_CONTROLLER_ID))
                .map(|offset| Hidden { offset, size: 2 }),
            said: AtomicFlag::new(false),
        })
    }

    fn open(device: &Device<Self>) -> Result {
        let migration = &device.migration;
        migration.begin();
        // Before the function is reset, because it may belong to somebody else.
        match Claim::new(device.pdev(), migration.clone()) {
            Ok(claim) => migration.attach(Arc::new(claim, GFP_KERNEL)?),
            Err(error) if error == EBUSY => {
                dev_warn!(
                    device.pdev(),
                    "a tool has paused it or logs what it writes; end that (zeroshift status), \
                     then open it again\n",
                );
                return Err(error);
            }
            Err(error) if error == ENOMEM => return Err(error),
            Err(error) => device.say_why_not(device, error),
        }
        Ok(())
    }

    fn enabled(device: &Device<Self>) -> Result<Features> {
        if !device.migration.has_card() {
            return Ok(Features::default());
        }
        // What every stream needs: better found out now than when a guest is stopped.
        if let Err(error) = device.migration.check_card() {
            if error == ENOMEM {
                return Err(error);
            }
            device.say_why_not(device, error);
            drop(device.migration.detach());
            return Ok(Features::default());
        }
        let low = device.read32(0, CAP)?;
        let high = device.read32(0, CAP + 4)?;
        device.migration.set_registers(Registers {
            cap: u64::from(high) << 32 | u64::from(low),
            version: device.read32(0, VS)?,
            vectors: device.msix_vectors(),
        });
        Ok(Features {
            migration: true,
            log: true,
        })
    }

    fn closing(device: &Device<Self>) {
        device.migration.end();
    }

    fn close(device: &Device<Self>) {
        // Only now that the function was reset: migdirty resumes what it has suspended.
        drop(device.migration.detach());
    }

    fn hidden(device: &Device<Self>) -> Option<Hidden> {
        device.controller_id
    }

    fn reset_done(device: &Device<Self>) {
        device.migration.was_reset();
    }

    fn cut_off(device: &Device<Self>) {
        device.migration.cut_off();
    }

    fn link_reset(device: &Device<Self>) {
        device.migration.link_reset();
    }
}
