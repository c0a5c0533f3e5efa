// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `zeroshift status`, `pause` and `resume`: one function, and its state afterwards.

use crate::address::Address;
use crate::backend::Backend;
use crate::cli::FunctionOptions;
use crate::device::Device;
use crate::explain::{explain, Request};
use crate::function::{Report, State};
use crate::progress;
use crate::size;
use crate::sysfs::Sysfs;
use crate::table;
use crate::WRITING;
use anyhow::{bail, Context as _, Result};
use std::io::Write;

/// Runs `status`.
pub(crate) fn status(options: &FunctionOptions, output: &mut impl Write) -> Result<()> {
    let device = Device::open_loaded(&options.places.device)?;
    let sysfs = Sysfs::new(&options.places.sysfs);
    show(&device, &sysfs, options, output)
}

/// Runs `pause`.
pub(crate) fn pause(options: &FunctionOptions, output: &mut impl Write) -> Result<()> {
    let device = Device::open_loaded(&options.places.device)?;
    change(&device, options, State::Paused, output)
}

/// Runs `resume`.
pub(crate) fn resume(options: &FunctionOptions, output: &mut impl Write) -> Result<()> {
    let device = Device::open_loaded(&options.places.device)?;
    change(&device, options, State::Running, output)
}

/// Describes a function.
pub(crate) fn report(backend: &dyn Backend, sysfs: &Sysfs, address: Address) -> Result<Report> {
    let text = address.to_string();
    let info = backend.function(address).map_err(|errno| {
        if errno == rustix::io::Errno::NOENT && !sysfs.function(&text).exists() {
            return anyhow::anyhow!(
                "there is no PCI function {text}; 'zeroshift list --functions' shows the ones that \
                 are managed"
            );
        }
        explain(backend, Request::Describe, address, errno)
    })?;
    Ok(Report::new(&info, sysfs.driver(&text)))
}

/// Prints the report as JSON.
pub(crate) fn write_json(
    backend: &dyn Backend,
    options: &FunctionOptions,
    output: &mut impl Write,
) -> Result<()> {
    let sysfs = Sysfs::new(&options.places.sysfs);
    let report = report(backend, &sysfs, options.address)?;
    let text = serde_json::to_string(&report)?;
    writeln!(output, "{text}").context(WRITING)
}

fn show(
    backend: &dyn Backend,
    sysfs: &Sysfs,
    options: &FunctionOptions,
    output: &mut impl Write,
) -> Result<()> {
    if options.json {
        return write_json(backend, options, output);
    }
    let report = report(backend, sysfs, options.address)?;
    let counters = report.counters;
    let rows = [
        ("address", report.address.clone()),
        ("driver", report.driver.clone().unwrap_or("-".into())),
        ("card", report.card.clone()),
        ("controller id", report.controller_id.to_string()),
        ("state", report.state_text().into()),
        ("owner", report.owner_text().into()),
        ("log", report.log_text()),
        ("suspends", counters.suspends.to_string()),
        ("resumes", counters.resumes.to_string()),
        ("harvests of the log", counters.harvests.to_string()),
        ("written, as logged", size::bytes(counters.dirty_bytes)),
        ("states read", counters.states_read.to_string()),
        ("states set", counters.states_written.to_string()),
    ];
    let rows = rows.map(|(name, value)| [name.to_owned(), value]);
    table::write(output, &rows).context(WRITING)
}

fn change(
    backend: &dyn Backend,
    options: &FunctionOptions,
    state: State,
    output: &mut impl Write,
) -> Result<()> {
    let address = options.address;
    let (request, doing, done) = match state {
        State::Paused => (Request::Pause, "pausing", "paused"),
        State::Running => (Request::Resume, "resuming", "running"),
    };
    progress::during(&format!("{doing} {address}"), || match state {
        State::Paused => backend.pause(address),
        State::Running => backend.resume(address),
    })
    .map_err(|errno| explain(backend, request, address, errno))?;
    let sysfs = Sysfs::new(&options.places.sysfs);
    let report = report(backend, &sysfs, address)?;
    if report.state != state {
        bail!(
            "{address} was {done} but is not any more: something has reset it; see that nothing \
             else drives it, and try again"
        );
    }
    if options.json {
        let text = serde_json::to_string(&report)?;
        return writeln!(output, "{text}").context(WRITING);
    }
    writeln!(output, "{address} is {done}").context(WRITING)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Arguments, Command};
    use crate::fake::Fake;
    use crate::sysfs::tests::FakeSysfs;
    use clap::Parser as _;
    use migdirty_uapi::{
        MIGDIRTY_FUNCTION_LIVE, MIGDIRTY_FUNCTION_LOGGING, MIGDIRTY_FUNCTION_LOG_LOST,
        MIGDIRTY_FUNCTION_OWNED_BY_TOOL, MIGDIRTY_FUNCTION_OWNED_BY_VFIO,
        MIGDIRTY_FUNCTION_SUSPENDED,
    };
    use rustix::io::Errno;
    use serde_json::{json, Value};

    fn options(sysfs: &FakeSysfs, arguments: &str) -> FunctionOptions {
        let words = format!("zeroshift status {arguments} --sysfs");
        let words = words.split(' ').chain([sysfs.path().to_str().unwrap()]);
        match Arguments::try_parse_from(words).unwrap().command {
            Command::Status(options) => options,
            other => panic!("{other:?}"),
        }
    }

    fn sysfs() -> FakeSysfs {
        let sysfs = FakeSysfs::new();
        sysfs.add_function("0000:02:00.0", "0x010802", Some("nvme"));
        sysfs
    }

    fn shown(fake: &Fake, arguments: &str) -> Result<String> {
        let sysfs = sysfs();
        let mut output = vec![];
        let options = options(&sysfs, arguments);
        show(fake, &Sysfs::new(sysfs.path()), &options, &mut output)?;
        Ok(String::from_utf8(output).unwrap())
    }

    #[test]
    fn json_is_the_contract() {
        let fake = Fake::default();
        let value = |flags: u32| -> Value {
            fake.flags.set(flags);
            serde_json::from_str(&shown(&fake, "2:0.0 --json").unwrap()).unwrap()
        };
        let quiet = value(MIGDIRTY_FUNCTION_LIVE);
        assert_eq!(
            quiet,
            json!({"address": "0000:02:00.0", "driver": "nvme", "card": "0000:01:00.0",
                "card_live": true, "controller_id": 1, "state": "running", "owner": null,
                "log": null, "counters": {"suspends": 3, "resumes": 4, "harvests": 5,
                "dirty_bytes": 6 << 20, "states_read": 7, "states_written": 8}})
        );
        let busy = value(
            MIGDIRTY_FUNCTION_SUSPENDED
                | MIGDIRTY_FUNCTION_LOGGING
                | MIGDIRTY_FUNCTION_OWNED_BY_TOOL,
        );
        assert_eq!(busy["card_live"], false);
        assert_eq!(busy["state"], "paused");
        assert_eq!(busy["owner"], "tool");
        assert_eq!(
            busy["log"],
            json!({"lost": false, "ranges": 2, "granule_bytes": 4096})
        );
        let lost = value(MIGDIRTY_FUNCTION_LOG_LOST | MIGDIRTY_FUNCTION_OWNED_BY_VFIO);
        assert_eq!(lost["owner"], "vfio");
        assert_eq!(lost["log"]["lost"], true);
    }

    #[test]
    fn text_says_the_same() {
        let fake = Fake::default();
        let text = shown(&fake, "2:0.0").unwrap();
        assert!(text.starts_with("address              0000:02:00.0\ndriver               nvme\n"));
        assert!(text.contains("written, as logged   6 MiB\n"), "{text}");
        fake.flags
            .set(MIGDIRTY_FUNCTION_LIVE | MIGDIRTY_FUNCTION_LOGGING);
        let text = shown(&fake, "2:0.0").unwrap();
        assert!(text.contains("state                running\n"), "{text}");
        assert!(text.contains("log                  2 ranges, granule 4 KiB\n"));
        fake.flags.set(0);
        assert!(shown(&fake, "2:0.0").unwrap().contains("card dead"));
    }

    #[test]
    fn a_function_that_is_not_there_and_one_that_is_not_managed_are_told_apart() {
        let fake = Fake::default();
        let error = shown(&fake, "3:0.0").unwrap_err().to_string();
        assert!(error.contains("no PCI function 0000:03:00.0"), "{error}");
        let sysfs = sysfs();
        sysfs.add_function("0000:03:00.0", "0x010802", None);
        let error = report(&fake, &Sysfs::new(sysfs.path()), Address(0x300)).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("0000:03:00.0: no card manages it"),
            "{error}"
        );
    }

    #[test]
    fn pause_and_resume_say_what_came_of_it() {
        let fake = Fake::default();
        let sysfs = sysfs();
        let run = |arguments: &str, state| {
            let mut output = vec![];
            let options = options(&sysfs, arguments);
            change(&fake, &options, state, &mut output)
                .map(|()| String::from_utf8(output).unwrap())
                .map_err(|error| error.to_string())
        };
        assert_eq!(
            run("2:0.0", State::Paused).unwrap(),
            "0000:02:00.0 is paused\n"
        );
        let json: Value =
            serde_json::from_str(&run("2:0.0 --json", State::Paused).unwrap()).unwrap();
        assert_eq!(json["state"], "paused");
        assert_eq!(
            run("2:0.0", State::Running).unwrap(),
            "0000:02:00.0 is running\n"
        );
        assert_eq!(*fake.asked.borrow(), ["pause", "pause", "resume"]);
        fake.fails.set(Some(("pause", Errno::TIMEDOUT)));
        let error = run("2:0.0", State::Paused).unwrap_err();
        assert!(error.contains("goes on running"), "{error}");
    }
}
