// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A module migdirty with one function, for tests: it notes what it was asked, and fails where it is
//! told to.

use crate::address::Address;
use crate::backend::{Backend, State, Synced};
use migdirty_uapi::{
    MigdirtyFunctionInfo, MigdirtyRange, MIGDIRTY_FUNCTION_LIVE, MIGDIRTY_FUNCTION_SUSPENDED,
};
use rustix::io::Errno;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use zeroshift_stream::identity::{Builder, Identity, Namespace};

/// Address of the function.
pub(crate) const ADDRESS: Address = Address(0x200);

/// The module.
pub(crate) struct Fake {
    pub(crate) flags: Cell<u32>,
    pub(crate) state: RefCell<State>,
    pub(crate) identity: Vec<u8>,
    pub(crate) syncs: RefCell<VecDeque<Synced>>,
    pub(crate) asked: RefCell<Vec<String>>,
    /// The request that fails, by the first word of what `asked` has.
    pub(crate) fails: Cell<Option<(&'static str, Errno)>>,
}

impl Default for Fake {
    fn default() -> Self {
        Self {
            flags: Cell::new(MIGDIRTY_FUNCTION_LIVE),
            state: RefCell::new(State {
                version: 0,
                uuid: [0xab; 16],
                bytes: (0..5000u32).map(|n| n as u8).collect(),
            }),
            identity: identity("ZS00000001"),
            syncs: RefCell::default(),
            asked: RefCell::default(),
            fails: Cell::new(None),
        }
    }
}

/// An identity with a namespace.
pub(crate) fn identity(serial: &str) -> Vec<u8> {
    let mut bytes = vec![0; 400];
    let mut padded = [b' '; 20];
    padded[..serial.len()].copy_from_slice(serial.as_bytes());
    let identity = Identity {
        vendor: 0x5a53,
        device: 2,
        subsystem_vendor: 0x5a53,
        subsystem: 2,
        class_revision: 0x0108_0200,
        serial: &padded,
        model: b"Zeroshift zerocard                      ",
        subnqn: b"nqn.2026-01.org.example:1",
    };
    let mut builder = Builder::new(&mut bytes, &identity).unwrap();
    let namespace = Namespace {
        nsid: 1,
        block_shift: 9,
        blocks: 1 << 20,
        eui64: [0; 8],
        nguid: [0x11; 16],
    };
    builder.namespace(&namespace).unwrap();
    let size = builder.finish();
    bytes.truncate(size);
    bytes
}

impl Fake {
    fn ask(&self, address: Address, what: String) -> Result<(), Errno> {
        let fails = self.fails.get();
        let fails = fails.filter(|(word, _)| what.split(' ').next() == Some(word));
        self.asked.borrow_mut().push(what);
        match fails {
            Some((_, errno)) => Err(errno),
            None if address != ADDRESS => Err(Errno::NOENT),
            None => Ok(()),
        }
    }

    fn needs_a_pause(&self) -> Result<(), Errno> {
        if self.flags.get() & MIGDIRTY_FUNCTION_SUSPENDED == 0 {
            return Err(Errno::BUSY);
        }
        Ok(())
    }
}

impl Backend for Fake {
    fn function(&self, address: Address) -> Result<MigdirtyFunctionInfo, Errno> {
        if address != ADDRESS {
            return Err(Errno::NOENT);
        }
        Ok(MigdirtyFunctionInfo {
            flags: self.flags.get(),
            card: 0x100,
            controller_id: 1,
            ranges: 2,
            granule: 4096,
            suspends: 3,
            resumes: 4,
            harvests: 5,
            dirty_bytes: 6 << 20,
            states_read: 7,
            states_written: 8,
            ..MigdirtyFunctionInfo::question(address.0)
        })
    }

    fn log_start(
        &self,
        address: Address,
        ranges: &[MigdirtyRange],
        granule: u64,
    ) -> Result<u64, Errno> {
        let ranges: Vec<String> = ranges
            .iter()
            .map(|range| format!("{:x}+{:x}", range.iova, range.length))
            .collect();
        self.ask(address, format!("start {} {granule}", ranges.join(",")))?;
        Ok(granule.max(8192))
    }

    fn log_sync(&self, address: Address, iova: u64, length: u64) -> Result<Synced, Errno> {
        self.ask(address, format!("sync {iova:x}+{length:x}"))?;
        Ok(self.syncs.borrow_mut().pop_front().unwrap_or_default())
    }

    fn log_stop(&self, address: Address) -> Result<(), Errno> {
        self.ask(address, "stop".into())
    }

    fn pause(&self, address: Address) -> Result<(), Errno> {
        self.ask(address, "pause".into())?;
        self.flags
            .set(self.flags.get() | MIGDIRTY_FUNCTION_SUSPENDED);
        Ok(())
    }

    fn resume(&self, address: Address) -> Result<(), Errno> {
        self.ask(address, "resume".into())?;
        self.flags
            .set(self.flags.get() & !MIGDIRTY_FUNCTION_SUSPENDED);
        Ok(())
    }

    fn save(&self, address: Address) -> Result<State, Errno> {
        self.ask(address, "save".into())?;
        self.needs_a_pause()?;
        Ok(self.state.borrow().clone())
    }

    fn restore(&self, address: Address, state: &State) -> Result<(), Errno> {
        self.ask(address, "restore".into())?;
        self.needs_a_pause()?;
        *self.state.borrow_mut() = state.clone();
        Ok(())
    }

    fn identity(&self, address: Address) -> Result<Vec<u8>, Errno> {
        self.ask(address, "identity".into())?;
        Ok(self.identity.clone())
    }
}
