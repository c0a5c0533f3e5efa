// SPDX-License-Identifier: Apache-2.0 OR MIT

//! PCI functions in sysfs: bind, unbind, look at configuration space and registers.

use crate::sys::Bar;
use anyhow::{Context as _, Result};
use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

const PCI: &str = "/sys/bus/pci";

/// A PCI function.
#[derive(Clone, Debug)]
pub struct Function {
    /// `domain:bus:device.function` in hexadecimal.
    pub address: String,
}

impl Function {
    /// The function at `domain << 16 | bus << 8 | device << 3 | function`.
    pub fn at(address: u32) -> Self {
        let address = format!(
            "{:04x}:{:02x}:{:02x}.{}",
            address >> 16,
            (address >> 8) & 0xff,
            (address >> 3) & 0x1f,
            address & 7
        );
        Self { address }
    }

    fn path(&self) -> PathBuf {
        Path::new(PCI).join("devices").join(&self.address)
    }

    /// Name of the driver that has it.
    pub fn driver(&self) -> Option<String> {
        let target = fs::read_link(self.path().join("driver")).ok()?;
        Some(target.file_name()?.to_string_lossy().into_owned())
    }

    /// Gives it to a driver.
    pub fn bind(&self, driver: &str) -> Result<()> {
        write_driver(driver, "bind", &self.address)
    }

    /// Takes it from a driver.
    pub fn unbind(&self, driver: &str) -> Result<()> {
        write_driver(driver, "unbind", &self.address)
    }

    /// The command register of its configuration space.
    pub fn command(&self) -> Result<u16> {
        let path = self.path().join("config");
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        let mut bytes = [0; 2];
        file.read_exact_at(&mut bytes, 4)
            .with_context(|| format!("cannot read {}", path.display()))?;
        Ok(u16::from_le_bytes(bytes))
    }

    /// Takes the right to read and write memory away from it, whatever its driver thinks.
    pub fn clear_bus_master(&self) -> Result<()> {
        let command = self.command()? & !4;
        let path = self.path().join("config");
        let file = File::options()
            .write(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        file.write_all_at(&command.to_le_bytes(), 4)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Resets it, under whatever driver it has; `false` when it cannot be reset.
    pub fn reset(&self) -> Result<bool> {
        let path = self.path().join("reset");
        if !path.exists() {
            return Ok(false);
        }
        fs::write(&path, "1").with_context(|| format!("cannot write {}", path.display()))?;
        Ok(true)
    }

    /// Looks at the registers in BAR0 of a function that no driver has.
    pub fn with_registers<T>(&self, look: impl FnOnce(&Bar) -> Result<T>) -> Result<T> {
        let enable = self.path().join("enable");
        fs::write(&enable, "1").with_context(|| format!("cannot write {}", enable.display()))?;
        let result = (|| {
            let path = self.path().join("resource0");
            let file =
                File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
            let bar =
                Bar::new(file.as_fd()).with_context(|| format!("cannot map {}", path.display()))?;
            look(&bar)
        })();
        fs::write(&enable, "0").with_context(|| format!("cannot write {}", enable.display()))?;
        result
    }
}

/// Lets a driver take functions with these ids (`"vendor device"`) too.
pub fn add_id(driver: &str, ids: &str) -> Result<()> {
    write_driver(driver, "new_id", ids)
}

/// Whether a PCI driver is registered.
pub fn has_driver(driver: &str) -> bool {
    Path::new(PCI).join("drivers").join(driver).exists()
}

fn write_driver(driver: &str, file: &str, text: &str) -> Result<()> {
    let path = Path::new(PCI).join("drivers").join(driver).join(file);
    fs::write(&path, text).with_context(|| format!("cannot write {text:?} to {}", path.display()))
}
