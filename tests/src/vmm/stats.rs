// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What KVM counts for a vCPU: the file of KVM_GET_STATS_FD (`Documentation/virt/kvm/api.rst`,
//! 4.133).

use anyhow::{ensure, Context as _, Result};
use std::fs::File;
use std::os::unix::fs::FileExt as _;

/// Bytes of `struct kvm_stats_header`: six 32-bit numbers.
const HEADER: usize = 24;
/// Bytes of `struct kvm_stats_desc` before its name.
const DESCRIPTOR: usize = 16;
/// Most bytes of names and most descriptors that are believed.
const MOST: usize = 4096;

/// The counters of a vCPU.
#[derive(Debug)]
pub(super) struct Stats(pub(super) File);

impl Stats {
    /// The counter `name`.
    pub(super) fn get(&self, name: &str) -> Result<u64> {
        let mut header = [0; HEADER];
        self.0.read_exact_at(&mut header, 0)?;
        // CAST: usize has 64 bits.
        let field = |i: usize| u32_at(&header, i * 4).map(|v| v as usize);
        let (name_size, count) = (field(1)?, field(2)?);
        let (descriptors, data) = (field(4)?, field(5)?);
        ensure!(
            name_size <= MOST && count <= MOST,
            "strange header: {header:x?}"
        );
        let mut descriptor = vec![0; DESCRIPTOR + name_size];
        for i in 0..count {
            let at = descriptors + i * descriptor.len();
            self.0.read_exact_at(&mut descriptor, at as u64)?;
            let text = descriptor.get(DESCRIPTOR..).unwrap_or_default();
            if text.split(|b| *b == 0).next() == Some(name.as_bytes()) {
                let offset = u32_at(&descriptor, 8)? as usize;
                let mut value = [0; 8];
                self.0.read_exact_at(&mut value, (data + offset) as u64)?;
                return Ok(u64::from_ne_bytes(value));
            }
        }
        anyhow::bail!("KVM does not count {name}")
    }
}

fn u32_at(bytes: &[u8], offset: usize) -> Result<u32> {
    let bytes = bytes.get(offset..).and_then(|b| b.first_chunk());
    bytes.copied().map(u32::from_ne_bytes).context("too short")
}
