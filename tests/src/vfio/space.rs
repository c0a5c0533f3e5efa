// SPDX-License-Identifier: Apache-2.0 OR MIT

//! An I/O address space that several devices can share: a type1 container, or an IOAS of iommufd.

use super::memory::Memory;
use super::sys::ioctl_with;
use crate::sys::ioctl_at;
use iommufd_bindings::{
    iommu_ioas_alloc, iommu_ioas_map, iommu_ioas_unmap,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA as FIXED_IOVA,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE as READABLE,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE as WRITEABLE, IOMMUFD_CMD_IOAS_ALLOC,
    IOMMUFD_CMD_IOAS_MAP, IOMMUFD_CMD_IOAS_UNMAP, IOMMUFD_TYPE,
};
use rustix::io::{Errno, Result};
use rustix::ioctl::opcode;
use std::cell::Cell;
use std::fs::File;
use std::mem::size_of;
use std::os::fd::AsRawFd as _;
use vfio_bindings::bindings::vfio::{
    vfio_iommu_type1_dma_map, vfio_iommu_type1_dma_unmap, VFIO_TYPE1v2_IOMMU, VFIO_BASE,
    VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, VFIO_TYPE,
};

/// Number of the VFIO ioctl `n`, all of which are `_IO(VFIO_TYPE, VFIO_BASE + n)`.
// CAST: the uAPI's numbers fit a byte.
pub(super) const fn vfio(n: u32) -> u32 {
    opcode::none(VFIO_TYPE, (VFIO_BASE + n) as u8)
}

const SET_IOMMU: u32 = vfio(2);
const GROUP_SET_CONTAINER: u32 = vfio(4);
const MAP_DMA: u32 = vfio(13);
const UNMAP_DMA: u32 = vfio(14);

const fn iommufd(n: u32) -> u32 {
    // CAST: as above.
    opcode::none(IOMMUFD_TYPE, n as u8)
}

/// How userspace reaches a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Access {
    /// By its IOMMU group, in a type1 container.
    Group,
    /// By its character device, with iommufd.
    Cdev,
}

#[derive(Debug)]
enum Kind {
    Container { file: File, typed: Cell<bool> },
    Iommufd { file: File, ioas: u32 },
}

/// See the module. Everything in it is unmapped when it and its devices are closed.
#[derive(Debug)]
pub struct Space(Kind);

fn open(path: &str) -> Result<File> {
    File::options()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

impl Space {
    /// An empty one.
    pub fn new(access: Access) -> Result<Self> {
        Ok(Self(match access {
            Access::Group => Kind::Container {
                file: open("/dev/vfio/vfio")?,
                typed: Cell::new(false),
            },
            Access::Cdev => {
                let file = open("/dev/iommu")?;
                let mut alloc = iommu_ioas_alloc {
                    size: size_u32::<iommu_ioas_alloc>(),
                    ..Default::default()
                };
                ioctl_with(&file, iommufd(IOMMUFD_CMD_IOAS_ALLOC), &mut alloc)?;
                Kind::Iommufd {
                    file,
                    ioas: alloc.out_ioas_id,
                }
            }
        }))
    }

    /// How its devices are reached.
    pub fn access(&self) -> Access {
        match self.0 {
            Kind::Container { .. } => Access::Group,
            Kind::Iommufd { .. } => Access::Cdev,
        }
    }

    /// Puts an open group into the container.
    pub(super) fn add_group(&self, group: &File) -> Result<()> {
        let Kind::Container { file, typed } = &self.0 else {
            return Err(Errno::INVAL);
        };
        let mut container = file.as_raw_fd();
        ioctl_with(group, GROUP_SET_CONTAINER, &mut container)?;
        if !typed.get() {
            // SAFETY: the argument is a number, the kernel writes nothing.
            unsafe { ioctl_at(file, SET_IOMMU, VFIO_TYPE1v2_IOMMU as usize) }?;
            typed.set(true);
        }
        Ok(())
    }

    /// The iommufd and the IOAS that a device is to be attached to.
    pub(super) fn ioas(&self) -> Option<(&File, u32)> {
        match &self.0 {
            Kind::Container { .. } => None,
            Kind::Iommufd { file, ioas } => Some((file, *ioas)),
        }
    }

    /// Maps `length` bytes of `memory` at `iova`, for reading and writing. A container takes maps
    /// once it has a group.
    pub fn map(&self, iova: u64, memory: &Memory, offset: usize, length: usize) -> Result<()> {
        // CAST: 64-bit machines only.
        let (start, length) = (memory.address() + offset as u64, length as u64);
        match &self.0 {
            Kind::Container { file, .. } => {
                let mut map = vfio_iommu_type1_dma_map {
                    argsz: size_u32::<vfio_iommu_type1_dma_map>(),
                    flags: VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
                    vaddr: start,
                    iova,
                    size: length,
                };
                ioctl_with(file, MAP_DMA, &mut map)
            }
            Kind::Iommufd { file, ioas } => {
                let mut map = iommu_ioas_map {
                    size: size_u32::<iommu_ioas_map>(),
                    flags: FIXED_IOVA | READABLE | WRITEABLE,
                    ioas_id: *ioas,
                    user_va: start,
                    length,
                    iova,
                    ..Default::default()
                };
                ioctl_with(file, iommufd(IOMMUFD_CMD_IOAS_MAP), &mut map)
            }
        }
    }

    /// Ends a map.
    pub fn unmap(&self, iova: u64, length: u64) -> Result<()> {
        match &self.0 {
            Kind::Container { file, .. } => {
                let mut unmap = vfio_iommu_type1_dma_unmap {
                    argsz: size_u32::<vfio_iommu_type1_dma_unmap>(),
                    iova,
                    size: length,
                    ..Default::default()
                };
                ioctl_with(file, UNMAP_DMA, &mut unmap)
            }
            Kind::Iommufd { file, ioas } => {
                let mut unmap = iommu_ioas_unmap {
                    size: size_u32::<iommu_ioas_unmap>(),
                    ioas_id: *ioas,
                    iova,
                    length,
                };
                ioctl_with(file, iommufd(IOMMUFD_CMD_IOAS_UNMAP), &mut unmap)
            }
        }
    }
}

/// Size of a structure as the uAPI counts it.
pub(super) const fn size_u32<T>() -> u32 {
    // CAST: these structures are small.
    size_of::<T>() as u32
}
