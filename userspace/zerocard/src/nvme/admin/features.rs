// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Get Features and Set Features (NVMe Base 2.1, sections 5.1.11 and 5.1.25).
//!
//! Owned by the admin command set. Features about I/O do not exist on an administrative controller.
//! Nothing is saved, so the select field of Get Features and the save bit of Set Features are refused.

use zeroshift_nvme::command::{feature, Command, NSID_ALL};
use zeroshift_nvme::feature::{self as feature_value, NumberOfQueues};
use zeroshift_nvme::status::Status;

use super::Personality;
use crate::nvme::migration::state::Features as Image;
use crate::pci::Refused;

/// Feature identifiers that every controller has.
const COMMON: [u8; 4] = [
    feature::POWER_MANAGEMENT,
    feature::TEMPERATURE_THRESHOLD,
    feature::ASYNC_EVENT_CONFIGURATION,
    feature::HOST_IDENTIFIER,
];

/// Feature identifiers that an I/O controller has besides.
const IO: [u8; 7] = [
    feature::ARBITRATION,
    feature::ERROR_RECOVERY,
    feature::VOLATILE_WRITE_CACHE,
    feature::NUMBER_OF_QUEUES,
    feature::INTERRUPT_COALESCING,
    feature::INTERRUPT_VECTOR,
    feature::WRITE_ATOMICITY,
];

/// Feature identifiers that exist.
pub(super) fn supported(personality: &Personality) -> impl Iterator<Item = u8> {
    let more: &[u8] = if personality.is_administrative() {
        &[]
    } else {
        &IO
    };
    COMMON.iter().chain(more).copied()
}

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
#[derive(Clone, Debug)]
pub(super) struct Features {
    workload_hint: u8,
    over: u16,
    under: u16,
    events: u32,
    arbitration: u32,
    error_recovery: u16,
    write_cache: bool,
    coalescing: u16,
    /// Vectors for which coalescing is disabled; one bit each.
    uncoalesced: [u64; 4],
    write_atomicity: bool,
    /// Host Identifier, little-endian; zero when no host has given one.
    host_identifier: [u8; 16],
}

impl Default for Features {
    fn default() -> Self {
        Self {
            workload_hint: 0,
            over: WARNING_TEMPERATURE,
            under: 0,
            events: 0,
            // Arbitration burst: no limit.
            arbitration: 7,
            error_recovery: 0,
            write_cache: true,
            coalescing: 0,
            uncoalesced: [0; 4],
            write_atomicity: false,
            host_identifier: [0; 16],
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

    /// Volatile Write Cache: enabled.
    pub(super) fn write_cache(&self) -> bool {
        self.write_cache
    }

    /// Host Identifier in the length that a Get Features command asks for.
    pub(super) fn host_identifier(&self, command: &Command) -> &[u8] {
        &self.host_identifier[..host_identifier_len(command)]
    }

    /// Host Identifier; a short one fills the lower half.
    pub(super) fn set_host_identifier(&mut self, identifier: [u8; 16]) {
        self.host_identifier = identifier;
    }

    /// The values, for a controller state.
    pub(super) fn save(&self) -> Image {
        Image {
            workload_hint: self.workload_hint,
            write_cache: self.write_cache,
            write_atomicity: self.write_atomicity,
            over: self.over,
            under: self.under,
            error_recovery: self.error_recovery,
            events: self.events,
            arbitration: self.arbitration,
            coalescing: self.coalescing,
            host_identifier: self.host_identifier,
            uncoalesced: self.uncoalesced,
        }
    }

    /// The values of a controller state, if Set Features takes them.
    pub(super) fn restore(image: &Image) -> Result<Self, Refused> {
        if image.workload_hint > 7 || image.events & !EVENTS != 0 {
            return Err(Refused::new("a feature has a value that does not exist"));
        }
        Ok(Self {
            workload_hint: image.workload_hint,
            over: image.over,
            under: image.under,
            events: image.events,
            arbitration: image.arbitration,
            error_recovery: image.error_recovery,
            write_cache: image.write_cache,
            coalescing: image.coalescing,
            uncoalesced: image.uncoalesced,
            write_atomicity: image.write_atomicity,
            host_identifier: image.host_identifier,
        })
    }

    /// Get Features: dword 0 of the completion.
    pub(super) fn get(&self, personality: &Personality, command: &Command) -> Result<u32, Status> {
        let select = command.cdw10 >> 8 & 7;
        let identifier = command.cdw10 as u8;
        if !supported(personality).any(|known| known == identifier) {
            return Err(Status::INVALID_FIELD);
        }
        check_namespace(command)?;
        if select != 0 {
            return Err(Status::INVALID_FIELD);
        }
        match identifier {
            feature::POWER_MANAGEMENT => Ok(u32::from(self.workload_hint) << 5),
            feature::TEMPERATURE_THRESHOLD => {
                let threshold = match threshold(command.cdw11, false)? {
                    Threshold::Over => self.over,
                    Threshold::Under => self.under,
                };
                Ok(u32::from(threshold))
            }
            feature::ASYNC_EVENT_CONFIGURATION => Ok(self.events),
            feature::HOST_IDENTIFIER => Ok(0),
            feature::ARBITRATION => Ok(self.arbitration),
            feature::ERROR_RECOVERY => Ok(self.error_recovery.into()),
            feature::VOLATILE_WRITE_CACHE => Ok(self.write_cache.into()),
            feature::NUMBER_OF_QUEUES => Ok(number_of_queues(personality)),
            feature::INTERRUPT_COALESCING => Ok(self.coalescing.into()),
            feature::INTERRUPT_VECTOR => {
                let vector = vector(personality, command.cdw11)?;
                let bit = self.uncoalesced[usize::from(vector / 64)] >> (vector % 64) & 1;
                Ok(u32::from(vector) | (bit as u32) << 16)
            }
            feature::WRITE_ATOMICITY => Ok(self.write_atomicity.into()),
            _ => Err(Status::INVALID_FIELD),
        }
    }

    /// Set Features: dword 0 of the completion. `has_io_queues` says that an I/O queue exists.
    pub(super) fn set(
        &mut self,
        personality: &Personality,
        command: &Command,
        has_io_queues: bool,
    ) -> Result<u32, Status> {
        let identifier = command.cdw10 as u8;
        if !supported(personality).any(|known| known == identifier) {
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
            // The data follows; see `set_host_identifier`.
            feature::HOST_IDENTIFIER => {}
            feature::ARBITRATION => self.arbitration = value,
            // DULBE asks for errors that the namespaces do not offer.
            feature::ERROR_RECOVERY if value >> 16 != 0 => return Err(Status::INVALID_FIELD),
            feature::ERROR_RECOVERY => self.error_recovery = value as u16,
            feature::VOLATILE_WRITE_CACHE => {
                self.write_cache = value & feature_value::WRITE_CACHE_ENABLED != 0;
            }
            feature::NUMBER_OF_QUEUES => {
                NumberOfQueues::from_dword(value).ok_or(Status::INVALID_FIELD)?;
                if has_io_queues {
                    return Err(Status::COMMAND_SEQUENCE_ERROR);
                }
                return Ok(number_of_queues(personality));
            }
            // Kept, and without effect: interrupts are coalesced by what is done in one pass.
            feature::INTERRUPT_COALESCING => self.coalescing = value as u16,
            feature::INTERRUPT_VECTOR => {
                let vector = vector(personality, value)?;
                let word = &mut self.uncoalesced[usize::from(vector / 64)];
                let bit = 1 << (vector % 64);
                *word = if value & 1 << 16 != 0 {
                    *word | bit
                } else {
                    *word & !bit
                };
            }
            feature::WRITE_ATOMICITY => self.write_atomicity = value & 1 != 0,
            _ => return Err(Status::INVALID_FIELD),
        }
        Ok(0)
    }
}

/// Bytes of the Host Identifier that a command carries: EXHID in CDW11.
pub(super) fn host_identifier_len(command: &Command) -> usize {
    if command.cdw11 & 1 != 0 {
        16
    } else {
        8
    }
}

/// What there is, whatever the host asked for.
fn number_of_queues(personality: &Personality) -> u32 {
    let count = personality.io_queues();
    NumberOfQueues {
        submission: count,
        completion: count,
    }
    .to_dword()
}

/// The interrupt vector that CDW11 selects: the admin queue's and one per I/O queue pair.
fn vector(personality: &Personality, cdw11: u32) -> Result<u16, Status> {
    let vector = cdw11 as u16;
    if vector > personality.io_queues() || vector > 255 {
        return Err(Status::INVALID_FIELD);
    }
    Ok(vector)
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

/// No feature here belongs to a namespace.
fn check_namespace(command: &Command) -> Result<(), Status> {
    match command.nsid {
        0 | NSID_ALL => Ok(()),
        _ => Err(Status::FEATURE_NOT_NAMESPACE_SPECIFIC),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Identity, Role};
    use super::*;

    /// The features of a controller.
    struct Bench(Features, Personality);

    impl Bench {
        fn new(role: Role) -> Self {
            let identity = Identity {
                serial: String::new(),
                controller_id: 0,
                subnqn: String::new(),
                controllers: Vec::new(),
            };
            Self(Features::default(), Personality { identity, role })
        }

        fn administrative() -> Self {
            Self::new(Role::Administrative {
                fleet: std::sync::Arc::default(),
            })
        }

        fn io(queues: u16) -> Self {
            let namespaces = Vec::new();
            Self::new(Role::Io { namespaces, queues })
        }

        fn get(&self, command: &Command) -> Result<u32, Status> {
            self.0.get(&self.1, command)
        }

        fn set(&mut self, command: &Command) -> Result<u32, Status> {
            self.0.set(&self.1, command, false)
        }
    }

    fn command(cdw10: u32, cdw11: u32) -> Command {
        Command {
            cdw10,
            cdw11,
            ..Command::new(0)
        }
    }

    #[test]
    fn values_come_back_and_bad_ones_are_refused() {
        let mut features = Bench::administrative();
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
            command(0x06, 1),           // Volatile Write Cache: no I/O
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
        let refused = Err(Status::FEATURE_NOT_NAMESPACE_SPECIFIC);
        assert_eq!(features.set(&namespace), refused);
    }

    #[test]
    fn an_io_controller_has_the_features_of_its_queues() {
        let mut features = Bench::io(16);
        for (identifier, first, value) in [
            (0x01, 7, 0x0304_0502), // Arbitration
            (0x05, 0, 0x0000_1234), // Error Recovery: time limit
            (0x06, 1, 0),           // Volatile Write Cache
            (0x08, 0, 0x0000_0a05), // Interrupt Coalescing
            (0x0a, 0, 1),           // Write Atomicity Normal
        ] {
            let get = command(identifier, 0);
            assert_eq!(features.get(&get), Ok(first), "{identifier:#x}");
            assert_eq!(features.set(&command(identifier, value)), Ok(0));
            assert_eq!(features.get(&get), Ok(value), "{identifier:#x}");
        }
        assert_eq!(features.get(&command(0x07, 0)), Ok(0x000f_000f));
        // Asked for more and for less; what there is does not change.
        for asked in [0x00ff_00ff, 0x0000_0000] {
            let answer = features.set(&command(0x07, asked));
            assert_eq!(answer, Ok(0x000f_000f));
        }
        // Interrupt Vector Configuration: one vector for each queue, and vector 0.
        features.set(&command(0x09, 0x0001_0010)).unwrap();
        assert_eq!(features.get(&command(0x09, 0x10)), Ok(0x0001_0010));
        assert_eq!(features.get(&command(0x09, 0x0f)), Ok(0x0000_000f));
        features.set(&command(0x09, 0x10)).unwrap();
        assert_eq!(features.get(&command(0x09, 0x10)), Ok(0x10));
        for bad in [
            command(0x05, 0x0001_0000), // DULBE
            command(0x07, 0xffff_0000), // 65,536 queues
            command(0x07, 0x0000_ffff),
            command(0x09, 0x11), // no such vector
        ] {
            assert_eq!(features.set(&bad), Err(Status::INVALID_FIELD), "{bad:?}");
        }
        let late = features.0.set(&features.1, &command(0x07, 0), true);
        assert_eq!(late, Err(Status::COMMAND_SEQUENCE_ERROR));
    }

    #[test]
    fn crossing_a_threshold_warns_and_is_an_event_only_when_wanted() {
        let mut features = Bench::administrative();
        assert_eq!(features.0.critical_warning(), 0);
        features.set(&command(0x04, 300)).unwrap();
        assert_eq!(
            (
                features.0.critical_warning(),
                features.0.temperature_event()
            ),
            (2, false)
        );
        features.set(&command(0x0b, 2)).unwrap();
        assert!(features.0.temperature_event());
    }
}
