// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the tests work with: the program, the functions, and how both are looked at. Each test gets
//! them in the same state.

use crate::Arguments;
use anyhow::{bail, Context as _, Result};
use serde_json::Value;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use zeroshift_tests::program::{Program, Ran};
use zeroshift_tests::sysfs::Function;
use zeroshift_tests::vfio::bind;

/// How long anything may take on a slow emulator.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// Bytes that a read brings, and how they have to be aligned.
pub(crate) const READ: usize = 64 << 10;
pub(crate) const ALIGNMENT: usize = 4096;
/// O_DIRECT and O_EXCL of x86.
pub(crate) const DIRECT: i32 = 0o40000;
pub(crate) const EXCLUSIVE: i32 = 0o200;

/// What the tests work with.
#[derive(Clone)]
pub(crate) struct Bench {
    pub(crate) program: Program,
    /// Two functions of a card, and one of another card.
    pub(crate) source: Function,
    pub(crate) destination: Function,
    pub(crate) stranger: Function,
    pub(crate) card: String,
    pub(crate) tiny: PathBuf,
    pub(crate) files: PathBuf,
}

impl Bench {
    pub(crate) fn new(arguments: &Arguments) -> Result<Self> {
        let files = std::env::temp_dir().join(format!("zeroshift-tools-{}", std::process::id()));
        fs::create_dir_all(&files)?;
        let nobody = || Function {
            address: String::new(),
        };
        let mut bench = Self {
            program: Program(arguments.zeroshift.clone()),
            source: nobody(),
            destination: nobody(),
            stranger: nobody(),
            card: String::new(),
            tiny: arguments.tiny.clone(),
            files,
        };
        let list = bench.json(&["list", "--functions"])?;
        let card = |serial: &str| -> Result<String> {
            let cards = list["cards"].as_array().context("no cards")?;
            let card = cards.iter().find(|card| card["serial"] == serial);
            let card = card.with_context(|| format!("no card {serial} in {list}"))?;
            Ok(text(&card["address"]))
        };
        let functions = |card: &str| -> Vec<Function> {
            let functions = list["functions"].as_array();
            let functions = functions.into_iter().flatten();
            let ours = functions.filter(|function| function["card"] == card);
            ours.map(|function| Function {
                address: text(&function["address"]),
            })
            .collect()
        };
        bench.card = card(&arguments.serial)?;
        let mut ours = functions(&bench.card).into_iter();
        bench.source = ours.next().context("the card has no function")?;
        bench.destination = ours.next().context("the card has one function only")?;
        let mut others = functions(&card(&arguments.other)?).into_iter();
        bench.stranger = others.next().context("the other card has no function")?;
        Ok(bench)
    }

    /// The first function with nvme and a namespace, the others without a driver: with a second
    /// path to it, I/O would go around what a test does.
    pub(crate) fn ready(&self) -> Result<()> {
        bind::take(&self.destination)?;
        bind::take(&self.stranger)?;
        bind::give(&self.source, "nvme")?;
        fs::write(self.sysfs(&self.source).join("driver_override"), "\n")?;
        self.read_some()
    }

    /// Ends what a test that failed has left, so that the next one begins anew.
    pub(crate) fn tidy(&self) {
        for function in [&self.source, &self.destination, &self.stranger] {
            let address = function.address.as_str();
            let _ = self.run(&["log", "stop", address]);
            let _ = self.run(&["resume", address]);
        }
    }

    pub(crate) fn sysfs(&self, function: &Function) -> PathBuf {
        Path::new("/sys/bus/pci/devices").join(&function.address)
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Result<Ran> {
        self.program.run(arguments)
    }

    /// What it prints when it succeeds.
    pub(crate) fn text(&self, arguments: &[&str]) -> Result<String> {
        self.program.text(arguments)
    }

    /// The same as JSON.
    pub(crate) fn json(&self, arguments: &[&str]) -> Result<Value> {
        self.program.json(arguments)
    }

    /// That it fails with this exit code, says these words, and prints no result.
    pub(crate) fn refused(&self, arguments: &[&str], code: i32, words: &[&str]) -> Result<()> {
        self.program.refused(arguments, code, words)
    }

    /// The block device of namespace 1 of the first function, once it is there.
    pub(crate) fn block(&self) -> Result<PathBuf> {
        let controllers = self.sysfs(&self.source).join("nvme");
        wait("a block device of the first function", || {
            let controller = names(&controllers).into_iter().next()?;
            let mut folders = vec![controllers.join(&controller)];
            let subsystems = Path::new("/sys/class/nvme-subsystem");
            for subsystem in names(subsystems) {
                let folder = subsystems.join(subsystem);
                if folder.join(&controller).exists() {
                    folders.push(folder);
                }
            }
            let mut names = folders.iter().flat_map(|folder| names(folder));
            // nvme0n1, but not the hidden nvme0c0n1 of one path.
            let name = names.find(|name| {
                let rest = name.strip_prefix("nvme").unwrap_or_default();
                let rest = rest.trim_start_matches(|c: char| c.is_ascii_digit());
                rest.starts_with('n')
            })?;
            Some(Path::new("/dev").join(name))
        })
    }

    /// Reads through the first function, past every cache.
    pub(crate) fn read_some(&self) -> Result<()> {
        let block = self.block()?;
        read(&open(&block, DIRECT)?)
    }
}

pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

pub(crate) fn number(value: &Value) -> Result<u64> {
    value
        .as_u64()
        .with_context(|| format!("no number: {value}"))
}

/// Looks until something is there.
pub(crate) fn wait<T>(what: &str, look: impl Fn() -> Option<T>) -> Result<T> {
    let end = Instant::now() + LIMIT;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if Instant::now() > end {
            bail!("{what} did not come in {} s", LIMIT.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Opens a node that appears a moment after the device does.
pub(crate) fn open(path: &Path, flags: i32) -> Result<File> {
    wait(&format!("{}", path.display()), || {
        File::options()
            .read(true)
            .custom_flags(flags)
            .open(path)
            .ok()
    })
}

pub(crate) fn read(file: &File) -> Result<()> {
    let mut buffer = vec![0; READ + ALIGNMENT];
    let begin = buffer.as_ptr().align_offset(ALIGNMENT);
    file.read_exact_at(&mut buffer[begin..begin + READ], 0)
        .context("cannot read the namespace")
}
