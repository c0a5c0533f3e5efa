// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `/dev/migdirty` as the subcommands see it: cards by address, behind a trait that tests replace.

use crate::sys;
use anyhow::{anyhow, bail, Result};
use migdirty_uapi::MigdirtyCard;
use rustix::io::Errno;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Something that knows cards.
pub(crate) trait Cards {
    /// The card with the lowest address that is not below `address`.
    fn at_or_after(&self, address: u32) -> Result<Option<MigdirtyCard>>;
}

/// The open device.
pub(crate) struct Device {
    path: PathBuf,
    file: File,
}

impl Device {
    /// Opens the device; `None` when there is none, that is, when the module is not loaded.
    pub(crate) fn open(path: &Path) -> Result<Option<Self>> {
        match File::options().read(true).write(true).open(path) {
            Ok(file) => Ok(Some(Self {
                path: path.to_owned(),
                file,
            })),
            // A node that was left behind by hand gives ENXIO or ENODEV.
            Err(error)
                if error.kind() == ErrorKind::NotFound
                    || [Some(Errno::NXIO), Some(Errno::NODEV)]
                        .contains(&Errno::from_io_error(&error)) =>
            {
                Ok(None)
            }
            Err(error) if error.kind() == ErrorKind::PermissionDenied => bail!(
                "cannot open {}: {error}; run this command as root",
                path.display()
            ),
            Err(error) => bail!("cannot open {}: {error}", path.display()),
        }
    }
}

impl Cards for Device {
    fn at_or_after(&self, address: u32) -> Result<Option<MigdirtyCard>> {
        let path = self.path.display();
        loop {
            let mut card = MigdirtyCard::question(address);
            return match sys::get_card(&self.file, &mut card) {
                Ok(()) => Ok(Some(card)),
                Err(Errno::NOENT) => Ok(None),
                Err(Errno::INTR) => continue,
                Err(Errno::NOTTY | Errno::INVAL | Errno::TOOBIG) => Err(anyhow!(
                    "{path} does not know the request of zeroshift {}; \
                     load the module migdirty of the same version",
                    env!("CARGO_PKG_VERSION"),
                )),
                Err(error) => Err(anyhow!(
                    "cannot read a card from {path}: {error}; 'dmesg' may say more"
                )),
            };
        }
    }
}

/// All cards, in the order of their addresses.
pub(crate) fn all(cards: &dyn Cards) -> Result<Vec<MigdirtyCard>> {
    let mut found = Vec::new();
    let mut next = Some(0);
    while let Some(address) = next {
        let Some(card) = cards.at_or_after(address)? else {
            break;
        };
        if card.address < address {
            bail!(
                "the module migdirty answered with address {:#x} when asked for {address:#x} \
                 or above; load the module of the same version as zeroshift",
                card.address
            );
        }
        next = card.address.checked_add(1);
        found.push(card);
    }
    Ok(found)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Cards that a test made up, sorted by address.
    pub(crate) struct Fake(pub(crate) Vec<MigdirtyCard>);

    impl Cards for Fake {
        fn at_or_after(&self, address: u32) -> Result<Option<MigdirtyCard>> {
            Ok(self.0.iter().find(|card| card.address >= address).copied())
        }
    }

    fn at(address: u32) -> MigdirtyCard {
        MigdirtyCard::question(address)
    }

    #[test]
    fn walks_to_the_last_address() {
        let cards = vec![at(0), at(1), at(0x1_0000), at(u32::MAX)];
        assert_eq!(all(&Fake(cards.clone())).unwrap(), cards);
        assert_eq!(all(&Fake(vec![])).unwrap(), []);
    }

    #[test]
    fn a_module_that_goes_backwards_does_not_hang_the_walk() {
        struct Stuck;
        impl Cards for Stuck {
            fn at_or_after(&self, _: u32) -> Result<Option<MigdirtyCard>> {
                Ok(Some(at(8)))
            }
        }
        let error = all(&Stuck).unwrap_err().to_string();
        assert!(error.contains("0x8") && error.contains("0x9"), "{error}");
    }

    #[test]
    fn a_missing_device_is_no_error_and_a_wrong_one_is() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Device::open(&folder.path().join("migdirty"))
            .unwrap()
            .is_none());
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let device = Device::open(&file).unwrap().unwrap();
        let error = all(&device).unwrap_err().to_string();
        assert!(
            error.contains("same version") && error.contains("file"),
            "{error}"
        );
        let error = Device::open(folder.path()).err().unwrap().to_string();
        assert!(error.contains("cannot open"), "{error}");
    }
}
