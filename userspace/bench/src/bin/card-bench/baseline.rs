// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A load done with io_uring and nothing else.

use std::os::fd::BorrowedFd;

use anyhow::{ensure, Context as _, Result};

use crate::load::{Load, BLOCK};
use crate::sys::{Ram, Ring};

/// Does all I/Os of a load on the calling thread, and keeps the ring full.
pub(crate) fn run(load: &mut Load, file: BorrowedFd<'_>, ram: &Ram) -> Result<()> {
    let mut ring = Ring::new(load.depth.into(), file, ram).context("io_uring")?;
    let mut free: Vec<u16> = (0..load.depth).rev().collect();
    while !load.is_over() || free.len() < usize::from(load.depth) {
        while let Some(&slot) = free.last() {
            let Some(transfer) = load.next(slot) else {
                break;
            };
            free.pop();
            let (offset, address) = (transfer.offset, transfer.address);
            ring.push(load.direction, slot.into(), offset, address, BLOCK)?;
        }
        ring.submit_and_wait()?;
        while let Some((slot, result)) = ring.reap() {
            ensure!(result == BLOCK as i32, "io_uring: result {result}");
            free.push(slot as u16);
        }
    }
    Ok(())
}
