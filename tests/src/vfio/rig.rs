// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the test programs share: their options, the functions that they are given, and a function
//! that runs.

use super::bind;
use super::device::Device;
use super::dma::{Dma, DATA};
use super::log::PAGE;
use super::nvme::{Nvme, Wish, BLOCKS_OF_PAGE};
use super::space::{Access, Space};
use crate::ktap::{Ktap, Outcome};
use crate::sysfs::Function;
use anyhow::{Context as _, Result};
use clap::Parser;

/// Options of every program.
#[derive(Clone, Debug, Parser)]
pub struct Options {
    /// VFIO driver to test
    #[arg(long, default_value = "vfio-pci")]
    pub driver: String,
    /// PCI address of the NVMe function to test; its namespace 1 loses its content
    #[arg(long)]
    pub function: String,
    /// Ways to open devices; all of them when not given
    #[arg(long, value_enum)]
    pub access: Vec<Access>,
    /// Run only tests whose names contain this
    #[arg(long, default_value = "")]
    pub only: String,
}

impl Options {
    /// Ways to open devices.
    pub fn ways(&self) -> Vec<Access> {
        match self.access.as_slice() {
            [] => vec![Access::Group, Access::Cdev],
            some => some.to_vec(),
        }
    }
}

/// A function at a PCI address.
pub fn function(address: &str) -> Function {
    Function {
        address: address.to_owned(),
    }
}

/// Runs `tests` for each way to open a device, and gives the exit code.
pub fn run<T>(
    options: &Options,
    tests: &[(impl AsRef<str>, T)],
    run: impl Fn(&T, Access) -> Outcome,
) -> u8 {
    let mut all = Vec::new();
    for access in options.ways() {
        for (name, test) in tests {
            let name = name.as_ref();
            let name = match access {
                Access::Group => format!("group.{name}"),
                Access::Cdev => format!("cdev.{name}"),
            };
            if name.contains(&options.only) {
                all.push((name, test, access));
            }
        }
    }
    let mut ktap = Ktap::new(all.len());
    for (name, test, access) in all {
        ktap.test(&name, || run(test, access));
    }
    ktap.finish()
}

/// Devices in one address space with memory. The first one runs when it is asked to.
#[derive(Debug)]
pub struct Setup {
    /// The memory.
    pub dma: Dma,
    /// The devices, in the order of the functions.
    pub devices: Vec<Device>,
}

/// Gives the functions to the driver and opens them.
pub fn open(driver: &str, functions: &[&Function], access: Access) -> Result<Setup> {
    let space = Space::new(access).context("cannot make an I/O address space")?;
    let mut devices = Vec::new();
    for function in functions {
        bind::give(function, driver)?;
        let device = Device::open(function, &space);
        devices.push(device.with_context(|| format!("cannot open {}", function.address))?);
    }
    let dma = Dma::new(space)?;
    Ok(Setup { dma, devices })
}

/// Opens one function, starts it, and lets `test` have it. The device is closed at the end.
pub fn with_nvme(
    driver: &str,
    address: &str,
    access: Access,
    wish: Wish,
    test: impl FnOnce(&mut Nvme<'_>) -> Outcome,
) -> Outcome {
    let mut setup = open(driver, &[&function(address)], access)?;
    let device = setup.devices.pop().context("one device")?;
    test(&mut Nvme::start(device, &setup.dma, wish)?)
}

/// Opens two functions in one address space, starts the first, and lets `test` have both.
pub fn with_pair(
    driver: &str,
    addresses: [&str; 2],
    access: Access,
    wish: Wish,
    test: impl FnOnce(&mut Nvme<'_>, Device) -> Outcome,
) -> Outcome {
    let [first, second] = addresses.map(function);
    let setup = open(driver, &[&first, &second], access)?;
    let mut devices = setup.devices.into_iter();
    let first = devices.next().context("two devices")?;
    let second = devices.next().context("two devices")?;
    test(&mut Nvme::start(first, &setup.dma, wish)?, second)
}

/// What the tests write to page `page` of namespace 1: every dword says where it belongs.
pub fn content(page: u64, generation: u32) -> Vec<u8> {
    // CAST: pages of a small namespace, dwords of a page.
    let dword = |i: u32| (page as u32) << 16 | generation << 10 | i;
    (0..PAGE as u32 / 4)
        .flat_map(|i| dword(i).to_le_bytes())
        .collect()
}

/// Writes [`content`] to the first `pages` pages of namespace 1, by way of the window for data.
pub fn fill(nvme: &mut Nvme<'_>, pages: u64, generation: u32) -> Result<()> {
    for page in 0..pages {
        nvme.dma().write(DATA.iova, &content(page, generation));
        nvme.write(page * BLOCKS_OF_PAGE, DATA.iova, PAGE)?;
    }
    Ok(())
}
