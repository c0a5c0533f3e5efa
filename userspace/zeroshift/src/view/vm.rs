// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The VM of a running VMM: found in `/proc`, taken by pidfd.

use crate::sysfs::names;
use anyhow::{anyhow, bail, Result};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::process::{pidfd_getfd, pidfd_open, Pid, PidfdFlags, PidfdGetfdFlags};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

/// What KVM calls the file of a VM (`kvm_dev_ioctl_create_vm`).
const NAME: &str = "anon_inode:kvm-vm";

/// What a process is called.
pub(super) fn command(proc: &Path, pid: i32) -> String {
    let name = fs::read_to_string(proc.join(pid.to_string()).join("comm")).unwrap_or_default();
    match name.trim() {
        "" => "?".into(),
        name => name.into(),
    }
}

/// A process and its name, for messages.
pub(super) fn process(proc: &Path, pid: i32) -> String {
    format!("process {pid} ({})", command(proc, pid))
}

/// File descriptor of the VM in process `pid`; `wanted` says which where there are several.
pub(super) fn find(proc: &Path, pid: i32, wanted: Option<i32>) -> Result<i32> {
    let folder = proc.join(pid.to_string()).join("fd");
    if let Err(error) = fs::read_dir(&folder) {
        match error.kind() {
            ErrorKind::NotFound => bail!(
                "there is no process {pid}; 'ps -C qemu-system-x86_64' shows the VMMs of that name"
            ),
            ErrorKind::PermissionDenied => {
                bail!(
                    "{}: its files are not for this user; run this command as root",
                    process(proc, pid)
                )
            }
            _ => bail!("cannot look at {}: {error}", folder.display()),
        }
    }
    let is_vm = |name: &String| {
        let target = fs::read_link(folder.join(name));
        target.is_ok_and(|target| target.as_os_str() == NAME)
    };
    let found = names(&folder).into_iter().filter(is_vm);
    let mut found: Vec<i32> = found.filter_map(|name| name.parse().ok()).collect();
    found.sort_unstable();
    let list = || {
        let list: Vec<String> = found.iter().map(i32::to_string).collect();
        list.join(", ")
    };
    let process = process(proc, pid);
    match (found.as_slice(), wanted) {
        (&[], _) => bail!(
            "{process} has no VM of KVM; a QEMU that has runs with -accel kvm, and --pid is that \
             process, not one that started it"
        ),
        (found, Some(wanted)) if found.contains(&wanted) => Ok(wanted),
        (_, Some(wanted)) => bail!(
            "file descriptor {wanted} of {process} is no VM of KVM; those are: {}",
            list()
        ),
        (&[one], None) => Ok(one),
        (_, None) => bail!(
            "{process} has several VMs: say which, with --vm, one of {}",
            list()
        ),
    }
}

/// A handle of a process that stays this process's when it ends: to be had before anything is looked up by number.
pub(super) fn open(pid: i32) -> Result<OwnedFd, Errno> {
    let id = Pid::from_raw(pid).ok_or(Errno::SRCH)?;
    pidfd_open(id, PidfdFlags::empty())
}

/// A file of our own for the VM. `from` is the process's [`open`].
pub(super) fn take(
    proc: &Path,
    pid: i32,
    from: Result<OwnedFd, Errno>,
    vm: i32,
) -> Result<OwnedFd> {
    let process = process(proc, pid);
    let explain = |errno| match errno {
        Errno::SRCH => anyhow!("{process} has just ended"),
        Errno::BADF => anyhow!("{process} has just closed its VM (file descriptor {vm})"),
        Errno::PERM => anyhow!(
            "{process} does not let this user have its files, as ptrace(2) would not; run this \
             command as root, and see kernel.yama.ptrace_scope and what the container allows"
        ),
        errno => anyhow!("cannot take file descriptor {vm} of {process}: {errno}"),
    };
    pidfd_getfd(&from.map_err(explain)?, vm, PidfdGetfdFlags::empty()).map_err(explain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A `/proc` with a process 7.
    fn proc(files: &[(&str, &str)]) -> tempfile::TempDir {
        let proc = tempfile::tempdir().unwrap();
        let folder = proc.path().join("7");
        fs::create_dir_all(folder.join("fd")).unwrap();
        fs::write(folder.join("comm"), "qemu\n").unwrap();
        for (name, target) in files {
            symlink(target, folder.join("fd").join(name)).unwrap();
        }
        proc
    }

    #[test]
    fn the_vm_of_a_process_is_found() {
        let found = |files: &[(&str, &str)], wanted| {
            find(proc(files).path(), 7, wanted).map_err(|error| error.to_string())
        };
        let others = [
            ("0", "/dev/null"),
            ("3", "anon_inode:kvm-vcpu:0"),
            ("4", "/tmp/anon_inode:kvm-vm"),
            ("5", "anon_inode:kvm-vm-stats"),
        ];
        let error = found(&others, None).unwrap_err();
        assert!(
            error.contains("process 7 (qemu) has no VM") && error.contains("-accel kvm"),
            "{error}"
        );
        let one = [&others[..], &[("10", NAME)]].concat();
        assert_eq!(found(&one, None), Ok(10));
        assert_eq!(found(&one, Some(10)), Ok(10));
        let error = found(&one, Some(3)).unwrap_err();
        assert!(
            error.contains("3 of process 7") && error.contains("are: 10"),
            "{error}"
        );
        let two = [&one[..], &[("9", NAME)]].concat();
        assert_eq!(found(&two, Some(9)), Ok(9));
        let error = found(&two, None).unwrap_err();
        assert!(error.contains("--vm, one of 9, 10"), "{error}");
    }

    #[test]
    fn a_process_that_is_not_there_is_told() {
        let error = find(proc(&[]).path(), 8, None).unwrap_err().to_string();
        assert!(error.contains("no process 8"), "{error}");
        // One that was there a moment ago: this number is above any limit of processes.
        let gone = take(Path::new("/proc"), i32::MAX, open(i32::MAX), 3)
            .unwrap_err()
            .to_string();
        assert!(gone.contains("has just ended"), "{gone}");
    }

    #[test]
    fn a_file_of_a_process_is_taken() {
        let file = tempfile::tempfile().unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&file);
        // CAST: process ids are below 2^22.
        let own = std::process::id() as i32;
        let taken = take(Path::new("/proc"), own, open(own), number);
        // A sandbox may forbid it even to oneself.
        if let Ok(taken) = taken {
            let inode = |fd: &OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
            assert_eq!(inode(&taken), inode(&file.into()));
        }
    }
}
