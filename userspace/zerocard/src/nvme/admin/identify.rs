// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The Identify command (NVMe Base 2.1, section 5.1.13).
//!
//! Owned by the admin command set. Identify Controller advertises what this controller does and
//! nothing else; when a capability is added, its bit is added here in the same change.

use zeroshift_nvme::command::{cns, Command, NSID_ALL};
use zeroshift_nvme::identify::{IdentifyControllerMut, CNTRLTYPE_ADMINISTRATIVE, SIZE};
use zeroshift_nvme::status::Status;

use super::features::{CRITICAL_TEMPERATURE, WARNING_TEMPERATURE};
use super::{events, log_page, Context, MDTS};
use crate::nvme::controller::VERSION;
use crate::pci::config::VENDOR;

const MODEL: &str = "Zeroshift zerocard";
/// Abort Command Limit, 0's based; an Abort completes at once, so any limit holds.
const ABORT_LIMIT: u8 = 3;
/// FRMW: one firmware slot, read-only.
const FIRMWARE_UPDATES: u8 = 1 << 1 | 1;
/// LPA: Commands Supported and Effects; extended data (32-bit length, offset).
const LOG_PAGE_ATTRIBUTES: u8 = 1 << 1 | 1 << 2;
/// Maximum power of power state 0, in centiwatts.
const MAXIMUM_POWER: u16 = 2500;
/// Byte offset of power state descriptor 0.
const POWER_STATE_0: usize = 2048;

/// What the controller says about itself.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// Serial number: at most 20 printable ASCII characters.
    pub(crate) serial: String,
    /// CNTLID.
    pub(crate) controller_id: u16,
    /// NVM subsystem name.
    pub(crate) subnqn: String,
}

/// The firmware revision: the version of this program.
pub(super) fn firmware() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// Runs an Identify command.
pub(super) fn run(
    identity: &Identity,
    command: &Command,
    context: &Context<'_, '_>,
) -> Result<(), Status> {
    match command.cdw10 as u8 {
        cns::CONTROLLER => context.send(command, &controller(identity)),
        cns::ACTIVE_NAMESPACES => {
            // The list starts above NSID, and the two highest values leave nothing above.
            if command.nsid >= NSID_ALL - 1 {
                return Err(Status::INVALID_NAMESPACE);
            }
            context.send(command, &[0; SIZE])
        }
        cns::NAMESPACE | cns::NAMESPACE_DESCRIPTORS => Err(Status::INVALID_NAMESPACE),
        _ => Err(Status::INVALID_FIELD),
    }
}

fn controller(identity: &Identity) -> [u8; SIZE] {
    let mut page = [0; SIZE];
    IdentifyControllerMut::new(&mut page)
        .set_vid(VENDOR)
        .set_ssvid(VENDOR)
        .set_sn(&identity.serial)
        .set_mn(MODEL)
        .set_fr(firmware())
        .set_mdts(MDTS)
        .set_cntlid(identity.controller_id)
        .set_ver(VERSION)
        .set_cntrltype(CNTRLTYPE_ADMINISTRATIVE)
        .set_acl(ABORT_LIMIT)
        .set_aerl(events::LIMIT)
        .set_frmw(FIRMWARE_UPDATES)
        .set_lpa(LOG_PAGE_ATTRIBUTES)
        .set_elpe(log_page::ERROR_ENTRIES - 1)
        .set_wctemp(WARNING_TEMPERATURE)
        .set_cctemp(CRITICAL_TEMPERATURE)
        .set_sqes(0x66)
        .set_cqes(0x44)
        .set_subnqn(&identity.subnqn);
    page[POWER_STATE_0..POWER_STATE_0 + 2].copy_from_slice(&MAXIMUM_POWER.to_le_bytes());
    page
}
