// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The software card: NVMe functions served over vfio-user.

fn main() {}
