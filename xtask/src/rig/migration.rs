// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The migration rig: L1 on the test kernel with both functions of one card, which share a namespace, and in L1 a
//! guest (L2, Debian's stock kernel, its own `nvme` driver) that `mover` runs in stock QEMU and moves from the first
//! function to the second.
//!
//! In the guest, ring-check and fio share the namespace: the first half and the second.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{bail, Context as _, Result};
use serde_json::Value;

use super::accel::Accelerator;
use super::card::{Card, Fired};
use super::console::{Job, Transcript};
use super::image::{self, Overlay};
use super::l1::{command_line, Iommu, L1};
use crate::kernel::Kind;
use crate::session::Session;
use crate::ui::Step;
use crate::userspace::{self, Programs};

/// Serial number of the card, and of another one.
const SERIAL: &str = "ZSMOVE0001";
const STRANGE: &str = "ZSMOVE0002";
/// Pages of 2 MiB: two guests of 512 MiB, and what QEMU's own start needs besides.
const HUGEPAGES: u32 = 560;

/// What the guest does until it is told to stop. fio writes and verifies again and again, each time with other data;
/// its first read and its first write column are I/Os per second in fio's terse output.
const WORK: &str = r#"dmesg -n 7
stty -F /dev/ttyS1 -echo
# ring-check's pages shall stay where they are.
echo 0 > /proc/sys/vm/compact_unevictable_allowed
for _ in $(seq 1200); do [ -b /dev/nvme0n1 ] && break; usleep 50000; done
verify() {
  rounds=0 pass=true
  while [ ! -e /tmp/stop ]; do
    fio --name=verify --filename=/dev/nvme0n1 --offset=8M --size=2M --direct=1 --ioengine=io_uring --iodepth=4 \
      --rw=randwrite --bsrange=4k-64k --randseed=$((rounds + 1)) --verify=crc32c --verify_fatal=1 --minimal \
      >/tmp/fio 2>&1 || { cat /tmp/fio; pass=false; break; }
    rounds=$((rounds + 1))
    echo "{\"workload\":\"fio\",\"event\":\"round\",\"round\":$rounds,\"iops\":$(cut -d';' -f8 /tmp/fio | tail -n 1)}"
  done
  echo "{\"workload\":\"fio\",\"event\":\"summary\",\"pass\":$pass,\"rounds\":$rounds}"
  [ $pass = true ]
}
verify &
ring-check --device /dev/nvme0n1 --blocks 2048 --pages 2048 </dev/ttyS1
status=$?
touch /tmp/stop
wait $! && [ $status = 0 ]"#;

/// Gives both functions to a driver, in the order of their root ports.
const BIND: &str = r#"set -e
n=0
for device in /sys/bus/pci/devices/*; do
  [ $(cat $device/class) = 0x010802 ] || continue
  n=$((n + 1))
  echo ${device##*/} > /zs/function$n
  echo $driver > $device/driver_override
  echo ${device##*/} > /sys/bus/pci/drivers_probe
  test -e /sys/bus/pci/drivers/$driver/${device##*/}
done
test $n = 2"#;

/// The driver of the functions in L1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Driver {
    /// The kernel's own, which cannot migrate.
    VfioPci,
    /// Ours.
    Zeroshift,
}

impl Driver {
    fn name(self) -> &'static str {
        match self {
            Self::VfioPci => "vfio-pci",
            Self::Zeroshift => "zeroshift_vfio_pci",
        }
    }
}

/// One guest, from its start to its end.
#[derive(Clone, Debug)]
pub(crate) struct Move {
    /// Name of the job in L1.
    pub(crate) name: &'static str,
    /// What happens in L1 before: a shell script.
    pub(crate) before: &'static str,
    /// What is asked of `mover` beside the guest.
    pub(crate) arguments: String,
}

/// The arguments that give a guest the first function, and wait until its programs have done some rounds.
pub(crate) const GUEST: &str =
    "--source $(cat /zs/function1) --workload ring-check=3 --workload fio=1";
/// The arguments that move it to the second.
pub(crate) const MOVE: &str = "--migrate --destination $(cat /zs/function2)";

/// Prints what the back end counted for both functions, a line for each.
const COUNT: &str =
    "for f in /zs/function1 /zs/function2; do zeroshift status --json $(cat $f); done";

/// Takes the card away from the back end.
pub(crate) const WITHOUT_BACK_END: &str = "for card in /sys/bus/pci/drivers/migdirty/*:*; do
  echo ${card##*/} > ${card%/*}/unbind
done";

/// A run of the rig: one L1, and one guest after another.
#[derive(Debug)]
pub(crate) struct Rig<'a> {
    /// Its name.
    pub(crate) name: &'a str,
    /// The functions' driver.
    pub(crate) driver: Driver,
    /// L1's kernel.
    pub(crate) host: Kind,
    /// L1's IOMMU.
    pub(crate) iommu: Iommu,
    /// Fault rules of the card.
    pub(crate) faults: &'a [&'a str],
    /// Whether the second function is one of another card, with a medium of its own.
    pub(crate) strange: bool,
    /// The guests.
    pub(crate) moves: Vec<Move>,
}

impl Default for Rig<'_> {
    fn default() -> Self {
        Self {
            name: "migrate",
            driver: Driver::Zeroshift,
            host: Kind::Test,
            iommu: Iommu::Vtd,
            faults: &[],
            strange: false,
            moves: Vec::new(),
        }
    }
}

/// What a run came to.
#[derive(Debug)]
pub(crate) struct Ran {
    /// L1's console.
    pub(crate) l1: Transcript,
    /// What each fault rule of the first card did, as the card tells.
    pub(crate) faults: Vec<Fired>,
    /// Whether its cards ended in peace.
    pub(crate) cards: Result<()>,
}

impl Ran {
    /// What `mover` said in the job `name`.
    pub(crate) fn report(&self, name: &str) -> Result<Report> {
        let job = self.l1.job(name)?;
        Report::parse(job).with_context(|| self.l1.ending())
    }

    /// All that came to a verdict.
    pub(crate) fn reports(&self) -> impl Iterator<Item = Report> + '_ {
        self.l1
            .jobs
            .iter()
            .filter_map(|job| Report::parse(job).ok())
    }
}

impl Rig<'_> {
    /// Boots L1 and runs the guests. `watch` gets every line that L1 prints, as it comes.
    pub(crate) fn run(&self, session: &Session, watch: &mut dyn FnMut(&Step, &str)) -> Result<Ran> {
        let place = session.place()?;
        let host = session.kernel(self.host)?;
        let guest = session.kernel(Kind::Stock)?;
        let programs = userspace::build(session)?;
        let run = session.cache.run_dir("move")?;
        let cards = self.cards(session, &programs, run.path())?;
        let l2_image = run.path().join("l2-initramfs");
        let layers = [
            image::base(place.cache, place.root, place.repo, guest, &["nvme"])?,
            image::peers(place.cache, place.root)?,
        ];
        Overlay::new()
            .file("/zs/bin/ring-check", &programs.path("ring-check"))
            .job("work", WORK)
            .write(place.root, &layers, &l2_image)?;
        let append = run.path().join("l2-append");
        // What the kernel says while it boots costs as much as the boot; the job asks for everything again.
        std::fs::write(&append, command_line("loglevel=5 zs.poweroff"))?;

        let mut overlay = Overlay::new()
            .file("/zs/bin/mover", &programs.path("mover"))
            .file("/l2/vmlinuz", &guest.image)
            .file("/l2/initrd", &l2_image)
            .file("/l2/append", &append);
        let mut load = format!("set -e\necho {HUGEPAGES} > /proc/sys/vm/nr_hugepages\n");
        load += &format!("test $(cat /proc/sys/vm/nr_hugepages) = {HUGEPAGES}\n");
        if self.driver == Driver::Zeroshift {
            let modules = session.modules(self.host)?;
            for name in ["migdirty", "zeroshift_vfio_pci"] {
                overlay = overlay.file(&format!("/zs/{name}.ko"), modules.path(name)?);
                load += &format!("insmod /zs/{name}.ko\n");
            }
            overlay = overlay.file("/zs/bin/zeroshift", &programs.path("zeroshift"));
        }
        overlay = overlay
            .job("load", &load)
            .job("bind", &format!("driver={}\n{BIND}", self.driver.name()));
        for each in &self.moves {
            let Move {
                name,
                before,
                arguments,
            } = each;
            let mover = "mover --kernel /l2/vmlinuz --initrd /l2/initrd --append /l2/append";
            let count = match self.driver {
                Driver::VfioPci => ":",
                Driver::Zeroshift => COUNT,
            };
            let script =
                format!("set -e\n{before}\nset +e\n{count}\n{mover} {arguments}\nstatus=$?\n{count}\nexit $status");
            overlay = overlay.job(name, &script);
        }
        if self.driver == Driver::Zeroshift {
            overlay = overlay.job("unload", "rmmod zeroshift_vfio_pci && rmmod migdirty");
        }
        let l1 = L1 {
            name: self.name,
            kernel: host,
            iommu: self.iommu,
            functions: cards.iter().flat_map(Card::sockets).collect(),
            memory_mib: 4096,
            modules: &[
                Accelerator::pick_nested()?.kvm_module()?,
                "vfio_iommu_type1",
                "vfio_pci",
            ],
            nested: true,
            peers: false,
            overlay,
            limit: Duration::from_secs(1800),
        }
        .watched(place, watch)?;
        let faults = match (self.faults, cards.first()) {
            ([], _) | (_, None) => Vec::new(),
            (_, Some(card)) => card.faults(&programs.path("zeroshift"))?,
        };
        Ok(Ran {
            l1,
            faults,
            cards: cards.into_iter().try_for_each(Card::stop),
        })
    }

    fn cards(&self, session: &Session, programs: &Programs, dir: &Path) -> Result<Vec<Card>> {
        let (serials, functions) = match self.strange {
            false => ([SERIAL].as_slice(), "2"),
            true => ([SERIAL, STRANGE].as_slice(), "1"),
        };
        let options = ["--namespace", "memory=16M", "--functions", functions];
        let faults = self.faults.iter().flat_map(|rule| ["--fault", rule]);
        let options: Vec<String> = options
            .into_iter()
            .chain(faults)
            .map(str::to_owned)
            .collect();
        let zerocard = programs.path("zerocard");
        serials
            .iter()
            .map(|serial| Card::start(&session.cache, &zerocard, dir, serial, &options))
            .collect()
    }
}

/// What the back end counted between the first and the last time that `zeroshift status` was asked, by function.
fn counted(lines: &[String]) -> Vec<BTreeMap<String, u64>> {
    let mut first: BTreeMap<String, Value> = BTreeMap::new();
    let mut counted = BTreeMap::new();
    for line in lines.iter().filter(|line| line.starts_with("{\"address\"")) {
        let Ok(status) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        let address = status["address"].to_string();
        let before = first.entry(address.clone()).or_insert(status.clone());
        let counters = status["counters"].as_object().into_iter().flatten();
        let since = counters.filter_map(|(name, value)| {
            let before = before["counters"][name].as_u64()?;
            Some((name.clone(), value.as_u64()?.saturating_sub(before)))
        });
        counted.insert(address, since.collect());
    }
    counted.into_values().collect()
}

/// An event of `mover`, when `line` is one.
pub(crate) fn event(line: &str) -> Option<Value> {
    serde_json::from_str(line.strip_prefix("ZS-EVENT ")?).ok()
}

/// What `mover` said.
#[derive(Debug)]
pub(crate) struct Report {
    /// All of it, in order; the last is the verdict.
    events: Vec<Value>,
    /// The verdict.
    pub(crate) verdict: Value,
    /// What the back end counted meanwhile: by function, and by name.
    counted: Vec<BTreeMap<String, u64>>,
}

impl Report {
    fn parse(job: &Job) -> Result<Self> {
        let events: Vec<Value> = job.lines.iter().filter_map(|l| event(l)).collect();
        let verdict = events.last().filter(|e| e["event"] == "verdict");
        let verdict = verdict
            .with_context(|| format!("the job {} came to no verdict", job.name))?
            .clone();
        if (verdict["pass"] == true) != (job.exit == Some(0)) {
            bail!(
                "the job {} ended with {:?}, and said {verdict}",
                job.name,
                job.exit
            );
        }
        Ok(Self {
            events,
            verdict,
            counted: counted(&job.lines),
        })
    }

    /// Fails unless everything held.
    pub(crate) fn passed(&self) -> Result<()> {
        if self.verdict["pass"] != true {
            bail!("{}", self.verdict["why"]);
        }
        Ok(())
    }

    /// How it went, for people: a line for each thing.
    pub(crate) fn lines(&self) -> Vec<String> {
        let number = |of: &Value, key: &str| of[key].as_u64().unwrap_or_default();
        let mut lines = Vec::new();
        let migration = &self.verdict["migration"];
        if let Some(said) = migration["refused"].as_str() {
            lines.push(format!("{:<12}{said}", "refused"));
        } else if migration.is_object() {
            lines.push(format!(
                "{:<12}{} ms, {} passes over memory, {} KiB of memory, {} bytes of the function",
                "the move",
                number(migration, "total_ms"),
                number(migration, "passes"),
                number(migration, "ram_bytes") >> 10,
                number(migration, "device_bytes")
            ));
            lines.push(format!(
                "{:<12}{} ms",
                "the stop",
                number(migration, "downtime_ms")
            ));
            lines.push(format!(
                "{:<12}{} KiB written by the function, in {} reports",
                "its log",
                self.counted("dirty_bytes") >> 10,
                self.counted("harvests")
            ));
        }
        for (name, workload) in self.verdict["workloads"].as_object().into_iter().flatten() {
            let summary = &workload["summary"];
            let mut line = format!(
                "{name:<12}{} rounds, up to {} I/Os per second",
                number(workload, "rounds"),
                number(workload, "best_iops")
            );
            if summary["checked"].is_u64() {
                line += &format!(
                    "; {} pages checked, {} stale, {} misread",
                    number(summary, "checked"),
                    number(summary, "stale"),
                    number(summary, "misread")
                );
            }
            lines.push(line);
        }
        lines
    }

    /// What the back end counted as `name` for the function that has most of it; 0 without a back end.
    pub(crate) fn counted(&self, name: &str) -> u64 {
        let counts = self.counted.iter().filter_map(|of| of.get(name));
        counts.copied().max().unwrap_or_default()
    }

    /// Whether the guest said `said` only after `event`, if at all.
    pub(crate) fn comes_after(&self, said: &str, event: &str) -> bool {
        let at = |wanted: &dyn Fn(&Value) -> bool| self.events.iter().position(wanted);
        let event = at(&|e| e["event"] == event);
        at(&|e| e["said"]["event"] == said).is_none_or(|first| event.is_some_and(|at| at < first))
    }

    /// The first `event`.
    pub(crate) fn first(&self, event: &str) -> Result<&Value> {
        let found = self.events.iter().find(|e| e["event"] == event);
        found.with_context(|| format!("the mover never said {event:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(exit: i32, lines: &[&str]) -> Job {
        Job {
            name: "move".into(),
            exit: Some(exit),
            lines: lines.iter().map(|l| (*l).to_owned()).collect(),
        }
    }

    const ROUND: &str =
        r#"ZS-EVENT {"event":"guest","said":{"workload":"fio","event":"round","iops":3}}"#;
    const PASS: &str = r#"ZS-EVENT {"event":"verdict","pass":true}"#;
    const FAIL: &str = r#"ZS-EVENT {"event":"verdict","pass":false,"why":["stale"]}"#;

    #[test]
    fn a_verdict_counts_only_with_its_exit_code() {
        let report = Report::parse(&job(0, &["L2| x", ROUND, PASS])).unwrap();
        report.passed().unwrap();
        assert_eq!(report.first("guest").unwrap()["said"]["iops"], 3);
        assert!(report.first("refused").is_err());
        assert!(Report::parse(&job(1, &[PASS])).is_err());
        assert!(Report::parse(&job(0, &[FAIL])).is_err());
        let failed = Report::parse(&job(1, &[FAIL])).unwrap().passed();
        assert!(failed.unwrap_err().to_string().contains("stale"));
    }

    #[test]
    fn what_was_counted_is_the_difference() {
        let status = |address: &str, reads: u64| {
            format!("{{\"address\":\"{address}\",\"counters\":{{\"states_read\":{reads}}}}}")
        };
        let lines = [
            status("a", 5),
            status("b", 1),
            status("a", 7),
            status("b", 1),
        ];
        let lines = lines.each_ref().map(String::as_str);
        let report = Report::parse(&job(0, &[&lines[..], &[PASS]].concat())).unwrap();
        assert_eq!(report.counted("states_read"), 2);
        assert_eq!(report.counted("states_written"), 0);
    }

    #[test]
    fn without_a_verdict_at_the_end_there_is_no_report() {
        assert!(Report::parse(&job(0, &[PASS, ROUND])).is_err());
        assert!(Report::parse(&job(0, &[])).is_err());
    }
}
