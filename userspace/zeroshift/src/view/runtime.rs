// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The folder of the holders' sockets, one for each attached VM: `PID-FD.sock`.
//!
//! A holder takes its name away before it lets go of the VM. One that was killed leaves its own
//! behind, to which nobody answers: whoever looks next removes it. The folder is locked while names are
//! made and removed, so nobody removes one that is about to be served.

use super::explain;
use super::options::Places;
use anyhow::{anyhow, bail, Context as _, Result};
use rustix::fd::OwnedFd;
use rustix::fs::{flock, FlockOperation, Mode, OFlags};
use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// See the module.
pub(super) struct Runtime(PathBuf);

/// A holder that answers.
#[derive(Debug)]
pub(super) struct Holder {
    pub(super) pid: i32,
    pub(super) vm: i32,
    pub(super) socket: PathBuf,
    pub(super) stream: UnixStream,
}

/// What a look into the folder brought.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// In the order of processes and file descriptors.
    pub(super) holders: Vec<Holder>,
    /// Process and VM of those that do not answer: their names are removed.
    pub(super) died: Vec<(i32, i32)>,
}

impl Runtime {
    /// That of this user. It need not be there.
    pub(super) fn new(places: &Places) -> Result<Self> {
        if let Some(dir) = &places.runtime {
            return Ok(Self(dir.clone()));
        }
        if rustix::process::geteuid().is_root() {
            return Ok(Self("/run/zeroshift".into()));
        }
        let dir = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty());
        let dir = dir.context(
            "there is no folder for the sockets of attached VMs: XDG_RUNTIME_DIR is not set; run this \
             command as root",
        )?;
        Ok(Self(Path::new(&dir).join("zeroshift")))
    }

    /// Where the holder of a VM is asked.
    pub(super) fn socket(&self, pid: i32, vm: i32) -> PathBuf {
        self.0.join(format!("{pid}-{vm}.sock"))
    }

    /// Makes the socket of a VM's holder; the folder as well.
    pub(super) fn bind(&self, pid: i32, vm: i32) -> Result<UnixListener> {
        let dir = self.0.display();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.0)
            .with_context(|| format!("cannot make the folder {dir}"))?;
        let lock = self.lock()?;
        let found = self.remove_dead()?;
        found.died.iter().for_each(explain::died);
        let socket = self.socket(pid, vm);
        let listener = UnixListener::bind(&socket).map_err(|error| match error.kind() {
            ErrorKind::AddrInUse => anyhow!(
                "{} is served by another process; 'zeroshift view list' shows it, 'zeroshift view \
                 detach --pid {pid} --vm {vm}' ends that",
                socket.display()
            ),
            _ => anyhow!("cannot make the socket {}: {error}", socket.display()),
        })?;
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o600))?;
        drop(lock);
        Ok(listener)
    }

    /// Takes the name away.
    pub(super) fn unlink(socket: &Path) {
        // Somebody may have done so by hand.
        let _ = fs::remove_file(socket);
    }

    /// All holders.
    pub(super) fn look(&self) -> Result<Found> {
        if !self.0.exists() {
            return Ok(Found::default());
        }
        let _lock = self.lock()?;
        self.remove_dead()
    }

    /// Connects to each, and removes the names of those that are dead. Under the lock.
    fn remove_dead(&self) -> Result<Found> {
        let mut found = Found::default();
        for name in crate::sysfs::names(&self.0) {
            let Some((pid, vm)) = parse(&name) else {
                continue;
            };
            let socket = self.0.join(name);
            match UnixStream::connect(&socket) {
                Ok(stream) => found.holders.push(Holder {
                    pid,
                    vm,
                    socket,
                    stream,
                }),
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    Self::unlink(&socket);
                    found.died.push((pid, vm));
                }
                // It has just ended in peace.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => bail!("cannot connect to {}: {error}", socket.display()),
            }
        }
        found.holders.sort_by_key(|holder| (holder.pid, holder.vm));
        Ok(found)
    }

    /// Until it is dropped nobody else makes or removes names. The folder has to be ours alone.
    fn lock(&self) -> Result<OwnedFd> {
        let dir = self.0.display();
        let metadata = fs::symlink_metadata(&self.0);
        let metadata = metadata.with_context(|| format!("cannot look at the folder {dir}"))?;
        let ours = metadata.uid() == rustix::process::geteuid().as_raw();
        if !metadata.is_dir() || !ours || metadata.mode() & 0o077 != 0 {
            bail!(
                "{dir} is not a folder that only this user can use (mode 0700); remove it, or mend \
                 its owner and mode"
            );
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::open(&self.0, flags, Mode::empty());
        let file = file.with_context(|| format!("cannot open the folder {dir}"))?;
        flock(&file, FlockOperation::LockExclusive)
            .with_context(|| format!("cannot lock the folder {dir}"))?;
        Ok(file)
    }
}

/// Process and file descriptor of `PID-FD.sock`.
fn parse(name: &str) -> Option<(i32, i32)> {
    let (pid, vm) = name.strip_suffix(".sock")?.split_once('-')?;
    Some((pid.parse().ok()?, vm.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime(dir: &Path) -> Runtime {
        Runtime::new(&Places {
            runtime: Some(dir.join("zeroshift")),
            device: "/dev/null".into(),
        })
        .unwrap()
    }

    fn known(found: &Found) -> Vec<(i32, i32)> {
        found.holders.iter().map(|h| (h.pid, h.vm)).collect()
    }

    #[test]
    fn who_died_is_told_once_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = runtime(dir.path());
        assert!(runtime.look().unwrap().holders.is_empty());
        let first = runtime.bind(20, 9).unwrap();
        let second = runtime.bind(7, 10).unwrap();
        fs::write(dir.path().join("zeroshift/note"), "x").unwrap();
        let found = runtime.look().unwrap();
        assert_eq!(known(&found), [(7, 10), (20, 9)]);
        let error = runtime.bind(20, 9).unwrap_err().to_string();
        assert!(error.contains("20-9.sock is served"), "{error}");
        // As when it is killed: the name stays.
        drop(first);
        let found = runtime.look().unwrap();
        assert_eq!(
            (known(&found), &found.died[..]),
            (vec![(7, 10)], &[(20, 9)][..])
        );
        assert!(runtime.look().unwrap().died.is_empty());
        drop(second);
        let again = runtime.bind(7, 10).unwrap();
        assert_eq!(known(&runtime.look().unwrap()), [(7, 10)]);
        drop(again);
    }

    #[test]
    fn the_folder_and_the_socket_are_for_this_user_only() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = runtime(dir.path());
        let _listener = runtime.bind(1, 2).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        let folder = dir.path().join("zeroshift");
        assert_eq!(mode(&folder), 0o700);
        assert_eq!(mode(&folder.join("1-2.sock")), 0o600);
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        let error = runtime.look().unwrap_err().to_string();
        assert!(error.contains("mode 0700"), "{error}");
        let error = runtime.bind(1, 3).unwrap_err().to_string();
        assert!(error.contains("mode 0700"), "{error}");
    }

    #[test]
    fn other_files_are_left_alone() {
        assert_eq!(parse("12-3.sock"), Some((12, 3)));
        for name in ["12.sock", "a-3.sock", "12-3", "12-3.sock.x", ".sock"] {
            assert_eq!(parse(name), None, "{name}");
        }
    }
}
