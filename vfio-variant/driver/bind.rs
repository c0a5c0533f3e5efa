// SPDX-License-Identifier: GPL-2.0-only

//! Binding, opening and closing an NVMe function.

use crate::vfio::{
    pci::{device_table, override_class, Features, Operations},
    Device,
};
use kernel::{bindings, pci, prelude::*};

/// NVM Express, I/O controller. (Administrative controllers, 010803h, are the back end's.)
const CLASS: u32 = 0x01_08_02;
const CLASS_MASK: u32 = 0xff_ff_ff;

device_table!(IDS, override_class(CLASS, CLASS_MASK));

/// A function that is bound to this driver.
#[pin_data]
pub(crate) struct Function {}

impl Operations for Function {
    const NAME: &'static CStr = c"zeroshift_vfio_pci";
    const ID_TABLE: &'static [bindings::pci_device_id; 2] = &IDS;

    fn new(_pdev: &pci::Device) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {})
    }

    fn open(_device: &Device<Self>) -> Result {
        Ok(())
    }

    fn enabled(device: &Device<Self>) -> Result<Features> {
        dev_info!(device.pdev(), "CAP {:?}\n", device.read32(0, 0));
        Ok(Features::default())
    }

    fn closing(_device: &Device<Self>) {}

    fn close(_device: &Device<Self>) {}

    fn reset_done(_device: &Device<Self>) {}
}
