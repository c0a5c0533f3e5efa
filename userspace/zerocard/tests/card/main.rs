// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The real binary, driven from outside: a vfio-user client and a small NVMe driver on a unix
//! socket, written from the layouts of the protocol and the specifications, not from the server's
//! definitions.

mod admin;
mod client;
mod disk;
mod driver;
mod fuzz;
mod io;
mod process;
mod protocol;
mod resets;
mod server;
