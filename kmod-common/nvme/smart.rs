// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! The SMART / Health Information log page (LID 02h): NVMe Base 2.1, section 5.1.12.1.3.
//!
//! A view and a builder over its 512 bytes. Counts nothing itself.

use super::bytes;

/// Size of the log page, in bytes.
pub const SIZE: usize = 512;

/// Reads a SMART / Health Information log page.
#[derive(Clone, Copy)]
pub struct SmartLog<'a>(&'a [u8; SIZE]);

/// Writes a SMART / Health Information log page.
pub struct SmartLogMut<'a>(&'a mut [u8; SIZE]);

impl<'a> SmartLog<'a> {
    /// A view over the bytes that the controller returned.
    pub const fn new(page: &'a [u8; SIZE]) -> Self {
        Self(page)
    }
}

impl<'a> SmartLogMut<'a> {
    /// A builder over a zeroed page.
    pub fn new(page: &'a mut [u8; SIZE]) -> Self {
        page.fill(0);
        Self(page)
    }
}

/// Bytes as data units: 1000 blocks of 512 bytes, rounded up.
pub const fn data_units(bytes: u64) -> u64 {
    bytes.div_ceil(512_000)
}

fields! {
    SmartLog, SmartLogMut:
    critical_warning set_critical_warning: u8 at 0 via u8_at, "Critical Warning (CW).";
    temperature set_temperature: u16 at 1 via u16_at,
        "Composite Temperature (CTEMP), in kelvins.";
    spare set_spare: u8 at 3 via u8_at, "Available Spare (AVSP), in percent.";
    spare_threshold set_spare_threshold: u8 at 4 via u8_at,
        "Available Spare Threshold (AVSPT), in percent.";
    used set_used: u8 at 5 via u8_at,
        "Percentage Used (PUSED) of the life of the medium, up to 255.";
    units_read set_units_read: u128 at 32 via u128_at,
        "Data Units Read (DUR), see [`data_units`].";
    units_written set_units_written: u128 at 48 via u128_at,
        "Data Units Written (DUW), see [`data_units`].";
    read_commands set_read_commands: u128 at 64 via u128_at, "Host Read Commands (HRC).";
    write_commands set_write_commands: u128 at 80 via u128_at, "Host Write Commands (HWC).";
    busy_minutes set_busy_minutes: u128 at 96 via u128_at,
        "Controller Busy Time (CBT), in minutes.";
    power_cycles set_power_cycles: u128 at 112 via u128_at, "Power Cycles (PWRC).";
    power_on_hours set_power_on_hours: u128 at 128 via u128_at, "Power On Hours (POH).";
    unexpected_power_losses set_unexpected_power_losses: u128 at 144 via u128_at,
        "Unexpected Power Losses (UPL).";
    media_errors set_media_errors: u128 at 160 via u128_at,
        "Media and Data Integrity Errors (MDIE).";
    error_entries set_error_entries: u128 at 176 via u128_at,
        "Number of Error Information Log Entries (NEILE).";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_the_layout_has_them() {
        let mut page = [0xff; SIZE];
        SmartLogMut::new(&mut page)
            .set_critical_warning(0x01)
            .set_temperature(0x0203)
            .set_spare(4)
            .set_spare_threshold(5)
            .set_used(6)
            .set_units_read(0x20)
            .set_units_written(0x30)
            .set_read_commands(0x40)
            .set_write_commands(0x50 << 120)
            .set_busy_minutes(0x60)
            .set_power_cycles(0x70)
            .set_power_on_hours(0x80)
            .set_unexpected_power_losses(0x90)
            .set_media_errors(0xa0)
            .set_error_entries(0xb0);
        let mut expected = [0; SIZE];
        expected[..6].copy_from_slice(&[1, 3, 2, 4, 5, 6]);
        for at in [32, 48, 64, 96, 112, 128, 144, 160, 176] {
            expected[at] = at as u8;
        }
        expected[95] = 0x50;
        assert_eq!(page, expected);
        assert_eq!(SmartLog::new(&page).units_written(), 0x30);
    }

    #[test]
    fn data_units_round_up() {
        assert_eq!([0, 1, 512_000, 512_001].map(data_units), [0, 1, 1, 2]);
    }
}
