// SPDX-License-Identifier: Apache-2.0 OR MIT

//! PCI functions as sysfs shows them. Reads only; a function that disappears while it is being
//! looked at is left out.

use anyhow::{Context as _, Result};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// PCI class of an NVMe administrative controller.
const CLASS: u32 = 0x01_08_03;

/// A PCI function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Function {
    /// `domain:bus:device.function` in hexadecimal.
    pub(crate) address: String,
    /// Name of the driver that has it.
    pub(crate) driver: Option<String>,
    /// Class code, 24 bits.
    pub(crate) class: Option<u32>,
}

/// A mounted sysfs.
pub(crate) struct Sysfs {
    root: PathBuf,
}

impl Sysfs {
    /// The sysfs that is mounted at `root`.
    pub(crate) fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// NVMe administrative controllers, in the order of their addresses.
    pub(crate) fn administrative_controllers(&self) -> Result<Vec<Function>> {
        let mut functions = self.functions()?;
        functions.retain(|function| function.class == Some(CLASS));
        Ok(functions)
    }

    /// All PCI functions, in the order of their addresses.
    pub(crate) fn functions(&self) -> Result<Vec<Function>> {
        let folder = self.root.join("bus/pci/devices");
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            // A machine without PCI.
            Err(error) if error.kind() == ErrorKind::NotFound && self.root.is_dir() => {
                return Ok(vec![])
            }
            Err(error) => {
                return Err(error).with_context(|| {
                    format!(
                        "cannot list PCI functions in {}; is sysfs mounted?",
                        folder.display()
                    )
                })
            }
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry
                .with_context(|| format!("cannot list PCI functions in {}", folder.display()))?
                .path();
            let Some(address) = path.file_name().and_then(|name| name.to_str()) else {
                continue;
            };
            found.push(Function {
                address: address.to_owned(),
                driver: self.driver(address),
                class: read_hexadecimal(&path.join("class")),
            });
        }
        found.sort_by(|a, b| a.address.cmp(&b.address));
        Ok(found)
    }

    /// Name of the driver that has the function.
    pub(crate) fn driver(&self, address: &str) -> Option<String> {
        last_of_link(&self.function(address).join("driver"))
    }

    /// Number of its IOMMU group.
    pub(crate) fn iommu_group(&self, address: &str) -> Option<String> {
        last_of_link(&self.function(address).join("iommu_group"))
    }

    /// Other functions of its IOMMU group, with their drivers.
    pub(crate) fn group_members(&self, address: &str) -> Vec<(String, Option<String>)> {
        let others = names(&self.function(address).join("iommu_group/devices"));
        let others = others.into_iter().filter(|other| other != address);
        others
            .map(|other| {
                let driver = self.driver(&other);
                (other, driver)
            })
            .collect()
    }

    /// The folder of a function.
    pub(crate) fn function(&self, address: &str) -> PathBuf {
        self.root.join("bus/pci/devices").join(address)
    }

    /// Where it is mounted.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Whether there is a PCI driver of this name.
    pub(crate) fn has_driver(&self, name: &str) -> bool {
        self.root.join("bus/pci/drivers").join(name).is_dir()
    }

    /// Whether the driver of the module migdirty is there.
    pub(crate) fn has_migdirty(&self) -> bool {
        self.has_driver("migdirty")
    }
}

/// Names in a folder, sorted; none when it cannot be read.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

fn last_of_link(link: &Path) -> Option<String> {
    let target = fs::read_link(link).ok()?;
    Some(target.file_name()?.to_str()?.to_owned())
}

fn read_hexadecimal(path: &Path) -> Option<u32> {
    let text = fs::read_to_string(path).ok()?;
    u32::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A folder that looks like sysfs.
    pub(crate) struct FakeSysfs(tempfile::TempDir);

    impl FakeSysfs {
        pub(crate) fn new() -> Self {
            let fake = Self(tempfile::tempdir().unwrap());
            fs::create_dir_all(fake.path().join("bus/pci/devices")).unwrap();
            fake
        }

        pub(crate) fn path(&self) -> &Path {
            self.0.path()
        }

        pub(crate) fn add_driver(&self, name: &str) {
            fs::create_dir_all(self.path().join("bus/pci/drivers").join(name)).unwrap();
        }

        pub(crate) fn add_function(&self, address: &str, class: &str, driver: Option<&str>) {
            let folder = self.path().join("devices/pci0000:00").join(address);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("class"), format!("{class}\n")).unwrap();
            self.set_driver(address, driver);
            symlink(
                format!("../../../devices/pci0000:00/{address}"),
                self.path().join("bus/pci/devices").join(address),
            )
            .unwrap();
        }

        /// Folder of a function.
        pub(crate) fn function(&self, address: &str) -> PathBuf {
            self.path().join("devices/pci0000:00").join(address)
        }

        /// Gives a function to a driver, or takes it away.
        pub(crate) fn set_driver(&self, address: &str, driver: Option<&str>) {
            let link = self.function(address).join("driver");
            let _ = fs::remove_file(&link);
            if let Some(driver) = driver {
                self.add_driver(driver);
                symlink(format!("../../../bus/pci/drivers/{driver}"), link).unwrap();
            }
        }

        /// Puts functions into an IOMMU group.
        pub(crate) fn add_group(&self, number: &str, addresses: &[&str]) {
            let group = self.path().join("kernel/iommu_groups").join(number);
            fs::create_dir_all(group.join("devices")).unwrap();
            for address in addresses {
                let function = self.function(address);
                symlink(&group, function.join("iommu_group")).unwrap();
                symlink(&function, group.join("devices").join(address)).unwrap();
            }
        }
    }

    #[test]
    fn finds_administrative_controllers_only() {
        let fake = FakeSysfs::new();
        fake.add_function("0000:02:00.0", "0x010803", Some("vfio-pci"));
        fake.add_function("0000:01:00.0", "0x010803", None);
        fake.add_function("0000:00:04.0", "0x010802", Some("nvme"));
        fake.add_function("0000:00:05.0", "nonsense", None);
        fs::create_dir(fake.path().join("bus/pci/devices/0000:00:06.0")).unwrap();
        let sysfs = Sysfs::new(fake.path());
        assert_eq!(
            sysfs.administrative_controllers().unwrap(),
            [
                Function {
                    address: "0000:01:00.0".into(),
                    driver: None,
                    class: Some(CLASS),
                },
                Function {
                    address: "0000:02:00.0".into(),
                    driver: Some("vfio-pci".into()),
                    class: Some(CLASS),
                },
            ]
        );
        assert_eq!(sysfs.driver("0000:00:04.0").as_deref(), Some("nvme"));
        assert_eq!(sysfs.driver("0000:00:99.0"), None);
    }

    #[test]
    fn tells_whether_the_driver_is_there() {
        let fake = FakeSysfs::new();
        assert!(!Sysfs::new(fake.path()).has_migdirty());
        fake.add_driver("migdirty");
        assert!(Sysfs::new(fake.path()).has_migdirty());
    }

    #[test]
    fn a_machine_without_pci_has_no_card_and_a_missing_sysfs_is_an_error() {
        let empty = tempfile::tempdir().unwrap();
        let sysfs = Sysfs::new(empty.path());
        assert_eq!(sysfs.administrative_controllers().unwrap(), []);
        let error = Sysfs::new(&empty.path().join("gone"))
            .administrative_controllers()
            .unwrap_err();
        assert!(format!("{error:#}").contains("is sysfs mounted?"));
    }
}
