// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `migration.overhead_bytes`: what the stream has beyond the card's state.

use anyhow::{ensure, Context as _, Result};
use serde_json::{json, Value};
use zeroshift_bench::report::{Figure, Goal, Spread};
use zeroshift_stream::reader::{Event, Reader};
use zeroshift_tests::vfio::migration::State;
use zeroshift_tests::vfio::nvme::{Nvme, Wish};
use zeroshift_tests::vfio::rig::{function, open, Setup};

use crate::{ACCESS, DRIVER};

/// The figure, whose goal is 2 % of the state higher once that is known.
pub(crate) const FIGURE: Figure = Figure {
    name: "migration.overhead_bytes",
    unit: "bytes",
    goal: Goal::AtMost(ALLOWED),
};

/// What a stream without any state may have.
const ALLOWED: f64 = 512.0;

/// Bytes of a function's stream that are not state.
pub(crate) fn measure(address: &str, _pairs: u32) -> Result<Value> {
    let Setup { dma, mut devices } = open(DRIVER, &[&function(address)], ACCESS)?;
    let nvme = Nvme::start(devices.remove(0), &dma, Wish::default())?;
    let stream = {
        let file = nvme.device.set_state(State::StopCopy)?;
        let file = file.context("no data file in STOP_COPY")?;
        file.read_all(1 << 20)?
    };
    nvme.device.set_state(State::Running)?;

    let mut reader = Reader::new();
    let mut input = stream.as_slice();
    while reader.next(&mut input)? != Some(Event::End) {
        ensure!(
            !input.is_empty(),
            "the stream of {} bytes has no end",
            stream.len()
        );
    }
    let state = reader.state_bytes();
    let overhead = stream.len() as u64 - state;
    let figure = Figure {
        goal: Goal::AtMost(ALLOWED + state as f64 * 0.02),
        ..FIGURE
    };
    let raw = json!({"stream_bytes": stream.len(), "state_bytes": state});
    Ok(figure.measured(&Spread::of([overhead as f64]), &raw))
}
