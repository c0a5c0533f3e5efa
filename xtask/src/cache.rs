// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The cache folder: finished artefacts keyed by what went into them (docs/interfaces.md, section 7).
//!
//! An artefact exists when its `.complete` file does, and that is written last: a run that was killed at any
//! moment leaves something that the next run sees as unfinished. One flock per artefact keeps two runs apart.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{bail, Context as _, Result};
use rustix::fs::FlockOperation;
use sha2::{Digest, Sha256};

use crate::ui::Step;

/// What to do with what an interrupted run left behind.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leftover {
    /// Start over.
    Remove,
    /// Go on: the maker finds its own way (as make does).
    Continue,
}

/// The cache folder.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// The folder of this user: `ZEROSHIFT_CACHE`, else below the user's cache directory.
    pub(crate) fn open() -> Result<Self> {
        let var = |name: &str| {
            std::env::var_os(name)
                .filter(|v| !v.is_empty())
                .map(PathBuf::from)
        };
        let dir = match (var("ZEROSHIFT_CACHE"), var("XDG_CACHE_HOME"), var("HOME")) {
            (Some(dir), _, _) => dir,
            (None, Some(xdg), _) => xdg.join("zeroshift"),
            (None, None, Some(home)) => home.join(".cache/zeroshift"),
            (None, None, None) => bail!(
                "neither ZEROSHIFT_CACHE nor HOME is set: say where the cache folder shall be"
            ),
        };
        Self::at(&dir)
    }

    /// A cache folder at `dir`, made when it does not exist.
    pub(crate) fn at(dir: &Path) -> Result<Self> {
        let make = || {
            format!(
                "make the cache folder {} (ZEROSHIFT_CACHE names another)",
                dir.display()
            )
        };
        for sub in ["locks", "logs", "packages/partial", "run"] {
            fs::create_dir_all(dir.join(sub)).with_context(make)?;
        }
        Ok(Self {
            dir: dir.canonicalize().with_context(make)?,
        })
    }

    /// The folder itself.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the output of the step `name` goes.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{name}.log"))
    }

    /// Where the artefact lives, finished or not.
    pub(crate) fn path(&self, kind: &str, key: &Key) -> PathBuf {
        self.dir.join(format!("{kind}-{}", key.0))
    }

    /// The artefact if it is finished.
    pub(crate) fn find(&self, kind: &str, key: &Key) -> Option<PathBuf> {
        let path = self.path(kind, key);
        path.join(".complete").is_file().then_some(path)
    }

    /// The artefact, made by `make` (which gets its folder) unless it is finished already.
    pub(crate) fn artefact(
        &self,
        kind: &str,
        key: &Key,
        leftover: Leftover,
        make: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        if let Some(path) = self.find(kind, key) {
            return Ok(path);
        }
        let _lock = self.lock(&format!("{kind}-{}", key.0))?;
        if let Some(path) = self.find(kind, key) {
            return Ok(path);
        }
        let path = self.path(kind, key);
        if leftover == Leftover::Remove && path.exists() {
            remove_tree(&path)?;
        }
        fs::create_dir_all(&path)?;
        make(&path)?;
        File::create(path.join(".complete"))?.sync_all()?;
        Ok(path)
    }

    /// Holds the lock `name` until the value is dropped; says so when another run has it.
    pub(crate) fn lock(&self, name: &str) -> Result<File> {
        let path = self.dir.join("locks").join(name);
        let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let step = Step::start(format!("waiting for another run that works on {name}"));
                rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
                step.done();
                Ok(file)
            }
            Err(e) => Err(e).with_context(|| format!("lock {}", path.display())),
        }
    }

    /// A private folder for sockets and consoles of one run, removed when dropped. Folders whose owner is
    /// gone (it was killed) are removed on the way.
    pub(crate) fn run_dir(&self, name: &str) -> Result<RunDir> {
        let run = self.dir.join("run");
        for entry in fs::read_dir(&run)?.flatten() {
            let file_name = entry.file_name();
            let owner = file_name
                .to_str()
                .and_then(|n| n.split('-').next())
                .and_then(|p| p.parse::<u32>().ok());
            if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
                fs::remove_dir_all(entry.path()).ok();
            }
        }
        let dir = run.join(format!("{}-{name}", std::process::id()));
        fs::create_dir_all(&dir)?;
        // sun_path holds 108 bytes with the final zero.
        if dir.as_os_str().len() + "/admin.sock".len() >= 108 {
            bail!(
                "{} is too long for a unix socket: set ZEROSHIFT_CACHE to a shorter path",
                dir.display()
            );
        }
        Ok(RunDir(dir))
    }

    /// Removes the whole folder; refused while a run works in it.
    pub(crate) fn clean(&self) -> Result<()> {
        for entry in fs::read_dir(self.dir.join("locks"))?.flatten() {
            let file = File::open(entry.path())?;
            if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
                bail!(
                    "another run works on {}: let it end, then clean",
                    entry.file_name().to_string_lossy()
                );
            }
        }
        let step = Step::start(format!("removing {}", self.dir.display()));
        remove_tree(&self.dir)?;
        step.done();
        Ok(())
    }
}

/// Removes a folder, unless something is mounted in it: that would be emptied as well.
fn remove_tree(path: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    if let Some(mount) = mounts_below(&mounts, path).next() {
        bail!(
            "{mount} is mounted inside {}\n=> umount {mount}",
            path.display()
        );
    }
    fs::remove_dir_all(path).with_context(|| format!("remove {}", path.display()))
}

fn mounts_below<'a>(mountinfo: &'a str, path: &'a Path) -> impl Iterator<Item = &'a str> {
    mountinfo
        .lines()
        .filter_map(|l| l.split(' ').nth(4))
        .filter(move |m| Path::new(m).starts_with(path))
}

/// See [`Cache::run_dir`].
pub(crate) struct RunDir(PathBuf);

impl RunDir {
    /// The folder.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

/// A hash over everything that decides what an artefact contains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key(String);

impl Key {
    /// Hashes named inputs; a name keeps two inputs from being taken for each other.
    pub(crate) fn of<'a>(inputs: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Self {
        let mut hash = Sha256::new();
        for (name, bytes) in inputs {
            for part in [name.as_bytes(), bytes] {
                hash.update((part.len() as u64).to_le_bytes());
                hash.update(part);
            }
        }
        Self(
            hash.finalize()
                .iter()
                .take(6)
                .map(|b| format!("{b:02x}"))
                .collect(),
        )
    }

    /// The key as text.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> Cache {
        let dir = std::env::temp_dir().join(format!("xtask-cache-{name}-{}", std::process::id()));
        fs::remove_dir_all(&dir).ok();
        Cache::at(&dir).unwrap()
    }

    #[test]
    fn key_depends_on_every_input_and_on_their_borders() {
        let key = |a: &str, b: &str| Key::of([("a", a.as_bytes()), ("b", b.as_bytes())]);
        assert_eq!(key("1", "2"), key("1", "2"));
        assert_ne!(key("1", "2"), key("1", "3"));
        assert_ne!(key("12", ""), key("1", "2"));
    }

    #[test]
    fn an_interrupted_artefact_is_made_again_and_a_finished_one_is_not() {
        let cache = scratch("interrupted");
        let key = Key::of([("x", b"1".as_slice())]);
        let broken = cache.artefact("thing", &key, Leftover::Remove, |dir| {
            fs::write(dir.join("half"), "")?;
            bail!("killed")
        });
        assert!(broken.is_err() && cache.find("thing", &key).is_none());
        let path = cache.artefact("thing", &key, Leftover::Remove, |dir| {
            assert!(
                !dir.join("half").exists(),
                "left over from the interrupted run"
            );
            Ok(fs::write(dir.join("whole"), "")?)
        });
        assert!(path.unwrap().join("whole").is_file());
        cache
            .artefact("thing", &key, Leftover::Remove, |_| panic!("made twice"))
            .unwrap();
        cache.clean().unwrap();
    }

    #[test]
    fn two_runs_make_one_artefact() {
        let cache = scratch("two-runs");
        let key = Key::of([("x", b"1".as_slice())]);
        let made = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    cache.artefact("thing", &key, Leftover::Remove, |_| {
                        made.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                        Ok(())
                    })
                });
            }
        });
        assert_eq!(made.into_inner(), 1);
        cache.clean().unwrap();
    }

    #[test]
    fn clean_refuses_while_something_is_being_made() {
        let cache = scratch("clean");
        let lock = cache.lock("thing").unwrap();
        assert!(cache.clean().unwrap_err().to_string().contains("thing"));
        drop(lock);
        cache.clean().unwrap();
        assert!(!cache.dir().exists());
    }

    #[test]
    fn a_mount_inside_is_seen() {
        let info = "36 35 98:0 / /c/root/proc rw - proc proc rw\n37 35 98:0 / /cc rw - x x rw\n";
        assert_eq!(
            mounts_below(info, Path::new("/c")).collect::<Vec<_>>(),
            ["/c/root/proc"]
        );
        assert_eq!(mounts_below(info, Path::new("/d")).count(), 0);
    }

    #[test]
    fn folders_of_dead_runs_are_swept() {
        let cache = scratch("sweep");
        // Larger than any pid that Linux gives out (PID_MAX_LIMIT is 2^22).
        let dead = cache.dir().join("run/4194305-old");
        fs::create_dir_all(&dead).unwrap();
        let run = cache.run_dir("new").unwrap();
        assert!(!dead.exists() && run.path().exists());
        let path = run.path().to_owned();
        drop(run);
        assert!(!path.exists());
        cache.clean().unwrap();
    }
}
