// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The card: what it is called and which functions it has.
//!
//! Everything by which a host recognises the card derives from its serial number, so the same
//! serial gives the same card after a restart. Knows no sockets.

use std::sync::Arc;

use anyhow::{bail, Context as _, Result};

use crate::nvme::admin::{self, Personality, Role};
use crate::nvme::controller::Controller;
use crate::nvme::namespace::Namespace;
use crate::options::{FunctionOptions, NamespaceOptions};
use crate::pci::config::Identity;
use crate::pci::Function;

/// Longest serial number that Identify Controller can carry.
const MAX_SERIAL: usize = 20;

/// A serial number: 1 to 20 printable ASCII characters without spaces at the ends.
#[derive(Clone, Debug)]
pub(crate) struct Serial(String);

impl std::str::FromStr for Serial {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let printable = text.bytes().all(|byte| (0x20..0x7f).contains(&byte));
        if text.is_empty() || text.len() > MAX_SERIAL || !printable || text.trim() != text {
            return Err(
                "a serial number is 1 to 20 printable ASCII characters, no space at the ends",
            );
        }
        Ok(Self(text.to_owned()))
    }
}

impl std::fmt::Display for Serial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serial {
    /// The Device Serial Number of every function.
    fn device_serial_number(&self) -> u64 {
        hash(0, &self.0)
    }

    /// NGUID of a namespace: a vendor's extension identifier, then an OUI that nobody has, then the
    /// number of the namespace.
    fn namespace_identifier(&self, id: u32) -> [u8; 16] {
        let mut identifier = [0; 16];
        identifier[..8].copy_from_slice(&hash(3, &self.0).to_be_bytes());
        // Locally administered.
        identifier[8..12].copy_from_slice(&[0x02, 0x5a, 0x53, 0]);
        identifier[12..].copy_from_slice(&id.to_be_bytes());
        identifier
    }

    /// Name of the NVM subsystem. The UUID is of version 8 (RFC 9562): made from the serial number
    /// in a way of our own.
    fn subnqn(&self) -> String {
        let high = (hash(1, &self.0) & !0xf000) | 0x8000;
        let low = (hash(2, &self.0) & !(3 << 62)) | 2 << 62;
        format!(
            "nqn.2014-08.org.nvmexpress:uuid:{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            high >> 32,
            high >> 16 & 0xffff,
            high & 0xffff,
            low >> 48,
            low & 0xffff_ffff_ffff
        )
    }
}

/// FNV-1a, 64 bits: the same on every machine and in every version, which std's hashers are not.
fn hash(purpose: u8, text: &str) -> u64 {
    let bytes = std::iter::once(purpose).chain(text.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// A function of the card and what a user has to know about it.
pub(crate) struct Slot {
    /// Name of the function; its socket is called after it.
    pub(crate) name: String,
    /// Kind, as the ready line shows it.
    pub(crate) kind: &'static str,
    /// NVMe controller id.
    pub(crate) controller_id: u16,
    /// The function itself.
    pub(crate) function: Arc<Function>,
}

/// Makes the functions of a card: the administrative controller, then the others with controller
/// ids from 1.
pub(crate) fn functions(
    serial: &Serial,
    media: &[NamespaceOptions],
    functions: &[FunctionOptions],
) -> Result<Vec<Slot>> {
    let namespaces = namespaces(serial, media, functions)?;
    let ids: Vec<u16> = (0..=functions.len() as u16).collect();
    let mut slots = vec![administrative(serial, &ids)];
    for (options, controller_id) in functions.iter().zip(1..) {
        let mut attached = Vec::new();
        for namespace in &namespaces {
            if options.attaches(namespace.id) {
                attached.push(Arc::clone(namespace));
            }
        }
        slots.push(Slot {
            name: options.name(controller_id),
            kind: "nvme",
            controller_id,
            function: function(
                serial,
                &ids,
                controller_id,
                Role::Io {
                    namespaces: attached,
                    queues: options.queues,
                },
            ),
        });
    }
    Ok(slots)
}

fn namespaces(
    serial: &Serial,
    media: &[NamespaceOptions],
    functions: &[FunctionOptions],
) -> Result<Vec<Arc<Namespace>>> {
    let mut namespaces = Vec::new();
    for (options, id) in media.iter().zip(1..) {
        let medium = options
            .open()
            .with_context(|| format!("namespace {id} ({options})"))?;
        let users = functions.iter().filter(|function| function.attaches(id));
        namespaces.push(Arc::new(Namespace {
            id,
            blocks: medium.size() >> options.block_shift(),
            medium,
            block_shift: options.block_shift(),
            nguid: serial.namespace_identifier(id),
            shared: users.count() > 1,
        }));
    }
    for (options, id) in functions.iter().zip(1..) {
        if let Some(wrong) = options.missing(media.len()) {
            bail!(
                "function {} attaches namespace {wrong}, and the card has {}",
                options.name(id),
                media.len()
            );
        }
    }
    Ok(namespaces)
}

fn administrative(serial: &Serial, ids: &[u16]) -> Slot {
    Slot {
        name: "admin".to_owned(),
        kind: "nvme-admin",
        controller_id: 0,
        function: function(serial, ids, 0, Role::Administrative),
    }
}

fn function(serial: &Serial, ids: &[u16], controller_id: u16, role: Role) -> Arc<Function> {
    let administrative = matches!(role, Role::Administrative);
    let personality = Personality {
        identity: admin::Identity {
            serial: serial.0.clone(),
            controller_id,
            subnqn: serial.subnqn(),
            controllers: ids.to_vec(),
        },
        role,
    };
    let identity = Identity {
        device: if administrative { 0x0001 } else { 0x0002 },
        class: if administrative {
            0x01_08_03
        } else {
            0x01_08_02
        },
        serial_number: serial.device_serial_number(),
        controller_id,
        role: administrative.into(),
        bar0_size: 0x4000,
        // One for the admin queue and one for each pair of I/O queues.
        vectors: personality.io_queues() + 1,
    };
    let kind = Box::new(Controller::new(personality));
    Arc::new(Function::new(&identity, kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serial_numbers_fit_identify_controller() {
        for good in ["Z", "ZS00000001", "12345678901234567890", "A B"] {
            assert!(good.parse::<Serial>().is_ok(), "{good:?}");
        }
        for bad in ["", "123456789012345678901", " Z", "Z ", "Z\n", "\u{e9}"] {
            assert!(bad.parse::<Serial>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn identity_is_stable_and_differs_between_cards() {
        let one: Serial = "ZS00000001".parse().unwrap();
        let two: Serial = "ZS00000002".parse().unwrap();
        assert_eq!(
            one.device_serial_number(),
            one.clone().device_serial_number()
        );
        assert_ne!(one.device_serial_number(), two.device_serial_number());
        assert_ne!(one.subnqn(), two.subnqn());
        let name = one.subnqn();
        let uuid = name
            .strip_prefix("nqn.2014-08.org.nvmexpress:uuid:")
            .unwrap();
        assert_eq!(uuid.len(), 36);
        assert_eq!(&uuid[14..15], "8");
        assert!(matches!(&uuid[19..20], "8" | "9" | "a" | "b"));
    }
}
