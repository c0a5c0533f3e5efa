// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Giving a PCI function to a driver by `driver_override`, and taking it back.

use crate::sysfs::Function;
use anyhow::{ensure, Context as _, Result};
use std::fs;
use std::path::{Path, PathBuf};

fn folder(function: &Function) -> PathBuf {
    Path::new("/sys/bus/pci/devices").join(&function.address)
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {text:?} to {}", path.display()))
}

/// Takes the function from whatever driver has it and gives it to `driver`.
pub fn give(function: &Function, driver: &str) -> Result<()> {
    if function.driver().as_deref() == Some(driver) {
        return Ok(());
    }
    take(function)?;
    write(&folder(function).join("driver_override"), driver)?;
    write(Path::new("/sys/bus/pci/drivers_probe"), &function.address)?;
    let now = function.driver();
    ensure!(
        now.as_deref() == Some(driver),
        "{} was to be given to {driver}, and has {now:?}",
        function.address
    );
    Ok(())
}

/// Takes the function from its driver, and lets any driver have it later.
pub fn take(function: &Function) -> Result<()> {
    let folder = folder(function);
    if function.driver().is_some() {
        write(&folder.join("driver/unbind"), &function.address)?;
    }
    write(&folder.join("driver_override"), "\n")
}

/// The number of its IOMMU group.
pub fn group(function: &Function) -> Result<String> {
    let link = folder(function).join("iommu_group");
    let target = fs::read_link(&link).with_context(|| format!("cannot read {}", link.display()))?;
    let name = target.file_name().context("an IOMMU group has a number")?;
    Ok(name.to_string_lossy().into_owned())
}

/// Path of its VFIO character device.
pub fn cdev(function: &Function) -> Result<PathBuf> {
    let folder = folder(function).join("vfio-dev");
    let entries =
        fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut names = entries.flatten().map(|entry| entry.file_name());
    let name = names
        .find(|name| name.to_string_lossy().starts_with("vfio"))
        .with_context(|| format!("no device in {}", folder.display()))?;
    Ok(Path::new("/dev/vfio/devices").join(name))
}
