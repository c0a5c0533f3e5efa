// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Programs that test the modules from userspace, KTAP on standard output.
