// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `zeroshift list`: which cards are there, what each can do, and how to bind the others.
//!
//! Gathering (sysfs and `/dev/migdirty`) and printing are apart; between them is [`Inventory`].

use crate::address::Address;
use crate::backend::Backend;
use crate::cli::ListOptions;
use crate::device::{self, Cards, Device};
use crate::explain::{explain, Request};
use crate::function::Report;
use crate::modules;
use crate::size::{self, granule};
use crate::sysfs::{Function, Sysfs};
use crate::table;
use crate::WRITING;
use anyhow::{bail, Context as _, Result};
use migdirty_uapi::{
    MigdirtyCard, MIGDIRTY_CARD_LIVE, MIGDIRTY_CARD_LIVE_MIGRATION, MIGDIRTY_CARD_TRACKS_MEMORY,
};
use rustix::io::Errno;
use serde::Serialize;
use std::io::Write;
use zeroshift_nvme::identify::CNTRLTYPE_ADMINISTRATIVE;
use zeroshift_nvme::registers::Version;

/// Runs the subcommand.
pub(crate) fn run(options: &ListOptions, output: &mut impl Write) -> Result<()> {
    let sysfs = Sysfs::new(&options.places.sysfs);
    let device = Device::open(&options.places.device)?;
    let mut inventory =
        Inventory::gather(&sysfs, device.as_ref().map(|device| device as &dyn Cards))?;
    if options.functions {
        let backend = device.as_ref().map(|device| device as &dyn Backend);
        inventory.functions = Some(functions(&sysfs, backend)?);
    }
    let written = if options.json {
        inventory.write_json(output)
    } else {
        inventory.write_text(output)
    };
    written.context(WRITING)
}

/// All cards, and whether the module is loaded.
#[derive(Debug, Serialize)]
struct Inventory {
    cards: Vec<Card>,
    /// Not there when nobody asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    functions: Option<Vec<Report>>,
    #[serde(skip)]
    module_loaded: bool,
}

/// The functions that a card manages, in the order of their addresses.
pub(crate) fn functions(sysfs: &Sysfs, backend: Option<&dyn Backend>) -> Result<Vec<Report>> {
    let Some(backend) = backend else {
        return Ok(vec![]);
    };
    let mut reports = Vec::new();
    for function in sysfs.functions()? {
        // Not an address that /dev/migdirty can have, so no card manages it.
        let Ok(address) = function.address.parse::<Address>() else {
            continue;
        };
        match backend.function(address) {
            Ok(info) => reports.push(Report::new(&info, function.driver)),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(explain(backend, Request::Describe, address, errno)),
        }
    }
    Ok(reports)
}

/// A card, in the form of `docs/interfaces.md`, section 5.
#[derive(Debug, PartialEq, Serialize)]
struct Card {
    address: String,
    driver: Option<String>,
    state: State,
    /// Not there when the card is unbound.
    #[serde(flatten)]
    details: Option<Details>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Live,
    Dead,
    Unbound,
}

#[derive(Debug, PartialEq, Serialize)]
struct Details {
    serial: String,
    model: String,
    firmware: String,
    subnqn: String,
    nvme_version: String,
    controller_id: u16,
    controller_type: u8,
    live_migration: bool,
    tracks_memory: bool,
    granule_bytes: Granules,
    max_ranges: u16,
    max_ranges_subsystem: u16,
    commands: u64,
    failures: u64,
    interrupts: u64,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Granules {
    min: u64,
    max: u64,
}

impl Inventory {
    fn gather(sysfs: &Sysfs, device: Option<&dyn Cards>) -> Result<Self> {
        let mut cards: Vec<Card> = match device {
            None => vec![],
            Some(device) => device::all(device)?.iter().map(Card::bound).collect(),
        };
        let known: Vec<String> = cards.iter().map(|card| card.address.clone()).collect();
        for function in sysfs.administrative_controllers()? {
            if known.contains(&function.address) {
                continue;
            }
            if function.driver.as_deref() != Some("migdirty") {
                cards.push(Card::unbound(function));
            } else if device.is_none() {
                bail!(
                    "{} belongs to the module migdirty, but /dev/migdirty is not there to ask it; \
                     try again if the module is being loaded, else see that devtmpfs is mounted \
                     on /dev (in a container: pass the device in)",
                    function.address,
                );
            }
            // What migdirty has but did not report is on its way in or out.
        }
        cards.sort_by(|a, b| a.address.cmp(&b.address));
        Ok(Self {
            cards,
            functions: None,
            module_loaded: device.is_some() || sysfs.has_migdirty(),
        })
    }

    fn write_json(&self, output: &mut impl Write) -> Result<()> {
        let text = serde_json::to_string(self)?;
        Ok(writeln!(output, "{text}")?)
    }

    fn write_text(&self, output: &mut impl Write) -> Result<()> {
        if self.cards.is_empty() {
            writeln!(output, "no NVMe administrative controller found")?;
            if let Some(functions) = &self.functions {
                self.write_functions(functions, output)?;
            }
            return Ok(());
        }
        let head = [
            "ADDRESS",
            "STATE",
            "DRIVER",
            "MODEL",
            "SERIAL",
            "FIRMWARE",
            "NVME",
            "TYPE",
            "MIGRATION",
            "GRANULE",
            "RANGES",
        ];
        let mut rows = vec![head.map(String::from)];
        rows.extend(self.cards.iter().map(Card::row));
        table::write(output, &rows)?;
        for card in &self.cards {
            for line in self.advice(card) {
                writeln!(output, "{line}")?;
            }
        }
        match &self.functions {
            None => Ok(()),
            Some(functions) => self.write_functions(functions, output),
        }
    }

    fn write_functions(&self, functions: &[Report], output: &mut impl Write) -> Result<()> {
        writeln!(output)?;
        if functions.is_empty() {
            let why = if self.module_loaded {
                "no function is managed by a card"
            } else {
                "the module migdirty is not loaded, so no function is managed by a card"
            };
            writeln!(output, "{why}")?;
            return Ok(());
        }
        let head = ["FUNCTION", "CARD", "ID", "DRIVER", "STATE", "OWNER", "LOG"];
        let mut rows = vec![head.map(String::from)];
        rows.extend(functions.iter().map(|function| {
            [
                function.address.clone(),
                function.card.clone(),
                function.controller_id.to_string(),
                function.driver.clone().unwrap_or("-".into()),
                function.state_text().into(),
                function.owner_text().into(),
                function.log_text(),
            ]
        }));
        table::write(output, &rows)?;
        Ok(())
    }

    /// What to do about a card that cannot be used as it is.
    fn advice(&self, card: &Card) -> Vec<String> {
        let address = &card.address;
        match (card.state, &card.driver) {
            (State::Live, _) => vec![],
            (State::Dead, _) => vec![format!(
                "\n{address} does not answer ('dmesg' says why). Reset or replace it; to bind it \
                 again:\n  echo {address} > /sys/bus/pci/drivers/migdirty/unbind\n  \
                 echo {address} > /sys/bus/pci/drivers/migdirty/bind"
            )],
            (State::Unbound, None) if !self.module_loaded => vec![format!(
                "\n{address} has no driver. To bind it:\n  {}",
                modules::load("migdirty")
            )],
            (State::Unbound, None) => vec![format!(
                "\n{address} has no driver. To bind it ('dmesg' says why if that fails):\n  \
                 echo {address} > /sys/bus/pci/drivers/migdirty/bind"
            )],
            (State::Unbound, Some(driver)) => {
                let load = if self.module_loaded {
                    String::new()
                } else {
                    format!("  {}\n", modules::load("migdirty"))
                };
                vec![format!(
                    "\n{address} belongs to driver {driver}. To take it over, when nothing uses \
                     it:\n{load}  echo {address} > /sys/bus/pci/drivers/{driver}/unbind\n  \
                     echo migdirty > /sys/bus/pci/devices/{address}/driver_override\n  \
                     echo {address} > /sys/bus/pci/drivers_probe"
                )]
            }
        }
    }
}

impl Card {
    fn bound(card: &MigdirtyCard) -> Self {
        let has = |flag| card.flags & flag != 0;
        let version = Version(card.version);
        Self {
            address: Address(card.address).to_string(),
            driver: Some("migdirty".into()),
            state: if has(MIGDIRTY_CARD_LIVE) {
                State::Live
            } else {
                State::Dead
            },
            details: Some(Details {
                serial: padded(&card.serial),
                model: padded(&card.model),
                firmware: padded(&card.firmware),
                subnqn: terminated(&card.subnqn),
                nvme_version: format!("{}.{}.{}", version.mjr(), version.mnr(), version.ter()),
                controller_id: card.controller_id,
                controller_type: card.controller_type,
                live_migration: has(MIGDIRTY_CARD_LIVE_MIGRATION),
                tracks_memory: has(MIGDIRTY_CARD_TRACKS_MEMORY),
                granule_bytes: Granules {
                    min: granule(card.min_granule),
                    max: granule(card.max_granule),
                },
                max_ranges: card.max_ranges,
                max_ranges_subsystem: card.max_ranges_subsystem,
                commands: card.commands,
                failures: card.failures,
                interrupts: card.interrupts,
            }),
        }
    }

    fn unbound(function: Function) -> Self {
        Self {
            address: function.address,
            driver: function.driver,
            state: State::Unbound,
            details: None,
        }
    }

    fn row(&self) -> [String; 11] {
        let state = match self.state {
            State::Live => "live",
            State::Dead => "dead",
            State::Unbound => "unbound",
        };
        let dash = || String::from("-");
        let mut row = std::array::from_fn(|_| dash());
        row[0] = self.address.clone();
        row[1] = state.into();
        row[2] = self.driver.clone().unwrap_or_else(dash);
        let Some(details) = &self.details else {
            return row;
        };
        row[3] = details.model.clone();
        row[4] = details.serial.clone();
        row[5] = details.firmware.clone();
        row[6] = details.nvme_version.clone();
        row[7] = match details.controller_type {
            CNTRLTYPE_ADMINISTRATIVE => "administrative".into(),
            1 => "I/O".into(),
            2 => "discovery".into(),
            other => format!("{other}"),
        };
        row[8] = if details.live_migration { "yes" } else { "no" }.into();
        if details.tracks_memory {
            let Granules { min, max } = details.granule_bytes;
            row[9] = format!("{}..{}", size::bytes(min), size::bytes(max));
            row[10] = format!(
                "{} (subsystem {})",
                details.max_ranges, details.max_ranges_subsystem
            );
        }
        row
    }
}

/// Text that is padded with spaces (some cards pad with zeroes).
fn padded(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .trim_matches([' ', '\0'])
        .to_owned()
}

/// Text up to the first zero.
fn terminated(bytes: &[u8]) -> String {
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::tests::Fake;
    use crate::sysfs::tests::FakeSysfs;
    use serde_json::{json, Value};

    fn zerocard(address: u32) -> MigdirtyCard {
        let mut card = MigdirtyCard {
            flags: MIGDIRTY_CARD_LIVE | MIGDIRTY_CARD_LIVE_MIGRATION | MIGDIRTY_CARD_TRACKS_MEMORY,
            controller_id: 7,
            controller_type: 3,
            min_granule: 0,
            max_granule: 9,
            max_ranges: 256,
            max_ranges_subsystem: 1024,
            version: 0x0002_0100,
            vectors: 1,
            commands: 3,
            failures: 1,
            interrupts: 2,
            ..MigdirtyCard::question(address)
        };
        card.serial = *b"ZS00000001          ";
        card.model[..18].copy_from_slice(b"Zeroshift zerocard");
        card.model[18..].fill(b' ');
        card.firmware = *b"0.1.0   ";
        card.subnqn[..11].copy_from_slice(b"nqn.2014-08");
        card
    }

    fn gather(sysfs: &FakeSysfs, cards: Option<Vec<MigdirtyCard>>) -> Inventory {
        let cards = cards.map(Fake);
        Inventory::gather(
            &Sysfs::new(sysfs.path()),
            cards.as_ref().map(|cards| cards as &dyn Cards),
        )
        .unwrap()
    }

    fn text(inventory: &Inventory) -> String {
        let mut output = Vec::new();
        inventory.write_text(&mut output).unwrap();
        String::from_utf8(output).unwrap()
    }

    fn json(inventory: &Inventory) -> Value {
        let mut output = Vec::new();
        inventory.write_json(&mut output).unwrap();
        assert_eq!(output.iter().filter(|byte| **byte == b'\n').count(), 1);
        serde_json::from_slice(&output).unwrap()
    }

    #[test]
    fn json_is_the_contract() {
        let sysfs = FakeSysfs::new();
        sysfs.add_function("0000:01:00.0", "0x010803", Some("migdirty"));
        sysfs.add_function("0000:02:00.0", "0x010803", Some("vfio-pci"));
        sysfs.add_function("0000:03:00.0", "0x010803", None);
        let mut dead = zerocard(0x0400);
        dead.flags &= !MIGDIRTY_CARD_LIVE;
        let inventory = gather(&sysfs, Some(vec![zerocard(0x0100), dead]));
        let card = |address: &str, state: &str| {
            json!({
                "address": address, "driver": "migdirty", "state": state,
                "serial": "ZS00000001", "model": "Zeroshift zerocard", "firmware": "0.1.0",
                "subnqn": "nqn.2014-08", "nvme_version": "2.1.0", "controller_id": 7,
                "controller_type": 3, "live_migration": true, "tracks_memory": true,
                "granule_bytes": {"min": 4096, "max": 2_097_152},
                "max_ranges": 256, "max_ranges_subsystem": 1024,
                "commands": 3, "failures": 1, "interrupts": 2,
            })
        };
        assert_eq!(
            json(&inventory),
            json!({"cards": [
                card("0000:01:00.0", "live"),
                {"address": "0000:02:00.0", "driver": "vfio-pci", "state": "unbound"},
                {"address": "0000:03:00.0", "driver": null, "state": "unbound"},
                card("0000:04:00.0", "dead"),
            ]})
        );
    }

    #[test]
    fn table_shows_bound_and_unbound_cards() {
        let sysfs = FakeSysfs::new();
        sysfs.add_function("0000:02:00.0", "0x010803", None);
        let inventory = gather(&sysfs, Some(vec![zerocard(0x0100)]));
        assert_eq!(
            text(&inventory),
            "\
ADDRESS       STATE    DRIVER    MODEL               SERIAL      FIRMWARE  NVME   TYPE            MIGRATION  GRANULE       RANGES
0000:01:00.0  live     migdirty  Zeroshift zerocard  ZS00000001  0.1.0     2.1.0  administrative  yes        4 KiB..2 MiB  256 (subsystem 1024)
0000:02:00.0  unbound  -         -                   -           -         -      -               -          -             -

0000:02:00.0 has no driver. To bind it ('dmesg' says why if that fails):
  echo 0000:02:00.0 > /sys/bus/pci/drivers/migdirty/bind
"
        );
    }

    #[test]
    fn functions_are_listed_with_their_cards() {
        let sysfs = FakeSysfs::new();
        sysfs.add_function("0000:02:00.0", "0x010802", Some("nvme"));
        sysfs.add_function("0000:03:00.0", "0x020000", Some("e1000e"));
        sysfs.add_function("10000:03:00.0", "0x010802", None);
        let reader = Sysfs::new(sysfs.path());
        let backend = crate::fake::Fake::default();
        let mut inventory = gather(&sysfs, Some(vec![zerocard(0x0100)]));
        assert!(json(&inventory).get("functions").is_none());
        inventory.functions = Some(functions(&reader, Some(&backend)).unwrap());
        let value = json(&inventory);
        assert_eq!(value["functions"].as_array().unwrap().len(), 1);
        assert_eq!(value["functions"][0]["card"], "0000:01:00.0");
        assert!(text(&inventory).ends_with(
            "
FUNCTION      CARD          ID  DRIVER  STATE    OWNER  LOG
0000:02:00.0  0000:01:00.0  1   nvme    running  -      -
"
        ));
        inventory.functions = Some(functions(&reader, None).unwrap());
        assert!(text(&inventory).ends_with("\nno function is managed by a card\n"));
        let mut unloaded = gather(&sysfs, None);
        unloaded.functions = Some(vec![]);
        let shown = text(&unloaded);
        assert!(shown.contains("migdirty is not loaded"), "{shown}");
    }

    #[test]
    fn advice_fits_the_state() {
        let sysfs = FakeSysfs::new();
        sysfs.add_function("0000:02:00.0", "0x010803", None);
        assert!(text(&gather(&sysfs, None))
            .ends_with("\n  modprobe migdirty || insmod PATH/migdirty.ko\n"));

        sysfs.add_function("0000:03:00.0", "0x010803", Some("vfio-pci"));
        let shown = text(&gather(&sysfs, None));
        assert!(shown.contains("belongs to driver vfio-pci"), "{shown}");
        assert!(shown.contains("drivers/vfio-pci/unbind"), "{shown}");

        let mut dead = zerocard(0x0200);
        dead.flags = 0;
        let shown = text(&gather(&sysfs, Some(vec![dead])));
        assert!(shown.contains("does not answer"), "{shown}");
        assert!(!shown.contains("modprobe"), "{shown}");
    }

    #[test]
    fn no_card_is_no_error() {
        let inventory = gather(&FakeSysfs::new(), None);
        assert_eq!(
            text(&inventory),
            "no NVMe administrative controller found\n"
        );
        assert_eq!(json(&inventory), json!({"cards": []}));
    }

    #[test]
    fn a_controller_in_transit_is_left_out() {
        let sysfs = FakeSysfs::new();
        sysfs.add_function("0000:02:00.0", "0x010803", Some("migdirty"));
        assert!(gather(&sysfs, Some(vec![])).cards.is_empty());
    }

    #[test]
    fn a_card_that_cannot_be_asked_is_an_error() {
        let sysfs = FakeSysfs::new();
        sysfs.add_function("0000:02:00.0", "0x010803", Some("migdirty"));
        let error = Inventory::gather(&Sysfs::new(sysfs.path()), None).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("0000:02:00.0"), "{error}");
        assert!(error.contains("devtmpfs"), "{error}");
    }

    #[test]
    fn odd_answers_of_a_card_are_shown_safely() {
        let mut card = zerocard(0xffff_ffff);
        card.serial = [0; 20];
        card.model = [0xff; 40];
        card.firmware = *b"\x1b[2J    ";
        card.subnqn = [b'n'; 256];
        card.min_granule = 52;
        card.max_granule = 255;
        card.controller_type = 9;
        let inventory = gather(&FakeSysfs::new(), Some(vec![card]));
        let shown = text(&inventory);
        assert!(shown.contains("ffff:ff:1f.7"), "{shown}");
        assert!(!shown.contains('\x1b') && shown.contains("?[2J"), "{shown}");
        let value = json(&inventory);
        assert_eq!(value["cards"][0]["granule_bytes"]["max"], u64::MAX);
        assert_eq!(value["cards"][0]["subnqn"].as_str().unwrap().len(), 256);
        assert_eq!(value["cards"][0]["serial"], "");
    }
}
