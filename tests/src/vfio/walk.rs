// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Ways through the migration states with a function that runs, and what holds in each of them.

use super::log::PAGE;
use super::migration::{DataFile, State};
use super::nvme::Nvme;
use anyhow::{ensure, Context as _, Result};

/// Bytes of a read or write when the size does not matter.
pub const STEP: usize = 1 << 20;

impl State {
    /// Whether the function works in it.
    pub fn runs(self) -> bool {
        matches!(self, Self::Running | Self::PreCopy)
    }

    /// Whether it is one of the states that share a file to save to.
    pub fn saves(self) -> bool {
        matches!(self, Self::PreCopy | Self::PreCopyP2p | Self::StopCopy)
    }

    /// Whether the uAPI lets a user go from one to the other, by however many arcs.
    pub fn may_become(self, to: Self) -> bool {
        !(self == Self::StopCopy && matches!(to, Self::PreCopy | Self::PreCopyP2p))
    }

    /// Whether that way ends with a new data file.
    pub fn gives_file(self, to: Self) -> bool {
        match to {
            Self::Resuming => self != Self::Resuming,
            _ => to.saves() && !self.saves(),
        }
    }

    /// Whether the file of `self`, if it has one, is still in use after that.
    pub fn keeps_file(self, to: Self) -> bool {
        self == to || (self.saves() && to.saves())
    }
}

/// Asks for a state, and checks that it is there and that a file came with it if and only if one
/// should. The old file is to be kept by the caller where it is still in use.
pub fn go(nvme: &Nvme<'_>, to: State) -> Result<Option<DataFile>> {
    let from = nvme.device.state().context("state")?;
    let file = nvme.device.set_state(to);
    let file = file.with_context(|| format!("{from:?} to {to:?}"))?;
    let now = nvme.device.state()?;
    ensure!(now == to, "{from:?} to {to:?} ended in {now:?}");
    let expected = from.gives_file(to);
    ensure!(
        file.is_some() == expected,
        "{from:?} to {to:?} gave a file: {}, expected: {expected}",
        file.is_some()
    );
    Ok(file)
}

/// Stops a running function, gets its whole stream, and leaves it in STOP.
pub fn save(nvme: &Nvme<'_>) -> Result<Vec<u8>> {
    let file = go(nvme, State::StopCopy)?.context("no file")?;
    let stream = file.read_all(STEP).context("read of a data file")?;
    go(nvme, State::Stop)?;
    Ok(stream)
}

/// Takes a running function to a state. In RESUMING it has been reset, and `stream` is written.
pub fn reach(nvme: &Nvme<'_>, to: State, stream: &[u8]) -> Result<Option<DataFile>> {
    if to != State::Resuming {
        return match to {
            State::Running => Ok(None),
            _ => go(nvme, to),
        };
    }
    nvme.device.reset().context("reset")?;
    let file = go(nvme, to)?.context("no file")?;
    file.write_all(stream, STEP).context("write of a stream")?;
    Ok(Some(file))
}

/// The function reads a page, at once or not before it runs again.
pub fn works(nvme: &mut Nvme<'_>, iova: u64) -> Result<()> {
    nvme.read(0, iova, PAGE)
}

/// Tells a suspended function of a read, and sees that nothing comes of it.
pub fn is_quiet(nvme: &mut Nvme<'_>, iova: u64) -> Result<u16> {
    /// Each look at a register takes as long as several commands would.
    const LOOKS: usize = 200;

    let cid = nvme.put_read(0, iova, PAGE);
    nvme.ring_io();
    for _ in 0..LOOKS {
        nvme.bar.read32(zeroshift_nvme::registers::CSTS);
        ensure!(
            !nvme.has_completion(),
            "a suspended function did what it was told"
        );
    }
    Ok(cid)
}
