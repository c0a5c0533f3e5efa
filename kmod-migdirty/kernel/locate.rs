// SPDX-License-Identifier: GPL-2.0-only

//! Which card manages a function, and under which controller id (docs/interfaces.md, 11).
//!
//! Everything is read from configuration space at the moment of the question, and one Identify for a
//! virtual function; nothing is guessed: two cards that look alike manage nothing.

use crate::{
    card::Card,
    common::{pci_config, pci_driver::Address},
    function::Function,
    nvme::{
        command::{cns, Command},
        secondary,
    },
    registry,
};
use kernel::{
    device::DeviceContext,
    pci,
    prelude::*,
    sync::{aref::ARef, Arc},
};

/// In the DVSEC with a function's controller id (docs/interfaces.md, 1): the header's dword with its
/// length, the dword whose upper half is the id, and the role.
const DVSEC_HEADER: u16 = 4;
const DVSEC_CONTROLLER: u16 = pci_config::DVSEC_CONTROLLER_ID - 2;
const DVSEC_ROLE: u16 = 12;
const DVSEC_LENGTH: u32 = 16;
/// Role of a function that is managed.
const MANAGED: u8 = 0;

/// The function at an address. `ENOENT` when no card manages it.
pub(crate) fn function_at(address: Address) -> Result<Arc<Function>> {
    let pdev = pci_config::function_at(address).ok_or(ENOENT)?;
    let topology = pci_config::Topology::hold();
    let physical = match topology.has(&*pdev) {
        true => pci_config::physical_function(&*pdev),
        false => return Err(ENOENT),
    };
    drop(topology);
    match managed(&*pdev, physical) {
        Err(error) if error == ENODEV => Err(ENOENT),
        result => result,
    }
}

/// The function of a device that is bound to the caller's driver. `ENODEV` when no card manages it.
pub(crate) fn function_of<Ctx: DeviceContext>(pdev: &pci::Device<Ctx>) -> Result<Arc<Function>> {
    managed(pdev, pci_config::physical_function(pdev))
}

fn managed<Ctx: DeviceContext>(
    pdev: &pci::Device<Ctx>,
    physical: Option<(ARef<pci::Device>, u16)>,
) -> Result<Arc<Function>> {
    let address = Address::of(pdev).ok_or(ENODEV)?;
    let (card, controller) = match physical {
        Some((physical, number)) => {
            let card = card_of(&*physical)?;
            // The list may be long, and orders to one function are many.
            if let Some(known) = card.busy_function(address) {
                return Ok(known);
            }
            let primary = controller_of(&*physical).map(|(controller, _)| controller);
            let controller = secondary_controller(&card, primary, number)?;
            (card, controller)
        }
        None => match controller_of(pdev) {
            Some((controller, MANAGED)) => (card_of(pdev)?, controller),
            _ => return Err(ENODEV),
        },
    };
    card.function(address, controller)
}

/// The one card whose administrative controller has the same serial number, or is the function.
fn card_of<Ctx: DeviceContext>(pdev: &pci::Device<Ctx>) -> Result<Arc<Card>> {
    if let Some(card) = Address::of(pdev).and_then(registry::at) {
        return Ok(card);
    }
    let serial = pci_config::serial_number(pdev).ok_or(ENODEV)?;
    registry::with_serial_number(serial)
}

/// The controller id and the role that a function's DVSEC says.
fn controller_of<Ctx: DeviceContext>(pdev: &pci::Device<Ctx>) -> Option<(u16, u8)> {
    let at = pci_config::controller_dvsec(pdev)?;
    let header = pci_config::read32(pdev, at.checked_add(DVSEC_HEADER)?)?;
    if header >> 20 < DVSEC_LENGTH {
        return None;
    }
    let controller = pci_config::read32(pdev, at.checked_add(DVSEC_CONTROLLER)?)?;
    let role = pci_config::read32(pdev, at.checked_add(DVSEC_ROLE)?)?;
    // CAST: the upper half, and the lowest byte.
    Some(((controller >> 16) as u16, role as u8))
}

/// The controller id of virtual function `number`, counted from 1, of `primary` (of the
/// administrative controller, when its function does not tell).
fn secondary_controller(card: &Card, primary: Option<u16>, number: u16) -> Result<u16> {
    let primary = primary.unwrap_or(card.controller_id());
    let mut first = 0;
    loop {
        let command = Command::identify(cns::SECONDARY_CONTROLLERS, first, 0, 0);
        let page = card.identify_page("Identify of secondary controllers", command)?;
        let mut last = None;
        for entry in secondary::entries(&page) {
            if entry.primary == primary && entry.virtual_function == number {
                return Ok(entry.controller);
            }
            last = Some(entry.controller);
        }
        // The list begins with the id that was asked for; an empty one, or one that does not
        // ascend, is the end.
        first = match last.and_then(|last: u16| last.checked_add(1)) {
            Some(next) if next > first => next,
            _ => return Err(ENODEV),
        };
    }
}
