// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the numbers were measured on.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde::Serialize;

/// The first line of the output.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) machine: Description,
}

/// See [`Machine`].
#[derive(Debug, Serialize)]
pub(crate) struct Description {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) kernel: String,
    pub(crate) zerocard: String,
    pub(crate) file_system: String,
    pub(crate) file_bytes: u64,
}

impl Machine {
    /// Finds out; `file` is what the I/O goes to.
    pub(crate) fn describe(zerocard: &Path, file: &Path) -> Result<Self> {
        let cpus = std::fs::read_to_string("/proc/cpuinfo")?;
        let model = cpus
            .lines()
            .find_map(|line| line.strip_prefix("model name"));
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
        let version = Command::new(zerocard)
            .arg("--version")
            .output()
            .with_context(|| format!("run {}", zerocard.display()))?;
        Ok(Self {
            machine: Description {
                cpu: model
                    .map_or("unknown", |model| {
                        model.trim_start_matches([' ', '\t', ':'])
                    })
                    .to_owned(),
                cores: std::thread::available_parallelism()?.get(),
                kernel: kernel.trim_end().to_owned(),
                zerocard: String::from_utf8_lossy(&version.stdout)
                    .trim_end()
                    .trim_start_matches("zerocard ")
                    .to_owned(),
                file_system: file_system(file)?,
                file_bytes: std::fs::metadata(file)?.len(),
            },
        })
    }
}

fn file_system(path: &Path) -> Result<String> {
    let magic = rustix::fs::statfs(path)?.f_type;
    // linux/magic.h
    let name = match magic as u32 {
        0xef53 => "ext4",
        0x5846_5342 => "xfs",
        0x9123_683e => "btrfs",
        0x0102_1994 => "tmpfs",
        0x794c_7630 => "overlayfs",
        0xf2f5_2010 => "f2fs",
        other => return Ok(format!("{other:#x}")),
    };
    Ok(name.to_owned())
}
