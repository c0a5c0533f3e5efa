// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The command line of Zeroshift.

fn main() {}
