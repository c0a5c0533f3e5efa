// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Rigs: machines that tests, the demo and benches boot, and the card beside them.
//!
//! | rig | emulator | for |
//! |---|---|---|
//! | [`l1`] | QEMU, one initramfs | hosts: vIOMMU, card functions, nested guests |
//! | [`migration`] | L1 and a guest in it | moving a guest that has functions of a card |
//! | [`virtme`] | QEMU by virtme-ng, the build root as root file system | kselftests, unchanged on a host |
//! | [`bochs`] | Bochs, an ISO | VMX with EPT and VMFUNC |
//!
//! Each gives its guest a list of jobs and gets a [`console::Transcript`] back. Nothing that a rig starts
//! outlives it: processes run in their own PID namespace and die with us.

pub(crate) mod accel;
pub(crate) mod bochs;
pub(crate) mod card;
pub(crate) mod console;
pub(crate) mod image;
pub(crate) mod l1;
pub(crate) mod migration;
pub(crate) mod virtme;
