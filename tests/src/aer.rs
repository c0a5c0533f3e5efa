// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Errors of a PCIe function, as if it had reported them to its root port: Linux's `aer_inject`.
//!
//! The kernel does with them what it does with true ones, a reset of the link included. It finds the
//! function by its port, and the error in what `aer_inject` shows in place of registers.

use crate::kmsg::Log;
use crate::sysfs::Function;
use anyhow::{ensure, Context as _, Result};
use std::fs::{self, File};
use std::io::Write as _;

/// Character device of `CONFIG_PCIEAER_INJECT`.
const DEVICE: &str = "/dev/aer_inject";
/// Where the kernel's driver for the error messages of a port has its ports.
const SERVICES: &str = "/sys/bus/pci_express/drivers/aer";
/// Id of the Advanced Error Reporting capability (PCIe Base 7.8.4).
const CAPABILITY: u16 = 1;

/// How bad an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The link cannot be relied on, and is reset.
    Fatal,
    /// A transaction was lost.
    Nonfatal,
}

impl Severity {
    /// An error that by default has this severity (PCIe Base 7.8.4.4): Malformed TLP, Completion
    /// Timeout.
    fn status(self) -> u32 {
        match self {
            Self::Fatal => 1 << 18,
            Self::Nonfatal => 1 << 14,
        }
    }
}

/// Makes errors of one function.
#[derive(Debug)]
pub struct Injector {
    function: Function,
    /// The port above it.
    port: Function,
}

impl Injector {
    /// For `function`, or why there cannot be one.
    pub fn new(function: &Function) -> Result<Self> {
        ensure!(fs::exists(DEVICE)?, "no {DEVICE}");
        let ports = function.ports()?;
        let (Some(root), Some(port)) = (ports.first(), ports.last()) else {
            anyhow::bail!("{} has no root port", function.address);
        };
        for device in [function, root] {
            ensure!(
                device.has_extended_capability(CAPABILITY)?,
                "{} has no Advanced Error Reporting",
                device.address
            );
        }
        let services = fs::read_dir(SERVICES).with_context(|| format!("no {SERVICES}"))?;
        let mut names = services.flatten().map(|entry| entry.file_name());
        ensure!(
            names.any(|name| name.to_string_lossy().starts_with(&root.address)),
            "the firmware keeps the errors of {} to itself",
            root.address
        );
        Ok(Self {
            function: function.clone(),
            port: port.clone(),
        })
    }

    /// Makes an error. Returns when the kernel has recovered from it.
    pub fn inject(&self, severity: Severity) -> Result<()> {
        let mut log = Log::from_now()?;
        let number = self.function.number()?;
        // struct aer_error_inj of drivers/pci/pcie/aer_inject.c: u8 bus, device, function; u32
        // uncorrectable and correctable status, header log, domain.
        // CAST: the parts of an address.
        let mut bytes = vec![
            (number >> 8) as u8,
            (number >> 3) as u8 & 0x1f,
            number as u8 & 7,
            0,
        ];
        for field in [severity.status(), 0, 0, 0, 0, 0, number >> 16] {
            bytes.extend(u32::to_ne_bytes(field));
        }
        let file = File::options().write(true).open(DEVICE);
        let mut file = file.with_context(|| format!("cannot open {DEVICE}"))?;
        file.write_all(&bytes)
            .with_context(|| format!("cannot inject an error of {}", self.function.address))?;
        let port = format!("pcieport {}: AER: ", self.port.address);
        log.wait_for(&port, "device recovery successful")
    }
}
