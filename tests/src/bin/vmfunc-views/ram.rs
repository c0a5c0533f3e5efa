// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The host takes RAM of a guest away and gives it other pages, while the guest reads it in a view.

use crate::rig::{
    check_rounds, check_samples, copy, fill, guest_page, pattern, poison, some_rounds, stop_all,
    Rig, Rounds, Samples, OFFSET, PAGE, WINDOW,
};
use anyhow::{Context as _, Result};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zeroshift_tests::ktap::{skip, Outcome};
use zeroshift_tests::vfio::memory::Memory;
use zeroshift_tests::vmm::{Count, Vm, SPARE};
use zeroshift_tests::{check, check_eq};

const LARGE: usize = 2 << 20;

/// What the guest looks at.
const LAST_PAGE: Samples = Samples {
    view: 1,
    from: SPARE + (LARGE - PAGE) as u64,
    bytes: PAGE,
};

/// Pages are given back: what the guest reads is zero or what was written since.
pub(crate) fn discarded() -> Outcome {
    const TIMES: u8 = 5;
    let (rig, vcpus) = Rig::new(2)?;
    check_eq!(rig.vmfunc.create_view(), Ok(1), "view");
    let ram = Arc::new(Memory::private(LARGE)?);
    rig.vm.set_spare(&ram)?;
    let running = LAST_PAGE.start_both(vcpus)?;
    for generation in 1..=TIMES {
        fill(&ram, generation);
        for i in 0..2 {
            rig.wait_for(i, Count::Seen, generation.into())?;
        }
        ram.discard()?;
        if generation % 2 == 0 {
            for i in 0..2 {
                let blanks = rig.vm.count(i, Count::Blanks);
                rig.wait_for(i, Count::Blanks, blanks + 1)?;
            }
        }
        // Who gets the pages next.
        poison(&Memory::private(LARGE)?);
    }
    stop_all(&rig.vm, running)?;
    for i in 0..2 {
        check_samples(&rig.vm, i)?;
        check_eq!(rig.vm.count(i, Count::Aborts), 0, "aborts of vCPU {i}");
    }
    Ok(())
}

/// A memory cgroup, which goes when this does.
struct Cgroup(PathBuf);

impl Cgroup {
    /// One for this process; what it has had so far belongs to another one.
    fn enter() -> Result<Self> {
        let parent = Path::new("/sys/fs/cgroup");
        put(&parent.join("cgroup.subtree_control"), "+memory")?;
        let new = Self(parent.join(format!("vmfunc-views-{}", std::process::id())));
        fs::create_dir(&new.0).with_context(|| format!("cannot make {:?}", new.0))?;
        put(&new.0.join("cgroup.procs"), "0")?;
        Ok(new)
    }

    /// Takes memory away from it, as far as that can be done.
    fn reclaim(&self) -> Result<()> {
        match fs::write(self.0.join("memory.reclaim"), "64M") {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Bytes of it that are swapped out.
    fn swapped(&self) -> Result<u64> {
        let text = fs::read_to_string(self.0.join("memory.swap.current"))?;
        Ok(text.trim().parse()?)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let out = put(&self.0.with_file_name("cgroup.procs"), "0");
        // An empty one that stays does no harm.
        let _ = out.and_then(|()| Ok(fs::remove_dir(&self.0)?));
    }
}

fn put(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {text} to {}", path.display()))
}

/// All memory of the VMM that the kernel can get is swapped out, again and again: the guest goes on
/// with what it had. Pages of windows are not to be had.
pub(crate) fn reclaimed() -> Outcome {
    const TIMES: u64 = 10;
    if fs::read_to_string("/proc/swaps")?.lines().count() < 2 {
        return skip("there is no swap space");
    }
    if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        return skip("there is no cgroup2 at /sys/fs/cgroup");
    }
    let cgroup = Cgroup::enter()?;
    let (rig, mut vcpus) = Rig::new(2)?;
    for view in 1..=2 {
        check_eq!(rig.vmfunc.create_view(), Ok(view), "view {view}");
    }
    let mine = Memory::private(PAGE)?;
    mine.write(0, &pattern(1));
    rig.vmfunc.add_window(1, OFFSET, &mine)?;
    let owned = rig.vmfunc.add_owned(2, OFFSET, PAGE)?;
    let ram = Arc::new(Memory::private(LARGE)?);
    fill(&ram, 1);
    rig.vm.set_spare(&ram)?;
    let second = vcpus.pop().context("two vCPUs")?;
    let first = vcpus.pop().context("two vCPUs")?;
    let running = vec![
        LAST_PAGE.start(0, first)?,
        Rounds::new(2, 0).start(1, second)?,
    ];
    let mut most = 0;
    for _ in 0..TIMES {
        some_rounds(&rig.vm, 2)?;
        ram.page_out()?;
        cgroup.reclaim()?;
        most = most.max(cgroup.swapped()?);
    }
    some_rounds(&rig.vm, 2)?;
    let ends = stop_all(&rig.vm, running)?;
    check_samples(&rig.vm, 0)?;
    check_eq!(rig.vm.count(0, Count::Blanks), 0, "pages that were lost");
    check_rounds(&rig.vm, 1, TIMES)?;
    println!("# {most} bytes were swapped out");
    // Of two areas of this size; what a guest uses all the time may stay.
    check!(
        most >= LARGE as u64 / 2,
        "only {most} bytes were swapped out"
    );
    let vcpu = ends.into_iter().next().context("two vCPUs")?.0;
    let (_vcpu, result) = copy(vcpu, 1, Vm::buffer(0), WINDOW, PAGE)?;
    check_eq!(result, 0, "copy from the window");
    check!(
        guest_page(&rig.vm, Vm::buffer(0)) == pattern(1),
        "wrong data"
    );
    drop(owned);
    Ok(())
}
