// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The serial number of a card, and everything by which a host recognises the card.
//!
//! All of it derives from the serial number alone, so the same serial gives the same card after a
//! restart, and on another machine.

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
    pub(crate) fn device_serial_number(&self) -> u64 {
        hash(0, &self.0)
    }

    /// NGUID of a namespace: a vendor's extension identifier, then an OUI that nobody has, then the
    /// number of the namespace.
    pub(crate) fn namespace_identifier(&self, id: u32) -> [u8; 16] {
        let mut identifier = [0; 16];
        identifier[..8].copy_from_slice(&hash(3, &self.0).to_be_bytes());
        // Locally administered.
        identifier[8..12].copy_from_slice(&[0x02, 0x5a, 0x53, 0]);
        identifier[12..].copy_from_slice(&id.to_be_bytes());
        identifier
    }

    /// Name of the NVM subsystem. The UUID is of version 8 (RFC 9562): made from the serial number
    /// in a way of our own.
    pub(crate) fn subnqn(&self) -> String {
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
