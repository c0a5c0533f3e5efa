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

    /// Every function of a class (24 bits), in the order of their addresses.
    pub fn of_class(class: u32) -> Result<Vec<Self>> {
        let mut functions = Vec::new();
        for entry in fs::read_dir(Path::new(PCI).join("devices"))? {
            let entry = entry?;
            let text = fs::read_to_string(entry.path().join("class"))?;
            if text.trim() == format!("{class:#08x}") {
                let address = entry.file_name().to_string_lossy().into_owned();
                functions.push(Self { address });
            }
        }
        functions.sort_by(|a, b| a.address.cmp(&b.address));
        Ok(functions)
    }

    /// Its address as [`Self::at`] takes it.
    pub fn number(&self) -> Result<u32> {
        let mut parts = self.address.split([':', '.']);
        let mut part = || -> Result<u32> {
            let text = parts.next().context("an address has four parts")?;
            Ok(u32::from_str_radix(text, 16)?)
        };
        Ok((part()? << 16) | (part()? << 8) | (part()? << 3) | part()?)
    }

    fn path(&self) -> PathBuf {
        Path::new(PCI).join("devices").join(&self.address)
    }

    /// The ports between the root complex and it, the root port first.
    pub fn ports(&self) -> Result<Vec<Self>> {
        let path = self.path();
        let path =
            fs::canonicalize(&path).with_context(|| format!("there is no {}", path.display()))?;
        let names = path.iter().map(|name| name.to_string_lossy());
        // Above them are the host bridge, which has no function number, and folders.
        let functions = names.filter(|name| name.contains('.') && name.contains(':'));
        let mut all: Vec<Self> = functions
            .map(|name| Self {
                address: name.into_owned(),
            })
            .collect();
        all.pop();
        Ok(all)
    }

    /// Whether it has an extended capability.
    pub fn has_extended_capability(&self, id: u16) -> Result<bool> {
        const FIRST: usize = 0x100;
        let path = self.path().join("config");
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut at = FIRST;
        // A list that turns in circles has more entries than there is room for.
        for _ in 0..bytes.len() / 4 {
            let Some(header) = bytes.get(at..at + 4) else {
                break;
            };
            let header = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
            // CAST: bits 15:0 are the id.
            if header as u16 == id {
                return Ok(true);
            }
            at = (header >> 20) as usize;
            if at < FIRST {
                break;
            }
        }
        Ok(false)
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

    /// Masks all of its MSI-X vectors, whatever its driver thinks; `false` when it has none.
    pub fn mask_interrupts(&self) -> Result<bool> {
        // Type 0 header, capability list, MSI-X capability (PCIe Base 7.5.1.1.11, 7.7.2.2).
        const CAPABILITIES: usize = 0x34;
        const MSIX: u8 = 0x11;
        const FUNCTION_MASK: u8 = 1 << 6;

        let path = self.path().join("config");
        let file = File::options()
            .read(true)
            .write(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        let mut bytes = [0; 256];
        file.read_exact_at(&mut bytes, 0)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let mut at = usize::from(bytes[CAPABILITIES] & !3);
        // A list that turns in circles has more entries than there is room for.
        for _ in 0..bytes.len() / 4 {
            if at == 0 {
                break;
            }
            if bytes[at] == MSIX {
                let control = bytes[at + 3] | FUNCTION_MASK;
                file.write_all_at(&[control], (at + 3) as u64)
                    .with_context(|| format!("cannot write {}", path.display()))?;
                return Ok(true);
            }
            at = usize::from(bytes[at + 1] & !3);
        }
        Ok(false)
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

    /// Writes a register in BAR0 under the hands of its driver.
    pub fn write_register(&self, offset: usize, value: u32) -> Result<()> {
        let path = self.path().join("resource0");
        let mut options = File::options();
        let file = options.read(true).write(true).open(&path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        let bar = Bar::new_writable(file.as_fd())
            .with_context(|| format!("cannot map {}", path.display()))?;
        Ok(bar.write32(offset, value)?)
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
