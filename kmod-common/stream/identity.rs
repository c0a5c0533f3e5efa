// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! `IDENTITY`: which function of which card, with which namespaces.
//!
//! A virtual machine monitor accepts a stream for another device; this record is what refuses it.

use super::bytes::{Fields, Output};
use super::difference::{Difference, Value};
use core::fmt;

/// Namespaces at most.
pub const MAX_NAMESPACES: u32 = 1024;
/// Bytes of a SUBNQN at most (NVMe Base 2.1, section 4.7: 223 and a terminating zero).
pub const MAX_SUBNQN: usize = 223;

/// Bytes before the SUBNQN: eight of PCI numbers, class, SN, MN, length.
const BEFORE_SUBNQN: usize = 8 + 4 + 20 + 40 + 2;
/// Bytes between SUBNQN and namespaces: known, number.
const BEFORE_NAMESPACES: usize = 2 + 4;
/// Bytes of a namespace.
const NAMESPACE: usize = 40;

/// The largest value.
pub const MAX_SIZE: usize =
    BEFORE_SUBNQN + MAX_SUBNQN + BEFORE_NAMESPACES + MAX_NAMESPACES as usize * NAMESPACE;
/// The smallest one.
pub const MIN_SIZE: usize = BEFORE_SUBNQN + 1 + BEFORE_NAMESPACES;

/// Who a function is. The same when it is written and when it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity<'a> {
    /// PCI vendor id.
    pub vendor: u16,
    /// PCI device id.
    pub device: u16,
    /// PCI subsystem vendor id.
    pub subsystem_vendor: u16,
    /// PCI subsystem id.
    pub subsystem: u16,
    /// PCI class code << 8 | revision, as configuration space has it at 08h.
    pub class_revision: u32,
    /// Serial Number (SN) of the card.
    pub serial: &'a [u8; 20],
    /// Model Number (MN) of the card.
    pub model: &'a [u8; 40],
    /// NVM Subsystem NVMe Qualified Name (SUBNQN), 1 to [`MAX_SUBNQN`] bytes without padding.
    pub subnqn: &'a [u8],
}

/// A namespace that is attached to the function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Namespace Identifier, 1 to FFFFFFFEh.
    pub nsid: u32,
    /// Bytes of a logical block, as a power of two (LBADS).
    pub block_shift: u8,
    /// Logical blocks (NSZE).
    pub blocks: u64,
    /// EUI64, zeroes for none.
    pub eui64: [u8; 8],
    /// NGUID, zeroes for none.
    pub nguid: [u8; 16],
}

/// Why an identity cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unwritable {
    /// The buffer is too small; [`size`] tells what is needed.
    NoRoom,
    /// The SUBNQN is empty or too long.
    Subnqn,
    /// NSIDs do not ascend, or one is 0 or FFFFFFFFh.
    Nsid,
    /// More than [`MAX_NAMESPACES`].
    TooManyNamespaces,
}

/// Bytes of a value.
pub const fn size(subnqn_bytes: usize, namespaces: usize) -> usize {
    namespaces
        .saturating_mul(NAMESPACE)
        .saturating_add(BEFORE_SUBNQN + BEFORE_NAMESPACES)
        .saturating_add(subnqn_bytes)
}

/// Writes a value into a buffer. Namespaces are unknown unless [`Builder::namespaces_known`] was
/// called or one was added.
pub struct Builder<'a> {
    output: Output<'a>,
    /// Offset of the two fields behind the SUBNQN.
    at: usize,
    known: bool,
    count: u32,
    last: u32,
}

impl<'a> Builder<'a> {
    /// Begins with all but the namespaces.
    ///
    /// # Errors
    ///
    /// The buffer is too small, the SUBNQN has no or too many bytes.
    pub fn new(buffer: &'a mut [u8], identity: &Identity<'_>) -> Result<Self, Unwritable> {
        let length = match u16::try_from(identity.subnqn.len()) {
            Ok(length) if (1..=MAX_SUBNQN).contains(&identity.subnqn.len()) => length,
            _ => return Err(Unwritable::Subnqn),
        };
        let mut output = Output::new(buffer);
        let mut put = |field: &[u8]| output.put(field).ok_or(Unwritable::NoRoom);
        put(&identity.vendor.to_le_bytes())?;
        put(&identity.device.to_le_bytes())?;
        put(&identity.subsystem_vendor.to_le_bytes())?;
        put(&identity.subsystem.to_le_bytes())?;
        put(&identity.class_revision.to_le_bytes())?;
        put(identity.serial)?;
        put(identity.model)?;
        put(&length.to_le_bytes())?;
        put(identity.subnqn)?;
        put(&[0; BEFORE_NAMESPACES])?;
        let at = output.used().saturating_sub(BEFORE_NAMESPACES);
        Ok(Self {
            output,
            at,
            known: false,
            count: 0,
            last: 0,
        })
    }

    /// The namespaces are known, perhaps none.
    pub fn namespaces_known(&mut self) {
        self.known = true;
    }

    /// Adds a namespace; they come with ascending NSIDs.
    ///
    /// # Errors
    ///
    /// The buffer is too small, the NSID is not above the last one, there are too many. What was
    /// written before stays good.
    pub fn namespace(&mut self, namespace: &Namespace) -> Result<(), Unwritable> {
        if namespace.nsid <= self.last || namespace.nsid == u32::MAX {
            return Err(Unwritable::Nsid);
        }
        if self.count >= MAX_NAMESPACES {
            return Err(Unwritable::TooManyNamespaces);
        }
        self.output
            .put(&namespace.encode())
            .ok_or(Unwritable::NoRoom)?;
        self.known = true;
        self.count = self.count.saturating_add(1);
        self.last = namespace.nsid;
        Ok(())
    }

    /// Ends the value and returns its size in bytes.
    pub fn finish(mut self) -> usize {
        let [a, b] = u16::from(self.known).to_le_bytes();
        let [c, d, e, f] = self.count.to_le_bytes();
        // `new` has written these bytes.
        let _ = self.output.replace(self.at, &[a, b, c, d, e, f]);
        self.output.used()
    }
}

impl Namespace {
    fn encode(&self) -> [u8; NAMESPACE] {
        let mut bytes = [0; NAMESPACE];
        let mut output = Output::new(&mut bytes);
        let fields: [&[u8]; 6] = [
            &self.nsid.to_le_bytes(),
            &[self.block_shift],
            &[0; 3],
            &self.blocks.to_le_bytes(),
            &self.eui64,
            &self.nguid,
        ];
        for field in fields {
            // 4 + 1 + 3 + 8 + 8 + 16 bytes: always fits.
            let _ = output.put(field);
        }
        bytes
    }

    /// The namespace, and whether its reserved bytes are zero.
    fn decode(bytes: &[u8]) -> Option<(Self, bool)> {
        let mut fields = Fields(bytes);
        let nsid = fields.u32()?;
        let block_shift = fields.u8()?;
        let reserved = fields.array::<3>()?;
        let namespace = Self {
            nsid,
            block_shift,
            blocks: fields.u64()?,
            eui64: *fields.array()?,
            nguid: *fields.array()?,
        };
        Some((namespace, *reserved == [0; 3]))
    }
}

/// A value that does not follow the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// Offset in the value, in bytes.
    pub offset: usize,
    /// What is wrong.
    pub what: &'static str,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "byte {} of IDENTITY: {}", self.offset, self.what)
    }
}

impl core::error::Error for Malformed {}

/// A value that was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View<'a> {
    /// All but the namespaces.
    pub identity: Identity<'a>,
    known: bool,
    namespaces: &'a [u8],
}

impl<'a> View<'a> {
    /// Decodes and checks a value.
    ///
    /// # Errors
    ///
    /// It is cut short or too long, the SUBNQN is empty or too long, there are too many namespaces,
    /// their NSIDs do not ascend, reserved bytes are not zero.
    pub fn decode(value: &'a [u8]) -> Result<Self, Malformed> {
        let mut fields = Fields(value);
        let cut = Malformed {
            offset: value.len(),
            what: "cut short",
        };
        let wrong = |left: Fields<'_>, back: usize, what| Malformed {
            offset: value
                .len()
                .saturating_sub(left.0.len())
                .saturating_sub(back),
            what,
        };
        let mut identity = Identity {
            vendor: fields.u16().ok_or(cut)?,
            device: fields.u16().ok_or(cut)?,
            subsystem_vendor: fields.u16().ok_or(cut)?,
            subsystem: fields.u16().ok_or(cut)?,
            class_revision: fields.u32().ok_or(cut)?,
            serial: fields.array().ok_or(cut)?,
            model: fields.array().ok_or(cut)?,
            subnqn: &[],
        };
        let length = usize::from(fields.u16().ok_or(cut)?);
        if !(1..=MAX_SUBNQN).contains(&length) {
            return Err(wrong(fields, 2, "SUBNQN has to have 1 to 223 bytes"));
        }
        identity.subnqn = fields.slice(length).ok_or(cut)?;
        let known = match fields.u16().ok_or(cut)? {
            0 => false,
            1 => true,
            _ => return Err(wrong(fields, 2, "namespaces neither known nor unknown")),
        };
        let count = fields.u32().ok_or(cut)?;
        if count > MAX_NAMESPACES {
            return Err(wrong(fields, 4, "more than 1024 namespaces"));
        }
        if count != 0 && !known {
            return Err(wrong(fields, 4, "namespaces that are not known"));
        }
        let bytes = usize::try_from(count)
            .ok()
            .and_then(|count| count.checked_mul(NAMESPACE));
        let namespaces = bytes.and_then(|bytes| fields.slice(bytes)).ok_or(cut)?;
        if !fields.0.is_empty() {
            return Err(wrong(fields, 0, "bytes behind the last namespace"));
        }
        let mut last = 0;
        let mut left = Fields(namespaces);
        while let Some(bytes) = left.array::<NAMESPACE>() {
            let (namespace, zero) = Namespace::decode(bytes).ok_or(cut)?;
            if namespace.nsid <= last || namespace.nsid == u32::MAX {
                return Err(wrong(left, NAMESPACE, "NSIDs do not ascend"));
            }
            if !zero {
                // Behind NSID and block size.
                let what = "reserved bytes are not zero";
                return Err(wrong(left, NAMESPACE - 5, what));
            }
            last = namespace.nsid;
        }
        Ok(Self {
            identity,
            known,
            namespaces,
        })
    }

    /// The namespaces, by ascending NSIDs; `None` when they are not known.
    pub fn namespaces(&self) -> Option<impl ExactSizeIterator<Item = Namespace> + 'a> {
        let namespaces = self.namespaces.chunks_exact(NAMESPACE);
        let mut last = Namespace {
            nsid: 0,
            block_shift: 0,
            blocks: 0,
            eui64: [0; 8],
            nguid: [0; 16],
        };
        self.known.then(move || {
            namespaces.map(move |bytes| {
                // Always decodes: a chunk has all the bytes.
                if let Some((namespace, _)) = Namespace::decode(bytes) {
                    last = namespace;
                }
                last
            })
        })
    }

    /// The bytes of namespace `index`, which `namespaces` gave: EUI64 and NGUID.
    fn names(&self, index: usize) -> (&'a [u8], &'a [u8]) {
        let bytes = self.namespaces.chunks_exact(NAMESPACE).nth(index);
        let names = bytes.and_then(|bytes| bytes.get(16..)).unwrap_or(&[]);
        names.split_at_checked(8).unwrap_or((&[], &[]))
    }
}

/// Whether `theirs` is the identity of the same function, on this card or on one that shares its
/// identity: everything has to be equal. Namespaces are compared when both sides know them.
///
/// # Errors
///
/// The first field that differs.
pub fn compare<'a>(mine: &View<'a>, theirs: &View<'a>) -> Result<(), Difference<'a>> {
    let (a, b) = (&mine.identity, &theirs.identity);
    let hex = [
        ("PCI vendor", a.vendor, b.vendor),
        ("PCI device", a.device, b.device),
        (
            "PCI subsystem vendor",
            a.subsystem_vendor,
            b.subsystem_vendor,
        ),
        ("PCI subsystem", a.subsystem, b.subsystem),
    ];
    for (field, mine, theirs) in hex {
        equal(field, Value::Hex(mine.into()), Value::Hex(theirs.into()))?;
    }
    let class = |identity: &Identity<'a>| Value::Hex(identity.class_revision.into());
    equal("PCI class and revision", class(a), class(b))?;
    equal(
        "serial number",
        Value::Text(a.serial),
        Value::Text(b.serial),
    )?;
    equal("model", Value::Text(a.model), Value::Text(b.model))?;
    equal("SUBNQN", Value::Text(a.subnqn), Value::Text(b.subnqn))?;
    let (Some(ours), Some(others)) = (mine.namespaces(), theirs.namespaces()) else {
        return Ok(());
    };
    let number = |count: usize| Value::Number(count as u64);
    equal(
        "number of namespaces",
        number(ours.len()),
        number(others.len()),
    )?;
    for (index, (a, b)) in ours.zip(others).enumerate() {
        equal(
            "NSID",
            Value::Number(a.nsid.into()),
            Value::Number(b.nsid.into()),
        )?;
        let (eui64, nguid) = mine.names(index);
        let (their_eui64, their_nguid) = theirs.names(index);
        let fields = [
            (
                "block size as a power of two",
                Value::Number(a.block_shift.into()),
                Value::Number(b.block_shift.into()),
            ),
            ("blocks", Value::Number(a.blocks), Value::Number(b.blocks)),
            ("EUI64", Value::Bytes(eui64), Value::Bytes(their_eui64)),
            ("NGUID", Value::Bytes(nguid), Value::Bytes(their_nguid)),
        ];
        for (field, mine, theirs) in fields {
            equal(field, mine, theirs).map_err(|difference| Difference {
                namespace: Some(a.nsid),
                ..difference
            })?;
        }
    }
    Ok(())
}

fn equal<'a>(
    field: &'static str,
    mine: Value<'a>,
    theirs: Value<'a>,
) -> Result<(), Difference<'a>> {
    if mine == theirs {
        Ok(())
    } else {
        Err(Difference::new(field, mine, theirs))
    }
}
