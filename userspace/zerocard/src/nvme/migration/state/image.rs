// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What NVMe state version 0 lacks, as records: section 10 of `docs/interfaces.md`.
//!
//! Pure: values to bytes and back. Whether a value makes sense for a controller is decided by the
//! controller that loads it; here only the form is checked.

use zeroshift_nvme::completion::Completion;

use super::tlv::{self, Fields, MANDATORY};
use crate::pci::Refused;

/// Version of the records. A state of another one is refused.
pub(crate) const VERSION: u16 = 1;
/// What kind of function the state is of.
const KIND_NVME: u16 = 1;

const FORMAT: u32 = MANDATORY;
const IDENTITY: u32 = MANDATORY | 1;
const NAMESPACES: u32 = MANDATORY | 2;
const REGISTERS: u32 = MANDATORY | 3;
const ADMIN_QUEUES: u32 = MANDATORY | 4;
const FEATURES: u32 = MANDATORY | 5;
const EVENTS: u32 = MANDATORY | 6;
const COMPLETIONS: u32 = MANDATORY | 7;
const DOORBELL_BUFFERS: u32 = MANDATORY | 8;
const INTERRUPTS: u32 = MANDATORY | 9;
const ERROR_LOG: u32 = 10;

/// Bytes of an entry of the Error Information log page.
pub(crate) const ERROR_ENTRY: usize = 64;

/// What has to be the same on both sides. Controller identifiers may differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// SN, as Identify Controller has it.
    pub(crate) serial: [u8; 20],
    /// MN, likewise.
    pub(crate) model: [u8; 40],
    /// SUBNQN, likewise.
    pub(crate) subnqn: [u8; 256],
    /// MDTS.
    pub(crate) mdts: u8,
    /// CAP.DSTRD.
    pub(crate) doorbell_stride: u8,
    /// SQES.
    pub(crate) submission_entry: u8,
    /// CQES.
    pub(crate) completion_entry: u8,
    /// CAP.MQES.
    pub(crate) max_queue: u16,
    /// I/O queue pairs.
    pub(crate) io_queues: u16,
    /// Interrupt vectors.
    pub(crate) vectors: u16,
}

/// An attached namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Namespace {
    /// NSID.
    pub(crate) id: u32,
    /// Bytes of a block, as a power of two.
    pub(crate) block_shift: u8,
    /// Size in blocks.
    pub(crate) blocks: u64,
    /// NGUID.
    pub(crate) nguid: [u8; 16],
}

/// Controller registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Registers {
    pub(crate) cc: u32,
    pub(crate) csts: u32,
    pub(crate) aqa: u32,
    pub(crate) asq: u64,
    pub(crate) acq: u64,
}

/// The admin queues of a controller that is ready, as they were when it was enabled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct AdminQueues {
    pub(crate) submission: Ring,
    pub(crate) completion: Ring,
    /// Phase tag of slot 0 of the completion queue, as in NVMe state version 0.
    pub(crate) slot_0_phase: bool,
    /// Memory page size, as a power of two.
    pub(crate) page_shift: u8,
}

/// A ring and where both sides are in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ring {
    pub(crate) base: u64,
    /// 0's based.
    pub(crate) size: u16,
    pub(crate) head: u16,
    pub(crate) tail: u16,
}

/// Values of features, in the form that they have in Set Features.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Features {
    pub(crate) workload_hint: u8,
    pub(crate) write_cache: bool,
    pub(crate) write_atomicity: bool,
    /// Over and under temperature threshold, in kelvins.
    pub(crate) over: u16,
    pub(crate) under: u16,
    pub(crate) error_recovery: u16,
    /// Asynchronous Event Configuration.
    pub(crate) events: u32,
    pub(crate) arbitration: u32,
    pub(crate) coalescing: u16,
    pub(crate) host_identifier: [u8; 16],
    /// Vectors for which coalescing is disabled; one bit each.
    pub(crate) uncoalesced: [u64; 4],
}

/// An asynchronous event: type, information, log page.
pub(crate) type Event = [u8; 3];

/// Asynchronous events and the requests for them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Events {
    /// Command identifiers of the requests that are held, in order.
    pub(crate) requests: Vec<u16>,
    /// Events that wait for a request.
    pub(crate) pending: Vec<Event>,
    /// Events that mask their type until the host reads the log page.
    pub(crate) reported: Vec<Event>,
}

/// Shadow doorbells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DoorbellBuffers {
    pub(crate) doorbells: u64,
    pub(crate) event_indices: u64,
}

/// The Error Information log page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ErrorLog {
    pub(crate) count: u64,
    /// Newest first.
    pub(crate) entries: Vec<[u8; ERROR_ENTRY]>,
}

/// Everything about a controller that is not in NVMe state version 0.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Image {
    pub(crate) identity: Identity,
    pub(crate) namespaces: Vec<Namespace>,
    pub(crate) registers: Registers,
    /// `None` unless the controller is ready.
    pub(crate) admin_queues: Option<AdminQueues>,
    pub(crate) features: Features,
    pub(crate) events: Events,
    /// Completions that have no place in their queue yet, in order.
    pub(crate) completions: Vec<Completion>,
    pub(crate) doorbell_buffers: Option<DoorbellBuffers>,
    /// MSI-X pending bits.
    pub(crate) interrupts: [u8; 32],
    pub(crate) errors: ErrorLog,
}

impl Image {
    /// The records.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let format = [VERSION.to_le_bytes(), KIND_NVME.to_le_bytes()];
        tlv::put(&mut out, FORMAT, format.as_flattened());
        tlv::put(&mut out, IDENTITY, &self.identity.encode());
        let namespaces: Vec<u8> = self.namespaces.iter().flat_map(Namespace::encode).collect();
        tlv::put(&mut out, NAMESPACES, &namespaces);
        tlv::put(&mut out, REGISTERS, &self.registers.encode());
        if let Some(queues) = &self.admin_queues {
            tlv::put(&mut out, ADMIN_QUEUES, &queues.encode());
        }
        tlv::put(&mut out, FEATURES, &self.features.encode());
        tlv::put(&mut out, EVENTS, &self.events.encode());
        if !self.completions.is_empty() {
            let entries = self.completions.iter().copied();
            let entries: Vec<u8> = entries.flat_map(Completion::to_bytes).collect();
            tlv::put(&mut out, COMPLETIONS, &entries);
        }
        if let Some(buffers) = self.doorbell_buffers {
            let addresses = [buffers.doorbells, buffers.event_indices];
            let addresses = addresses.map(u64::to_le_bytes);
            tlv::put(&mut out, DOORBELL_BUFFERS, addresses.as_flattened());
        }
        tlv::put(&mut out, INTERRUPTS, &self.interrupts);
        let mut errors = self.errors.count.to_le_bytes().to_vec();
        errors.extend(self.errors.entries.as_flattened());
        tlv::put(&mut out, ERROR_LOG, &errors);
        out
    }

    /// Reads the records. Unknown ones are skipped unless they are mandatory.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Refused> {
        let mut found = Found::default();
        for record in tlv::records(bytes) {
            let (kind, value) = record?;
            found.take(kind, value)?;
        }
        found.finish()
    }
}

/// What was read so far.
#[derive(Default)]
struct Found {
    format: Option<()>,
    identity: Option<Identity>,
    namespaces: Option<Vec<Namespace>>,
    registers: Option<Registers>,
    admin_queues: Option<AdminQueues>,
    features: Option<Features>,
    events: Option<Events>,
    completions: Option<Vec<Completion>>,
    doorbell_buffers: Option<DoorbellBuffers>,
    interrupts: Option<[u8; 32]>,
    errors: Option<ErrorLog>,
}

impl Found {
    fn take(&mut self, kind: u32, value: &[u8]) -> Result<(), Refused> {
        if kind != FORMAT && self.format.is_none() {
            return Err(Refused::new("the format record does not come first"));
        }
        match kind {
            FORMAT => once("format", &mut self.format, check_format, value),
            IDENTITY => once("identity", &mut self.identity, Identity::decode, value),
            NAMESPACES => once("namespaces", &mut self.namespaces, namespaces, value),
            REGISTERS => once("registers", &mut self.registers, Registers::decode, value),
            ADMIN_QUEUES => {
                let place = &mut self.admin_queues;
                once("admin queues", place, AdminQueues::decode, value)
            }
            FEATURES => once("features", &mut self.features, Features::decode, value),
            EVENTS => once("events", &mut self.events, Events::decode, value),
            COMPLETIONS => once("completions", &mut self.completions, completions, value),
            DOORBELL_BUFFERS => {
                let place = &mut self.doorbell_buffers;
                once("doorbell buffers", place, doorbell_buffers, value)
            }
            INTERRUPTS => once("interrupts", &mut self.interrupts, Fields::bytes, value),
            ERROR_LOG => once("error log", &mut self.errors, ErrorLog::decode, value),
            unknown if unknown & MANDATORY != 0 => {
                Err(Refused(format!("unknown mandatory record {unknown:#x}")))
            }
            _ => Ok(()),
        }
    }

    fn finish(self) -> Result<Image, Refused> {
        let missing = |name| move || Refused(format!("there is no {name} record"));
        Ok(Image {
            identity: self.identity.ok_or_else(missing("identity"))?,
            namespaces: self.namespaces.ok_or_else(missing("namespaces"))?,
            registers: self.registers.ok_or_else(missing("registers"))?,
            admin_queues: self.admin_queues,
            features: self.features.ok_or_else(missing("features"))?,
            events: self.events.ok_or_else(missing("events"))?,
            completions: self.completions.unwrap_or_default(),
            doorbell_buffers: self.doorbell_buffers,
            interrupts: self.interrupts.ok_or_else(missing("interrupts"))?,
            errors: self.errors.unwrap_or_default(),
        })
    }
}

/// Reads a record that may be there once, to its last byte.
fn once<'a, T>(
    name: &'static str,
    place: &mut Option<T>,
    decode: impl FnOnce(&mut Fields<'a>) -> Result<T, Refused>,
    value: &'a [u8],
) -> Result<(), Refused> {
    let mut fields = Fields::new(name, value);
    let decoded = decode(&mut fields)?;
    fields.end()?;
    match place.replace(decoded) {
        None => Ok(()),
        Some(_) => Err(Refused(format!("there are two {name} records"))),
    }
}

fn check_format(fields: &mut Fields<'_>) -> Result<(), Refused> {
    let (version, kind) = (fields.u16()?, fields.u16()?);
    if version != VERSION {
        return Err(Refused(format!("format version {version} is unknown")));
    }
    if kind != KIND_NVME {
        return Err(Refused(format!("it is of function kind {kind}, not NVMe")));
    }
    Ok(())
}

fn namespaces(fields: &mut Fields<'_>) -> Result<Vec<Namespace>, Refused> {
    let mut list = Vec::new();
    while !fields.is_empty() {
        list.push(Namespace::decode(fields)?);
    }
    Ok(list)
}

fn completions(fields: &mut Fields<'_>) -> Result<Vec<Completion>, Refused> {
    let mut list = Vec::new();
    while !fields.is_empty() {
        list.push(Completion::from_bytes(&fields.bytes()?));
    }
    Ok(list)
}

fn doorbell_buffers(fields: &mut Fields<'_>) -> Result<DoorbellBuffers, Refused> {
    Ok(DoorbellBuffers {
        doorbells: fields.u64()?,
        event_indices: fields.u64()?,
    })
}

impl Identity {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(self.serial);
        out.extend(self.model);
        out.extend(self.subnqn);
        out.extend([self.mdts, self.doorbell_stride]);
        out.extend([self.submission_entry, self.completion_entry]);
        for value in [self.max_queue, self.io_queues, self.vectors, 0] {
            out.extend(value.to_le_bytes());
        }
        out
    }

    fn decode(fields: &mut Fields<'_>) -> Result<Self, Refused> {
        let identity = Self {
            serial: fields.bytes()?,
            model: fields.bytes()?,
            subnqn: fields.bytes()?,
            mdts: fields.u8()?,
            doorbell_stride: fields.u8()?,
            submission_entry: fields.u8()?,
            completion_entry: fields.u8()?,
            max_queue: fields.u16()?,
            io_queues: fields.u16()?,
            vectors: fields.u16()?,
        };
        fields.u16()?;
        Ok(identity)
    }

    /// What differs, in words.
    pub(crate) fn difference(&self, other: &Self) -> Option<&'static str> {
        let same = [
            (self.serial == other.serial, "serial number"),
            (self.model == other.model, "model"),
            (self.subnqn == other.subnqn, "SUBNQN"),
            (self.mdts == other.mdts, "MDTS"),
            (
                self.doorbell_stride == other.doorbell_stride,
                "doorbell stride",
            ),
            (self.submission_entry == other.submission_entry, "SQES"),
            (self.completion_entry == other.completion_entry, "CQES"),
            (self.max_queue == other.max_queue, "MQES"),
            (self.io_queues == other.io_queues, "number of I/O queues"),
            (self.vectors == other.vectors, "number of vectors"),
        ];
        same.iter().find(|(same, _)| !same).map(|(_, what)| *what)
    }
}

impl Namespace {
    fn encode(&self) -> [u8; 32] {
        let mut out = [0; 32];
        out[..4].copy_from_slice(&self.id.to_le_bytes());
        out[4] = self.block_shift;
        out[8..16].copy_from_slice(&self.blocks.to_le_bytes());
        out[16..].copy_from_slice(&self.nguid);
        out
    }

    fn decode(fields: &mut Fields<'_>) -> Result<Self, Refused> {
        let (id, block_shift) = (fields.u32()?, fields.u8()?);
        fields.bytes::<3>()?;
        Ok(Self {
            id,
            block_shift,
            blocks: fields.u64()?,
            nguid: fields.bytes()?,
        })
    }
}

impl Registers {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for value in [self.cc, self.csts, self.aqa, 0] {
            out.extend(value.to_le_bytes());
        }
        out.extend(self.asq.to_le_bytes());
        out.extend(self.acq.to_le_bytes());
        out
    }

    fn decode(fields: &mut Fields<'_>) -> Result<Self, Refused> {
        let (cc, csts, aqa) = (fields.u32()?, fields.u32()?, fields.u32()?);
        fields.u32()?;
        Ok(Self {
            cc,
            csts,
            aqa,
            asq: fields.u64()?,
            acq: fields.u64()?,
        })
    }
}

impl AdminQueues {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for ring in [self.submission, self.completion] {
            out.extend(ring.base.to_le_bytes());
            for value in [ring.size, ring.head, ring.tail, 0] {
                out.extend(value.to_le_bytes());
            }
        }
        out.extend([self.slot_0_phase.into(), self.page_shift, 0, 0]);
        out
    }

    fn decode(fields: &mut Fields<'_>) -> Result<Self, Refused> {
        let queues = Self {
            submission: Ring::decode(fields)?,
            completion: Ring::decode(fields)?,
            slot_0_phase: fields.u8()? & 1 != 0,
            page_shift: fields.u8()?,
        };
        fields.u16()?;
        Ok(queues)
    }
}

impl Ring {
    fn decode(fields: &mut Fields<'_>) -> Result<Self, Refused> {
        let ring = Self {
            base: fields.u64()?,
            size: fields.u16()?,
            head: fields.u16()?,
            tail: fields.u16()?,
        };
        fields.u16()?;
        Ok(ring)
    }
}

impl Features {
    const WRITE_CACHE: u8 = 1 << 0;
    const WRITE_ATOMICITY: u8 = 1 << 1;

    fn encode(&self) -> Vec<u8> {
        let mut flags = 0;
        if self.write_cache {
            flags |= Self::WRITE_CACHE;
        }
        if self.write_atomicity {
            flags |= Self::WRITE_ATOMICITY;
        }
        let mut out = vec![self.workload_hint, flags];
        for value in [self.over, self.under, self.error_recovery] {
            out.extend(value.to_le_bytes());
        }
        out.extend(self.events.to_le_bytes());
        out.extend(self.arbitration.to_le_bytes());
        out.extend(u32::from(self.coalescing).to_le_bytes());
        out.extend([0; 4]);
        out.extend(self.host_identifier);
        for word in self.uncoalesced {
            out.extend(word.to_le_bytes());
        }
        out
    }

    fn decode(fields: &mut Fields<'_>) -> Result<Self, Refused> {
        let (workload_hint, flags) = (fields.u8()?, fields.u8()?);
        let mut features = Self {
            workload_hint,
            write_cache: flags & Self::WRITE_CACHE != 0,
            write_atomicity: flags & Self::WRITE_ATOMICITY != 0,
            over: fields.u16()?,
            under: fields.u16()?,
            error_recovery: fields.u16()?,
            events: fields.u32()?,
            arbitration: fields.u32()?,
            coalescing: fields.u16()?,
            ..Self::default()
        };
        fields.bytes::<6>()?;
        features.host_identifier = fields.bytes()?;
        for word in &mut features.uncoalesced {
            *word = fields.u64()?;
        }
        Ok(features)
    }
}

impl Events {
    fn encode(&self) -> Vec<u8> {
        // The controller bounds all three far below 256.
        let counts = [&self.pending, &self.reported].map(|list| list.len() as u8);
        let mut out = vec![self.requests.len() as u8, counts[0], counts[1], 0];
        for cid in &self.requests {
            out.extend(cid.to_le_bytes());
        }
        for [kind, information, log_page] in self.pending.iter().chain(&self.reported) {
            out.extend([*kind, *information, *log_page, 0]);
        }
        out
    }

    fn decode(fields: &mut Fields<'_>) -> Result<Self, Refused> {
        let [requests, pending, reported, _] = fields.bytes()?;
        let mut events = Self::default();
        for _ in 0..requests {
            events.requests.push(fields.u16()?);
        }
        for _ in 0..pending {
            let [kind, information, log_page, _] = fields.bytes()?;
            events.pending.push([kind, information, log_page]);
        }
        for _ in 0..reported {
            let [kind, information, log_page, _] = fields.bytes()?;
            events.reported.push([kind, information, log_page]);
        }
        Ok(events)
    }
}

impl ErrorLog {
    fn decode(fields: &mut Fields<'_>) -> Result<Self, Refused> {
        let count = fields.u64()?;
        let mut entries = Vec::new();
        while !fields.is_empty() {
            entries.push(fields.bytes()?);
        }
        Ok(Self { count, entries })
    }
}
