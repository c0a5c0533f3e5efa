// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a namespace and a function are on the command line: `key=value` lists.
//!
//! Parsing and its errors, nothing else; the contract is section 3 of `docs/interfaces.md`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{anyhow, bail, ensure, Context as _, Result};

use crate::backing::{FileMedium, FileOptions, Medium, MemoryMedium};
use crate::control::Rate;

/// I/O queue pairs of a function that does not say how many it wants.
const DEFAULT_QUEUES: u16 = 16;
/// The most that there may be: MSI-X has one vector for each and one for the admin queue.
const MAX_QUEUES: u16 = 255;
/// Length of a function's name.
const MAX_NAME: usize = 32;

/// Splits `key=value,...` and hands each pair to `take`; a key without `=` has an empty value.
fn pairs(text: &str, mut take: impl FnMut(&str, &str) -> Result<()>) -> Result<()> {
    for pair in text.split(',').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        // In one piece: clap shows an error without its causes.
        take(key, value).map_err(|error| anyhow!("in {pair:?}: {error:#}"))?;
    }
    Ok(())
}

/// A number of bytes: digits with an optional K, M, G or T (powers of 1024).
fn size(text: &str) -> Result<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        "T" | "TiB" => 40,
        unit => bail!("{unit:?} is no unit: use K, M, G or T"),
    };
    let number: u64 = digits.parse().context("a size is a number and a unit")?;
    let bytes = number.checked_mul(1 << shift);
    bytes
        .filter(|bytes| *bytes <= i64::MAX as u64)
        .context("too large")
}

fn number(text: &str) -> Result<u64> {
    text.parse().context("a number without a unit")
}

#[derive(Clone, Debug)]
enum Source {
    Memory(u64),
    File { path: PathBuf, size: Option<u64> },
}

/// A namespace as the command line describes it.
#[derive(Clone, Debug)]
pub(crate) struct NamespaceOptions {
    source: Source,
    block_shift: u8,
    read_only: bool,
}

impl FromStr for NamespaceOptions {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (mut memory, mut path, mut len) = (None, None, None);
        let (mut block_shift, mut read_only) = (9, false);
        pairs(text, |key, value| {
            match key {
                "memory" => memory = Some(size(value)?),
                "file" => path = Some(PathBuf::from(value)),
                "size" => len = Some(size(value)?),
                "block" => {
                    block_shift = match value {
                        "512" => 9,
                        "4096" => 12,
                        _ => bail!("a block has 512 or 4096 bytes"),
                    }
                }
                "readonly" => {
                    ensure!(value.is_empty(), "readonly has no value");
                    read_only = true;
                }
                _ => bail!("keys are memory, file, size, block and readonly"),
            }
            Ok(())
        })?;
        let source = match (memory, path, len) {
            (Some(bytes), None, None) => Source::Memory(bytes),
            (None, Some(path), size) => Source::File { path, size },
            _ => bail!("a namespace is memory=SIZE or file=PATH[,size=SIZE]"),
        };
        if read_only && matches!(source, Source::Memory(_)) {
            bail!("readonly is for files");
        }
        Ok(Self {
            source,
            block_shift,
            read_only,
        })
    }
}

impl fmt::Display for NamespaceOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::Memory(_) => f.write_str("memory"),
            Source::File { path, .. } => path.display().fmt(f),
        }
    }
}

impl NamespaceOptions {
    /// Opens the medium.
    pub(crate) fn open(&self) -> Result<Medium> {
        let block = 1 << self.block_shift;
        match &self.source {
            Source::Memory(bytes) => Ok(Medium::Memory(MemoryMedium::new(*bytes, block)?)),
            Source::File { path, size } => {
                let options = FileOptions {
                    size: *size,
                    block_size: block,
                    read_only: self.read_only,
                };
                Ok(Medium::File(FileMedium::open(path, options)?))
            }
        }
    }

    /// Bytes of a block as a power of two.
    pub(crate) fn block_shift(&self) -> u8 {
        self.block_shift
    }
}

/// A function as the command line describes it.
#[derive(Clone, Debug)]
pub(crate) struct FunctionOptions {
    name: Option<String>,
    /// Identifiers of attached namespaces; `None` is all.
    namespaces: Option<Vec<u32>>,
    /// I/O queue pairs.
    pub(crate) queues: u16,
    /// Rate limit at the start.
    pub(crate) rate: Rate,
}

impl Default for FunctionOptions {
    fn default() -> Self {
        Self {
            name: None,
            namespaces: None,
            queues: DEFAULT_QUEUES,
            rate: Rate::default(),
        }
    }
}

impl FromStr for FunctionOptions {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut options = Self::default();
        pairs(text, |key, value| {
            match key {
                "name" => options.name = Some(name(value)?),
                "namespaces" => {
                    let ids: Result<Vec<u32>, _> = value
                        .split(':')
                        .filter(|id| !id.is_empty())
                        .map(str::parse)
                        .collect();
                    options.namespaces =
                        Some(ids.context("namespaces are numbers with colons between them")?);
                }
                "queues" => {
                    options.queues = value
                        .parse()
                        .ok()
                        .filter(|queues| (1..=MAX_QUEUES).contains(queues))
                        .with_context(|| format!("queues are 1 to {MAX_QUEUES}"))?;
                }
                "iops" => options.rate.iops = number(value)?,
                "bytes_per_second" => options.rate.bytes_per_second = size(value)?,
                "burst_ms" => {
                    let burst = u32::try_from(number(value)?);
                    options.rate.burst_ms = burst.context("too large")?;
                }
                _ => {
                    bail!("keys are name, namespaces, queues, iops, bytes_per_second and burst_ms")
                }
            }
            Ok(())
        })?;
        Ok(options)
    }
}

/// A name becomes a file name and a word in tables.
fn name(text: &str) -> Result<String> {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    ensure!(
        !text.is_empty() && text.len() <= MAX_NAME && text.chars().all(good),
        "a name is 1 to {MAX_NAME} letters, digits, hyphens and underscores"
    );
    ensure!(
        !matches!(text, "admin" | "control"),
        "the card has a socket of that name already"
    );
    Ok(text.to_owned())
}

impl FunctionOptions {
    /// The name, or one made from the controller id.
    pub(crate) fn name(&self, controller_id: u16) -> String {
        let given = self.name.clone();
        given.unwrap_or_else(|| format!("nvme{controller_id}"))
    }

    /// Whether a namespace is attached.
    pub(crate) fn attaches(&self, id: u32) -> bool {
        self.namespaces.as_ref().is_none_or(|ids| ids.contains(&id))
    }

    /// A namespace that is to be attached and is not among the card's `count`.
    pub(crate) fn missing(&self, count: usize) -> Option<u32> {
        let ids = self.namespaces.iter().flatten();
        ids.copied().find(|id| *id == 0 || *id as usize > count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_are_described_by_their_keys() {
        let options: NamespaceOptions = "file=/x/y,size=3M,block=4096,readonly".parse().unwrap();
        assert_eq!(options.block_shift(), 12);
        assert!(options.read_only && options.to_string() == "/x/y");
        assert!(matches!(
            options.source,
            Source::File {
                size: Some(0x30_0000),
                ..
            }
        ));
        for bad in [
            "",
            "memory=1X",
            "memory=",
            "memory=1M,file=/x",
            "memory=9999999T",
            "size=1M",
            "file=/x,block=1024",
            "memory=1M,readonly",
            "memory=1M,colour=red",
            "file=/x,direct",
        ] {
            assert!(bad.parse::<NamespaceOptions>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn functions_name_their_namespaces() {
        let options: FunctionOptions = "name=disk-1,namespaces=1:3,queues=2,iops=7,burst_ms=3"
            .parse()
            .unwrap();
        assert_eq!((options.rate.iops, options.rate.burst_ms), (7, 3));
        assert_eq!((options.name(7).as_str(), options.queues), ("disk-1", 2));
        assert!(options.attaches(1) && !options.attaches(2) && options.attaches(3));
        assert_eq!((options.missing(3), options.missing(2)), (None, Some(3)));
        let all = FunctionOptions::default();
        assert!(all.attaches(9) && all.missing(0).is_none());
        assert_eq!(all.name(7), "nvme7");
        for bad in [
            "name=",
            "name=admin",
            "name=../x",
            "namespaces=a",
            "queues=0",
            "queues=256",
            "x=1",
        ] {
            assert!(bad.parse::<FunctionOptions>().is_err(), "{bad:?}");
        }
    }
}
