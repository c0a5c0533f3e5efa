// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The stage for faults and delays: a card that misbehaves on purpose, repeatably.
//!
//! A [`Rule`] says which commands it is for, at which of them it fires and what happens then. Every
//! function has a [`SharedStage`], which is asked once per command; [`Faults`] is all of them, owned by
//! the card, and hands rules out. Nothing here does anything to a command: it only decides, so it
//! knows neither queues nor sockets nor guest memory. Section 9 of `docs/interfaces.md` is the
//! contract.

mod names;
mod parse;
mod random;
mod rule;
mod set;
mod stage;
#[cfg(test)]
mod tests;

pub(crate) use rule::{Death, Rule};
pub(crate) use set::Faults;
// The card takes these up.
pub(crate) use {
    rule::Field,
    set::SharedStage,
    stage::{Decision, Fault, Point},
};
