// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cargo xtask`: set-up, build, tests, demo and benches of Zeroshift, from a bare Debian machine on.
//!
//! Exit codes: 0 done, 1 something failed, 2 what was asked for is not built yet, or bad usage.

mod bench;
mod buildroot;
mod cache;
mod cli;
mod command;
mod demo;
mod doctor;
mod kernel;
mod ktap;
mod lint;
mod machine;
mod modules;
mod rig;
mod session;
mod test;
mod ui;
mod userspace;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match cli::run(cli::Cli::parse()) {
        Ok(code) => code,
        Err(e) => {
            let text = format!("{e:#}");
            eprintln!("error: {text}");
            if let Some(advice) = command::advice(&text).filter(|a| !text.contains(a)) {
                eprintln!("=> {advice}");
            }
            ExitCode::FAILURE
        }
    }
}
