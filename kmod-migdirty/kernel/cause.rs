// SPDX-License-Identifier: GPL-2.0-only

//! Why a card was declared dead, in the words of the log.
//!
//! Made by the admin queue when it happens, printed once, kept nowhere.

use crate::logic::{ring::BadHead, slots::UnknownCommand};
use kernel::{fmt, prelude::*};

/// Why a card was declared dead.
pub(crate) enum Cause {
    Gone,
    Fatal,
    Reset,
    WillBeReset,
    CutOff,
    UnknownCommand(u16),
    WrongQueue(u16),
    BadHead(u16),
    QueueFull,
    Unreachable,
    Deadline {
        opcode: u8,
        limit_ms: u32,
        posted: bool,
    },
}

impl From<UnknownCommand> for Cause {
    fn from(unknown: UnknownCommand) -> Self {
        Self::UnknownCommand(unknown.raw)
    }
}

impl From<BadHead> for Cause {
    fn from(bad: BadHead) -> Self {
        Self::BadHead(bad.reported)
    }
}

/// Of an access to our own memory that an index does not allow.
impl From<Error> for Cause {
    fn from(_: Error) -> Self {
        Self::Unreachable
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => write!(
                f,
                "its registers read all-ones, it was removed or lost power"
            ),
            Self::Fatal => write!(f, "it reports a fatal status (CSTS.CFS)"),
            Self::Reset => write!(f, "it is not ready (CSTS.RDY), somebody else reset it"),
            Self::WillBeReset => write!(f, "somebody else resets it"),
            Self::CutOff => write!(
                f,
                "the kernel lost the way to it and resets its link (AER, DPC)"
            ),
            Self::UnknownCommand(id) => {
                write!(f, "it completed command {id:#06x}, which it does not have")
            }
            Self::WrongQueue(id) => write!(f, "it completed a command of queue {id}"),
            Self::BadHead(head) => {
                write!(
                    f,
                    "it reported submission queue head {head}, which cannot be"
                )
            }
            Self::QueueFull => write!(f, "it completes commands without fetching them"),
            Self::Unreachable => write!(f, "its queue or doorbell is out of reach"),
            Self::Deadline {
                opcode,
                limit_ms,
                posted: false,
            } => write!(
                f,
                "no answer to admin command {opcode:#04x} in {limit_ms} ms"
            ),
            Self::Deadline {
                opcode,
                limit_ms,
                posted: true,
            } => write!(
                f,
                "no interrupt for its answer to admin command {opcode:#04x} in {limit_ms} ms"
            ),
        }
    }
}
