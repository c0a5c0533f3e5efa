// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Who uses a function: what has to be asked before it is taken from its driver. Only looks.
//!
//! A look is not a lock: whoever begins to use the function a moment later is not seen. What is
//! claimed for good (mounted, swap, device mapper, RAID) and what a process has open both count. So
//! does a network interface that is up; one in another network namespace is not seen.

use crate::sysfs::{names, Sysfs};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// O_EXCL: of a block device, fails with EBUSY when somebody claims it or a partition of it.
const EXCLUSIVE: i32 = 0o200;

/// The rest of a system, beside sysfs.
pub(crate) struct System {
    /// Device nodes.
    pub(crate) dev: PathBuf,
    /// Processes.
    pub(crate) proc: PathBuf,
}

impl Default for System {
    fn default() -> Self {
        Self {
            dev: "/dev".into(),
            proc: "/proc".into(),
        }
    }
}

/// What uses the function, in sentences; empty when nothing does.
pub(crate) fn users(sysfs: &Sysfs, system: &System, address: &str) -> Vec<String> {
    let blocks = blocks(sysfs, address);
    let mut users = mounts(system, &blocks);
    for name in &blocks {
        if users.iter().any(|user| user.starts_with(name.as_str())) {
            continue;
        }
        let node = system.dev.join(name);
        let opened = File::options()
            .read(true)
            .custom_flags(EXCLUSIVE)
            .open(node);
        if opened.is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy) {
            users.push(format!("{name} is in use (swap, device mapper or RAID?)"));
        }
    }
    users.extend(interfaces(sysfs, address));
    users.extend(processes(system, &nodes(sysfs, address, &blocks)));
    users
}

/// Network interfaces of a function that are switched on, with or without a carrier.
fn interfaces(sysfs: &Sysfs, address: &str) -> Vec<String> {
    /// IFF_UP of `linux/if.h`.
    const UP: u32 = 1;
    let folders = Vec::from_iter(fs::canonicalize(sysfs.function(address)));
    let class = sysfs.root().join("class/net");
    let up = |name: &String| {
        let flags = fs::read_to_string(class.join(name).join("flags")).unwrap_or_default();
        let flags = flags.trim().trim_start_matches("0x");
        u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & UP != 0)
    };
    let found = below(&class, &folders).into_iter();
    let found = found.filter(up);
    found
        .map(|name| format!("network interface {name} is up"))
        .collect()
}

/// The devices of a class that are inside one of `folders`, which are canonical.
fn below(class: &Path, folders: &[PathBuf]) -> Vec<String> {
    let mut found = names(class);
    found.retain(|name| {
        let path = fs::canonicalize(class.join(name));
        path.is_ok_and(|path| folders.iter().any(|folder| path.starts_with(folder)))
    });
    found
}

/// Names of the block devices of a function, partitions and namespaces with several paths included.
fn blocks(sysfs: &Sysfs, address: &str) -> Vec<String> {
    let mut folders: Vec<PathBuf> = fs::canonicalize(sysfs.function(address))
        .into_iter()
        .collect();
    let subsystems = sysfs.root().join("class/nvme-subsystem");
    for controller in names(&sysfs.function(address).join("nvme")) {
        for subsystem in names(&subsystems) {
            let folder = subsystems.join(subsystem);
            if folder.join(&controller).exists() {
                folders.extend(fs::canonicalize(folder));
            }
        }
    }
    below(&sysfs.root().join("class/block"), &folders)
}

/// Device nodes, below `/dev`, through which a process may use the function.
fn nodes(sysfs: &Sysfs, address: &str, blocks: &[String]) -> Vec<String> {
    let mut nodes = blocks.to_vec();
    for name in blocks {
        // The character device of a namespace.
        nodes.extend(name.strip_prefix("nvme").map(|rest| format!("ng{rest}")));
    }
    let function = sysfs.function(address);
    nodes.extend(names(&function.join("nvme")));
    let devices = names(&function.join("vfio-dev"));
    if !devices.is_empty() {
        nodes.extend(devices.iter().map(|name| format!("vfio/devices/{name}")));
        nodes.extend(
            sysfs
                .iommu_group(address)
                .map(|group| format!("vfio/{group}")),
        );
    }
    nodes
}

/// What is mounted of `blocks`, here.
fn mounts(system: &System, blocks: &[String]) -> Vec<String> {
    let table = fs::read_to_string(system.proc.join("self/mounts")).unwrap_or_default();
    let lines = table.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let source = Path::new(fields.next()?);
        let name = source.strip_prefix("/dev").ok()?.to_str()?;
        let place = fields.next()?;
        let ours = blocks.iter().any(|block| block == name);
        ours.then(|| format!("{name} is mounted on {place}"))
    });
    lines.collect()
}

/// Processes that have one of `nodes` below `/dev` open, in sentences.
pub(crate) fn processes(system: &System, nodes: &[String]) -> Vec<String> {
    let wanted: Vec<PathBuf> = nodes
        .iter()
        .map(|node| Path::new("/dev").join(node))
        .collect();
    let mut users = Vec::new();
    for process in names(&system.proc) {
        if !process.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let folder = system.proc.join(&process);
        let files = folder.join("fd");
        let mut open: Vec<PathBuf> = names(&files)
            .iter()
            .filter_map(|file| fs::read_link(files.join(file)).ok())
            .filter(|target| wanted.contains(target))
            .collect();
        open.sort();
        open.dedup();
        let name = fs::read_to_string(folder.join("comm")).unwrap_or_default();
        let name = name.trim();
        users.extend(
            open.iter()
                .map(|node| format!("{} is open in process {process} ({name})", node.display())),
        );
    }
    users
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sysfs::tests::FakeSysfs;
    use std::os::unix::fs::symlink;

    struct Machine {
        sysfs: FakeSysfs,
        rest: tempfile::TempDir,
    }

    impl Machine {
        /// A function with a namespace of two paths and a partition; another one beside it.
        fn new() -> Self {
            let sysfs = FakeSysfs::new();
            let class = sysfs.path().join("class/block");
            fs::create_dir_all(&class).unwrap();
            for (address, number) in [("0000:02:00.0", 0), ("0000:03:00.0", 1)] {
                sysfs.add_function(address, "0x010802", Some("nvme"));
                let controller = format!("nvme{number}");
                let path = sysfs.function(address).join("nvme").join(&controller);
                let hidden = format!("nvme{number}c{number}n1");
                fs::create_dir_all(path.join(&hidden)).unwrap();
                symlink(path.join(&hidden), class.join(&hidden)).unwrap();
                let subsystem = sysfs.path().join(format!("devices/virtual/subsys{number}"));
                let head = subsystem.join(format!("nvme{number}n1"));
                fs::create_dir_all(head.join(format!("nvme{number}n1p1"))).unwrap();
                symlink(&path, subsystem.join(&controller)).unwrap();
                let name = format!("nvme{number}n1");
                symlink(&head, class.join(&name)).unwrap();
                let partition = format!("nvme{number}n1p1");
                symlink(head.join(&partition), class.join(&partition)).unwrap();
                let subsystems = sysfs.path().join("class/nvme-subsystem");
                fs::create_dir_all(&subsystems).unwrap();
                symlink(subsystem, subsystems.join(format!("nvme-subsys{number}"))).unwrap();
            }
            let rest = tempfile::tempdir().unwrap();
            fs::create_dir_all(rest.path().join("proc/self")).unwrap();
            Self { sysfs, rest }
        }

        fn users(&self, address: &str) -> Vec<String> {
            let system = System {
                dev: self.rest.path().join("dev"),
                proc: self.rest.path().join("proc"),
            };
            users(&Sysfs::new(self.sysfs.path()), &system, address)
        }

        fn mount(&self, text: &str) {
            fs::write(self.rest.path().join("proc/self/mounts"), text).unwrap();
        }

        fn process(&self, number: &str, name: &str, open: &[&str]) {
            let folder = self.rest.path().join("proc").join(number);
            fs::create_dir_all(folder.join("fd")).unwrap();
            fs::write(folder.join("comm"), format!("{name}\n")).unwrap();
            for (file, target) in open.iter().enumerate() {
                symlink(target, folder.join("fd").join(file.to_string())).unwrap();
            }
        }
    }

    #[test]
    fn block_devices_are_found_on_every_path() {
        let machine = Machine::new();
        let found = blocks(&Sysfs::new(machine.sysfs.path()), "0000:02:00.0");
        assert_eq!(found, ["nvme0c0n1", "nvme0n1", "nvme0n1p1"]);
        assert!(machine.users("0000:02:00.0").is_empty());
        assert!(machine.users("0000:09:00.0").is_empty());
    }

    #[test]
    fn what_is_mounted_or_open_is_in_use() {
        let machine = Machine::new();
        machine.mount("/dev/sda1 / ext4 rw 0 0\n/dev/nvme0n1p1 /mnt\\040x ext4 rw 0 0\nproc /p\n");
        machine.process("12", "fio", &["/dev/null", "/dev/nvme0n1", "/dev/nvme0n1"]);
        machine.process("13", "cat", &["/dev/nvme1n1", "socket:[3]"]);
        machine.process("14", "nvme", &["/dev/ng0n1", "/dev/nvme0"]);
        assert_eq!(
            machine.users("0000:02:00.0"),
            [
                "nvme0n1p1 is mounted on /mnt\\040x",
                "/dev/nvme0n1 is open in process 12 (fio)",
                "/dev/ng0n1 is open in process 14 (nvme)",
                "/dev/nvme0 is open in process 14 (nvme)",
            ]
        );
        assert_eq!(
            machine.users("0000:03:00.0"),
            ["/dev/nvme1n1 is open in process 13 (cat)"]
        );
    }

    #[test]
    fn a_network_interface_that_is_up_is_in_use() {
        let machine = Machine::new();
        let sysfs = &machine.sysfs;
        let class = sysfs.path().join("class/net");
        fs::create_dir_all(class.join("lo")).unwrap();
        fs::write(class.join("lo/flags"), "0x9\n").unwrap();
        for (address, name) in [("0000:04:00.0", "eth0"), ("0000:05:00.0", "eth1")] {
            sysfs.add_function(address, "0x020000", Some("virtio-pci"));
            // As virtio has it: not directly below the function.
            let path = sysfs.function(address).join("virtio0/net").join(name);
            fs::create_dir_all(&path).unwrap();
            // Without a carrier.
            fs::write(path.join("flags"), "0x1003\n").unwrap();
            symlink(path, class.join(name)).unwrap();
        }
        let up = ["network interface eth0 is up"];
        assert_eq!(machine.users("0000:04:00.0"), up);
        assert!(machine.users("0000:02:00.0").is_empty());
        fs::write(class.join("eth0/flags"), "0x1002\n").unwrap();
        assert!(machine.users("0000:04:00.0").is_empty());
        assert_eq!(machine.users("0000:05:00.0").len(), 1);
    }

    #[test]
    fn a_function_that_a_virtual_machine_has_is_in_use() {
        let machine = Machine::new();
        machine.sysfs.add_group("7", &["0000:03:00.0"]);
        machine.process("20", "qemu", &["/dev/vfio/7"]);
        machine.process("21", "chv", &["/dev/vfio/devices/vfio3"]);
        // Not while another driver has it.
        assert!(machine.users("0000:03:00.0").is_empty());
        let function = machine.sysfs.function("0000:03:00.0");
        fs::create_dir_all(function.join("vfio-dev/vfio3")).unwrap();
        assert_eq!(
            machine.users("0000:03:00.0"),
            [
                "/dev/vfio/7 is open in process 20 (qemu)",
                "/dev/vfio/devices/vfio3 is open in process 21 (chv)",
            ]
        );
    }
}
