// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Migration states of a device, and the data files that carry its state.

use super::device::Device;
use super::space::vfio;
use super::sys::take_file;
use crate::sys::ioctl_on;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::io::{read, write, Errno, Result};
use std::os::fd::{AsFd as _, OwnedFd};
use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2, VFIO_DEVICE_FEATURE_MIGRATION,
    VFIO_DEVICE_FEATURE_MIG_DATA_SIZE, VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE,
};

const GET_PRECOPY_INFO: u32 = vfio(21);

/// Device states, `enum vfio_device_mig_state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
#[allow(missing_docs)] // The names are the uAPI's.
pub enum State {
    Error = 0,
    Stop = 1,
    Running = 2,
    StopCopy = 3,
    Resuming = 4,
    RunningP2p = 5,
    PreCopy = 6,
    PreCopyP2p = 7,
}

impl State {
    /// Every state that can be asked for.
    pub const ALL: [Self; 7] = [
        Self::Stop,
        Self::Running,
        Self::StopCopy,
        Self::Resuming,
        Self::RunningP2p,
        Self::PreCopy,
        Self::PreCopyP2p,
    ];

    fn from_number(number: u32) -> Option<Self> {
        let mut all = Self::ALL.into_iter().chain([Self::Error]);
        all.find(|state| *state as u32 == number)
    }
}

impl Device {
    /// The flags of VFIO_DEVICE_FEATURE_MIGRATION.
    pub fn migration_flags(&self) -> Result<u64> {
        let mut data = [0; 8];
        self.get_feature(VFIO_DEVICE_FEATURE_MIGRATION, &mut data)?;
        Ok(u64::from_ne_bytes(data))
    }

    /// The state it is in.
    pub fn state(&self) -> Result<State> {
        let mut data = [0xff; 8];
        self.get_feature(VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, &mut data)?;
        let [a, b, c, d, fd @ ..] = data;
        if i32::from_ne_bytes(fd) != -1 {
            return Err(Errno::PROTO);
        }
        State::from_number(u32::from_ne_bytes([a, b, c, d])).ok_or(Errno::PROTO)
    }

    /// Asks for a state.
    pub fn set_state(&self, state: State) -> Result<Option<DataFile>> {
        self.set_state_number(state as u32)
    }

    /// Asks for a state by its number.
    pub fn set_state_number(&self, state: u32) -> Result<Option<DataFile>> {
        let mut data = [0xff; 8];
        data[..4].copy_from_slice(&state.to_ne_bytes());
        let result = self.set_feature(VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, &mut data);
        let [.., a, b, c, d] = data;
        let file = take_file(i32::from_ne_bytes([a, b, c, d]));
        result.map(|()| file.map(DataFile))
    }

    /// VFIO_DEVICE_FEATURE_MIG_DATA_SIZE: bytes that a stop will have to copy.
    pub fn data_size(&self) -> Result<u64> {
        let mut data = [0; 8];
        self.get_feature(VFIO_DEVICE_FEATURE_MIG_DATA_SIZE, &mut data)?;
        Ok(u64::from_ne_bytes(data))
    }

    /// Says that this user understands the second version of PRECOPY_INFO.
    pub fn use_precopy_info_v2(&self) -> Result<()> {
        self.set_feature(VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2, &mut [])
    }
}

/// What VFIO_MIG_GET_PRECOPY_INFO says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrecopyInfo {
    /// Flags, with the second version.
    pub flags: u32,
    /// What is left of the first data.
    pub initial_bytes: u64,
    /// What changed since it was read.
    pub dirty_bytes: u64,
}

/// A data file.
#[derive(Debug)]
pub struct DataFile(OwnedFd);

impl DataFile {
    /// One read.
    pub fn read(&self, buffer: &mut [u8]) -> Result<usize> {
        read(&self.0, buffer)
    }

    /// One write.
    pub fn write(&self, bytes: &[u8]) -> Result<usize> {
        write(&self.0, bytes)
    }

    /// Everything until the end or, in PRE_COPY, until there is nothing now, `step` bytes at a
    /// time.
    pub fn read_all(&self, step: usize) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        let mut buffer = vec![0; step];
        loop {
            match self.read(&mut buffer) {
                Ok(0) | Err(Errno::NOMSG) => return Ok(all),
                Ok(count) => all.extend_from_slice(&buffer[..count]),
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes everything, `step` bytes at a time.
    pub fn write_all(&self, bytes: &[u8], step: usize) -> Result<()> {
        for chunk in bytes.chunks(step) {
            let mut rest = chunk;
            while !rest.is_empty() {
                let count = self.write(rest)?;
                if count == 0 {
                    return Err(Errno::IO);
                }
                rest = &rest[count..];
            }
        }
        Ok(())
    }

    /// What poll says now.
    pub fn poll(&self) -> Result<PollFlags> {
        let mut fds = [PollFd::new(&self.0, PollFlags::IN | PollFlags::OUT)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut fds, Some(&now))?;
        Ok(fds[0].revents())
    }

    /// Moves to its start, which no data file can.
    pub fn seek(&self) -> Result<u64> {
        rustix::fs::seek(&self.0, rustix::fs::SeekFrom::Start(0))
    }

    /// VFIO_MIG_GET_PRECOPY_INFO.
    pub fn precopy_info(&self) -> Result<PrecopyInfo> {
        self.precopy_info_with(24, 0)
    }

    /// The same with other input.
    pub fn precopy_info_with(&self, argsz: u32, flags: u32) -> Result<PrecopyInfo> {
        let mut bytes = [0; 64];
        bytes[..4].copy_from_slice(&argsz.to_ne_bytes());
        bytes[4..8].copy_from_slice(&flags.to_ne_bytes());
        ioctl_on(self.0.as_fd(), GET_PRECOPY_INFO, &mut bytes)?;
        let u64_at = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
        Ok(PrecopyInfo {
            flags: u32::from_ne_bytes(bytes[4..8].try_into().unwrap()),
            initial_bytes: u64_at(8),
            dirty_bytes: u64_at(16),
        })
    }

    /// Any other ioctl with a buffer.
    pub fn ioctl(&self, number: u32, bytes: &mut [u8]) -> Result<()> {
        ioctl_on(self.0.as_fd(), number, bytes)
    }
}
