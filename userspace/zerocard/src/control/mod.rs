// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The control socket: what people and tests see of a running card, and do to it.
//!
//! One thread ([`Server`]) serves all clients. A line is one request ([`dispatch`]); what it does
//! to the card goes through [`ControlTarget`], so nothing here knows how a card is built. The
//! thread never blocks on a client and never waits for an I/O thread longer than a lock. Section 8
//! of `docs/interfaces.md` is the contract.

mod client;
mod dispatch;
mod server;
mod target;
#[cfg(test)]
mod tests;

pub(crate) use {
    server::Server,
    target::{ControlTarget, FunctionInfo, Limits, Rate},
};
