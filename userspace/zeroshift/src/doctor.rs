// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `zeroshift doctor`: whether this host can migrate guests and give them views, what it lacks, and the
//! next step. Views are in `doctor/views.rs`.
//!
//! For migration, first of all the kernel: without the bitmaps of IOMMUFD no VFIO driver can report what a function
//! writes, and QEMU then refuses to migrate, however good the card is. Only looks.

pub(crate) mod views;

use crate::backend::Backend;
use crate::cli::{DoctorOptions, Purpose, DRIVER};
use crate::device::{self, Cards, Device};
use crate::function::Report;
use crate::list;
use crate::modules;
use crate::sysfs::{names, Sysfs};
use crate::table;
use crate::usage::System;
use crate::WRITING;
use anyhow::{bail, Context as _, Result};
use migdirty_uapi::{
    MigdirtyCard, MIGDIRTY_CARD_LIVE, MIGDIRTY_CARD_LIVE_MIGRATION, MIGDIRTY_CARD_TRACKS_MEMORY,
};
use serde::Serialize;
use serde_json::{json, Value};
use std::fs;
use std::io::Write;
use std::path::Path;

/// What a VFIO driver writes a report with. The kernel has it when CONFIG_IOMMUFD_DRIVER is set.
const REPORTS: &str = "iova_bitmap_set";

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// As it should be.
    Ok,
    /// Not there: what needs it does not work.
    Missing,
    /// Cannot be told from here.
    Unknown,
}

/// A check, in the form of `docs/interfaces.md`, section 14.
#[derive(Debug, PartialEq)]
struct Check {
    name: &'static str,
    state: State,
    found: String,
    /// The next step; none when there is nothing to do.
    fix: Option<String>,
}

impl Check {
    fn ok(name: &'static str, found: String) -> Self {
        Self {
            name,
            state: State::Ok,
            found,
            fix: None,
        }
    }

    fn missing(name: &'static str, found: String, fix: &str) -> Self {
        Self {
            name,
            state: State::Missing,
            found,
            fix: Some(fix.into()),
        }
    }

    fn unknown(name: &'static str, found: String, fix: &str) -> Self {
        Self {
            state: State::Unknown,
            ..Self::missing(name, found, fix)
        }
    }
}

/// The checks of a purpose.
struct Section {
    purpose: Purpose,
    checks: Vec<Check>,
}

/// Runs the subcommand.
pub(crate) fn run(options: &DoctorOptions, output: &mut impl Write) -> Result<()> {
    let sysfs = Sysfs::new(&options.places.sysfs);
    let mut purposes = options.purposes.clone();
    if purposes.is_empty() {
        purposes = vec![Purpose::Migration, Purpose::Views];
    }
    purposes.dedup();
    let sections = purposes.into_iter().map(|purpose| Section {
        purpose,
        checks: match purpose {
            Purpose::Migration => migration(options, &sysfs),
            Purpose::Views => views::checks(&sysfs, &System::default(), &options.vmfunc),
        },
    });
    show(&sections.collect::<Vec<_>>(), options.json, output)
}

fn migration(options: &DoctorOptions, sysfs: &Sysfs) -> Vec<Check> {
    let device = Device::open(&options.places.device);
    let mut checks = vec![kernel(Path::new("/proc")), iommu(sysfs)];
    checks.push(match &device {
        Ok(Some(_)) => Check::ok("migdirty", "the module is loaded".into()),
        Ok(None) => Check::missing(
            "migdirty",
            "the module that drives cards is not loaded".into(),
            &format!(
                "{}; in a container pass /dev/migdirty in",
                modules::load("migdirty")
            ),
        ),
        Err(error) => Check::unknown("migdirty", format!("{error:#}"), "sudo zeroshift doctor"),
    });
    // In the order in which the modules load: this one needs the other.
    checks.push(front_end(sysfs));
    if let Ok(Some(device)) = &device {
        checks.extend([cards(device), functions(sysfs, device)]);
    }
    checks
}

fn show(sections: &[Section], as_json: bool, output: &mut impl Write) -> Result<()> {
    let is_open = |check: &&Check| check.state != State::Ok;
    let all: Vec<&Check> = sections
        .iter()
        .flat_map(|section| &section.checks)
        .collect();
    let open = all.iter().copied().filter(is_open).count();
    if as_json {
        let checks: Vec<Value> = sections.iter().flat_map(Section::json).collect();
        writeln!(output, "{}", json!({"ready": open == 0, "checks": checks})).context(WRITING)?;
    } else {
        for section in sections {
            let (can, cannot) = section.purpose.words();
            write_text(&section.checks, output).context(WRITING)?;
            let verdict = match section.checks.iter().any(|check| is_open(&check)) {
                true => cannot,
                false => can,
            };
            writeln!(output, "this host {verdict}").context(WRITING)?;
        }
    }
    if open != 0 {
        bail!(
            "{open} of {} checks did not come out well, each with its next step",
            all.len()
        );
    }
    Ok(())
}

impl Section {
    fn json(&self) -> Vec<Value> {
        let checks = self.checks.iter();
        checks
            .map(|check| {
                let Check {
                    name,
                    state,
                    found,
                    fix,
                } = check;
                json!({"for": self.purpose, "name": name, "state": state, "found": found, "fix": fix})
            })
            .collect()
    }
}

fn write_text(checks: &[Check], output: &mut impl Write) -> std::io::Result<()> {
    let mut rows = Vec::new();
    for check in checks {
        let mark = match check.state {
            State::Ok => "ok",
            State::Missing => "MISSING",
            State::Unknown => "?",
        };
        rows.push([mark.into(), check.name.into(), check.found.clone()]);
        if let Some(fix) = &check.fix {
            rows.push([String::new(), String::new(), format!("=> {fix}")]);
        }
    }
    table::write(output, &rows)
}

/// Whether the kernel lets a VFIO driver report what a function writes.
fn kernel(proc: &Path) -> Check {
    const NAME: &str = "kernel";
    let release = fs::read_to_string(proc.join("sys/kernel/osrelease")).unwrap_or_default();
    let linux = format!("Linux {}", release.trim());
    // Address, kind and name of each; the addresses are hidden from users, the names are not.
    let symbols = fs::read_to_string(proc.join("kallsyms")).unwrap_or_default();
    let mut symbols = symbols.lines().map(|line| line.split_whitespace().nth(2));
    if symbols.clone().next().is_none() {
        return Check::unknown(
            NAME,
            format!("{linux} hides whether VFIO can report what functions write"),
            "look for CONFIG_IOMMUFD_DRIVER=y in its configuration (/boot/config-*)",
        );
    }
    if symbols.any(|symbol| symbol == Some(REPORTS)) {
        let found = format!("{linux}: VFIO can report what functions write");
        return Check::ok(NAME, found);
    }
    Check::missing(
        NAME,
        format!(
            "{linux} has no IOMMUFD: VFIO cannot report what functions write; guests run, but QEMU \
             refuses to migrate them"
        ),
        "boot a kernel with CONFIG_IOMMUFD, and CONFIG_INTEL_IOMMU or CONFIG_AMD_IOMMU; Debian's \
         own, 7.2 too, have none",
    )
}

fn iommu(sysfs: &Sysfs) -> Check {
    const NAME: &str = "IOMMU";
    let units = names(&sysfs.root().join("class/iommu"));
    if units.is_empty() {
        return Check::missing(
            NAME,
            "none is switched on, so no guest can have a function".into(),
            "switch VT-d or AMD-Vi on in the firmware; on Intel boot with intel_iommu=on",
        );
    }
    Check::ok(NAME, format!("switched on ({})", units.join(", ")))
}

fn front_end(sysfs: &Sysfs) -> Check {
    if sysfs.has_driver(DRIVER) {
        return Check::ok(DRIVER, "the module is loaded".into());
    }
    Check::missing(
        DRIVER,
        "the VFIO driver that migrates is not loaded".into(),
        &modules::load(DRIVER),
    )
}

/// Whether there is a card that can migrate, and whether each answers.
fn cards(device: &dyn Cards) -> Check {
    const NAME: &str = "cards";
    const NEEDED: u32 =
        MIGDIRTY_CARD_LIVE | MIGDIRTY_CARD_LIVE_MIGRATION | MIGDIRTY_CARD_TRACKS_MEMORY;
    const LOOK: &str = "'zeroshift list' shows each, and how to bind those that are not; 'dmesg' \
                        what a card refused";
    let cards = match device::all(device) {
        Ok(cards) => cards,
        Err(error) => return Check::unknown(NAME, format!("{error:#}"), LOOK),
    };
    let able = |card: &&MigdirtyCard| card.flags & NEEDED == NEEDED;
    let (all, good) = (cards.len(), cards.iter().filter(able).count());
    if all == 0 {
        return Check::missing(NAME, "the module has no card".into(), LOOK);
    }
    let found = format!("{good} of {all} can migrate and log, and answer");
    if good < all {
        return Check::missing(NAME, found, LOOK);
    }
    Check::ok(NAME, found)
}

/// Whether there is a function to give to a guest.
fn functions(sysfs: &Sysfs, backend: &dyn Backend) -> Check {
    const NAME: &str = "functions";
    let reports = match list::functions(sysfs, Some(backend)) {
        Ok(reports) => reports,
        Err(error) => {
            return Check::unknown(NAME, format!("{error:#}"), "zeroshift list --functions")
        }
    };
    if reports.is_empty() {
        return Check::missing(
            NAME,
            "no function is managed by a card".into(),
            "see that the functions of the card are switched on (SR-IOV: sriov_numvfs), and what \
             'dmesg' says of them",
        );
    }
    let bound = |report: &&Report| report.driver.as_deref() == Some(DRIVER);
    let bound = reports.iter().filter(bound).count();
    let all = reports.len();
    let mut found = format!("{bound} of {all} with {DRIVER}");
    if bound == 0 {
        found += "; 'zeroshift bind BDF' gives it one";
    }
    Check::ok(NAME, found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::tests::Fake as FakeCards;
    use crate::fake::Fake;
    use crate::sysfs::tests::FakeSysfs;

    fn kernel_with(symbols: &str) -> Check {
        let proc = tempfile::tempdir().unwrap();
        fs::create_dir_all(proc.path().join("sys/kernel")).unwrap();
        fs::write(proc.path().join("sys/kernel/osrelease"), "7.2.12-x\n").unwrap();
        fs::write(proc.path().join("kallsyms"), symbols).unwrap();
        kernel(proc.path())
    }

    #[test]
    fn a_kernel_without_iommufd_is_told_plainly() {
        let check = kernel_with(
            "0000000000000000 T _stext\n0000000000000000 T iova_bitmap_set\n\
             0000000000000000 t helper\t[vfio]\n",
        );
        assert_eq!(check.state, State::Ok);
        assert!(check.found.contains("7.2.12-x"), "{check:?}");
        // One that only looks like it.
        let check = kernel_with("0 T _stext\n0 T __pfx_iova_bitmap_set\n0 T iova_bitmap_set_x\n");
        assert_eq!(check.state, State::Missing);
        assert!(check.found.contains("7.2.12-x has no IOMMUFD"), "{check:?}");
        assert!(check.found.contains("QEMU refuses"), "{check:?}");
        let fix = check.fix.unwrap();
        assert!(
            fix.contains("CONFIG_IOMMUFD,") && fix.contains("Debian"),
            "{fix}"
        );
        let check = kernel_with("");
        assert_eq!(check.state, State::Unknown);
        let fix = check.fix.unwrap();
        assert!(fix.contains("CONFIG_IOMMUFD_DRIVER=y"), "{fix}");
    }

    #[test]
    fn what_is_not_there_is_missing_and_has_a_next_step() {
        let fake = FakeSysfs::new();
        let sysfs = Sysfs::new(fake.path());
        let missing = |check: Check, word: &str| {
            assert_eq!(check.state, State::Missing, "{check:?}");
            let fix = check.fix.unwrap();
            assert!(fix.contains(word), "{fix}");
        };
        missing(iommu(&sysfs), "intel_iommu=on");
        missing(front_end(&sysfs), "insmod PATH/zeroshift_vfio_pci.ko");
        missing(cards(&FakeCards(vec![])), "zeroshift list");
        missing(functions(&sysfs, &Fake::default()), "dmesg");

        fs::create_dir_all(fake.path().join("class/iommu/dmar0")).unwrap();
        assert_eq!(iommu(&sysfs).found, "switched on (dmar0)");
        fake.add_driver(DRIVER);
        assert_eq!(front_end(&sysfs).state, State::Ok);
    }

    #[test]
    fn cards_have_to_migrate_to_log_and_to_answer() {
        let card = |address, flags| MigdirtyCard {
            flags,
            ..MigdirtyCard::question(address)
        };
        let checked = |flags: &[u32]| {
            let cards = flags.iter().enumerate();
            let cards = cards.map(|(n, flags)| card(n as u32 * 0x100, *flags));
            cards_of(cards.collect())
        };
        fn cards_of(cards: Vec<MigdirtyCard>) -> Check {
            super::cards(&FakeCards(cards))
        }
        assert_eq!(checked(&[7]).state, State::Ok);
        for flags in [6, 5, 3] {
            let check = checked(&[7, flags]);
            assert_eq!(check.state, State::Missing, "{flags}");
            assert!(check.found.starts_with("1 of 2 "), "{check:?}");
        }
    }

    #[test]
    fn functions_are_counted() {
        let fake = FakeSysfs::new();
        let sysfs = Sysfs::new(fake.path());
        fake.add_function("0000:02:00.0", "0x010802", Some("nvme"));
        fake.add_function("0000:03:00.0", "0x010802", Some(DRIVER));
        let check = functions(&sysfs, &Fake::default());
        assert_eq!(check.state, State::Ok);
        assert!(
            check.found.starts_with("0 of 1 ") && check.found.contains("zeroshift bind"),
            "{check:?}"
        );
        fake.set_driver("0000:02:00.0", Some(DRIVER));
        let check = functions(&sysfs, &Fake::default());
        assert_eq!(check.found, "1 of 1 with zeroshift_vfio_pci");
    }

    #[test]
    fn the_verdict_is_the_exit_status() {
        let section = |purpose, checks| Section { purpose, checks };
        let good = || Check::ok("one", "fine".into());
        let mut output = vec![];
        let migration = section(Purpose::Migration, vec![good()]);
        show(&[migration], false, &mut output).unwrap();
        assert_eq!(
            String::from_utf8(output).unwrap(),
            "ok  one  fine\nthis host can migrate guests\n"
        );
        let sections = [
            section(Purpose::Migration, vec![good()]),
            section(
                Purpose::Views,
                vec![good(), Check::missing("two", "none".into(), "get it")],
            ),
        ];
        let mut output = vec![];
        let error = show(&sections, false, &mut output).unwrap_err().to_string();
        assert!(error.contains("1 of 3 checks"), "{error}");
        assert_eq!(
            String::from_utf8(output).unwrap(),
            "ok  one  fine\nthis host can migrate guests\n\
             ok       one  fine\nMISSING  two  none\n              => get it\n\
             this host cannot give guests views yet\n"
        );
        let mut output = vec![];
        assert!(show(&sections, true, &mut output).is_err());
        let value: Value = serde_json::from_slice(&output).unwrap();
        assert_eq!(
            value,
            json!({"ready": false, "checks": [
                {"for": "migration", "name": "one", "state": "ok", "found": "fine", "fix": null},
                {"for": "views", "name": "one", "state": "ok", "found": "fine", "fix": null},
                {"for": "views", "name": "two", "state": "missing", "found": "none", "fix": "get it"}]})
        );
    }
}
