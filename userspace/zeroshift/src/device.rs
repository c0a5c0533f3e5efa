// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `/dev/migdirty` as the subcommands see it: cards by address, and what is done with functions,
//! each behind a trait that tests replace.

use crate::address::Address;
use crate::backend::{Backend, State, Synced};
use crate::modules;
use crate::sys;
use anyhow::{anyhow, bail, Result};
use migdirty_uapi::{
    MigdirtyCard, MigdirtyFunctionInfo, MigdirtyRange, MAX_STATE, MIGDIRTY_SYNC_COMPLETE,
    MIGDIRTY_SYNC_MORE,
};
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

impl Device {
    /// Opens the device, which has to be there.
    pub(crate) fn open_loaded(path: &Path) -> Result<Self> {
        Self::open(path)?.ok_or_else(|| {
            anyhow!(
                "{} is not there: the module migdirty is not loaded; to load it: {}; in a container \
                 pass the device in",
                path.display(),
                modules::load("migdirty")
            )
        })
    }
}

impl Cards for Device {
    fn at_or_after(&self, address: u32) -> Result<Option<MigdirtyCard>> {
        let path = self.path.display();
        let mut card = MigdirtyCard::question(address);
        match sys::get_card(&self.file, &mut card) {
            Ok(()) => Ok(Some(card)),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::NOTTY | Errno::INVAL | Errno::TOOBIG) => Err(anyhow!(
                "{path} does not know the request of zeroshift {}; \
                 load the module migdirty of the same version",
                env!("CARGO_PKG_VERSION"),
            )),
            Err(error) => Err(anyhow!(
                "cannot read a card from {path}: {error}; 'dmesg' may say more"
            )),
        }
    }
}

/// Ranges that one sync has room for.
const SYNC_ROOM: usize = 16384;
/// Bytes that a state is first given room for.
const STATE_ROOM: usize = 1 << 20;

impl Backend for Device {
    fn function(&self, address: Address) -> Result<MigdirtyFunctionInfo, Errno> {
        sys::get_function(&self.file, address.0)
    }

    fn log_start(
        &self,
        address: Address,
        ranges: &[MigdirtyRange],
        granule: u64,
    ) -> Result<u64, Errno> {
        sys::log_start(&self.file, address.0, ranges, granule)
    }

    fn log_sync(&self, address: Address, iova: u64, length: u64) -> Result<Synced, Errno> {
        let mut ranges = vec![MigdirtyRange::ZERO; SYNC_ROOM];
        let (count, flags) = sys::log_sync(&self.file, address.0, iova, length, &mut ranges)?;
        ranges.truncate(count);
        Ok(Synced {
            ranges,
            more: flags & MIGDIRTY_SYNC_MORE != 0,
            complete: flags & MIGDIRTY_SYNC_COMPLETE != 0,
        })
    }

    fn log_stop(&self, address: Address) -> Result<(), Errno> {
        sys::log_stop(&self.file, address.0)
    }

    fn pause(&self, address: Address) -> Result<(), Errno> {
        sys::pause(&self.file, address.0)
    }

    fn resume(&self, address: Address) -> Result<(), Errno> {
        sys::resume(&self.file, address.0)
    }

    fn save(&self, address: Address) -> Result<State, Errno> {
        let mut room = STATE_ROOM;
        loop {
            let mut bytes = vec![0; room];
            let (state, result) = sys::save(&self.file, address.0, &mut bytes);
            let size = usize::try_from(state.size).map_err(|_| Errno::NOSPC)?;
            match result {
                Ok(()) if size <= room => {
                    bytes.truncate(size);
                    return Ok(State {
                        version: state.version,
                        uuid: state.uuid,
                        bytes,
                    });
                }
                // It grows each time, up to the limit.
                Err(Errno::NOSPC) if size > room && state.size <= MAX_STATE => room = size,
                Ok(()) => return Err(Errno::NOSPC),
                Err(error) => return Err(error),
            }
        }
    }

    fn restore(&self, address: Address, state: &State) -> Result<(), Errno> {
        sys::restore(
            &self.file,
            address.0,
            state.version,
            state.uuid,
            &state.bytes,
        )
    }

    fn identity(&self, address: Address) -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![0; zeroshift_stream::identity::MAX_SIZE];
        let size = sys::get_identity(&self.file, address.0, &mut bytes)?;
        bytes.truncate(size);
        Ok(bytes)
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
