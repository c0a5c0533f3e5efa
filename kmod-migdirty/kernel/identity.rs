// SPDX-License-Identifier: GPL-2.0-only

//! The identity record of a function, for the header of a migration stream (docs/interfaces.md, 13).
//!
//! What it says of PCI is what the kernel knows of the function, what it says of the card is what
//! the card said when it was bound, and its namespaces are asked for each time, because they come
//! and go. A card whose administrative controller lists none (they are optional) leaves them to the
//! card's own check of a state; one that answers nonsense or fails gives no record at all.

use crate::{
    card::{command_timeout_ms, Card},
    common::pci_config,
    function::Function,
    nvme::{
        command::{cns, Command},
        list,
        namespace::IdentifyNamespace,
        status::Status,
    },
    stream::identity::{self, Builder, Identity, Namespace},
};
use kernel::{
    prelude::*,
    time::{Instant, Monotonic},
};

/// Allocated namespaces of a card that are looked at; one that has more tells nothing of them.
const MAX_ALLOCATED: usize = 4096;

/// The value of the record, at most [`identity::MAX_SIZE`] bytes.
///
/// `EIO` the card is dead, refused or said what cannot be; `ENODEV` it or the function is gone;
/// `ETIMEDOUT` it took longer than a command may. Sleeps.
pub(crate) fn of(function: &Function) -> Result<KVVec<u8>> {
    let card = function.card();
    let pdev = pci_config::function_at(function.address()).ok_or(ENODEV)?;
    let namespaces = attached(card, function.controller())?;
    let (serial, model, subnqn) = card.identity();
    let identity = Identity {
        vendor: pdev.vendor_id().as_raw(),
        device: pdev.device_id(),
        subsystem_vendor: pdev.subsystem_vendor_id(),
        subsystem: pdev.subsystem_device_id(),
        class_revision: pdev.pci_class().as_raw() << 8 | u32::from(pdev.revision_id()),
        serial,
        model,
        subnqn,
    };
    let count = namespaces.as_ref().map_or(0, |list| list.len());
    let mut record = KVVec::from_elem(0, identity::size(subnqn.len(), count), GFP_KERNEL)?;
    let mut builder = Builder::new(&mut record, &identity).map_err(|_| {
        card.warn(fmt!(
            "its NVM Subsystem NVMe Qualified Name (SUBNQN) has {} bytes, and 1 to {} are allowed",
            subnqn.len(),
            identity::MAX_SUBNQN,
        ));
        EIO
    })?;
    if let Some(namespaces) = namespaces {
        builder.namespaces_known();
        for namespace in namespaces.iter() {
            // They ascend, they are not too many, and the buffer has room for all of them.
            builder.namespace(namespace).map_err(|_| EIO)?;
        }
    }
    let size = builder.finish();
    record.truncate(size);
    Ok(record)
}

/// The namespaces that are attached to a controller, by ascending NSIDs. `None` when the card does
/// not tell, or when there are more than a record has room for.
fn attached(card: &Card, controller: u16) -> Result<Option<KVVec<Namespace>>> {
    let start = Instant::<Monotonic>::now();
    let mut found = KVVec::new();
    let mut looked_at = 0usize;
    let mut last = 0;
    loop {
        let command = Command::identify(cns::ALLOCATED_NAMESPACES, 0, last, 0);
        let Some(page) = ask(card, "Identify of allocated namespaces", command)? else {
            return Ok(None);
        };
        let mut entries = 0;
        for nsid in list::namespaces(&page) {
            if nsid <= last || nsid == u32::MAX {
                card.warn(fmt!(
                    "its list of namespaces has {:#x} behind {:#x}",
                    nsid,
                    last,
                ));
                return Err(EIO);
            }
            last = nsid;
            entries += 1;
            looked_at = looked_at.saturating_add(1);
            if looked_at > MAX_ALLOCATED {
                return Ok(None);
            }
            if start.elapsed().as_millis() > i64::from(command_timeout_ms()) {
                return Err(ETIMEDOUT);
            }
            match is_attached(card, nsid, controller)? {
                Some(true) => {}
                Some(false) => continue,
                None => return Ok(None),
            }
            // CAST: widens.
            if found.len() >= identity::MAX_NAMESPACES as usize {
                return Ok(None);
            }
            match describe(card, nsid)? {
                Some(namespace) => found.push(namespace, GFP_KERNEL)?,
                None => return Ok(None),
            }
        }
        // A page that is not full ends the list, and so does the highest NSID that can be asked for.
        if entries < list::NAMESPACES || last >= u32::MAX - 1 {
            return Ok(Some(found));
        }
    }
}

/// Whether a namespace is attached to a controller; `None` when the card does not tell.
fn is_attached(card: &Card, nsid: u32, controller: u16) -> Result<Option<bool>> {
    // The list begins with the identifier that it is asked for, if that is in it.
    let command = Command::identify(cns::ATTACHED_CONTROLLERS, controller, nsid, 0);
    let page = ask(card, "Identify of attached controllers", command)?;
    Ok(page.map(|page| list::controllers(&page).next() == Some(controller)))
}

/// What a namespace is; `None` when the card does not tell.
fn describe(card: &Card, nsid: u32) -> Result<Option<Namespace>> {
    let command = Command::identify(cns::ALLOCATED_NAMESPACE, 0, nsid, 0);
    let page = ask(card, "Identify of an allocated namespace", command)?;
    Ok(page.map(|page| {
        let data = IdentifyNamespace::new(&page);
        Namespace {
            nsid,
            block_shift: data.lba_format(data.format_in_use()).data,
            blocks: data.nsze(),
            eui64: data.eui64(),
            nguid: data.nguid(),
        }
    }))
}

/// An Identify data structure; `None` when the card does not have it (or not any more), which is no
/// failure: all of this is optional.
fn ask(card: &Card, what: &'static str, command: Command) -> Result<Option<crate::card::Page>> {
    const ABSENT: [Status; 3] = [
        Status::INVALID_COMMAND_OPCODE,
        Status::INVALID_FIELD,
        Status::INVALID_NAMESPACE,
    ];
    match card.try_identify(command)? {
        Ok(page) => Ok(Some(page)),
        Err(status) if ABSENT.iter().any(|absent| status.is(*absent)) => Ok(None),
        Err(status) => {
            card.report(what, status);
            Err(EIO)
        }
    }
}
