// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The Identify command (NVMe Base 2.1, section 5.1.13; NVM Command Set 1.1, section 4.1.5).
//!
//! Owned by the admin command set. Identify Controller advertises what this controller does and
//! nothing else; when a capability is added, its bit is added here in the same change.

use std::sync::Arc;

use zeroshift_nvme::command::{cns, Command, NSID_ALL};
use zeroshift_nvme::identify::{self, IdentifyControllerMut, SIZE};
use zeroshift_nvme::list::{self, DescriptorListMut, NamespaceIdentifier};
use zeroshift_nvme::namespace::{self, IdentifyNamespaceMut, IndependentNamespaceMut, LbaFormat};
use zeroshift_nvme::status::Status;

use super::features::{CRITICAL_TEMPERATURE, WARNING_TEMPERATURE};
use super::{events, log_page, Context, Personality, Role, MDTS};
use crate::nvme::controller::VERSION;
use crate::nvme::data_pointer::SGLS;
use crate::nvme::io;
use crate::nvme::migration::{self, Fleet};
use crate::nvme::namespace::Namespace;
use crate::pci::config::VENDOR;

/// Model number.
pub(crate) const MODEL: &str = "Zeroshift zerocard";
/// Abort Command Limit, 0's based; an Abort completes at once, so any limit holds.
const ABORT_LIMIT: u8 = 3;
/// SQES: 64 bytes.
pub(crate) const SUBMISSION_ENTRY_SIZES: u8 = 0x66;
/// CQES: 16 bytes.
pub(crate) const COMPLETION_ENTRY_SIZES: u8 = 0x44;
/// FRMW: one firmware slot, read-only.
const FIRMWARE_UPDATES: u8 = 1 << 1 | 1;
/// Maximum power of power state 0, in centiwatts.
const MAXIMUM_POWER: u16 = 2500;
/// Byte offset of power state descriptor 0.
const POWER_STATE_0: usize = 2048;
/// Command Set Identifier of the NVM command set.
const CSI_NVM: u8 = 0;

/// What the controller says about itself.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// Serial number: at most 20 printable ASCII characters.
    pub(crate) serial: String,
    /// CNTLID.
    pub(crate) controller_id: u16,
    /// NVM subsystem name.
    pub(crate) subnqn: String,
    /// Controllers of the NVM subsystem, in ascending order.
    pub(crate) controllers: Vec<u16>,
}

/// The firmware revision: the version of this program.
pub(super) fn firmware() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// Runs an Identify command.
pub(super) fn run(
    personality: &Personality,
    command: &Command,
    context: &Context<'_, '_>,
) -> Result<(), Status> {
    let mut page = [0; SIZE];
    let namespaces = personality.namespaces();
    let csi = (command.cdw11 >> 24) as u8;
    match command.cdw10 as u8 {
        cns::CONTROLLER => controller(personality, &mut page),
        cns::NAMESPACE => {
            // All zeroes for a valid identifier without an attached namespace behind it.
            if let Some(namespace) = find(personality, command.nsid)? {
                describe(namespace, &mut page);
            }
        }
        cns::ACTIVE_NAMESPACES => above(command, ids(namespaces), &mut page)?,
        cns::COMMAND_SET_NAMESPACES => {
            check_csi(csi)?;
            above(command, ids(namespaces), &mut page)?;
        }
        cns::NAMESPACE_DESCRIPTORS => {
            let namespace = attached(personality, command.nsid)?;
            DescriptorListMut::new(&mut page)
                .add(NamespaceIdentifier::Nguid(namespace.nguid))
                .add(NamespaceIdentifier::CommandSet(CSI_NVM));
        }
        cns::COMMAND_SET_NAMESPACE => {
            // Nothing of it goes beyond Identify Namespace: no protection information.
            check_csi(csi)?;
            attached(personality, command.nsid)?;
        }
        // Limits of Verify, Write Zeroes, Write Uncorrectable and Dataset Management: none.
        cns::COMMAND_SET_CONTROLLER if !personality.is_administrative() => check_csi(csi)?,
        cns::INDEPENDENT_NAMESPACE => {
            let namespace = attached(personality, command.nsid)?;
            let mut view = IndependentNamespaceMut::new(&mut page);
            view.set_nstat(namespace::NSTAT_READY);
            if namespace.shared {
                view.set_nmic(namespace::NMIC_SHARED);
            }
        }
        cns::CONTROLLER_LIST => {
            let first = (command.cdw10 >> 16) as u16;
            let controllers = personality.identity.controllers.iter().copied();
            list::encode_controllers(&mut page, controllers.filter(|id| *id >= first));
        }
        cns::CONTROLLER_STATE_FORMATS if personality.is_administrative() => {
            migration::describe_formats(&mut page);
        }
        // No secondary controllers: the card is no SR-IOV device.
        cns::SECONDARY_CONTROLLERS => {}
        _ => match &personality.role {
            Role::Administrative { fleet } => allocated(fleet, command, &mut page)?,
            Role::Io { .. } => return Err(Status::INVALID_FIELD),
        },
    }
    context.send(command, &page)
}

fn check_csi(csi: u8) -> Result<(), Status> {
    if csi != CSI_NVM {
        return Err(Status::INVALID_FIELD);
    }
    Ok(())
}

/// The namespace with this identifier; `None` when it could exist and is not attached.
fn find(personality: &Personality, id: u32) -> Result<Option<&Namespace>, Status> {
    let namespaces = personality.namespaces();
    if id == 0 || id > io::highest(namespaces) {
        return Err(Status::INVALID_NAMESPACE);
    }
    Ok(namespaces
        .iter()
        .find(|namespace| namespace.id == id)
        .map(AsRef::as_ref))
}

fn attached(personality: &Personality, id: u32) -> Result<&Namespace, Status> {
    find(personality, id)?.ok_or(Status::INVALID_FIELD)
}

fn ids(namespaces: &[Arc<Namespace>]) -> impl Iterator<Item = u32> + '_ {
    namespaces.iter().map(|namespace| namespace.id)
}

/// Writes the list of those namespaces whose identifiers are above NSID.
fn above(
    command: &Command,
    ids: impl Iterator<Item = u32>,
    page: &mut [u8; SIZE],
) -> Result<(), Status> {
    // The two highest values leave nothing above.
    if command.nsid >= NSID_ALL - 1 {
        return Err(Status::INVALID_NAMESPACE);
    }
    list::encode_namespaces(page, ids.filter(|id| *id > command.nsid));
    Ok(())
}

/// What the administrative controller says of the namespaces of the card, attached or not.
fn allocated(fleet: &Fleet, command: &Command, page: &mut [u8; SIZE]) -> Result<(), Status> {
    let all = &fleet.namespaces;
    let find = |nsid| {
        let highest = all.last().map_or(1, |last| last.namespace.id);
        if nsid == 0 || nsid > highest {
            return Err(Status::INVALID_NAMESPACE);
        }
        Ok(all.iter().find(|found| found.namespace.id == nsid))
    };
    match command.cdw10 as u8 {
        cns::ALLOCATED_NAMESPACES => {
            let ids = all.iter().map(|allocated| allocated.namespace.id);
            above(command, ids, page)?;
        }
        cns::ALLOCATED_NAMESPACE => {
            // All zeroes for a valid identifier without a namespace behind it.
            if let Some(found) = find(command.nsid)? {
                describe(&found.namespace, page);
            }
        }
        cns::ATTACHED_CONTROLLERS if command.nsid == NSID_ALL => return Err(Status::INVALID_FIELD),
        cns::ATTACHED_CONTROLLERS => {
            let found = find(command.nsid)?.ok_or(Status::INVALID_FIELD)?;
            let first = (command.cdw10 >> 16) as u16;
            let controllers = found.controllers.iter().copied();
            list::encode_controllers(page, controllers.filter(|id| *id >= first));
        }
        _ => return Err(Status::INVALID_FIELD),
    }
    Ok(())
}

fn describe(namespace: &Namespace, page: &mut [u8; SIZE]) {
    let mut view = IdentifyNamespaceMut::new(page);
    // Deallocated blocks read as zeroes, and Write Zeroes may deallocate.
    let zeroes = namespace::DLFEAT_READ_ZEROES | namespace::DLFEAT_WRITE_ZEROES_DEALLOCATES;
    view.set_nsze(namespace.blocks)
        .set_ncap(namespace.blocks)
        .set_nuse(namespace.blocks)
        .set_dlfeat(zeroes)
        .set_nvmcap(u128::from(namespace.blocks) << namespace.block_shift)
        .set_nguid(&namespace.nguid)
        .set_lba_format(
            0,
            LbaFormat {
                data: namespace.block_shift,
                ..LbaFormat::default()
            },
        );
    if namespace.shared {
        view.set_nmic(namespace::NMIC_SHARED);
    }
    if namespace.medium.read_only() {
        // Write protected now.
        view.set_nsattr(1);
    }
}

fn controller(personality: &Personality, page: &mut [u8; SIZE]) {
    let identity = &personality.identity;
    let mut view = IdentifyControllerMut::new(page);
    view.set_vid(VENDOR)
        .set_ssvid(VENDOR)
        .set_sn(&identity.serial)
        .set_mn(MODEL)
        .set_fr(firmware())
        .set_mdts(MDTS)
        .set_cmic(identify::CMIC_MPORTS | identify::CMIC_MCTRS)
        .set_cntlid(identity.controller_id)
        .set_ver(VERSION)
        .set_ctratt(identify::CTRATT_HIDS)
        .set_acl(ABORT_LIMIT)
        .set_aerl(events::LIMIT)
        .set_frmw(FIRMWARE_UPDATES)
        .set_lpa(identify::LPA_CSES | identify::LPA_LPEDS)
        .set_elpe(log_page::ERROR_ENTRIES - 1)
        .set_wctemp(WARNING_TEMPERATURE)
        .set_cctemp(CRITICAL_TEMPERATURE)
        .set_sqes(SUBMISSION_ENTRY_SIZES)
        .set_cqes(COMPLETION_ENTRY_SIZES)
        .set_subnqn(&identity.subnqn);
    if let Role::Administrative { fleet } = &personality.role {
        let limits = fleet.limits.get();
        view.set_cntrltype(identify::CNTRLTYPE_ADMINISTRATIVE)
            .set_oacs(identify::OACS_HMLMS)
            .set_cmmrtd(limits.max_ranges)
            .set_nmmrtd(limits.max_ranges_subsystem)
            .set_minmrtg(limits.min_granule)
            .set_maxmrtg(limits.max_granule)
            .set_trattr(identify::TRATTR_THMCS);
    } else {
        view.set_cntrltype(identify::CNTRLTYPE_IO)
            .set_oacs(identify::OACS_DBCS)
            .set_nn(io::highest(personality.namespaces()))
            .set_oncs(
                identify::ONCS_COMPARE
                    | identify::ONCS_DATASET_MANAGEMENT
                    | identify::ONCS_WRITE_ZEROES,
            )
            .set_vwc(identify::VWC_PRESENT | identify::VWC_NO_FLUSH_ALL)
            .set_sgls(SGLS);
    }
    page[POWER_STATE_0..POWER_STATE_0 + 2].copy_from_slice(&MAXIMUM_POWER.to_le_bytes());
}
