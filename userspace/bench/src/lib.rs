// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the programs of the bench groups share: the lines that they print. Must know nothing of what is measured.

pub mod report;
