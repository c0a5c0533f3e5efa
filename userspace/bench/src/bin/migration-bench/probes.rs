// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Counts how often the functions of kernel modules are entered: a kprobe on each of them.
//!
//! Made and owned by the bench for the time of a measurement; needs tracefs and CONFIG_KPROBE_EVENTS. Each function,
//! without exception: an entry into one that has no probe would not be counted, and look like none. (What the
//! compiler inlined is no function of its own, and is entered where its caller is.)

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{bail, ensure, Context as _, Result};

/// Where tracefs may be.
const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
/// Group of our probes.
const GROUP: &str = "zeroshift_bench";

/// Probes on every function of some modules.
pub(crate) struct Probes {
    tracefs: PathBuf,
    /// Functions that have one.
    pub(crate) probed: usize,
}

impl Probes {
    /// Puts a probe on every function of `modules`, which are loaded. It is an error when one cannot have it.
    pub(crate) fn new(modules: &[&str]) -> Result<Self> {
        let mut places = TRACEFS.map(PathBuf::from).into_iter();
        let tracefs = places
            .find(|dir| dir.join("kprobe_events").exists())
            .context(
            "no kprobe_events: mount tracefs (mount -t tracefs tracefs /sys/kernel/tracing), and \
                 use a kernel with CONFIG_KPROBE_EVENTS",
        )?;
        let mut probes = Self { tracefs, probed: 0 };
        let mut wanted = Vec::new();
        for module in modules {
            let functions = functions(module)?;
            wanted.extend(functions.iter().map(|name| format!("{module}:{name}")));
        }
        let events = probes.tracefs.join("kprobe_events");
        place(&wanted, |function| {
            let probe = format!("p:{GROUP}/p{} {function}\n", probes.probed);
            let mut events = OpenOptions::new().append(true).open(&events)?;
            events.write_all(probe.as_bytes())?;
            probes.probed += 1;
            Ok(())
        })?;
        probes.switch("1")?;
        Ok(probes)
    }

    fn switch(&self, on: &str) -> Result<()> {
        let enable = self.tracefs.join("events").join(GROUP).join("enable");
        fs::write(&enable, on).with_context(|| format!("write {}", enable.display()))
    }

    /// How often they were hit so far. A probe that was missed would make the count a lie: that is an error.
    pub(crate) fn hits(&self) -> Result<u64> {
        let text = fs::read_to_string(self.tracefs.join("kprobe_profile"))?;
        let mut hits = 0;
        for line in text.lines() {
            // NAME HITS MISSES
            let mut words = line.split_whitespace().skip(1).map(str::parse::<u64>);
            let (Some(Ok(hit)), Some(Ok(missed))) = (words.next(), words.next()) else {
                bail!("kprobe_profile says {line:?}");
            };
            ensure!(missed == 0, "a probe was missed: {line:?}");
            hits += hit;
        }
        Ok(hits)
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        // Best effort: they disturb nobody but the modules that are measured here.
        let _ = self.switch("0");
        let events = OpenOptions::new()
            .append(true)
            .open(self.tracefs.join("kprobe_events"));
        if let Ok(mut events) = events {
            for probe in 0..self.probed {
                let _ = events.write_all(format!("-:{GROUP}/p{probe}\n").as_bytes());
            }
        }
    }
}

/// Puts a probe on each of `functions` with `put`; an error that names some when it does not take all.
fn place(functions: &[String], mut put: impl FnMut(&str) -> io::Result<()>) -> Result<()> {
    /// Names that one can still read.
    const NAMED: usize = 3;
    let mut refused = Vec::new();
    for function in functions {
        if let Err(error) = put(function) {
            refused.push(format!("{function} ({error})"));
        }
    }
    let some = refused.get(..NAMED).unwrap_or(&refused).join(", ");
    let more = if refused.len() > NAMED { ", ..." } else { "" };
    ensure!(
        refused.is_empty(),
        "entries would not be counted: no probe on {} of {} functions: {some}{more}",
        refused.len(),
        functions.len()
    );
    Ok(())
}

/// The functions of a module, by the kernel's list of symbols.
fn functions(module: &str) -> Result<Vec<String>> {
    let symbols = fs::read_to_string("/proc/kallsyms")?;
    let tag = format!("[{module}]");
    let mut names: Vec<String> = symbols
        .lines()
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                // Address, kind, name, module.
                [_, "t" | "T", name, of] if *of == tag && !name.starts_with("__pfx_") => {
                    Some((*name).to_owned())
                }
                _ => None,
            }
        })
        .collect();
    names.sort();
    names.dedup();
    ensure!(!names.is_empty(), "the module {module} is not loaded");
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_without_a_probe_is_an_error_that_names_some() {
        let functions = ["m:a", "m:b", "m:c", "m:d", "m:e"].map(str::to_owned);
        let placed = |refused: &[&str]| {
            place(&functions, |function| match refused.contains(&function) {
                true => Err(io::ErrorKind::InvalidInput.into()),
                false => Ok(()),
            })
            .map_err(|error| error.to_string())
        };
        assert_eq!(placed(&[]), Ok(()));
        let one = placed(&["m:d"]).unwrap_err();
        assert!(one.contains("1 of 5 functions: m:d (invalid"), "{one}");
        assert!(!one.contains("..."), "{one}");
        let four = placed(&["m:a", "m:b", "m:d", "m:e"]).unwrap_err();
        assert!(four.contains("4 of 5") && four.contains("m:d ("), "{four}");
        assert!(!four.contains("m:e") && four.ends_with(", ..."), "{four}");
    }
}
