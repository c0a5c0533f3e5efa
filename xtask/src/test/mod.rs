// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The test run: scenarios in levels, in two rows beside each other, and the closing line `N passed, N failed, N skipped`.
//!
//! A scenario boots at most one rig and yields one result per thing it looked at. In CI a skip that `ci/skips`
//! does not list is a failure: what silently stops running is not tested.

mod broken;
mod debug;
mod e2e;
mod functions;
mod hosts;
mod kdir;
mod killed;
mod logic;
pub(crate) mod migrate;
mod peers;
mod rows;
mod selftests;
mod tools;
mod variant;
mod vmfunc;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail, Context as _, Result};
use clap::ValueEnum;

use crate::ktap::{self, Counts, Outcome};
use crate::rig::console::{Job, Transcript};
use crate::session::Session;
use crate::ui::{human, say};

/// What a scenario proves, and what it costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Level {
    /// Pure logic and the programs on this machine: `cargo test`. Needs no root.
    Logic,
    /// Our modules on Debian's stock kernel, in QEMU.
    Stock,
    /// kselftests on the test kernel, under virtme-ng and in an AMD host.
    Kernel,
    /// A guest in a host, both in QEMU.
    E2e,
    /// VMX in Bochs.
    Vmfunc,
    /// The debug kernel: no report where none is due, and one where one is planted.
    Debug,
    /// Long counts. Not part of the default run.
    Soak,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Logic => "logic",
            Self::Stock => "stock",
            Self::Kernel => "kernel",
            Self::E2e => "e2e",
            Self::Vmfunc => "vmfunc",
            Self::Debug => "debug",
            Self::Soak => "soak",
        }
    }
}

impl Level {
    /// Whether its machines are slow whatever else this one does: they run beside the others.
    fn is_patient(self) -> bool {
        matches!(self, Self::Vmfunc | Self::Debug)
    }
}

/// Results of a scenario.
#[derive(Debug, Default)]
pub(crate) struct Results {
    all: Vec<(String, Outcome)>,
    extra: Counts,
}

impl Results {
    /// One more result; an error is a failure, and is shown.
    pub(crate) fn check(&mut self, name: &str, outcome: Result<()>) {
        let outcome = match outcome {
            Ok(()) => Outcome::Passed,
            Err(e) => {
                say(format!("    {name}: {e:#}"));
                Outcome::Failed
            }
        };
        self.all.push((name.to_owned(), outcome));
    }

    /// The results of a KTAP program that ran as a job.
    pub(crate) fn ktap(&mut self, transcript: &Transcript, name: &str) {
        let job = match transcript.job(name) {
            Ok(job) => job,
            Err(e) => return self.check(name, Err(e)),
        };
        let report = ktap::parse(&job.lines, job.exit);
        if report.counts().failed > 0 {
            let why = report.broken.as_deref().unwrap_or("a test failed");
            let last = crate::command::tail(&job.lines.join("\n"), 60);
            say(format!("    {name}: {why}\n{last}"));
        }
        if report.broken.is_some() {
            self.all.push((name.to_owned(), Outcome::Failed));
        }
        self.all.extend(
            report
                .results
                .into_iter()
                .map(|(test, outcome)| (format!("{name}: {test}"), outcome)),
        );
    }

    /// Numbers that another runner counted.
    pub(crate) fn counted(&mut self, counts: Counts) {
        self.extra.add(counts);
    }
}

/// A job that ended with success.
pub(crate) fn succeeded<'a>(transcript: &'a Transcript, name: &str) -> Result<&'a Job> {
    let job = transcript.job(name)?;
    match job.exit {
        Some(0) => Ok(job),
        Some(code) => bail!(
            "the job {name} ended with {code}\n{}",
            crate::command::tail(&job.lines.join("\n"), 30)
        ),
        None => bail!("the job {name} never ended\n{}", transcript.ending()),
    }
}

struct Scenario {
    level: Level,
    name: &'static str,
    what: &'static str,
    run: fn(&Session, &mut Results) -> Result<()>,
}

const SCENARIOS: &[Scenario] = &[
    Scenario {
        level: Level::Logic,
        name: "workspace",
        what: "cargo test of every crate",
        run: logic::workspace,
    },
    Scenario {
        level: Level::Stock,
        name: "killed",
        what: "nothing is left of a run that was killed",
        run: killed::scenario,
    },
    Scenario {
        level: Level::Stock,
        name: "migdirty",
        what: "load, card, list, 100 rounds on the stock kernel",
        run: hosts::stock,
    },
    Scenario {
        level: Level::Stock,
        name: "vfio-variant",
        what: "both modules on the stock kernel, which has no IOMMUFD: functions work and move",
        run: variant::stock,
    },
    Scenario {
        level: Level::Stock,
        name: "kdir",
        what: "modules for a user's own tree, with Rust metadata and without",
        run: kdir::scenario,
    },
    Scenario {
        level: Level::Kernel,
        name: "migdirty",
        what: "kselftests and 100 rounds on the test kernel, VT-d",
        run: hosts::test_kernel,
    },
    Scenario {
        level: Level::Kernel,
        name: "amd-vi",
        what: "the card behind AMD-Vi",
        run: hosts::amd_vi,
    },
    Scenario {
        level: Level::Kernel,
        name: "broken-cards",
        what: "cards that break, a good one beside them",
        run: broken::test_kernel,
    },
    Scenario {
        level: Level::Kernel,
        name: "broken-functions",
        what: "cards that break while they pause, log and move functions, or are reset",
        run: broken::functions_test_kernel,
    },
    Scenario {
        level: Level::Kernel,
        name: "functions",
        what: "logs, pauses and states of functions, by /dev/migdirty",
        run: functions::test_kernel,
    },
    Scenario {
        level: Level::Kernel,
        name: "vfio-plain",
        what: "the layer that judges VFIO drivers, on vfio-pci",
        run: variant::plain,
    },
    Scenario {
        level: Level::Kernel,
        name: "vfio-selftests",
        what: "the kernel's own tests of VFIO, on vfio-pci and on ours",
        run: variant::kernel_selftests,
    },
    Scenario {
        level: Level::Kernel,
        name: "vfio-variant",
        what: "every arc, the dirty log, resets, streams: our driver, by the VFIO uAPI",
        run: variant::test_kernel,
    },
    Scenario {
        level: Level::Kernel,
        name: "link-errors",
        what: "errors of the links of functions and of their card (AER), in every state",
        run: variant::link_errors,
    },
    Scenario {
        level: Level::Kernel,
        name: "tools",
        what: "everything that zeroshift can do with a function",
        run: tools::scenario,
    },
    Scenario {
        level: Level::E2e,
        name: "nested",
        what: "a stock guest drives a passed-through function",
        run: e2e::scenario,
    },
    Scenario {
        level: Level::E2e,
        name: "passthrough",
        what: "a stock guest works on a function by vfio-pci, and QEMU refuses to move it",
        run: migrate::passthrough,
    },
    Scenario {
        level: Level::E2e,
        name: "migrate",
        what: "the main job: stock QEMU moves a guest with its function; a refusal without the back end",
        run: migrate::migrate,
    },
    Scenario {
        level: Level::E2e,
        name: "forgetful-card",
        what: "negative control: the card forgets dirty pages, and ring-check finds them",
        run: migrate::forgetful,
    },
    Scenario {
        level: Level::E2e,
        name: "strange-card",
        what: "a stream for a function of another card is refused",
        run: migrate::stranger,
    },
    Scenario {
        level: Level::E2e,
        name: "stock-host",
        what: "QEMU refuses where the kernel cannot report dirty pages",
        run: migrate::stock_host,
    },
    Scenario {
        level: Level::E2e,
        name: "peers",
        what: "Linux's nvme driver, ext4, fio and nvme-cli on the card",
        run: peers::scenario,
    },
    Scenario {
        level: Level::E2e,
        name: "peers-many",
        what: "16 functions of one card at the same time",
        run: peers::many,
    },
    Scenario {
        level: Level::Vmfunc,
        name: "bochs",
        what: "VMX with EPT and VMFUNC, several jobs in one boot",
        run: vmfunc::bochs,
    },
    Scenario {
        level: Level::Vmfunc,
        name: "two-processors",
        what: "views and windows come and go on one processor, and are in use on another",
        run: vmfunc::two_processors,
    },
    Scenario {
        level: Level::Vmfunc,
        name: "haswell",
        what: "views on a processor that does not tell ring 3's fetches, and logs no pages",
        run: vmfunc::haswell,
    },
    // The longest first: the other row takes from the end.
    Scenario {
        level: Level::Debug,
        name: "vmfunc",
        what: "views and windows, and a leak scan, on the debug kernel in Bochs",
        run: vmfunc::debug_kernel,
    },
    Scenario {
        level: Level::Debug,
        name: "vfio-variant",
        what: "our VFIO driver, and a leak scan, on the debug kernel",
        run: variant::debug_kernel,
    },
    Scenario {
        level: Level::Debug,
        name: "migdirty",
        what: "kselftests, 100 rounds and a leak scan on the debug kernel",
        run: hosts::debug_kernel,
    },
    Scenario {
        level: Level::Debug,
        name: "broken-cards",
        what: "a few cards that break, and a leak scan, on the debug kernel",
        run: broken::debug_kernel,
    },
    Scenario {
        level: Level::Debug,
        name: "broken-functions",
        what: "cards that break while they work on functions, and a leak scan, on the debug kernel",
        run: broken::functions_debug_kernel,
    },
    Scenario {
        level: Level::Debug,
        name: "functions",
        what: "logs, pauses and states of functions, and a leak scan, on the debug kernel",
        run: functions::debug_kernel,
    },
    Scenario {
        level: Level::Debug,
        name: "planted",
        what: "planted bugs are reported and fail a run",
        run: debug::planted,
    },
    Scenario {
        level: Level::Soak,
        name: "migrate-matrix",
        what: "moves through container and iommufd, behind VT-d and AMD-Vi, there and back",
        run: migrate::matrix,
    },
    Scenario {
        level: Level::Soak,
        name: "rounds",
        what: "1000 rounds of load, use and unload on the stock kernel",
        run: hosts::soak,
    },
    Scenario {
        level: Level::Soak,
        name: "properties",
        what: "20,000 random cases of each property",
        run: logic::properties,
    },
];

/// Runs the scenarios that were asked for.
pub(crate) fn run(
    session: &Session,
    levels: &[Level],
    filters: &[String],
    list: bool,
) -> Result<ExitCode> {
    let wanted = |s: &Scenario| {
        let full = format!("{}/{}", s.level.name(), s.name);
        (if levels.is_empty() {
            s.level != Level::Soak
        } else {
            levels.contains(&s.level)
        }) && (filters.is_empty() || filters.iter().any(|f| full.contains(f.as_str())))
    };
    let scenarios: Vec<&'static Scenario> = SCENARIOS.iter().filter(|s| wanted(s)).collect();
    if list {
        for s in scenarios {
            println!(
                "{:<18} {}",
                format!("{}/{}", s.level.name(), s.name),
                s.what
            );
        }
        return Ok(ExitCode::SUCCESS);
    }
    if scenarios.is_empty() {
        bail!("no scenario fits\n=> cargo xtask test --list shows them all");
    }
    let mut sum = Sum {
        allowed: allowed_skips(session)?,
        in_ci: std::env::var_os("CI").is_some_and(|v| v == "true"),
        counts: Counts::default(),
        failed: Vec::new(),
    };
    // A set-up that failed once is not tried again by each scenario.
    let rigs = scenarios.iter().any(|s| s.level != Level::Logic);
    let blocked = rigs.then(|| session.root().err()).flatten();
    let (beside, first): (Vec<&'static Scenario>, Vec<&'static Scenario>) =
        scenarios.iter().partition(|s| s.level.is_patient());
    if first.is_empty() || beside.is_empty() || blocked.is_some() {
        for s in scenarios {
            say(s.title());
            sum.add(s.run(session, blocked.as_ref()));
        }
    } else {
        rows::run(session, &first, &beside, &mut sum);
    }
    Ok(sum.end())
}

impl Scenario {
    fn full_name(&self) -> String {
        format!("{}/{}", self.level.name(), self.name)
    }

    fn title(&self) -> String {
        format!("--- {}: {}", self.full_name(), self.what)
    }

    fn run(&'static self, session: &Session, blocked: Option<&anyhow::Error>) -> Ran {
        let started = Instant::now();
        let mut results = Results::default();
        let outcome = match blocked {
            Some(why) if self.level != Level::Logic => Err(anyhow!("set-up failed: {why:#}")),
            _ => (self.run)(session, &mut results),
        };
        if let Err(e) = outcome {
            results.check("scenario", Err(e));
        }
        Ran {
            scenario: self,
            results,
            took: started.elapsed(),
        }
    }
}

/// A scenario that ran.
struct Ran {
    scenario: &'static Scenario,
    results: Results,
    took: Duration,
}

/// All that ran.
struct Sum {
    allowed: Vec<String>,
    in_ci: bool,
    counts: Counts,
    failed: Vec<String>,
}

impl Sum {
    /// Says what one more has said, and its results.
    fn show(&mut self, ran: Ran, said: Vec<String>) {
        say(ran.scenario.title());
        said.into_iter().for_each(say);
        self.add(ran);
    }

    /// Says the results of one more.
    fn add(&mut self, ran: Ran) {
        let full = ran.scenario.full_name();
        let mut results = ran.results;
        for (test, outcome) in &mut results.all {
            let id = format!("{full}: {test}");
            match outcome {
                Outcome::Passed => println!("ok      {id}"),
                Outcome::Skipped(why) if self.in_ci && !self.allowed.contains(&id) => {
                    println!("FAILED  {id} (skipped in CI, and ci/skips does not list it: {why})");
                    *outcome = Outcome::Failed;
                }
                Outcome::Skipped(why) => println!("skipped {id} ({why})"),
                Outcome::Failed => println!("FAILED  {id}"),
            }
            if *outcome == Outcome::Failed {
                self.failed.push(id);
            }
        }
        let report = ktap::Report {
            results: results.all,
            broken: None,
        };
        let mut here = report.counts();
        here.add(results.extra);
        if results.extra.failed > 0 {
            self.failed.push(full.clone());
        }
        say(format!(
            "--- {full}: {} passed, {} failed ({})",
            here.passed,
            here.failed,
            human(ran.took)
        ));
        self.counts.add(here);
    }

    /// Says all that failed, and the closing line.
    fn end(self) -> ExitCode {
        for name in &self.failed {
            println!("failed: {name}");
        }
        let Counts {
            passed,
            failed,
            skipped,
        } = self.counts;
        println!("{passed} passed, {failed} failed, {skipped} skipped");
        if failed == 0 && passed > 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

/// Skips that CI accepts: lines of `ci/skips`, in the form that the run prints them.
fn allowed_skips(session: &Session) -> Result<Vec<String>> {
    let path = session.repo.join("ci/skips");
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    Ok(text
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
        .map(str::to_owned)
        .collect())
}
