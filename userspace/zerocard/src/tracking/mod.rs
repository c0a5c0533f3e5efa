// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Which guest memory a function has written: the log behind Track Send and Track Receive (NVMe
//! Base 2.1, memory range tracking).
//!
//! Knows addresses and granules only: no device kind, no transport, no command encoding. A function
//! owns its [`DirtyLog`] while it is tracked and marks it from the one place that writes guest
//! memory. Marking never waits, never allocates and never fails.

mod bitmap;
mod log;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod races;

// Goes with the one on `mod tracking` once a device kind has a log.
pub(crate) use log::{DirtyLog, Limits, Range, StartError};
