// SPDX-License-Identifier: GPL-2.0-only

//! Binds administrative controllers: probe, unbind, shutdown.
//!
//! The driver core serialises these per device. What a device holds is released in the reverse
//! order of its acquisition, by devres or by dropping [`Binding`]; each step of probe may fail, and
//! what was done until then is undone. Must never let a controller keep queues in memory that is
//! going to be freed: [`AdminQueue::halt`] comes before every release.

use crate::{
    admin_queue::AdminQueue,
    card::Card,
    cause::Cause,
    common::{
        pci_config,
        pci_driver::{self, Address},
    },
    controller::{self, Capabilities, Refusal, REGISTERS},
    logic::startup::Failure,
    nvme::identify::CNTRLTYPE_ADMINISTRATIVE,
    obituary::Obituary,
    registry,
};
use kernel::{
    device::{self, Bound, Core},
    irq::{self, IrqReturn},
    pci::{self, IrqType, IrqTypes},
    prelude::*,
    sync::Arc,
    time::{delay::fsleep, Delta},
};

/// PCI class of an NVMe administrative controller, with its mask.
const CLASS: u32 = 0x01_08_03;
const CLASS_MASK: u32 = 0xff_ff_ff;

/// Far longer than a message takes from a card to a CPU.
const INTERRUPT_TRAVEL: Delta = Delta::from_millis(5);

kernel::pci_device_table!(
    PCI_TABLE,
    MODULE_PCI_TABLE,
    <Driver as pci::Driver>::IdInfo,
    [(pci::DeviceId::from_class(CLASS, CLASS_MASK), ())]
);

/// The PCI driver `migdirty`.
pub(crate) struct Driver;

/// A bound controller.
pub(crate) struct Binding<'bound> {
    pdev: &'bound pci::Device<Bound>,
    queue: Arc<AdminQueue>,
    /// Set when the card was found good.
    card: Option<Arc<Card>>,
    interrupt: Pin<KBox<irq::Registration<Interrupt>>>,
}

impl Binding<'_> {
    /// Takes the card from its users and stops the controller. Idempotent.
    fn stop(&self) {
        let stopped = match &self.card {
            Some(card) => {
                registry::remove(card);
                card.stop(self.pdev)
            }
            None => {
                self.queue.close() && {
                    self.queue.halt(self.pdev);
                    true
                }
            }
        };
        if stopped {
            // The controller sends no interrupt any more, but those that it has sent may still be
            // on their way to a CPU, which would complain when it finds no handler.
            fsleep(INTERRUPT_TRAVEL);
            // Fails for an interrupt that is gone, and there is nothing to wait for then.
            let _ = self.interrupt.synchronize(self.pdev.as_ref());
        }
    }
}

/// For a probe that fails after the controller may have been enabled; after an unbind nothing is
/// left to do. Runs before devres takes the interrupt, the registers and the memory.
impl Drop for Binding<'_> {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The interrupt handler of one controller.
struct Interrupt {
    queue: Arc<AdminQueue>,
}

impl irq::Handler for Interrupt {
    fn handle(&self, dev: &device::Device<Bound>) -> IrqReturn {
        self.queue.interrupt(dev)
    }
}

impl pci::Driver for Driver {
    type IdInfo = ();
    type Data<'bound> = Binding<'bound>;
    const ID_TABLE: pci::IdTable<Self::IdInfo> = &PCI_TABLE;

    fn probe<'bound>(
        pdev: &'bound pci::Device<Core<'_>>,
        _info: &'bound Self::IdInfo,
    ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound {
        probe(pdev)
    }

    fn unbind<'bound>(pdev: &'bound pci::Device<Core<'_>>, this: Pin<&Self::Data<'bound>>) {
        if pci_driver::is_gone(pdev) {
            dev_info!(pdev, "card was removed\n");
        }
        this.stop();
    }
}

impl pci_driver::Driver for Driver {
    fn shutdown(pdev: &pci::Device<Core<'_>>) {
        // Every bound device has a card in the registry, unless it was shut down before.
        if let Some(card) = Address::of(pdev).and_then(registry::at) {
            registry::remove(&card);
            card.stop(pdev);
        }
    }

    fn before_reset(pdev: &pci::Device<Core<'_>>) {
        if let Some(card) = Address::of(pdev).and_then(registry::at) {
            card.give_up(Cause::WillBeReset);
        }
    }

    fn cut_off(pdev: &pci::Device<Core<'_>>) {
        if let Some(card) = Address::of(pdev).and_then(registry::at) {
            card.give_up(Cause::CutOff);
        }
    }
}

fn probe<'bound>(pdev: &'bound pci::Device<Core<'_>>) -> Result<Binding<'bound>> {
    let bound: &'bound pci::Device<Bound> = pdev;

    let Some(address) = Address::of(pdev) else {
        dev_err!(
            pdev,
            "its PCI domain is above ffff, which /dev/migdirty cannot name; if that is Intel VMD, \
             switch VMD off for its slot in the firmware set-up\n",
        );
        return Err(ERANGE);
    };
    pci_driver::enable_memory(pdev)
        .inspect_err(|error| dev_err!(pdev, "cannot enable it: {:?}\n", error))?;
    let bar = bound
        .iomap_region_sized::<REGISTERS>(0, c"migdirty")
        .inspect_err(|error| {
            dev_err!(
                pdev,
                "cannot map BAR0: {:?}; it is too small, not assigned, or another driver has it\n",
                error,
            );
        })?;
    let capabilities = Capabilities::read(&bar).map_err(|refusal| {
        match refusal {
            Refusal::Gone => dev_err!(
                pdev,
                "registers read all-ones: no controller answers; check the card, reset it, bind \
                 it again\n",
            ),
            Refusal::PageTooLarge(shift) => dev_err!(
                pdev,
                "controller wants memory pages of 2^{} bytes, this driver has 2^12 only\n",
                u32::from(shift).saturating_add(12),
            ),
            Refusal::BarTooSmall(size) => dev_err!(
                pdev,
                "BAR0 has {} bytes, too few for the doorbells that the registers announce: not a \
                 controller for this driver\n",
                size,
            ),
        }
        ENODEV
    })?;
    // What ran before us may have left it enabled, with queues in memory that is not ours; we do
    // not switch bus master on before it has let go of them.
    controller::disable(&bar, &capabilities)
        .map_err(|failure| refuse(bound, &capabilities, failure))?;

    pci_driver::set_dma_mask_64(pdev)
        .inspect_err(|error| dev_err!(pdev, "cannot set the DMA mask: {:?}\n", error))?;
    let obituary = Obituary::new(address)?;
    let queue = AdminQueue::new(bound, bar, capabilities, obituary)
        .inspect_err(|error| dev_err!(pdev, "cannot set up the admin queue: {:?}\n", error))?;
    let vectors = bound
        .alloc_irq_vectors(
            1,
            1,
            IrqTypes::default().with(IrqType::MsiX).with(IrqType::Msi),
        )
        .inspect_err(|error| {
            dev_err!(
                pdev,
                "no MSI-X or MSI vector: {:?}; this driver does not share interrupt lines\n",
                error,
            );
        })?;
    let handler = Interrupt {
        queue: queue.clone(),
    };
    let interrupt = KBox::pin_init(
        bound.request_irq(
            *vectors.start(),
            irq::Flags::TRIGGER_NONE,
            c"migdirty",
            Ok::<_, Error>(handler),
        ),
        GFP_KERNEL,
    )
    .inspect_err(|error| dev_err!(pdev, "cannot register the interrupt: {:?}\n", error))?;

    // From here on the controller is stopped when this is dropped.
    let mut binding = Binding {
        pdev: bound,
        queue: queue.clone(),
        card: None,
        interrupt,
    };
    pdev.set_master();
    queue
        .start(bound)
        .map_err(|failure| refuse(bound, &capabilities, failure))?;

    let serial_number = pci_config::serial_number(pdev);
    let card = Card::identify(address, serial_number, queue).inspect_err(|error| {
        dev_err!(
            pdev,
            "Identify Controller failed: {:?}; controller left disabled\n",
            error,
        );
    })?;
    registry::add(card.clone())?;
    let (model, serial, firmware) = card.names();
    let kind = match card.controller_type() {
        CNTRLTYPE_ADMINISTRATIVE => "administrative controller",
        _ => "not an administrative controller, bound by hand",
    };
    let live_migration = if card.live_migration() {
        "supported"
    } else {
        "not supported"
    };
    dev_info!(
        pdev,
        "{} serial {} firmware {}: {} (type {}), live migration {}\n",
        model,
        serial,
        firmware,
        kind,
        card.controller_type(),
        live_migration,
    );
    binding.card = Some(card);
    Ok(binding)
}

/// Says why a controller could not be reset or started, and what to do.
fn refuse(pdev: &pci::Device<Bound>, capabilities: &Capabilities, failure: Failure) -> Error {
    let limit = capabilities.ready_limit_ms;
    match failure {
        Failure::Gone => {
            dev_err!(
                pdev,
                "registers read all-ones: the card is gone; check it, then bind it again\n",
            );
            ENODEV
        }
        Failure::Fatal => {
            dev_err!(
                pdev,
                "controller reports a fatal status (CSTS.CFS) although it was reset; reset or \
                 replace the card\n",
            );
            EIO
        }
        Failure::DisableTimeout => {
            dev_err!(
                pdev,
                "controller is still ready {} ms after it was disabled; reset the card\n",
                limit,
            );
            ETIMEDOUT
        }
        Failure::EnableTimeout => {
            dev_err!(
                pdev,
                "controller is not ready {} ms after it was enabled; reset or replace the card\n",
                limit,
            );
            ETIMEDOUT
        }
    }
}
