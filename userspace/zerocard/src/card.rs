// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The card: its namespaces and functions, made from what the command line says.
//!
//! Owns the functions for the life of the process; sessions, pollers and the control socket share
//! them. Knows no sockets.

mod serial;
mod target;

use std::sync::Arc;

use anyhow::{bail, Context as _, Result};

use crate::control::Limits;
use crate::faults::{Faults, SharedStage};
use crate::nvme::admin::{self, Personality, Role};
use crate::nvme::controller::Controller;
use crate::nvme::migration::{self, Allocated, Fleet};
use crate::nvme::namespace::Namespace;
use crate::options::{FunctionOptions, NamespaceOptions};
use crate::pci::config::Identity;
use crate::pci::Function;
pub(crate) use serial::Serial;

/// A function of the card and what a user has to know about it.
#[derive(Clone)]
pub(crate) struct Slot {
    /// Name of the function; its socket is called after it.
    pub(crate) name: String,
    /// Kind, as the ready line shows it.
    pub(crate) kind: &'static str,
    /// NVMe controller id.
    pub(crate) controller_id: u16,
    /// The function itself.
    pub(crate) function: Arc<Function>,
}

/// What a card is made from.
pub(crate) struct Options<'a> {
    pub(crate) serial: &'a Serial,
    pub(crate) namespaces: &'a [NamespaceOptions],
    /// Functions besides the administrative controller.
    pub(crate) functions: &'a [FunctionOptions],
    /// Where random faults start from.
    pub(crate) seed: u64,
    /// What memory tracking may cost.
    pub(crate) limits: Limits,
}

/// A card.
pub(crate) struct Card {
    /// The administrative controller, then the others with controller ids from 1.
    slots: Vec<Slot>,
    faults: Faults,
    pub(crate) limits: Arc<migration::Limits>,
}

impl Card {
    /// Opens the media and makes the functions.
    pub(crate) fn new(options: &Options<'_>) -> Result<Self> {
        let serial = options.serial;
        let namespaces = namespaces(options)?;
        let names = names(options.functions)?;
        let faults = Faults::new(options.seed, names.iter().map(String::as_str));
        let stage = |index: u16| {
            let stage = faults.stage(index.into()).context("no fault stage")?;
            anyhow::Ok(Arc::clone(stage))
        };
        // The command line has at most 64 functions.
        let ids: Vec<u16> = (0..names.len() as u16).collect();
        let mut slots = Vec::new();
        let managed = names.iter().zip(0u16..).skip(1);
        for ((name, controller_id), own) in managed.zip(options.functions) {
            let role = io_role(own, &namespaces);
            let function = function(serial, &ids, controller_id, role, stage(controller_id)?);
            function.lock().kind.set_rate(own.rate);
            slots.push(Slot {
                name: name.clone(),
                kind: "nvme",
                controller_id,
                function,
            });
        }
        let limits = Arc::new(migration::Limits::default());
        limits.set(options.limits);
        let role = Role::Administrative {
            fleet: Arc::new(Fleet {
                functions: managed_by(&slots),
                namespaces: allocated(options.functions, namespaces),
                limits: Arc::clone(&limits),
            }),
        };
        let manager = function(serial, &ids, 0, role, stage(0)?);
        for slot in &slots {
            slot.function.observe(Arc::clone(&manager.attention));
        }
        let administrative = Slot {
            name: names.into_iter().next().context("no name")?,
            kind: "nvme-admin",
            controller_id: 0,
            function: manager,
        };
        slots.insert(0, administrative);
        Ok(Self {
            slots,
            faults,
            limits,
        })
    }

    /// All functions.
    pub(crate) fn slots(&self) -> &[Slot] {
        &self.slots
    }
}

/// Names of all functions; they become files, so none may come twice.
fn names(functions: &[FunctionOptions]) -> Result<Vec<String>> {
    let mut names = vec!["admin".to_owned()];
    for (options, controller_id) in functions.iter().zip(1..) {
        let name = options.name(controller_id);
        if names.contains(&name) {
            bail!("two functions are called {name}");
        }
        names.push(name);
    }
    Ok(names)
}

fn managed_by(slots: &[Slot]) -> Vec<(u16, Arc<Function>)> {
    let slots = slots.iter();
    slots
        .map(|slot| (slot.controller_id, Arc::clone(&slot.function)))
        .collect()
}

/// Which controllers each namespace is attached to.
fn allocated(functions: &[FunctionOptions], namespaces: Vec<Arc<Namespace>>) -> Vec<Allocated> {
    let controllers = |id| {
        let with_id = functions.iter().zip(1u16..);
        let attached = with_id.filter(move |(function, _)| function.attaches(id));
        attached.map(|(_, controller)| controller)
    };
    let namespaces = namespaces.into_iter();
    namespaces
        .map(|namespace| Allocated {
            controllers: controllers(namespace.id).collect(),
            namespace,
        })
        .collect()
}

fn io_role(options: &FunctionOptions, namespaces: &[Arc<Namespace>]) -> Role {
    let attached = namespaces
        .iter()
        .filter(|namespace| options.attaches(namespace.id));
    Role::Io {
        namespaces: attached.cloned().collect(),
        queues: options.queues,
    }
}

fn namespaces(options: &Options<'_>) -> Result<Vec<Arc<Namespace>>> {
    let Options {
        serial,
        namespaces: media,
        functions,
        ..
    } = *options;
    let mut namespaces = Vec::new();
    for (options, id) in media.iter().zip(1..) {
        let medium = options
            .open()
            .with_context(|| format!("namespace {id} ({options})"))?;
        let users = functions.iter().filter(|function| function.attaches(id));
        namespaces.push(Arc::new(Namespace {
            id,
            blocks: medium.size() >> options.block_shift(),
            medium,
            block_shift: options.block_shift(),
            nguid: serial.namespace_identifier(id),
            shared: users.count() > 1,
        }));
    }
    for (options, id) in functions.iter().zip(1..) {
        if let Some(wrong) = options.missing(media.len()) {
            bail!(
                "function {} attaches namespace {wrong}, and the card has {}",
                options.name(id),
                media.len()
            );
        }
    }
    Ok(namespaces)
}

fn function(
    serial: &Serial,
    ids: &[u16],
    controller_id: u16,
    role: Role,
    stage: Arc<SharedStage>,
) -> Arc<Function> {
    let administrative = matches!(role, Role::Administrative { .. });
    let personality = Personality {
        identity: admin::Identity {
            serial: serial.to_string(),
            controller_id,
            subnqn: serial.subnqn(),
            controllers: ids.to_vec(),
        },
        role,
    };
    let identity = Identity {
        device: if administrative { 0x0001 } else { 0x0002 },
        class: if administrative {
            0x01_08_03
        } else {
            0x01_08_02
        },
        serial_number: serial.device_serial_number(),
        controller_id,
        role: administrative.into(),
        bar0_size: 0x4000,
        // One for the admin queue and one for each pair of I/O queues.
        vectors: personality.io_queues() + 1,
    };
    let kind = Box::new(Controller::new(personality));
    Arc::new(Function::new(&identity, kind, stage))
}
