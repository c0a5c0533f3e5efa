// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Set-up, build, tests and demo of Zeroshift.

fn main() {}
