// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What needs `unsafe`: shared memory, the raw ring, and the CPU clock of a process.
//!
//! Each file is a safe interface; nothing outside this folder may use `unsafe`.

mod clock;
mod ram;
mod ring;

pub(crate) use clock::CpuClock;
pub(crate) use ram::Ram;
pub(crate) use ring::{Direction, Ring};
