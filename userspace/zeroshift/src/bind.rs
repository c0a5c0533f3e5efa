// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `zeroshift bind` and `zeroshift unbind`: which driver has a function.
//!
//! Everything that can be checked is checked before anything is changed, and a driver that does not
//! take the function leaves it with the one that had it.

use crate::backend::Backend;
use crate::cli::{BindOptions, FunctionOptions, UnbindOptions, DRIVER};
use crate::device::Device;
use crate::modules;
use crate::progress;
use crate::sysfs::Sysfs;
use crate::usage::{self, System};
use crate::WRITING;
use anyhow::{bail, Context as _, Result};
use migdirty_uapi::MIGDIRTY_FUNCTION_OWNED_BY_VFIO;
use serde_json::json;
use std::io::{self, Write};
use std::path::Path;

/// What changes the driver of a function.
trait Kernel {
    /// The driver that alone may take the function; empty when any may that fits.
    fn get_override(&self, address: &str) -> io::Result<String>;

    /// Only this driver may take the function; with an empty name, any that fits.
    fn set_override(&self, address: &str, driver: &str) -> io::Result<()>;

    /// Takes the function from its driver.
    fn unbind(&self, address: &str) -> io::Result<()>;

    /// Looks for a driver. That none takes it is no error.
    fn probe(&self, address: &str) -> io::Result<()>;
}

impl Kernel for Sysfs {
    fn get_override(&self, address: &str) -> io::Result<String> {
        let text = std::fs::read_to_string(self.function(address).join("driver_override"))?;
        Ok(match text.trim_end() {
            "(null)" => String::new(),
            name => name.to_owned(),
        })
    }

    fn set_override(&self, address: &str, driver: &str) -> io::Result<()> {
        let file = self.function(address).join("driver_override");
        put(&file, &format!("{driver}\n"))
    }

    fn unbind(&self, address: &str) -> io::Result<()> {
        put(&self.function(address).join("driver/unbind"), address)
    }

    fn probe(&self, address: &str) -> io::Result<()> {
        put(&self.root().join("bus/pci/drivers_probe"), address)
    }
}

/// A file of sysfs takes what is written at once.
fn put(path: &Path, text: &str) -> io::Result<()> {
    let mut file = std::fs::File::options().write(true).open(path)?;
    file.write_all(text.as_bytes())
}

/// Where all of it happens.
struct Machine<'a> {
    sysfs: &'a Sysfs,
    kernel: &'a dyn Kernel,
    system: System,
    backend: Option<&'a dyn Backend>,
}

/// What was done.
#[derive(Debug, PartialEq, Eq)]
struct Done {
    before: Option<String>,
    after: Option<String>,
}

/// Runs `bind`.
pub(crate) fn bind(options: &BindOptions, output: &mut impl Write) -> Result<()> {
    with_machine(&options.function, |machine| {
        let done = machine.bind(options)?;
        machine.report(&options.function, &done, output)
    })
}

/// Runs `unbind`.
pub(crate) fn unbind(options: &UnbindOptions, output: &mut impl Write) -> Result<()> {
    with_machine(&options.function, |machine| {
        let done = machine.unbind(options)?;
        machine.report(&options.function, &done, output)
    })
}

fn with_machine(
    options: &FunctionOptions,
    act: impl FnOnce(&Machine<'_>) -> Result<()>,
) -> Result<()> {
    let sysfs = Sysfs::new(&options.places.sysfs);
    // Without the module nobody migrates, but binding works.
    let device = Device::open(&options.places.device).ok().flatten();
    act(&Machine {
        sysfs: &sysfs,
        kernel: &sysfs,
        system: System::default(),
        backend: device.as_ref().map(|device| device as &dyn Backend),
    })
}

impl Machine<'_> {
    fn bind(&self, options: &BindOptions) -> Result<Done> {
        let address = options.function.address.to_string();
        let driver = options.driver.as_str();
        let before = self.driver_now(&address)?;
        if before.as_deref() == Some(driver) {
            return Ok(Done {
                after: before.clone(),
                before,
            });
        }
        if !self.sysfs.has_driver(driver) {
            bail!(
                "cannot bind {address} to {driver}: there is no such PCI driver; to load it: {}",
                modules::load(&driver.replace('-', "_"))
            );
        }
        let cannot = || format!("cannot bind {address} to {driver}");
        if !options.force {
            self.check_group(&address).with_context(cannot)?;
            self.check_usage(&options.function).with_context(cannot)?;
        }
        let old = self
            .kernel
            .get_override(&address)
            .map_err(|error| hint(&error))
            .with_context(cannot)?;
        self.kernel
            .set_override(&address, driver)
            .map_err(|error| hint(&error))
            .with_context(cannot)?;
        let bound = self
            .move_driver(&address)
            .with_context(cannot)
            .and_then(|()| {
                if self.sysfs.driver(&address).as_deref() == Some(driver) {
                    return Ok(());
                }
                bail!("{}: it did not take it ('dmesg' says why)", cannot());
            });
        if let Err(error) = bound {
            // As it was, as far as that goes. What was kept from the usual driver stays so: it may
            // be the disk of a guest.
            let back = self
                .kernel
                .set_override(&address, &old)
                .and_then(|()| self.kernel.probe(&address));
            let now = self.sysfs.driver(&address);
            let now = now.as_deref().unwrap_or("no driver");
            return Err(match back {
                Ok(()) => error.context(format!("{address} is with {now} again")),
                Err(_) => error.context(format!("{address} is left with {now}")),
            });
        }
        Ok(Done {
            before,
            after: Some(driver.to_owned()),
        })
    }

    fn unbind(&self, options: &UnbindOptions) -> Result<Done> {
        let address = options.function.address.to_string();
        let before = self.driver_now(&address)?;
        let cannot = || format!("cannot unbind {address}");
        let old = self
            .kernel
            .get_override(&address)
            .map_err(|error| hint(&error))
            .with_context(cannot)?;
        let usual = before.as_deref().is_some_and(|name| !name.contains("vfio"));
        if old.is_empty() && usual {
            return Ok(Done {
                after: before.clone(),
                before,
            });
        }
        if !options.force {
            self.check_usage(&options.function).with_context(cannot)?;
        }
        self.kernel
            .set_override(&address, "")
            .map_err(|error| hint(&error))
            .with_context(cannot)?;
        self.move_driver(&address).with_context(cannot)?;
        Ok(Done {
            before,
            after: self.sysfs.driver(&address),
        })
    }

    /// The driver that has the function, which has to be there.
    fn driver_now(&self, address: &str) -> Result<Option<String>> {
        if !self.sysfs.function(address).exists() {
            bail!(
                "there is no PCI function {address}; 'zeroshift list --functions' shows the ones \
                 that a card manages, 'lspci -D' all"
            );
        }
        Ok(self.sysfs.driver(address))
    }

    /// Takes the function from the driver that has it, and lets the kernel choose another one.
    fn move_driver(&self, address: &str) -> Result<()> {
        if let Some(driver) = self.sysfs.driver(address) {
            let taking = format!("taking {address} from {driver}");
            progress::during(&taking, || self.kernel.unbind(address))
                .map_err(|error| hint(&error))?;
        }
        let looking = format!("looking for a driver for {address}");
        progress::during(&looking, || self.kernel.probe(address)).map_err(|error| hint(&error))
    }

    fn check_group(&self, address: &str) -> Result<()> {
        if self.sysfs.iommu_group(address).is_some() {
            return Ok(());
        }
        bail!(
            "it has no IOMMU group, so no virtual machine can have it; switch the IOMMU on in the \
             firmware and on the kernel's command line (intel_iommu=on, or amd_iommu=on)"
        )
    }

    fn check_usage(&self, options: &FunctionOptions) -> Result<()> {
        let address = options.address.to_string();
        let mut users = usage::users(self.sysfs, &self.system, &address);
        if self.sysfs.driver(&address).as_deref() == Some("migdirty") {
            users.push("migdirty drives the functions of a card with it".into());
        }
        let info = self
            .backend
            .and_then(|backend| backend.function(options.address).ok());
        let owned = info.is_some_and(|info| info.flags & MIGDIRTY_FUNCTION_OWNED_BY_VFIO != 0);
        if users.is_empty() && owned {
            users.push("a VFIO user has it open".into());
        }
        if users.is_empty() {
            return Ok(());
        }
        bail!(
            "it is in use: {}; end that first, or take it anyway with --force",
            users.join(", ")
        )
    }

    fn report(
        &self,
        options: &FunctionOptions,
        done: &Done,
        output: &mut impl Write,
    ) -> Result<()> {
        let address = options.address.to_string();
        let group = self.sysfs.iommu_group(&address);
        if options.json {
            let value = json!({
                "address": address,
                "driver": {"before": done.before, "after": done.after},
                "iommu_group": group,
            });
            return writeln!(output, "{value}").context(WRITING);
        }
        let name = |driver: &Option<String>| driver.clone().unwrap_or("no driver".into());
        let (before, after) = (name(&done.before), name(&done.after));
        if done.before == done.after {
            writeln!(output, "{address}: {after}, as before").context(WRITING)?;
        } else {
            writeln!(output, "{address}: {before} -> {after}").context(WRITING)?;
        }
        let vfio = done.after.as_deref() == Some(DRIVER);
        if let (true, Some(group)) = (vfio, group) {
            let others = self.sysfs.group_members(&address);
            let others: Vec<String> = others
                .into_iter()
                .filter_map(|(other, driver)| Some((other, driver?)))
                // Bridges and what VFIO has are no obstacle.
                .filter(|(_, driver)| driver != "pcieport" && !driver.contains("vfio"))
                .map(|(other, driver)| format!("{other} ({driver})"))
                .collect();
            if !others.is_empty() {
                writeln!(
                    output,
                    "its IOMMU group {group} also has {}: no virtual machine can open it before \
                     these have no driver, or a VFIO driver",
                    others.join(", ")
                )
                .context(WRITING)?;
            }
        }
        Ok(())
    }
}

/// What a refused write to sysfs means.
fn hint(error: &io::Error) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            anyhow::anyhow!("{error}; run this command as root")
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            anyhow::anyhow!("{error}; sysfs cannot be written here (in a container?)")
        }
        _ => anyhow::anyhow!("{error}; 'dmesg' may say more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Arguments, Command};
    use crate::fake::Fake;
    use crate::sysfs::tests::FakeSysfs;
    use clap::Parser as _;
    use std::cell::RefCell;

    /// A kernel in which a function belongs to `usual`, unless its override says otherwise.
    struct World {
        folder: FakeSysfs,
        usual: Option<&'static str>,
        /// A driver that takes nothing.
        broken: Option<&'static str>,
        chosen: RefCell<String>,
        calls: RefCell<Vec<String>>,
        proc: tempfile::TempDir,
    }

    impl World {
        fn new() -> Self {
            let folder = FakeSysfs::new();
            folder.add_function("0000:02:00.0", "0x010802", Some("nvme"));
            folder.add_group("7", &["0000:02:00.0"]);
            folder.add_driver(DRIVER);
            Self {
                folder,
                usual: Some("nvme"),
                broken: None,
                chosen: RefCell::default(),
                calls: RefCell::default(),
                proc: tempfile::tempdir().unwrap(),
            }
        }

        fn run(&self, arguments: &str, backend: Option<&dyn Backend>) -> Result<String, String> {
            let sysfs = Sysfs::new(self.folder.path());
            let machine = Machine {
                sysfs: &sysfs,
                kernel: self,
                system: System {
                    dev: self.proc.path().into(),
                    proc: self.proc.path().into(),
                },
                backend,
            };
            let words = format!("zeroshift {arguments}");
            let mut output = vec![];
            let result = match Arguments::try_parse_from(words.split(' ')).unwrap().command {
                Command::Bind(options) => machine
                    .bind(&options)
                    .and_then(|done| machine.report(&options.function, &done, &mut output)),
                Command::Unbind(options) => machine
                    .unbind(&options)
                    .and_then(|done| machine.report(&options.function, &done, &mut output)),
                other => panic!("{other:?}"),
            };
            result
                .map(|()| String::from_utf8(output).unwrap())
                .map_err(|error| format!("{error:#}"))
        }

        fn calls(&self) -> Vec<String> {
            self.calls.take()
        }
    }

    impl Kernel for World {
        fn get_override(&self, _: &str) -> io::Result<String> {
            Ok(self.chosen.borrow().clone())
        }

        fn set_override(&self, _: &str, driver: &str) -> io::Result<()> {
            self.calls.borrow_mut().push(format!("override {driver}"));
            *self.chosen.borrow_mut() = driver.into();
            Ok(())
        }

        fn unbind(&self, address: &str) -> io::Result<()> {
            self.calls.borrow_mut().push("unbind".into());
            self.folder.set_driver(address, None);
            Ok(())
        }

        fn probe(&self, address: &str) -> io::Result<()> {
            self.calls.borrow_mut().push("probe".into());
            let chosen = self.chosen.borrow();
            let driver = match chosen.as_str() {
                "" => self.usual,
                other => Some(other),
            };
            if driver.is_some() && driver != self.broken {
                self.folder.set_driver(address, driver);
            }
            Ok(())
        }
    }

    #[test]
    fn bind_and_unbind_move_a_function_and_say_so() {
        let world = World::new();
        assert_eq!(
            world.run("bind 2:0.0", None).unwrap(),
            "0000:02:00.0: nvme -> zeroshift_vfio_pci\n"
        );
        assert_eq!(
            world.calls(),
            ["override zeroshift_vfio_pci", "unbind", "probe"]
        );
        assert_eq!(
            world.run("bind 2:0.0", None).unwrap(),
            "0000:02:00.0: zeroshift_vfio_pci, as before\n"
        );
        assert!(world.calls().is_empty());
        let json = world.run("unbind 2:0.0 --json", None).unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(
            json,
            json!({"address": "0000:02:00.0", "iommu_group": "7",
                "driver": {"before": DRIVER, "after": "nvme"}})
        );
        assert_eq!(world.calls(), ["override ", "unbind", "probe"]);
    }

    #[test]
    fn a_function_without_a_driver_gets_one_and_may_be_left_without() {
        let world = World {
            usual: None,
            ..World::new()
        };
        world.folder.set_driver("0000:02:00.0", None);
        assert_eq!(
            world.run("bind 2:0.0", None).unwrap(),
            "0000:02:00.0: no driver -> zeroshift_vfio_pci\n"
        );
        assert_eq!(world.calls(), ["override zeroshift_vfio_pci", "probe"]);
        assert_eq!(
            world.run("unbind 2:0.0", None).unwrap(),
            "0000:02:00.0: zeroshift_vfio_pci -> no driver\n"
        );
    }

    #[test]
    fn what_cannot_work_changes_nothing() {
        let world = World::new();
        let refused = |arguments: &str, backend: Option<&dyn Backend>, words: &[&str]| {
            let error = world.run(arguments, backend).unwrap_err();
            for word in words {
                assert!(error.contains(word), "{error}");
            }
            assert!(world.calls().is_empty(), "{error}");
        };
        refused("bind 9:0.0", None, &["no PCI function 0000:09:00.0"]);
        refused("unbind 9:0.0", None, &["no PCI function 0000:09:00.0"]);
        let words = ["vfio-pci", "to load it: modprobe vfio_pci"];
        refused("bind 2:0.0 --driver vfio-pci", None, &words);
        let fake = Fake::default();
        fake.flags.set(MIGDIRTY_FUNCTION_OWNED_BY_VFIO);
        let words = ["0000:02:00.0", "a VFIO user has it open", "--force"];
        refused("bind 2:0.0", Some(&fake), &words);
        world.chosen.replace(DRIVER.into());
        refused("unbind 2:0.0", Some(&fake), &words);
        world.chosen.take();
        world
            .folder
            .add_function("0000:01:00.0", "0x010803", Some("migdirty"));
        world.folder.add_group("8", &["0000:01:00.0"]);
        let words = ["0000:01:00.0", "migdirty drives the functions", "--force"];
        refused("bind 1:0.0", None, &words);
        world
            .folder
            .add_function("0000:03:00.0", "0x010802", Some("nvme"));
        let words = ["0000:03:00.0", "no IOMMU group", "intel_iommu=on"];
        refused("bind 3:0.0", None, &words);
        assert!(world.run("bind 3:0.0 --force", None).is_ok());
        assert!(world.run("bind 2:0.0 --force", Some(&fake)).is_ok());
    }

    #[test]
    fn a_driver_that_does_not_take_it_leaves_it_with_the_old_one() {
        let world = World {
            broken: Some(DRIVER),
            ..World::new()
        };
        let error = world.run("bind 2:0.0", None).unwrap_err();
        assert!(
            error.starts_with("0000:02:00.0 is with nvme again: cannot bind"),
            "{error}"
        );
        assert!(error.contains("dmesg"), "{error}");
        assert_eq!(
            world.calls(),
            [
                "override zeroshift_vfio_pci",
                "unbind",
                "probe",
                "override ",
                "probe"
            ]
        );
    }

    #[test]
    fn a_driver_that_does_not_take_it_leaves_the_override_that_was_there() {
        let world = World {
            broken: Some(DRIVER),
            ..World::new()
        };
        world.folder.set_driver("0000:02:00.0", Some("vfio-pci"));
        world.chosen.replace("vfio-pci".into());
        let error = world.run("bind 2:0.0", None).unwrap_err();
        assert!(
            error.starts_with("0000:02:00.0 is with vfio-pci again"),
            "{error}"
        );
        assert!(world.calls().contains(&"override vfio-pci".to_owned()));
    }

    #[test]
    fn what_has_its_usual_driver_is_left_alone() {
        let world = World::new();
        assert_eq!(
            world.run("unbind 2:0.0", None).unwrap(),
            "0000:02:00.0: nvme, as before\n"
        );
        assert!(world.calls().is_empty());
        // vfio-pci has it without an override: by its new_id.
        world.folder.set_driver("0000:02:00.0", Some("vfio-pci"));
        assert_eq!(
            world.run("unbind 2:0.0", None).unwrap(),
            "0000:02:00.0: vfio-pci -> nvme\n"
        );
    }

    #[test]
    fn others_in_the_group_are_named() {
        let world = World::new();
        world
            .folder
            .add_function("0000:02:00.1", "0x010802", Some("nvme"));
        world
            .folder
            .add_function("0000:00:01.0", "0x060400", Some("pcieport"));
        world
            .folder
            .add_group("7", &["0000:02:00.1", "0000:00:01.0"]);
        let said = world.run("bind 2:0.0", None).unwrap();
        assert!(
            said.contains("group 7 also has 0000:02:00.1 (nvme): no virtual machine"),
            "{said}"
        );
    }
}
