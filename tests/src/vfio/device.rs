// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The device file of one function: regions, configuration space, interrupts, reset.

use super::memory::Bar;
use super::space::{size_u32, vfio, Access, Space};
use super::sys::{ioctl_open, ioctl_with};
use super::{bind, feature};
use crate::sys::{ioctl_at, ioctl_on};
use crate::sysfs::Function;
use anyhow::{ensure, Context as _, Result};
use rustix::io::{Errno, Result as Outcome};
use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use vfio_bindings::bindings::vfio::{
    vfio_device_attach_iommufd_pt, vfio_device_bind_iommufd, vfio_device_info, vfio_group_status,
    vfio_irq_info, vfio_region_info, VFIO_GROUP_FLAGS_VIABLE, VFIO_IRQ_SET_ACTION_TRIGGER,
    VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE, VFIO_PCI_BAR0_REGION_INDEX,
    VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_ERR_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX,
};

const GROUP_GET_STATUS: u32 = vfio(3);
const GROUP_GET_DEVICE_FD: u32 = vfio(6);
const GET_INFO: u32 = vfio(7);
const GET_REGION_INFO: u32 = vfio(8);
const GET_IRQ_INFO: u32 = vfio(9);
const SET_IRQS: u32 = vfio(10);
const RESET: u32 = vfio(11);
const BIND_IOMMUFD: u32 = vfio(18);
const ATTACH_IOMMUFD_PT: u32 = vfio(19);

/// Offsets and values of a type 0 header and of capabilities (PCIe Base 7.5).
mod pci {
    pub(super) const COMMAND: u64 = 0x04;
    pub(super) const COMMAND_MEMORY: u16 = 1 << 1;
    pub(super) const COMMAND_MASTER: u16 = 1 << 2;
    pub(super) const CAPABILITIES: u64 = 0x34;
    pub(super) const EXPRESS: u8 = 0x10;
    /// Device Control, from the start of the PCI Express capability.
    pub(super) const DEVICE_CONTROL: u64 = 8;
    pub(super) const DEVICE_CONTROL_FLR: u16 = 1 << 15;
}

/// An open device. Closing it disables the function.
#[derive(Debug)]
pub struct Device {
    file: File,
    // A group must stay open as long as a device of it.
    _group: Option<File>,
    config: vfio_region_info,
    bar0: vfio_region_info,
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn open(path: &std::path::Path) -> Result<File> {
    let mut options = File::options();
    let file = options.read(true).write(true).open(path);
    file.with_context(|| format!("cannot open {}", path.display()))
}

impl Device {
    /// Opens the device of `function`, which a VFIO driver has, and puts it into `space`.
    pub fn open(function: &Function, space: &Space) -> Result<Self> {
        let (file, group) = match space.access() {
            Access::Group => Self::open_group(function, space)?,
            Access::Cdev => (Self::open_cdev(function, space)?, None),
        };
        let config = region(&file, VFIO_PCI_CONFIG_REGION_INDEX)?;
        let bar0 = region(&file, VFIO_PCI_BAR0_REGION_INDEX)?;
        Ok(Self {
            file,
            _group: group,
            config,
            bar0,
        })
    }

    fn open_group(function: &Function, space: &Space) -> Result<(File, Option<File>)> {
        let path = std::path::Path::new("/dev/vfio").join(bind::group(function)?);
        let group = open(&path)?;
        let mut status = vfio_group_status {
            argsz: size_u32::<vfio_group_status>(),
            flags: 0,
        };
        ioctl_with(&group, GROUP_GET_STATUS, &mut status).context("GROUP_GET_STATUS")?;
        ensure!(
            status.flags & VFIO_GROUP_FLAGS_VIABLE != 0,
            "the group of {} is not viable",
            function.address
        );
        space.add_group(&group).context("GROUP_SET_CONTAINER")?;
        let name = CString::new(function.address.as_str())?;
        let file = ioctl_open(&group, GROUP_GET_DEVICE_FD, &name).context("GET_DEVICE_FD")?;
        Ok((file.into(), Some(group)))
    }

    fn open_cdev(function: &Function, space: &Space) -> Result<File> {
        let file = open(&bind::cdev(function)?)?;
        let (iommufd, ioas) = space.ioas().context("no iommufd")?;
        let mut bind = vfio_device_bind_iommufd {
            argsz: size_u32::<vfio_device_bind_iommufd>(),
            iommufd: iommufd.as_raw_fd(),
            ..Default::default()
        };
        ioctl_with(&file, BIND_IOMMUFD, &mut bind).context("BIND_IOMMUFD")?;
        let mut attach = vfio_device_attach_iommufd_pt {
            argsz: size_u32::<vfio_device_attach_iommufd_pt>(),
            pt_id: ioas,
            ..Default::default()
        };
        ioctl_with(&file, ATTACH_IOMMUFD_PT, &mut attach).context("ATTACH_IOMMUFD_PT")?;
        Ok(file)
    }

    /// Flags, number of regions, number of interrupt indices.
    pub fn info(&self) -> Outcome<(u32, u32, u32)> {
        let mut info = vfio_device_info {
            argsz: size_u32::<vfio_device_info>(),
            ..Default::default()
        };
        ioctl_with(self, GET_INFO, &mut info)?;
        Ok((info.flags, info.num_regions, info.num_irqs))
    }

    /// Size of BAR0.
    pub fn bar_size(&self) -> u64 {
        self.bar0.size
    }

    /// Maps BAR0.
    pub fn map_bar(&self) -> Outcome<Bar> {
        let length = usize::try_from(self.bar0.size).map_err(|_| Errno::OVERFLOW)?;
        Bar::new(self.as_fd(), self.bar0.offset, length)
    }

    /// Reads a register by the file, which fails (EIO) where a mapped access would be a signal.
    pub fn read_bar32(&self, offset: u64) -> Outcome<u32> {
        let mut bytes = [0; 4];
        let at = self.bar0.offset + offset;
        exact(self.file.read_at(&mut bytes, at), bytes.len())?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Reads from configuration space.
    pub fn read_config<const N: usize>(&self, offset: u64) -> Outcome<[u8; N]> {
        let mut bytes = [0; N];
        let at = self.config.offset + offset;
        exact(self.file.read_at(&mut bytes, at), N)?;
        Ok(bytes)
    }

    /// Writes to configuration space.
    pub fn write_config(&self, offset: u64, bytes: &[u8]) -> Outcome<()> {
        let at = self.config.offset + offset;
        exact(self.file.write_at(bytes, at), bytes.len())
    }

    /// Vendor and device.
    pub fn ids(&self) -> Outcome<(u16, u16)> {
        let [a, b, c, d] = self.read_config(0)?;
        Ok((u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d])))
    }

    /// The command register.
    pub fn command(&self) -> Outcome<u16> {
        self.read_config(pci::COMMAND).map(u16::from_le_bytes)
    }

    /// Lets it answer at its BAR and read and write memory, or not.
    pub fn enable(&self, on: bool) -> Outcome<()> {
        let bits = pci::COMMAND_MEMORY | pci::COMMAND_MASTER;
        let command = self.command()?;
        let command = if on { command | bits } else { command & !bits };
        self.write_config(pci::COMMAND, &command.to_le_bytes())
    }

    /// Whether it may read and write memory.
    pub fn is_master(&self) -> Outcome<bool> {
        Ok(self.command()? & pci::COMMAND_MASTER != 0)
    }

    /// Offset of a capability.
    pub fn capability(&self, id: u8) -> Outcome<Option<u64>> {
        let [mut at] = self.read_config(pci::CAPABILITIES)?;
        // A list that turns in circles has more entries than there is room for.
        for _ in 0..64 {
            at &= !3;
            if at == 0 {
                return Ok(None);
            }
            let [found, next] = self.read_config(u64::from(at))?;
            if found == id {
                return Ok(Some(u64::from(at)));
            }
            at = next;
        }
        Err(Errno::LOOP)
    }

    /// Resets it as a guest does: by the Function Level Reset bit.
    pub fn reset_by_guest(&self) -> Result<()> {
        let express = self.capability(pci::EXPRESS)?;
        let at = express.context("no PCI Express capability")? + pci::DEVICE_CONTROL;
        let control = u16::from_le_bytes(self.read_config(at)?) | pci::DEVICE_CONTROL_FLR;
        Ok(self.write_config(at, &control.to_le_bytes())?)
    }

    /// VFIO_DEVICE_RESET.
    pub fn reset(&self) -> Outcome<()> {
        // SAFETY: no argument.
        unsafe { ioctl_at(self, RESET, 0) }
    }

    /// Number of MSI-X vectors.
    pub fn vectors(&self) -> Outcome<u32> {
        let mut info = vfio_irq_info {
            argsz: size_u32::<vfio_irq_info>(),
            index: VFIO_PCI_MSIX_IRQ_INDEX,
            ..Default::default()
        };
        ioctl_with(self, GET_IRQ_INFO, &mut info)?;
        Ok(info.count)
    }

    /// Signals `events` at the MSI-X vectors from 0 on.
    pub fn set_vectors(&self, events: &[OwnedFd]) -> Outcome<()> {
        let fds = events.iter().flat_map(|e| e.as_raw_fd().to_ne_bytes());
        let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
        let fds = fds.collect::<Vec<_>>();
        self.set_irqs(VFIO_PCI_MSIX_IRQ_INDEX, flags, 0, events.len(), &fds)
    }

    /// Signals `event` when the kernel hears of an error of the device.
    pub fn set_error_event(&self, event: &OwnedFd) -> Outcome<()> {
        let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
        let fd = event.as_raw_fd().to_ne_bytes();
        self.set_irqs(VFIO_PCI_ERR_IRQ_INDEX, flags, 0, 1, &fd)
    }

    /// Signals the event of the vector `number` as if the device had.
    pub fn trigger_vector(&self, number: u32) -> Outcome<()> {
        let flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER;
        self.set_irqs(VFIO_PCI_MSIX_IRQ_INDEX, flags, number, 1, &[])
    }

    /// Disables MSI-X.
    pub fn clear_vectors(&self) -> Outcome<()> {
        let flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER;
        self.set_irqs(VFIO_PCI_MSIX_IRQ_INDEX, flags, 0, 0, &[])
    }

    fn set_irqs(
        &self,
        index: u32,
        flags: u32,
        start: u32,
        count: usize,
        data: &[u8],
    ) -> Outcome<()> {
        // struct vfio_irq_set: argsz, flags, index, start, count, data.
        // CAST: a handful of vectors.
        let (size, count) = ((20 + data.len()) as u32, count as u32);
        let fields = [size, flags, index, start, count];
        let mut bytes: Vec<u8> = fields.iter().flat_map(|n| n.to_ne_bytes()).collect();
        bytes.extend_from_slice(data);
        ioctl_on(self, SET_IRQS, &mut bytes)
    }

    /// VFIO_DEVICE_FEATURE with these fields and this data behind them, in and out.
    pub fn feature(&self, argsz: u32, flags: u32, data: &mut [u8]) -> Outcome<()> {
        feature::call(self.as_fd(), argsz, flags, data)
    }
}

fn region(file: &File, index: u32) -> Outcome<vfio_region_info> {
    let mut info = vfio_region_info {
        argsz: size_u32::<vfio_region_info>(),
        index,
        ..Default::default()
    };
    ioctl_with(file, GET_REGION_INFO, &mut info)?;
    Ok(info)
}

/// All of it, or the error; less than all is EIO.
fn exact(result: std::io::Result<usize>, length: usize) -> Outcome<()> {
    match result {
        Ok(count) if count == length => Ok(()),
        Ok(_) => Err(Errno::IO),
        Err(error) => Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
    }
}
