// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Get Features and Set Features (NVMe Base 2.1, sections 5.1.11 and 5.1.25).
//!
//! Owned by the admin command set: power management, temperature threshold and asynchronous event
//! configuration. Features about I/O queues do not exist on an administrative controller. Nothing
//! is saved, so the select field of Get Features and the save bit of Set Features are refused.

use zeroshift_nvme::command::{feature, Command, NSID_ALL};
use zeroshift_nvme::status::Status;

/// Feature identifiers that exist, for the effects log page.
pub(super) const SUPPORTED: [u8; 3] = [
    feature::POWER_MANAGEMENT,
    feature::TEMPERATURE_THRESHOLD,
    feature::ASYNC_EVENT_CONFIGURATION,
];

/// Composite temperature of a piece of software, in kelvins.
pub(super) const TEMPERATURE: u16 = 300;
/// Warning Composite Temperature Threshold, in kelvins; where the over-temperature threshold starts.
pub(super) const WARNING_TEMPERATURE: u16 = 343;
/// Critical Composite Temperature Threshold, in kelvins.
pub(super) const CRITICAL_TEMPERATURE: u16 = 353;

/// SMART / Health critical warning: temperature at or beyond a threshold.
const TEMPERATURE_WARNING: u8 = 1 << 1;
/// The bits of Asynchronous Event Configuration that exist: SMART / Health critical warnings.
const EVENTS: u32 = 0x3f;

/// Current values.
#[derive(Debug)]
pub(super) struct Features {
    workload_hint: u8,
    over: u16,
    under: u16,
    events: u32,
}

impl Default for Features {
    fn default() -> Self {
        Self {
            workload_hint: 0,
            over: WARNING_TEMPERATURE,
            under: 0,
            events: 0,
        }
    }
}

impl Features {
    /// Critical Warning byte of the SMART / Health log page.
    pub(super) fn critical_warning(&self) -> u8 {
        if TEMPERATURE >= self.over || TEMPERATURE <= self.under {
            TEMPERATURE_WARNING
        } else {
            0
        }
    }

    /// Whether a temperature event is due and wanted.
    pub(super) fn temperature_event(&self) -> bool {
        self.events & u32::from(self.critical_warning()) != 0
    }

    /// Get Features: dword 0 of the completion.
    pub(super) fn get(&self, command: &Command) -> Result<u32, Status> {
        let select = command.cdw10 >> 8 & 7;
        check_namespace(command)?;
        if select != 0 {
            return Err(Status::INVALID_FIELD);
        }
        match command.cdw10 as u8 {
            feature::POWER_MANAGEMENT => Ok(u32::from(self.workload_hint) << 5),
            feature::TEMPERATURE_THRESHOLD => {
                let threshold = match threshold(command.cdw11, false)? {
                    Threshold::Over => self.over,
                    Threshold::Under => self.under,
                };
                Ok(u32::from(threshold))
            }
            feature::ASYNC_EVENT_CONFIGURATION => Ok(self.events),
            _ => Err(Status::INVALID_FIELD),
        }
    }

    /// Set Features.
    pub(super) fn set(&mut self, command: &Command) -> Result<(), Status> {
        let identifier = command.cdw10 as u8;
        if !SUPPORTED.contains(&identifier) {
            return Err(Status::INVALID_FIELD);
        }
        if command.cdw10 >> 31 != 0 {
            return Err(Status::FEATURE_NOT_SAVEABLE);
        }
        check_namespace(command)?;
        let value = command.cdw11;
        match identifier {
            feature::POWER_MANAGEMENT => {
                // There is power state 0 and no other.
                if value & 0x1f != 0 {
                    return Err(Status::INVALID_FIELD);
                }
                self.workload_hint = (value >> 5 & 7) as u8;
            }
            feature::TEMPERATURE_THRESHOLD => match threshold(value, true)? {
                Threshold::Over => self.over = value as u16,
                Threshold::Under => self.under = value as u16,
            },
            feature::ASYNC_EVENT_CONFIGURATION => {
                // OAES is zero: events other than critical warnings cannot be asked for.
                if value & !EVENTS != 0 {
                    return Err(Status::INVALID_FIELD);
                }
                self.events = value;
            }
            _ => return Err(Status::INVALID_FIELD),
        }
        Ok(())
    }
}

enum Threshold {
    Over,
    Under,
}

/// Which temperature threshold CDW11 selects. There is the composite temperature and no sensor;
/// all thresholds at once can be set but not read.
fn threshold(cdw11: u32, set: bool) -> Result<Threshold, Status> {
    let sensor = cdw11 >> 16 & 0xf;
    if sensor != 0 && !(set && sensor == 0xf) {
        return Err(Status::INVALID_FIELD);
    }
    match cdw11 >> 20 & 3 {
        0 => Ok(Threshold::Over),
        1 => Ok(Threshold::Under),
        _ => Err(Status::INVALID_FIELD),
    }
}

/// No feature here belongs to a namespace, and there are no namespaces.
fn check_namespace(command: &Command) -> Result<(), Status> {
    match command.nsid {
        0 | NSID_ALL => Ok(()),
        _ => Err(Status::INVALID_NAMESPACE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(cdw10: u32, cdw11: u32) -> Command {
        Command {
            cdw10,
            cdw11,
            ..Command::new(0)
        }
    }

    #[test]
    fn values_come_back_and_bad_ones_are_refused() {
        let mut features = Features::default();
        assert_eq!(features.get(&command(0x04, 0)), Ok(343));
        features.set(&command(0x04, 0x0010_0100)).unwrap();
        assert_eq!(features.get(&command(0x04, 0x0010_0000)), Ok(0x100));
        assert_eq!(features.get(&command(0x04, 0)), Ok(343));
        features.set(&command(0x0b, 0x3f)).unwrap();
        assert_eq!(features.get(&command(0x0b, 0)), Ok(0x3f));
        features.set(&command(0x02, 0x20)).unwrap();
        assert_eq!(features.get(&command(0x02, 0)), Ok(0x20));
        for bad in [
            command(0x07, 0),           // Number of Queues: no I/O queues
            command(0x0b, 0x100),       // Namespace Attribute Notices
            command(0x02, 1),           // power state 1
            command(0x04, 0x0001_0000), // temperature sensor 1
            command(0x04, 0x0020_0000), // reserved threshold type
        ] {
            assert_eq!(features.set(&bad), Err(Status::INVALID_FIELD), "{bad:?}");
        }
        let save = command(0x8000_000b, 0);
        assert_eq!(features.set(&save), Err(Status::FEATURE_NOT_SAVEABLE));
        let default = command(0x010b, 0);
        assert_eq!(features.get(&default), Err(Status::INVALID_FIELD));
        let namespace = Command {
            nsid: 1,
            ..command(0x0b, 0)
        };
        assert_eq!(features.set(&namespace), Err(Status::INVALID_NAMESPACE));
    }

    #[test]
    fn crossing_a_threshold_warns_and_is_an_event_only_when_wanted() {
        let mut features = Features::default();
        assert_eq!(features.critical_warning(), 0);
        features.set(&command(0x04, 300)).unwrap();
        assert_eq!(
            (features.critical_warning(), features.temperature_event()),
            (2, false)
        );
        features.set(&command(0x0b, 2)).unwrap();
        assert!(features.temperature_event());
    }
}
