// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Programs that test the modules from userspace, KTAP on standard output.
//!
//! Each program in `src/bin` is one kselftest: it runs on a machine with the modules under test
//! (a rig's guest or a real host), prints one line per test, and exits 0 (no failure), 1 (a
//! failure) or 4 (nothing but skips). Built statically, so that it runs in an initramfs.

pub mod aer;
pub mod kmsg;
pub mod ktap;
pub mod migdirty;
pub mod module;
pub mod program;
pub mod sys;
pub mod sysfs;
pub mod vfio;
pub mod vmfunc;
pub mod vmm;
