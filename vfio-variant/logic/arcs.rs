// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! The migration state machine: which arc asks for what.
//!
//! The VFIO core breaks a request down into arcs (`vfio_mig_get_next_state`); the driver carries
//! out one after the other, and only the last one may give its caller a file. States and arcs are
//! those of `include/uapi/linux/vfio.h` with STOP_COPY, P2P and PRE_COPY.

/// Migration state of a device, numbered as `enum vfio_device_mig_state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum State {
    /// Something failed and nobody knows what the function does; only a reset helps.
    Error = 0,
    /// It neither runs nor answers other devices.
    Stop = 1,
    /// It runs.
    Running = 2,
    /// Stopped, and its data file gives the controller state.
    StopCopy = 3,
    /// Stopped, and its data file takes a controller state.
    Resuming = 4,
    /// It starts nothing by itself, but answers.
    RunningP2p = 5,
    /// It runs, and its data file gives what can be known before it stops.
    PreCopy = 6,
    /// As [`Self::RunningP2p`], with a data file.
    PreCopyP2p = 7,
}

impl State {
    /// All of them, by number.
    pub const ALL: [Self; 8] = [
        Self::Error,
        Self::Stop,
        Self::Running,
        Self::StopCopy,
        Self::Resuming,
        Self::RunningP2p,
        Self::PreCopy,
        Self::PreCopyP2p,
    ];

    /// The state with this number; `None` when there is none.
    pub fn from_raw(raw: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.raw() == raw)
    }

    /// Its number.
    pub const fn raw(self) -> u32 {
        self as u32
    }

    /// Whether the function runs in it, as far as its driver and its user know.
    pub const fn runs(self) -> bool {
        matches!(self, Self::Running | Self::PreCopy)
    }

    /// What it becomes when the card is lost: a running function goes on, and what another one
    /// does from then on is not known.
    pub const fn when_card_is_lost(self) -> Self {
        match self.runs() {
            true => self,
            false => Self::Error,
        }
    }
}

/// What an arc asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing: a suspended function neither starts DMA nor minds others'.
    Nothing,
    /// Suspend the function; done when it is quiet.
    Suspend,
    /// Let it run.
    Resume,
    /// Make a file with the header part of a stream.
    SaveHeader,
    /// Get the controller state and put it behind what the file has.
    SaveRest,
    /// Get the controller state and make a file with a whole stream.
    SaveWhole,
    /// End the file that gives.
    EndSave,
    /// Make a file that takes a stream.
    Load,
    /// Set the controller state that came, and end the file.
    Commit,
}

impl Action {
    /// Whether the caller gets a file from it.
    pub const fn makes_file(self) -> bool {
        matches!(self, Self::SaveHeader | Self::SaveWhole | Self::Load)
    }
}

/// What the arc `from` -> `to` asks for; `None` when there is no such arc.
pub const fn action(from: State, to: State) -> Option<Action> {
    use State::{PreCopy, PreCopyP2p, Resuming, Running, RunningP2p, Stop, StopCopy};
    Some(match (from, to) {
        (Running, RunningP2p) | (PreCopy, PreCopyP2p) => Action::Suspend,
        (RunningP2p, Running) | (PreCopyP2p, PreCopy) => Action::Resume,
        (RunningP2p, Stop) | (Stop, RunningP2p) => Action::Nothing,
        (Running, PreCopy) | (RunningP2p, PreCopyP2p) => Action::SaveHeader,
        (PreCopyP2p, StopCopy) => Action::SaveRest,
        (Stop, StopCopy) => Action::SaveWhole,
        (PreCopy, Running) | (PreCopyP2p, RunningP2p) | (StopCopy, Stop) => Action::EndSave,
        (Stop, Resuming) => Action::Load,
        (Resuming, Stop) => Action::Commit,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use State::{Error, PreCopy, PreCopyP2p, Resuming, Running, RunningP2p, Stop, StopCopy};

    /// First steps, as `vfio_mig_get_next_state` of Linux 7.2 has them when a driver offers all
    /// features: a row for each current state, a column for each requested one, by number.
    const NEXT: [[State; 8]; 8] = [
        [Error; 8],
        [
            Error, Stop, RunningP2p, StopCopy, Resuming, RunningP2p, RunningP2p, RunningP2p,
        ],
        [
            Error, RunningP2p, Running, RunningP2p, RunningP2p, RunningP2p, PreCopy, RunningP2p,
        ],
        [Error, Stop, Stop, StopCopy, Stop, Stop, Error, Error],
        [Error, Stop, Stop, Stop, Resuming, Stop, Stop, Stop],
        [
            Error, Stop, Running, Stop, Stop, RunningP2p, Running, PreCopyP2p,
        ],
        [
            Error, Running, Running, PreCopyP2p, Running, Running, PreCopy, PreCopyP2p,
        ],
        [
            Error, RunningP2p, RunningP2p, StopCopy, RunningP2p, RunningP2p, PreCopy, PreCopyP2p,
        ],
    ];

    fn next(from: State, to: State) -> State {
        NEXT[from.raw() as usize][to.raw() as usize]
    }

    #[test]
    fn numbers_are_those_of_the_uapi() {
        for (number, state) in State::ALL.into_iter().enumerate() {
            assert_eq!(state.raw() as usize, number);
            assert_eq!(State::from_raw(state.raw()), Some(state));
        }
        assert_eq!(State::from_raw(8), None);
        assert_eq!(State::from_raw(u32::MAX), None);
    }

    /// Every request that the core lets through is carried out, ends where it should, and gives a
    /// file from its last arc or from none.
    #[test]
    fn every_way_leads_to_its_end() {
        let mut used = Vec::new();
        for from in State::ALL {
            for to in State::ALL {
                let mut state = from;
                let mut files = 0;
                let mut steps = 0;
                while state != to && next(state, to) != Error {
                    let step = next(state, to);
                    assert_eq!(files, 0, "{from:?} -> {to:?}: a file before the last arc");
                    let action = action(state, step)
                        .unwrap_or_else(|| panic!("{from:?} -> {to:?}: {state:?} -> {step:?}"));
                    files += usize::from(action.makes_file());
                    used.push((state, step));
                    state = step;
                    steps += 1;
                    assert!(steps <= 5, "{from:?} -> {to:?} goes round in circles");
                }
            }
        }
        for from in State::ALL {
            for to in State::ALL {
                assert_eq!(
                    action(from, to).is_some(),
                    used.contains(&(from, to)),
                    "{from:?} -> {to:?}"
                );
            }
        }
    }

    /// In every way the function is suspended exactly in the states in which it has to be, a state
    /// is read and set only then, and each file is ended before there is another one.
    #[test]
    fn the_function_does_what_its_state_says() {
        let quiet = |state: State| !state.runs();
        let saving = |state| matches!(state, PreCopy | PreCopyP2p | StopCopy);
        for from in State::ALL {
            for to in State::ALL {
                let Some(action) = action(from, to) else {
                    continue;
                };
                let arc = format!("{from:?} -> {to:?}: {action:?}");
                assert_eq!(
                    action == Action::Suspend,
                    !quiet(from) && quiet(to),
                    "{arc}"
                );
                assert_eq!(action == Action::Resume, quiet(from) && !quiet(to), "{arc}");
                let begins = matches!(action, Action::SaveHeader | Action::SaveWhole);
                assert_eq!(begins, !saving(from) && saving(to), "{arc}");
                assert_eq!(
                    action == Action::EndSave,
                    saving(from) && !saving(to),
                    "{arc}"
                );
                let reads = matches!(action, Action::SaveRest | Action::SaveWhole);
                assert_eq!(reads, to == StopCopy, "{arc}");
                assert_eq!(action == Action::Load, to == Resuming, "{arc}");
                assert_eq!(action == Action::Commit, from == Resuming, "{arc}");
                assert!(
                    action == Action::Suspend
                        || action == Action::Resume
                        || quiet(from) == quiet(to),
                    "{arc}"
                );
            }
        }
    }

    #[test]
    fn only_a_running_function_outlives_its_card() {
        for state in State::ALL {
            let runs = matches!(state, Running | PreCopy);
            let expected = if runs { state } else { Error };
            assert_eq!(state.when_card_is_lost(), expected);
        }
    }
}
