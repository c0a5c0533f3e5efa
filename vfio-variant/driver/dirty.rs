// SPDX-License-Identifier: GPL-2.0-only

//! The DMA log of a function: what its card says the function has written.
//!
//! All state is the back end's; a log is not tied to the migration state. The migration mutex is only
//! taken to get at the claim, and no lock at all is held while a report writes to user memory.

use super::{bind::Function, states::Migration};
use crate::{
    backend::Range,
    logic::log::{granule, range, span},
    vfio::{log, Device, IovaBitmap},
};
use kernel::prelude::*;

impl log::Operations for Function {
    fn log_start(device: &Device<Self>, asked: &log::Ranges<'_>, page_size: u64) -> Result<u64> {
        let granule = granule(page_size).ok_or(EINVAL)?;
        let mut ranges = KVec::with_capacity(asked.len(), GFP_KERNEL)?;
        for (first, last) in asked.iter() {
            let (iova, length) = range(first, last).ok_or(EINVAL)?;
            ranges.push(Range { iova, length }, GFP_KERNEL)?;
        }
        Migration::claim_again(&device.migration);
        let claim = device.migration.claim()?;
        let _one = device.migration.log.lock();
        claim.log_start(&ranges, granule)
    }

    fn log_stop(device: &Device<Self>) -> Result {
        let Ok(claim) = device.migration.claim() else {
            // It went with its card.
            return Ok(());
        };
        let _one = device.migration.log.lock();
        claim.log_stop()
    }

    fn log_read_and_clear(
        device: &Device<Self>,
        iova: u64,
        length: u64,
        bitmap: &mut IovaBitmap<'_>,
    ) -> Result {
        let claim = device.migration.claim()?;
        {
            let _one = device.migration.log.lock();
            claim.log_harvest()?;
        }
        let Some((first, last)) = span(iova, length) else {
            return Ok(());
        };
        claim.log_take(first, last, |iova, length| bitmap.set(iova, length))
    }
}
