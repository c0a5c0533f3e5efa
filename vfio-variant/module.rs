// SPDX-License-Identifier: GPL-2.0-only

//! zeroshift_vfio_pci: the front end, a VFIO driver for NVMe functions that can migrate.
//!
//! This file only puts the parts together. `vfio/` is a safe layer over the VFIO core, `driver/`
//! what an NVMe function does beyond plain VFIO.

use kernel::prelude::*;

#[path = "../kmod-common/kernel/mod.rs"]
// The folder serves more than this module.
#[allow(dead_code, unused_imports, unused_macros)]
mod common;

#[path = "../kmod-common/stream/lib.rs"]
// As above, and attributes of a crate root mean nothing here.
#[allow(dead_code, unreachable_pub, unused_attributes)]
mod stream;

#[path = "logic/lib.rs"]
#[allow(dead_code, unreachable_pub, unused_attributes)]
mod logic;

#[path = "backend.rs"]
mod backend;
#[path = "driver/mod.rs"]
mod driver;
#[path = "vfio/mod.rs"]
mod vfio;

/// What lives as long as the module.
#[pin_data]
struct Front {
    #[pin]
    driver: vfio::pci::Registration<driver::Function>,
}

impl kernel::InPlaceModule for Front {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            _: {
                common::layout::check(vfio::sys::LAYOUT)?;
                common::layout::check(backend::LAYOUT)?;
            },
            driver <- vfio::pci::Registration::new(module),
        })
    }
}

module! {
    type: Front,
    name: "zeroshift_vfio_pci",
    authors: ["The Zeroshift authors"],
    description: "VFIO driver for NVMe functions, with live migration by their card",
    license: "GPL v2",
    imports_ns: ["IOMMUFD"],
}
