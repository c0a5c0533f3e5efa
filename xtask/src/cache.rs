// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The cache folder: finished artefacts keyed by what went into them (docs/interfaces.md, section 7).
//!
//! An artefact exists when its `.complete` file does, and that is written last: a run that was killed at any
//! moment leaves something that the next run sees as unfinished. One flock per artefact keeps two runs apart.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;
use std::time::SystemTime;

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
    /// Logs of this run.
    logs: PathBuf,
    /// Held shared as long as a run works in the folder.
    in_use: Arc<File>,
}

/// How many runs' logs are kept.
const RUNS_LOGGED: usize = 20;

/// Says that a folder is a cache of ours, so that we may remove things in it.
const MARK: &str = ".zeroshift-cache";

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
            let dir = dir.display();
            format!("make the cache folder {dir} (ZEROSHIFT_CACHE names another; it must be yours to write)")
        };
        fs::create_dir_all(dir).with_context(make)?;
        let dir = dir.canonicalize().with_context(make)?;
        // In this order: another first run writes the mark before anything else.
        let empty = fs::read_dir(&dir).with_context(make)?.next().is_none();
        if !empty && !dir.join(MARK).is_file() {
            bail!(
                "{} is no cache folder of ours and not empty: things in a cache folder get removed\n=> let \
                 ZEROSHIFT_CACHE name a folder of its own, such as {}",
                dir.display(),
                dir.join("zeroshift").display()
            );
        }
        fs::write(
            dir.join(MARK),
            "Cache of Zeroshift's xtask. Everything in here can be made again.\n",
        )
        .with_context(make)?;
        for sub in ["locks", "logs", "packages/partial", "run"] {
            fs::create_dir_all(dir.join(sub)).with_context(make)?;
        }
        let in_use = File::create(dir.join("locks/in-use")).with_context(make)?;
        match rustix::fs::flock(&in_use, FlockOperation::NonBlockingLockShared) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => bail!(
                "the cache folder {} is just being cleaned\n=> run the same command again",
                dir.display()
            ),
            Err(e) => return Err(e).with_context(|| format!("lock {}", dir.display())),
        }
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        let logs = dir
            .join("logs")
            .join(format!("{:012}-{}", since.as_secs(), std::process::id()));
        Ok(Self {
            dir,
            logs,
            in_use: Arc::new(in_use),
        })
    }

    /// The folder itself.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the output of the step `name` goes. Each run has a folder of its own.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        if !self.logs.is_dir() {
            self.sweep_logs();
            fs::create_dir_all(&self.logs).ok();
        }
        let numbered = |n: u32| match n {
            1 => format!("{name}.log"),
            n => format!("{name}-{n}.log"),
        };
        let free = (1..)
            .map(|n| self.logs.join(numbered(n)))
            .find(|p| File::create_new(p).is_ok() || !p.exists());
        free.unwrap_or_else(|| self.logs.join(numbered(1)))
    }

    /// Keeps the newest runs' logs: their folders' names sort by time.
    fn sweep_logs(&self) {
        let Ok(entries) = fs::read_dir(self.dir.join("logs")) else {
            return;
        };
        let is_run = |name: &str| {
            let number = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit());
            name.split_once('-')
                .is_some_and(|(time, pid)| time.len() == 12 && number(time) && number(pid))
        };
        let mut runs: Vec<PathBuf> = entries
            .flatten()
            .filter(|e| e.file_name().to_str().is_some_and(is_run))
            .map(|e| e.path())
            .collect();
        runs.sort();
        // One more is about to come.
        let old = (runs.len() + 1).saturating_sub(RUNS_LOGGED);
        for run in runs.iter().take(old) {
            fs::remove_dir_all(run).ok();
        }
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
        // What is inside must be on the disk before the mark that says so.
        rustix::fs::syncfs(File::open(&path)?)?;
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

    /// A private folder for sockets and images of one run, removed when dropped. Folders whose owner is
    /// gone (it was killed) are removed on the way: nobody holds their lock.
    pub(crate) fn run_dir(&self, name: &str) -> Result<RunDir> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let run = self.dir.join("run");
        let _making = self.lock("run")?;
        for entry in fs::read_dir(&run)?.flatten() {
            let owner = File::open(entry.path().join(OWNER));
            let abandoned = match owner {
                Ok(f) => rustix::fs::flock(&f, FlockOperation::NonBlockingLockExclusive).is_ok(),
                Err(e) => e.kind() == io::ErrorKind::NotFound,
            };
            if abandoned {
                fs::remove_dir_all(entry.path()).ok();
            }
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = run.join(format!("{}-{number}-{name}", std::process::id()));
        fs::create_dir(&dir).with_context(|| format!("make {}", dir.display()))?;
        let owner = File::create(dir.join(OWNER))?;
        rustix::fs::flock(&owner, FlockOperation::NonBlockingLockExclusive)?;
        Ok(RunDir { dir, _owner: owner })
    }

    /// Removes everything that is ours; refused while another run works in the folder.
    pub(crate) fn clean(&self) -> Result<()> {
        // Ours becomes exclusive: nobody else's is left, and nobody can come until we are done.
        if rustix::fs::flock(&*self.in_use, FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!(
                "another run works in {}\n=> let it end, then clean",
                self.dir.display()
            );
        }
        let step = Step::start(format!("cleaning {}", self.dir.display()));
        for entry in fs::read_dir(&self.dir)?.flatten() {
            let name = entry.file_name();
            let ours = name.to_str().is_some_and(is_ours);
            if ours && entry.file_type()?.is_dir() {
                step.detail(&name.to_string_lossy());
                remove_tree(&entry.path())?;
            }
        }
        step.done();
        Ok(())
    }
}

/// Whether an entry of the cache folder is one that we make (and not a lock, which others may hold).
fn is_ours(name: &str) -> bool {
    let is_key = |k: &str| k.len() == 12 && k.bytes().all(|b| b.is_ascii_hexdigit());
    let artefact = name.rsplit_once('-').is_some_and(|(_, key)| is_key(key));
    artefact || ["packages", "logs", "run"].contains(&name)
}

/// Locked by the owner of a run's folder.
const OWNER: &str = ".owner";

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
pub(crate) struct RunDir {
    dir: PathBuf,
    _owner: File,
}

impl RunDir {
    /// The folder.
    pub(crate) fn path(&self) -> &Path {
        &self.dir
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.dir).ok();
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
    use std::time::{Duration, Instant};

    fn scratch(name: &str) -> Cache {
        let dir = std::env::temp_dir().join(format!("xtask-cache-{name}-{}", std::process::id()));
        fs::remove_dir_all(&dir).ok();
        Cache::at(&dir).unwrap()
    }

    fn remove(cache: &Cache) {
        fs::remove_dir_all(cache.dir()).unwrap();
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
        remove(&cache);
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
        remove(&cache);
    }

    #[test]
    fn clean_refuses_while_another_run_works_and_removes_only_what_is_ours() {
        let cache = scratch("clean");
        let key = Key::of([("x", b"1".as_slice())]);
        cache
            .artefact("kernel-test", &key, Leftover::Remove, |_| Ok(()))
            .unwrap();
        fs::write(cache.dir().join("somebody's"), "").unwrap();
        let foreign = [
            "photos",
            "running-notes",
            "kernel-src",
            "root-canal",
            "packages-old",
        ];
        foreign
            .iter()
            .for_each(|f| fs::create_dir(cache.dir().join(f)).unwrap());
        let other = Cache::at(cache.dir()).unwrap();
        assert!(cache
            .clean()
            .unwrap_err()
            .to_string()
            .contains("another run"));
        drop(other);
        // A child that another test is just about to start has its lock, too, until it is a program.
        let end = Instant::now() + Duration::from_secs(60);
        while let Err(e) = cache.clean() {
            assert!(Instant::now() < end, "{e:#}");
            std::thread::yield_now();
        }
        assert!(cache.find("kernel-test", &key).is_none());
        assert!(cache.dir().join("somebody's").exists());
        assert!(foreign.iter().all(|f| cache.dir().join(f).exists()));
        assert!(
            Cache::at(cache.dir()).is_err(),
            "nobody may come in while it is cleaned"
        );
        remove(&cache);
    }

    #[test]
    fn first_runs_at_the_same_moment_agree_on_a_new_folder() {
        let dir = std::env::temp_dir().join(format!("xtask-cache-first-{}", std::process::id()));
        for _ in 0..50 {
            fs::remove_dir_all(&dir).ok();
            std::thread::scope(|s| {
                let runs: Vec<_> = (0..4)
                    .map(|_| s.spawn(|| Cache::at(&dir).map(drop)))
                    .collect();
                runs.into_iter().for_each(|r| r.join().unwrap().unwrap());
            });
        }
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_folder_with_other_things_in_it_is_refused() {
        let dir = std::env::temp_dir().join(format!("xtask-cache-foreign-{}", std::process::id()));
        fs::create_dir_all(dir.join("run/important")).unwrap();
        let err = Cache::at(&dir).unwrap_err().to_string();
        assert!(
            err.contains("not empty") && dir.join("run/important").exists(),
            "{err}"
        );
        fs::remove_dir_all(&dir).unwrap();
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
    fn folders_of_dead_runs_are_swept_and_those_of_live_ones_are_not() {
        let cache = scratch("sweep");
        let dead = cache.dir().join("run/1-0-killed");
        fs::create_dir_all(&dead).unwrap();
        fs::write(dead.join(OWNER), "").unwrap();
        let first = cache.run_dir("a").unwrap();
        let second = cache.run_dir("a").unwrap();
        assert!(!dead.exists() && first.path().exists() && first.path() != second.path());
        let path = first.path().to_owned();
        drop(first);
        assert!(!path.exists() && second.path().exists());
        drop(second);
        remove(&cache);
    }

    #[test]
    fn logs_of_the_newest_runs_are_kept() {
        let cache = scratch("logs");
        for i in 0..RUNS_LOGGED + 5 {
            fs::create_dir_all(cache.dir().join(format!("logs/{i:012}-1"))).unwrap();
        }
        let log = cache.log("x");
        assert!(log.parent().unwrap().is_dir());
        assert!(!cache.dir().join("logs/000000000005-1").exists());
        assert!(cache.dir().join("logs/000000000006-1").exists());
        remove(&cache);
    }
}
