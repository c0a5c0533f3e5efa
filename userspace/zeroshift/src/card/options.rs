// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the command line of `zeroshift card` looks like. Nothing is done here.

use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Options of `card`.
#[derive(Args, Debug)]
#[command(after_long_help = "\
EXAMPLES
  What a card does, refreshed every second:
    zeroshift card --dir /run/card top
  The third read of function nvme1 fails with an unrecovered read error:
    zeroshift card --dir /run/card fault add function=nvme1,op=read,nth=3,status=2/81h
  Every Track Receive takes 5 to 50 milliseconds longer:
    zeroshift card --dir /run/card fault add op=track-receive,delay=5ms..50ms
  Function nvme1 falls off the bus, and comes back:
    zeroshift card --dir /run/card kill nvme1 --mode ones
    zeroshift card --dir /run/card kill nvme1 --mode none")]
pub(crate) struct CardOptions {
    /// Directory that 'zerocard serve --dir' was given
    #[arg(long)]
    pub(crate) dir: PathBuf,

    /// Print JSON, one object on a line, instead of text
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// What to do with the card
    #[command(subcommand)]
    pub(crate) command: CardCommand,
}

/// Subcommands of `card`.
#[derive(Debug, Subcommand)]
pub(crate) enum CardCommand {
    /// List the functions of the card
    Functions,
    /// Print what each function has counted since the card started
    Counters {
        /// Function by name [default: all]
        function: Option<String>,
    },
    /// Show rates of each function: commands, bytes, dirty pages, latencies
    Top(TopOptions),
    /// Make the card misbehave, by rules
    #[command(subcommand)]
    Fault(FaultCommand),
    /// Let commands go on that a stall rule holds
    Release {
        /// Function by name [default: all]
        function: Option<String>,
    },
    /// Show or change what memory tracking can do
    Limits(LimitsOptions),
    /// Show or change the rate limits of functions
    Rate(RateOptions),
    /// Let a function die while its connection stays, or bring it back
    Kill {
        /// Function by name, or all
        function: String,
        /// How it is dead
        #[arg(long, value_enum)]
        mode: Mode,
    },
    /// Close the connection of a function (QEMU aborts when that happens)
    Disconnect {
        /// Function by name, or all
        function: String,
    },
}

/// Options of `card top`.
#[derive(Args, Debug)]
pub(crate) struct TopOptions {
    /// Print once, after one interval, and end
    #[arg(long)]
    pub(crate) once: bool,
    /// Seconds between two looks
    #[arg(long, value_name = "SECONDS", default_value_t = 1,
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) interval: u64,
}

/// Subcommands of `card fault`.
#[derive(Debug, Subcommand)]
pub(crate) enum FaultCommand {
    /// Add rules; the first rule that fires decides about a command
    #[command(after_long_help = "\
A RULE is key=value,... in any order, with one action.
  Which commands:
    function=NAME|all     queue=admin|io|any
    op=NAME|NUMBER        read, write, flush, identify, track-send, migration-receive, ...
    sel=N                 bits 7:0 of command dword 10: SEL, CNS, FID or LID
    cdw10=N               all of command dword 10
  At which of them (default: all), counted for each function:
    nth=N                 the N-th only
    from=N, every=N, times=N
    p=P                   with probability P, from 0 to 1
  What happens:
    delay=TIME|MIN..MAX   10us, 5ms, 2s
    status=SCT/SC         with dnr: do not retry
    stall                 until it is released or reset
    drop                  no completion ever
    disconnect            the connection of the function is closed
    dead=ones|cfs         the function dies while its connection stays
    corrupt=cid|sqid|sqhd|phase   a wrong completion entry
    corrupt=state         a wrong byte in Get Controller State
    forget=N              every N-th dirty mark is lost (counts marks, not commands)
  before (default) or after the command is executed.")]
    Add {
        /// Rules, see below
        #[arg(required = true, value_name = "RULE")]
        rules: Vec<String>,
    },
    /// List the rules, how many commands they were for, and at how many they fired
    List,
    /// Remove rules
    Remove {
        /// Numbers that 'fault list' shows
        #[arg(required = true, value_name = "FAULT")]
        faults: Vec<u64>,
    },
    /// Remove all rules
    Clear,
}

/// Options of `card limits`. What is not given stays.
#[derive(Args, Debug)]
pub(crate) struct LimitsOptions {
    /// Ranges that one controller can track (CMMRTD)
    #[arg(long, value_name = "N")]
    pub(crate) max_ranges: Option<u16>,
    /// Ranges that the whole card can track (NMMRTD)
    #[arg(long, value_name = "N")]
    pub(crate) max_ranges_subsystem: Option<u16>,
    /// Smallest granule: 2^N times 4 KiB (MINMRTG)
    #[arg(long, value_name = "N")]
    pub(crate) min_granule: Option<u8>,
    /// Largest granule: 2^N times 4 KiB (MAXMRTG)
    #[arg(long, value_name = "N")]
    pub(crate) max_granule: Option<u8>,
}

/// Options of `card rate`. What is not given stays.
#[derive(Args, Debug)]
pub(crate) struct RateOptions {
    /// Function by name [default: all]
    pub(crate) function: Option<String>,
    /// I/O commands per second; 0 for no limit
    #[arg(long, value_name = "N")]
    pub(crate) iops: Option<u64>,
    /// Bytes per second; 0 for no limit
    #[arg(long, value_name = "N")]
    pub(crate) bytes_per_second: Option<u64>,
    /// What an idle function may save up, as milliseconds of its rate
    #[arg(long, value_name = "N")]
    pub(crate) burst_ms: Option<u32>,
}

/// How a function is dead.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Mode {
    /// All registers read as all ones
    Ones,
    /// CSTS.CFS is set and no command completes
    Cfs,
    /// Not at all: it is as after a reset
    None,
}

impl Mode {
    /// Its name on the control socket.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Ones => "ones",
            Self::Cfs => "cfs",
            Self::None => "none",
        }
    }
}
