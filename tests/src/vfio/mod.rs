// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A PCI function as userspace has it through VFIO: what the test programs use to judge a VFIO
//! driver, plain vfio-pci or ours.
//!
//! | file | what |
//! |---|---|
//! | [`bind`] | which driver has a function |
//! | [`memory`] | memory of this process, and BARs, that a device changes at any time |
//! | [`space`] | an I/O address space: type1 container or iommufd |
//! | [`dma`] | memory of this process at I/O addresses |
//! | [`device`] | the device file: regions, configuration space, interrupts, reset |
//! | [`feature`] | `VFIO_DEVICE_FEATURE` with any bytes |
//! | [`migration`] | migration states, data files |
//! | [`log`] | DMA logging: start, stop, reports |
//! | [`exact`] | a log beside what was written |
//! | [`nvme`] | a polling NVMe driver that knows which pages its function wrote |
//! | [`stream`] | migration streams, taken apart and put together |
//! | [`walk`] | ways through the states with a function that runs |
//! | [`rig`] | what the programs share: options, functions, a device that runs |
//!
//! Nothing in here judges: results are `Errno`s and bytes as the kernel gave them.

pub mod bind;
pub mod device;
pub mod dma;
pub mod exact;
pub mod feature;
pub mod log;
pub mod memory;
pub mod migration;
pub mod nvme;
pub mod rig;
pub mod space;
pub mod stream;
mod sys;
pub mod walk;
