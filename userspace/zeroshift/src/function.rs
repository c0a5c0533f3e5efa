// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A function that a card manages, as `status`, `pause`, `resume`, `log` and `list --functions`
//! show it: `docs/interfaces.md`, section 14.

use crate::address::Address;
use crate::size;
use migdirty_uapi::{
    MigdirtyFunctionInfo, MIGDIRTY_FUNCTION_LIVE, MIGDIRTY_FUNCTION_LOGGING,
    MIGDIRTY_FUNCTION_LOG_LOST, MIGDIRTY_FUNCTION_OWNED_BY_TOOL, MIGDIRTY_FUNCTION_OWNED_BY_VFIO,
    MIGDIRTY_FUNCTION_SUSPENDED,
};
use serde::Serialize;

/// All that is known of a function.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Report {
    pub(crate) address: String,
    pub(crate) driver: Option<String>,
    pub(crate) card: String,
    pub(crate) card_live: bool,
    pub(crate) controller_id: u16,
    pub(crate) state: State,
    pub(crate) owner: Option<Owner>,
    pub(crate) log: Option<Log>,
    pub(crate) counters: Counters,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    Running,
    Paused,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Owner {
    Vfio,
    Tool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Log {
    /// What was written is not known: count everything as written.
    pub(crate) lost: bool,
    pub(crate) ranges: u32,
    pub(crate) granule_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Counters {
    pub(crate) suspends: u64,
    pub(crate) resumes: u64,
    pub(crate) harvests: u64,
    pub(crate) dirty_bytes: u64,
    pub(crate) states_read: u64,
    pub(crate) states_written: u64,
}

impl Report {
    /// What the module said, and the driver that has the function.
    pub(crate) fn new(info: &MigdirtyFunctionInfo, driver: Option<String>) -> Self {
        let has = |flag| info.flags & flag != 0;
        let lost = has(MIGDIRTY_FUNCTION_LOG_LOST);
        Self {
            address: Address(info.address).to_string(),
            driver,
            card: Address(info.card).to_string(),
            card_live: has(MIGDIRTY_FUNCTION_LIVE),
            controller_id: info.controller_id,
            state: if has(MIGDIRTY_FUNCTION_SUSPENDED) {
                State::Paused
            } else {
                State::Running
            },
            owner: if has(MIGDIRTY_FUNCTION_OWNED_BY_VFIO) {
                Some(Owner::Vfio)
            } else {
                has(MIGDIRTY_FUNCTION_OWNED_BY_TOOL).then_some(Owner::Tool)
            },
            log: (lost || has(MIGDIRTY_FUNCTION_LOGGING)).then_some(Log {
                lost,
                ranges: info.ranges,
                granule_bytes: info.granule,
            }),
            counters: Counters {
                suspends: info.suspends,
                resumes: info.resumes,
                harvests: info.harvests,
                dirty_bytes: info.dirty_bytes,
                states_read: info.states_read,
                states_written: info.states_written,
            },
        }
    }

    /// State, in a word or two.
    pub(crate) fn state_text(&self) -> &'static str {
        match (self.card_live, self.state) {
            (false, _) => "card dead",
            (true, State::Running) => "running",
            (true, State::Paused) => "paused",
        }
    }

    /// Owner, in a word.
    pub(crate) fn owner_text(&self) -> &'static str {
        match self.owner {
            None => "-",
            Some(Owner::Vfio) => "VFIO",
            Some(Owner::Tool) => "tool",
        }
    }

    /// Log, in a few words.
    pub(crate) fn log_text(&self) -> String {
        match self.log {
            None => "-".into(),
            Some(Log { lost: true, .. }) => "lost".into(),
            Some(log) => format!(
                "{} {}, granule {}",
                log.ranges,
                if log.ranges == 1 { "range" } else { "ranges" },
                size::bytes(log.granule_bytes)
            ),
        }
    }
}
