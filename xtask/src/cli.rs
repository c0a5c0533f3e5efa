// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The command line.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::cache::Cache;
use crate::kernel::{Kind, Tree};
use crate::session::Session;
use crate::{bench, demo, doctor, lint, machine, modules, test, userspace};

/// Set-up, build, tests and demo of Zeroshift.
///
/// `cargo xtask demo` and `cargo xtask test` are all that is needed on a bare Debian machine: each sets up what it
/// needs. What is expensive is kept in one cache folder (ZEROSHIFT_CACHE, else ~/.cache/zeroshift) and survives
/// an interruption; it is safe to delete.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the build root, the three kernels and all modules, and build userspace.
    Setup {
        /// Debian mirror to use instead of the one in this machine's apt configuration.
        #[arg(long, value_name = "URI")]
        mirror: Option<String>,
    },
    /// Build one kernel and say where it is.
    Kernel {
        /// Which kernel.
        kind: Kind,
    },
    /// Build userspace, and the modules for all three kernels or for a tree of yours.
    Build {
        /// Build the modules for this kernel tree: installed headers (with or without Rust metadata) or an O= folder.
        #[arg(long, value_name = "DIR")]
        kdir: Option<PathBuf>,
    },
    /// Run the tests; the last line is `N passed, N failed, N skipped`.
    Test {
        /// Only these levels (all but `soak` when not given).
        #[arg(long, value_name = "LEVEL", value_delimiter = ',')]
        level: Vec<test::Level>,
        /// Only scenarios whose name contains one of these.
        filter: Vec<String>,
        /// List the scenarios and run none.
        #[arg(long)]
        list: bool,
    },
    /// Show the main job: a guest with its NVMe function moves from one QEMU to another, and is judged.
    Demo {
        /// Print the outcome as one JSON object on standard output.
        #[arg(long)]
        json: bool,
    },
    /// Run the benches of a group. Exits 2 when a figure cannot be measured.
    Bench {
        /// The group; all of them when not given.
        group: Option<String>,
        /// Print one JSON object per line on standard output: the machine, then each figure.
        #[arg(long)]
        json: bool,
    },
    /// Say what this machine can do, what is missing, and the command that mends it.
    Doctor {
        /// Print one JSON object on standard output.
        #[arg(long)]
        json: bool,
    },
    /// Check formatting, lints and licence headers.
    Lint,
    /// Empty the cache folder: everything in it can be made again.
    Clean,
}

/// Carries out the command.
pub(crate) fn run(cli: Cli) -> Result<ExitCode> {
    let cache = Cache::open();
    if let Command::Doctor { json } = cli.command {
        return doctor::run(&cache, json);
    }
    let cache = cache?;
    match cli.command {
        Command::Setup { mirror } => {
            let session = Session::with_mirror(cache, mirror)?;
            let root = session.root()?;
            eprintln!(
                "    kernel series {}, stock release {}",
                root.facts.series, root.facts.release
            );
            for kind in Kind::ALL {
                session.modules(kind)?;
            }
            userspace::build(&session)?;
        }
        Command::Kernel { kind } => {
            let session = Session::new(cache)?;
            let kernel = session.kernel(kind)?;
            println!(
                "release {}\nimage   {}\nmodules {}\ntree    {}",
                kernel.release,
                kernel.image.display(),
                kernel.modules.display(),
                kernel.tree.dir.display()
            );
        }
        Command::Build { kdir } => build(&Session::new(cache)?, kdir)?,
        Command::Test {
            level,
            filter,
            list,
        } => return test::run(&Session::new(cache)?, &level, &filter, list),
        Command::Demo { json } => return demo::run(&Session::new(cache)?, json),
        Command::Bench { group, json } => {
            return bench::run(&Session::new(cache)?, group.as_deref(), json)
        }
        Command::Doctor { .. } => {}
        Command::Lint => lint::run(&Session::new(cache)?)?,
        Command::Clean => cache.clean()?,
    }
    Ok(ExitCode::SUCCESS)
}

fn build(session: &Session, kdir: Option<PathBuf>) -> Result<()> {
    let built = match kdir {
        Some(kdir) => {
            machine::check_root()?;
            let tree = Tree::of_user(&session.cache, session.root()?, &kdir)?;
            vec![modules::build(
                &session.cache,
                session.root()?,
                &session.repo,
                &tree,
            )?]
        }
        None => Kind::ALL
            .into_iter()
            .map(|k| session.modules(k))
            .collect::<Result<_>>()?,
    };
    for file in built.iter().flat_map(|m| m.files()) {
        println!("{}", file.display());
    }
    let programs = userspace::build(session)?;
    for program in programs.all() {
        println!("{}", program.display());
    }
    Ok(())
}
