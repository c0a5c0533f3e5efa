// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `zeroshift log`: which memory a function writes.

use crate::backend::{Backend, Synced};
use crate::cli::{LogCommand, LogStartOptions, LogSyncOptions};
use crate::device::Device;
use crate::explain::{explain, Request};
use crate::progress;
use crate::size;
use crate::status::write_json;
use crate::table;
use crate::WRITING;
use anyhow::{bail, Context as _, Result};
use migdirty_uapi::{MigdirtyRange, MIGDIRTY_FUNCTION_SUSPENDED};
use serde_json::json;
use std::io::Write;

/// Everything that has a 64-bit address, but for the last page, whose end no length can tell.
const EVERYTHING: MigdirtyRange = MigdirtyRange {
    iova: 0,
    length: u64::MAX - 4095,
};

/// What was being done when a sync cannot be printed: the module hands out everything once.
const PRINTING: &str = "cannot write to standard output what the log had, which is forgotten now; \
                        count all of that memory as written";

/// Runs the subcommand.
pub(crate) fn run(command: &LogCommand, output: &mut impl Write) -> Result<()> {
    let places = match command {
        LogCommand::Start(options) => &options.function.places,
        LogCommand::Sync(options) => &options.function.places,
        LogCommand::Stop(options) => &options.places,
    };
    let device = Device::open_loaded(&places.device)?;
    perform(&device, command, output)
}

fn perform(backend: &dyn Backend, command: &LogCommand, output: &mut impl Write) -> Result<()> {
    match command {
        LogCommand::Start(options) => start(backend, options, output),
        LogCommand::Sync(options) => sync(backend, options, output),
        LogCommand::Stop(options) => {
            let address = options.address;
            progress::during(&format!("stopping the log of {address}"), || {
                backend.log_stop(address)
            })
            .map_err(|errno| explain(backend, Request::StopLog, address, errno))?;
            if options.json {
                return write_json(backend, options, output);
            }
            writeln!(output, "{address} has no log now").context(WRITING)
        }
    }
}

fn start(backend: &dyn Backend, options: &LogStartOptions, output: &mut impl Write) -> Result<()> {
    let address = options.function.address;
    let wish = options.granule.unwrap_or(0);
    let granule = progress::during(&format!("starting a log of {address}"), || {
        backend.log_start(address, &options.ranges, wish)
    })
    .map_err(|errno| explain(backend, Request::StartLog, address, errno))?;
    if options.function.json {
        return write_json(backend, &options.function, output);
    }
    writeln!(
        output,
        "logging what {address} writes, in granules of {}",
        size::bytes(granule)
    )
    .context(WRITING)?;
    if wish != 0 && granule > wish {
        writeln!(
            output,
            "(the card cannot track that much in granules of {})",
            size::bytes(wish)
        )
        .context(WRITING)?;
    }
    Ok(())
}

fn sync(backend: &dyn Backend, options: &LogSyncOptions, output: &mut impl Write) -> Result<()> {
    let address = options.function.address;
    let range = options.range.unwrap_or(EVERYTHING);
    let synced = progress::during(&format!("reading the log of {address}"), || {
        read(backend, options, range)
    })?;
    print(&synced, options, output).context(PRINTING)
}

fn print(
    synced: &Synced,
    options: &LogSyncOptions,
    output: &mut impl Write,
) -> std::io::Result<()> {
    let address = options.function.address;
    let bytes: u64 = synced
        .ranges
        .iter()
        .fold(0, |sum, range| sum.saturating_add(range.length));
    if options.function.json {
        let ranges = synced.ranges.iter().map(|range| {
            // Numbers above 2^53 do not survive most readers of JSON.
            json!({"iova": format!("{:#x}", range.iova), "length": range.length})
        });
        let mut value = json!({
            "address": address.to_string(),
            "bytes": bytes,
            "count": synced.ranges.len(),
            "complete": synced.complete,
        });
        if !options.totals {
            value["ranges"] = ranges.collect();
        }
        writeln!(output, "{value}")?;
        return output.flush();
    }
    if !options.totals && !synced.ranges.is_empty() {
        let mut rows = vec![["IOVA".to_owned(), "LENGTH".to_owned()]];
        rows.extend(
            synced
                .ranges
                .iter()
                .map(|range| [format!("{:#x}", range.iova), size::bytes(range.length)]),
        );
        table::write(output, &rows)?;
    }
    let ending = if synced.complete {
        "complete"
    } else {
        "not complete: it may write more"
    };
    let count = synced.ranges.len();
    writeln!(
        output,
        "{address} wrote {} in {count} {}; {ending}",
        size::bytes(bytes),
        if count == 1 { "range" } else { "ranges" }
    )?;
    output.flush()
}

/// Reads one pass over `range`; a running function may write faster than anybody reads, so no
/// address is looked at twice.
fn read(backend: &dyn Backend, options: &LogSyncOptions, range: MigdirtyRange) -> Result<Synced> {
    let address = options.function.address;
    let mut all = Synced::default();
    let mut left = Some(range);
    let ask = |errno| explain(backend, Request::SyncLog, address, errno);
    let before = backend.function(address).map_err(ask)?;
    let mut parts = 0;
    while let Some(part) = left {
        let synced = backend
            .log_sync(address, part.iova, part.length)
            .map_err(ask)?;
        parts += 1;
        // The module speaks of the last part: paused only meanwhile, it may have written to others.
        let paused = parts == 1 || before.flags & MIGDIRTY_FUNCTION_SUSPENDED != 0;
        all.complete = synced.complete && paused;
        left = None;
        if synced.more {
            let Some(next) = behind(part, synced.ranges.last()) else {
                bail!(
                    "cannot read the log of {address}: the module migdirty says that there is more, \
                     but hands out nothing new; load the module of the same version as zeroshift"
                );
            };
            left = (next.length != 0).then_some(next);
        }
        all.ranges.extend(synced.ranges);
    }
    all.ranges = joined(all.ranges);
    Ok(all)
}

/// What of `part` is behind `last`, which has to be in it.
fn behind(part: MigdirtyRange, last: Option<&MigdirtyRange>) -> Option<MigdirtyRange> {
    let last = last?;
    let done = last.iova.checked_sub(part.iova)?.checked_add(last.length)?;
    Some(MigdirtyRange {
        iova: part.iova.checked_add(done)?,
        length: part.length.checked_sub(done)?,
    })
}

/// Ranges that touch become one.
fn joined(ranges: Vec<MigdirtyRange>) -> Vec<MigdirtyRange> {
    let mut all: Vec<MigdirtyRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match all.last_mut() {
            Some(last) if last.iova.checked_add(last.length) == Some(range.iova) => {
                last.length = last.length.saturating_add(range.length);
            }
            _ => all.push(range),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Arguments, Command};
    use crate::fake::Fake;
    use clap::Parser as _;
    use migdirty_uapi::MIGDIRTY_FUNCTION_LIVE;
    use rustix::io::Errno;
    use serde_json::Value;

    fn log(fake: &Fake, arguments: &str) -> Result<String, String> {
        let words = format!("zeroshift log {arguments}");
        let Command::Log(command) = Arguments::try_parse_from(words.split(' ')).unwrap().command
        else {
            panic!()
        };
        let mut output = vec![];
        perform(fake, &command, &mut output)
            .map(|()| String::from_utf8(output).unwrap())
            .map_err(|error| error.to_string())
    }

    fn ranges(ranges: &[(u64, u64)]) -> Vec<MigdirtyRange> {
        let range = |&(iova, length)| MigdirtyRange { iova, length };
        ranges.iter().map(range).collect()
    }

    #[test]
    fn start_and_stop_do_what_they_say() {
        let fake = Fake::default();
        assert_eq!(
            log(&fake, "start 2:0.0 --range 0+2G --range 4G+8K --granule 4K").unwrap(),
            "logging what 0000:02:00.0 writes, in granules of 8 KiB\n\
             (the card cannot track that much in granules of 4 KiB)\n"
        );
        assert_eq!(
            log(&fake, "start 2:0.0 --range 0+4K").unwrap(),
            "logging what 0000:02:00.0 writes, in granules of 8 KiB\n"
        );
        assert_eq!(
            log(&fake, "stop 2:0.0").unwrap(),
            "0000:02:00.0 has no log now\n"
        );
        assert_eq!(
            *fake.asked.borrow(),
            [
                "start 0+80000000,100000000+2000 4096",
                "start 0+1000 0",
                "stop"
            ]
        );
        fake.fails.set(Some(("start", Errno::ALREADY)));
        let error = log(&fake, "start 2:0.0 --range 0+4K").unwrap_err();
        assert!(error.contains("has a log"), "{error}");
        let error = log(&fake, "stop 3:0.0").unwrap_err();
        assert!(error.contains("no card manages it"), "{error}");
    }

    #[test]
    fn sync_goes_on_behind_what_it_got_and_joins_what_touches() {
        let fake = Fake::default();
        let parts = [
            (vec![(0x1000, 0x1000), (0x4000, 0x2000)], true, false),
            (vec![(0x6000, 0x1000), (0x9000, 0x1000)], false, true),
        ];
        let queue = || {
            fake.syncs
                .borrow_mut()
                .extend(parts.iter().map(|(list, more, complete)| Synced {
                    ranges: ranges(list),
                    more: *more,
                    complete: *complete,
                }));
        };
        // Paused before the first part, or only before the second: see below.
        fake.flags
            .set(MIGDIRTY_FUNCTION_LIVE | MIGDIRTY_FUNCTION_SUSPENDED);
        queue();
        assert_eq!(
            log(&fake, "sync 2:0.0").unwrap(),
            "\
IOVA    LENGTH
0x1000  4 KiB
0x4000  12 KiB
0x9000  4 KiB
0000:02:00.0 wrote 20 KiB in 3 ranges; complete
"
        );
        assert_eq!(
            *fake.asked.borrow(),
            ["sync 0+fffffffffffff000", "sync 6000+ffffffffffff9000"]
        );
        queue();
        let value: Value = serde_json::from_str(&log(&fake, "sync 2:0.0 --json").unwrap()).unwrap();
        assert_eq!(
            value,
            json!({"address": "0000:02:00.0", "bytes": 20480, "count": 3, "complete": true,
                "ranges": [{"iova": "0x1000", "length": 4096}, {"iova": "0x4000", "length": 12288},
                           {"iova": "0x9000", "length": 4096}]})
        );
        queue();
        fake.flags.set(MIGDIRTY_FUNCTION_LIVE);
        let late = log(&fake, "sync 2:0.0 --totals").unwrap();
        assert!(late.contains("not complete"), "{late}");
        queue();
        let words = ["zeroshift", "log", "sync", "2:0.0"];
        let Command::Log(command) = Arguments::try_parse_from(words).unwrap().command else {
            panic!()
        };
        let mut closed = crate::tests::Broken(std::io::ErrorKind::BrokenPipe);
        let error = perform(&fake, &command, &mut closed).unwrap_err();
        assert!(!crate::is_broken_pipe(&error), "{error:#}");
        assert!(error.to_string().contains("forgotten"), "{error:#}");
        queue();
        let totals = log(&fake, "sync 2:0.0 --totals --json").unwrap();
        assert!(!totals.contains("ranges"), "{totals}");
        assert_eq!(
            log(&fake, "sync 2:0.0 --range 0x1000+4K").unwrap(),
            "0000:02:00.0 wrote 0 B in 0 ranges; not complete: it may write more\n"
        );
    }

    #[test]
    fn a_sync_that_does_not_get_on_ends() {
        let fake = Fake::default();
        let more = |list: &[(u64, u64)]| Synced {
            ranges: ranges(list),
            more: true,
            complete: false,
        };
        for list in [&[][..], &[(0x5000, 0x1000)]] {
            fake.syncs.borrow_mut().push_back(more(list));
            let error = log(&fake, "sync 2:0.0 --range 0x1000+0x1000").unwrap_err();
            assert!(error.contains("nothing new"), "{error}");
        }
        // Its end was reached: what comes behind it was not asked for.
        fake.syncs.borrow_mut().push_back(more(&[(0x1000, 0x1000)]));
        assert!(log(&fake, "sync 2:0.0 --range 0x1000+0x1000").is_ok());
        fake.fails.set(Some(("sync", Errno::IO)));
        let error = log(&fake, "sync 2:0.0").unwrap_err();
        assert!(error.contains("lost"), "{error}");
    }
}
