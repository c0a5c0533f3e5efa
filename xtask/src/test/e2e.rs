// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Level `e2e`: a guest in a host.
//!
//! L1 is the test kernel with an emulated VT-d and two cards. The first card is driven by `migdirty` in L1. The
//! second is passed through, by the kernel's own vfio-pci and stock QEMU, to L2, which runs Debian's stock kernel.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{ensure, Context as _, Result};

use super::{hosts, succeeded, Results};
use crate::kernel::Kind;
use crate::rig::accel::Accelerator;
use crate::rig::card::Card;
use crate::rig::console::{Job, Transcript};
use crate::rig::image::{self, Overlay};
use crate::rig::l1::{command_line, Iommu, L1};
use crate::session::Session;
use crate::userspace;

const HOST_SERIAL: &str = "ZSHOST0001";
const GUEST_SERIAL: &str = "ZSGUEST001";

/// What the run came to.
struct Nested {
    /// L1's console.
    l1: Transcript,
    /// Lines of L2's console.
    l2: Vec<String>,
    /// Whether the cards ended in peace.
    cards: Result<()>,
}

impl Nested {
    /// Whether L2 booted and came to its end.
    fn guest_ended(&self) -> Result<()> {
        for marker in ["ZS-BOOT ", "ZS-HALT"] {
            let came = self.l2.iter().any(|l| l.starts_with(marker));
            ensure!(came, "no {marker} from L2\n{}", self.l1.ending());
        }
        Ok(())
    }

    /// What the job `name` printed in L2, when it ended with success.
    fn guest_job(&self, name: &str) -> Result<Job> {
        let from = self
            .l2
            .iter()
            .position(|l| *l == format!("ZS-BEGIN {name}"));
        let from = from.with_context(|| format!("L2 never began {name}\n{}", self.l1.ending()))?;
        let lines: Vec<String> = self
            .l2
            .iter()
            .skip(from + 1)
            .take_while(|l| !l.starts_with("ZS-END "))
            .cloned()
            .collect();
        ensure!(
            self.l2.contains(&format!("ZS-END {name} 0")),
            "the job {name} failed in L2\n{}",
            crate::command::tail(&lines.join("\n"), 30)
        );
        Ok(Job {
            name: name.to_owned(),
            exit: Some(0),
            lines,
        })
    }
}

/// Finds the two functions by what migdirty does not yet hold, gives the second to vfio-pci, and runs L2 on it.
const GUEST: &str = r#"set -e
echo 272 > /proc/sys/vm/nr_hugepages
mount -t hugetlbfs hugetlbfs /dev/hugepages
card=$(cat /zs/guest-card)
echo vfio-pci > /sys/bus/pci/devices/$card/driver_override
echo $card > /sys/bus/pci/drivers_probe
test -e /sys/bus/pci/drivers/vfio-pci/$card
mkfifo /tmp/l2-kernel /tmp/l2-jobs
# Held open here, so that neither end of a pipe waits for the other to be opened.
exec 3<>/tmp/l2-kernel 4<>/tmp/l2-jobs
for console in /tmp/l2-kernel /tmp/l2-jobs; do sed 's/^/L2| /' <$console 3>&- 4>&- & done
status=0
qemu-system-x86_64 -L /usr/share/qemu -L /usr/share/seabios -M q35,kernel-irqchip=split,memory-backend=ram \
  -accel kvm -cpu host,kvm-pv-eoi=off -m 512M \
  -object memory-backend-memfd,id=ram,size=512M,hugetlb=on,hugetlbsize=2M,share=on \
  -nodefaults -display none -no-reboot -serial file:/tmp/l2-kernel -serial file:/tmp/l2-jobs \
  -kernel /l2/vmlinuz -initrd /l2/initrd -append "$(cat /l2/append)" \
  -device pcie-root-port,id=rp0,chassis=1,slot=1 -device vfio-pci,host=$card,bus=rp0 \
  </dev/null 3>&- 4>&- || status=$?
exec 3>&- 4>&-
wait
exit $status"#;

/// Boots L1 and, in it, L2.
fn nested(session: &Session) -> Result<Nested> {
    let place = session.place()?;
    let (host, guest) = (session.kernel(Kind::Test)?, session.kernel(Kind::Stock)?);
    let (host_modules, guest_modules) =
        (session.modules(Kind::Test)?, session.modules(Kind::Stock)?);
    let programs = userspace::build(session)?;
    let run = session.cache.run_dir("cards")?;
    let cards = [HOST_SERIAL, GUEST_SERIAL].map(|serial| {
        Card::start(
            &session.cache,
            &programs.path("zerocard"),
            run.path(),
            serial,
            &[],
        )
    });
    let [host_card, guest_card] = cards;
    let (host_card, guest_card) = (host_card?, guest_card?);

    let l2_image = run.path().join("l2-initramfs");
    Overlay::new()
        .file("/zs/migdirty.ko", guest_modules.path("migdirty")?)
        .file("/zs/bin/zeroshift", &programs.path("zeroshift"))
        .job("load", "insmod /zs/migdirty.ko")
        .job("list", "set -e; zeroshift list; zeroshift list --json")
        .job("unload", "rmmod migdirty")
        .write(
            place.root,
            &[image::base(
                place.cache,
                place.root,
                place.repo,
                guest,
                &[],
            )?],
            &l2_image,
        )?;
    let append = run.path().join("l2-append");
    std::fs::write(&append, command_line("zs.poweroff"))?;

    let kvm = Accelerator::pick_nested()?.kvm_module()?;
    let functions: Vec<PathBuf> = vec![
        host_card.socket("admin")?.into(),
        guest_card.socket("admin")?.into(),
    ];
    let l1 = L1 {
        name: "nested",
        kernel: host,
        iommu: Iommu::Vtd,
        functions,
        memory_mib: 2048,
        modules: &[kvm, "vfio_iommu_type1", "vfio_pci"],
        nested: true,
        peers: false,
        overlay: Overlay::new()
            .file("/zs/migdirty.ko", host_modules.path("migdirty")?)
            .file("/zs/bin/zeroshift", &programs.path("zeroshift"))
            .file("/l2/vmlinuz", &guest.image)
            .file("/l2/initrd", &l2_image)
            .file("/l2/append", &append)
            // The second root port's function is the guest's.
            .job("choose", "ls -d /sys/bus/pci/devices/* | while read d; do [ $(cat $d/class) = 0x010803 ] && basename $d; done | tail -n 1 > /zs/guest-card; test -s /zs/guest-card")
            .job("load", "set -e; echo none > /sys/bus/pci/devices/$(cat /zs/guest-card)/driver_override; insmod /zs/migdirty.ko")
            .job("list", "set -e; zeroshift list; zeroshift list --json")
            .job("guest", GUEST)
            .job("unload", "rmmod migdirty"),
        limit: Duration::from_secs(900),
    }
    .run(place)?;
    let l2: Vec<String> = l1
        .lines
        .iter()
        .filter_map(|l| l.strip_prefix("L2| "))
        .map(str::to_owned)
        .collect();
    let cards = host_card.stop().and(guest_card.stop());
    Ok(Nested { l1, l2, cards })
}

/// Everything that the run has to show, each with its name.
fn judge(run: &mut Nested) -> Vec<(&'static str, Result<()>)> {
    let cards = std::mem::replace(&mut run.cards, Ok(()));
    let listed = |job: Result<&Job>, serial| job.and_then(|j| hosts::card_is_listed(j, serial));
    let guest_list = run.guest_job("list");
    vec![
        (
            "host and guest boot, and neither kernel reports anything",
            run.l1.check().and(run.guest_ended()),
        ),
        (
            "the module loads in the host",
            succeeded(&run.l1, "load").map(drop),
        ),
        (
            "the host's card is listed in the host",
            listed(succeeded(&run.l1, "list"), HOST_SERIAL),
        ),
        (
            "stock QEMU runs the guest with the passed-through function",
            succeeded(&run.l1, "guest").map(drop),
        ),
        (
            "the guest's module drives the passed-through function",
            guest_list.and_then(|j| hosts::card_is_listed(&j, GUEST_SERIAL)),
        ),
        (
            "the module unloads in the guest",
            run.guest_job("unload").map(drop),
        ),
        (
            "the module unloads in the host",
            succeeded(&run.l1, "unload").map(drop),
        ),
        ("the cards end in peace", cards),
    ]
}

/// The run as a test.
pub(super) fn scenario(session: &Session, results: &mut Results) -> Result<()> {
    for (name, outcome) in judge(&mut nested(session)?) {
        results.check(name, outcome);
    }
    Ok(())
}
