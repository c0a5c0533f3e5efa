// SPDX-License-Identifier: Apache-2.0 OR MIT

//! PCI addresses as people write them and as `/dev/migdirty` counts them.

use std::fmt;
use std::str::FromStr;

/// `domain << 16 | bus << 8 | device << 3 | function`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Address(pub(crate) u32);

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(address) = self;
        write!(
            f,
            "{:04x}:{:02x}:{:02x}.{}",
            address >> 16,
            (address >> 8) & 0xff,
            (address >> 3) & 0x1f,
            address & 7
        )
    }
}

impl FromStr for Address {
    type Err = &'static str;

    /// `domain:bus:device.function` in hexadecimal; without a domain, domain 0, as `lspci` has it.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "a PCI address has the form 0000:01:00.0 or 01:00.0 ('lspci -D')";
        let number = |text: &str, digits: usize, below: u32| {
            let fine = (1..=digits).contains(&text.len())
                && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            let number = u32::from_str_radix(text, 16).ok();
            number.filter(|number| fine && *number < below).ok_or(FORM)
        };
        let (rest, function) = text.rsplit_once('.').ok_or(FORM)?;
        let (rest, device) = rest.rsplit_once(':').ok_or(FORM)?;
        let (domain, bus) = rest.split_once(':').unwrap_or(("0", rest));
        Ok(Self(
            number(domain, 4, 1 << 16)? << 16
                | number(bus, 2, 1 << 8)? << 8
                | number(device, 2, 1 << 5)? << 3
                | number(function, 1, 8)?,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        for (text, address) in [
            ("0000:00:00.0", 0),
            ("0000:02:00.0", 0x200),
            ("ffff:ff:1f.7", 0xffff_ffff),
            ("0001:80:02.3", 0x1_8013),
        ] {
            assert_eq!(text.parse(), Ok(Address(address)));
            assert_eq!(Address(address).to_string(), text);
        }
        assert_eq!("2:1.0".parse(), Ok(Address(0x208)));
        assert_eq!("1F:0a.0".parse(), Ok(Address(0x1f50)));
        for text in [
            "",
            "nvme0",
            "02:00",
            "02:00.8",
            "02:20.0",
            "100:00.0",
            "10000:02:00.0",
            "0:0:2:0.0",
            "+2:00.0",
            "02:00.0 ",
            ":02:00.0",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
