// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Moves that come to nothing: cancelled, or because the destination is gone; while the guest works, or when it stands
//! still and its function's state has been taken. QEMU has to let it go on in the source.

use anyhow::{bail, ensure, Context as _, Result};
use clap::ValueEnum;
use serde_json::{json, Value};

use crate::plan::{status, Run};
use crate::qemu::Side;

/// How a move comes to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Interruption {
    /// `migrate_cancel` while memory is copied
    CancelInPreCopy,
    /// `migrate_cancel` when the guest stands still
    CancelAtStop,
    /// The destination is killed while memory is copied
    KillInPreCopy,
    /// The destination is killed when the guest stands still
    KillAtStop,
}

impl Interruption {
    /// Whether the guest stands still when it comes.
    fn at_stop(self) -> bool {
        matches!(self, Self::CancelAtStop | Self::KillAtStop)
    }

    /// What QEMU says of the migration in the end.
    fn outcome(self) -> &'static str {
        match self {
            Self::CancelInPreCopy | Self::CancelAtStop => "cancelled",
            Self::KillInPreCopy | Self::KillAtStop => "failed",
        }
    }

    /// For people.
    fn name(self) -> String {
        let name = self.to_possible_value();
        name.map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// Bytes a second at which memory is copied until the interruption: slow enough for it to come in between, also on
/// a machine that stands still for a while.
const BANDWIDTH: u64 = 4 << 20;

impl Run<'_> {
    /// Begins a move and interrupts it; the guest runs in the source again afterwards.
    pub(crate) fn interrupt(&mut self, how: Interruption) -> Result<()> {
        let name = how.name();
        self.phase(&name);
        self.open_destination()?;
        self.switch_capability("pause-before-switchover", how.at_stop())?;
        let bandwidth = if how.at_stop() { 0 } else { BANDWIDTH };
        self.send(bandwidth)?;
        let reached = self.follow(|_, state| match how.at_stop() {
            true => status(state) == "pre-switchover",
            // Setting up is over, and memory is on its way.
            false => {
                let sent = state.pointer("/ram/transferred").and_then(Value::as_u64);
                status(state) == "active" && sent > Some(1 << 20)
            }
        })?;
        if matches!(status(&reached), "completed" | "failed" | "cancelled") {
            bail!("{name}: it was over before: {reached}; {}", self.words());
        }
        match how {
            Interruption::CancelInPreCopy | Interruption::CancelAtStop => {
                self.destination_may_end();
                self.source()?.execute("migrate_cancel", Value::Null)?;
            }
            Interruption::KillInPreCopy => self.drop_destination()?,
            Interruption::KillAtStop => {
                self.drop_destination()?;
                let state = json!({"state": "pre-switchover"});
                self.source()?.execute("migrate-continue", state)?;
            }
        }
        let last = self.follow(|_, _| false)?;
        ensure!(
            status(&last) == how.outcome(),
            "{name} ended as {last}; {}",
            self.words()
        );
        self.drop_destination()?;
        self.wait_running(Side::Source)
            .with_context(|| format!("after {name}"))?;
        self.switch_capability("pause-before-switchover", false)?;
        self.interrupted(&name);
        self.work(&format!("after {name}"))
    }
}
