// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cargo xtask doctor`: what this machine can do for building, for the emulated rigs and as a real host; what is
//! missing; and the command that mends it. It changes nothing (an empty cache folder may be made).

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;

use crate::cache::Cache;
use crate::{command, machine};

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// As it should be.
    Ok,
    /// Not there; what needs it does not work.
    Missing,
    /// Cannot be told from here.
    Unknown,
}

/// One check.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    state: State,
    /// What was found.
    found: String,
    /// The command or step that mends it; empty when there is nothing to mend.
    #[serde(skip_serializing_if = "String::is_empty")]
    fix: String,
}

impl Check {
    fn new(name: &'static str, ok: bool, found: impl Into<String>, fix: impl Into<String>) -> Self {
        let state = if ok { State::Ok } else { State::Missing };
        Self {
            name,
            state,
            found: found.into(),
            fix: if ok { String::new() } else { fix.into() },
        }
    }

    fn unknown(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            name,
            state: State::Unknown,
            found: found.into(),
            fix: fix.into(),
        }
    }
}

/// What a purpose needs.
#[derive(Debug, Serialize)]
struct Section {
    purpose: &'static str,
    checks: Vec<Check>,
}

/// Everything that was looked at: `/proc` and `/sys` below `root`, so that tests can give their own.
struct Host<'a> {
    root: &'a Path,
}

impl Host<'_> {
    fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.root.join(path.trim_start_matches('/')))
            .ok()
            .map(|t| t.trim().to_owned())
    }

    fn exists(&self, path: &str) -> bool {
        self.root.join(path.trim_start_matches('/')).exists()
    }

    fn has_entries(&self, path: &str) -> bool {
        fs::read_dir(self.root.join(path.trim_start_matches('/')))
            .is_ok_and(|mut d| d.next().is_some())
    }

    /// A model-specific register of the first processor.
    fn msr(&self, number: u64) -> Option<u64> {
        let file = fs::File::open(self.root.join("dev/cpu/0/msr")).ok()?;
        let mut value = [0; 8];
        file.read_exact_at(&mut value, number).ok()?;
        Some(u64::from_le_bytes(value))
    }

    /// The words of a line of /proc/cpuinfo.
    fn cpu(&self, field: &str) -> BTreeSet<String> {
        let text = self.read("/proc/cpuinfo").unwrap_or_default();
        let line = text
            .lines()
            .filter_map(|l| l.split_once(':'))
            .find(|(k, _)| k.trim() == field);
        line.map(|(_, v)| v.split_whitespace().map(str::to_owned).collect())
            .unwrap_or_default()
    }

    /// The configuration of the running kernel, where it shows one.
    fn kernel_config(&self, release: &str) -> Option<String> {
        self.read(&format!("/boot/config-{release}"))
            .or_else(|| self.read(&format!("/lib/modules/{release}/build/.config")))
    }

    /// Whether an option of it is set; `None` when it is not shown.
    fn option(&self, release: &str, name: &str) -> Option<bool> {
        let config = self.kernel_config(release)?;
        let set = [format!("{name}=y"), format!("{name}=m")];
        Some(config.lines().any(|l| set.iter().any(|set| l == set)))
    }
}

/// Looks at this machine.
pub(crate) fn run(cache: &Result<Cache>, json: bool) -> Result<ExitCode> {
    let host = Host {
        root: Path::new("/"),
    };
    let sections = [
        Section {
            purpose: "build",
            checks: match cache {
                Ok(cache) => building(cache),
                Err(e) => vec![Check::new(
                    "cache folder",
                    false,
                    format!("{e:#}"),
                    "free disk space, or set ZEROSHIFT_CACHE",
                )],
            },
        },
        Section {
            purpose: "rigs",
            checks: rigs(&host),
        },
        Section {
            purpose: "hardware",
            checks: hardware(&host),
        },
    ];
    if json {
        println!(
            "{}",
            serde_json::to_string_pretty(&serde_json::json!({ "sections": sections }))?
        );
    } else {
        print(&sections);
    }
    let needed = sections
        .iter()
        .filter(|s| s.purpose != "hardware")
        .flat_map(|s| &s.checks);
    Ok(if needed.into_iter().any(|c| c.state == State::Missing) {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn print(sections: &[Section]) {
    for section in sections {
        println!(
            "{}",
            match section.purpose {
                "build" => "For building:",
                "rigs" => "For the emulated rigs (tests, demo):",
                _ => "As a real host (only needed to use the modules on this machine):",
            }
        );
        for c in &section.checks {
            let mark = match c.state {
                State::Ok => "ok     ",
                State::Missing => "MISSING",
                State::Unknown => "?      ",
            };
            println!("  {mark} {:<22} {}", c.name, c.found);
            if !c.fix.is_empty() {
                println!("          {:<22} => {}", "", c.fix);
            }
        }
    }
}

fn building(cache: &Cache) -> Vec<Check> {
    let distribution = machine::Distribution::here();
    let free = machine::free_bytes(cache.dir()).unwrap_or(0);
    let finished = |kind: &str| {
        let entries = fs::read_dir(cache.dir()).into_iter().flatten().flatten();
        let mut ours = entries.filter(|e| e.file_name().to_string_lossy().starts_with(kind));
        ours.any(|e| e.path().join(".complete").is_file())
    };
    let parts = [
        ("root-", "build root"),
        ("metadata-", "stock kernel's metadata"),
        ("kernel-test-", "test kernel"),
        ("kernel-debug-", "debug kernel"),
    ];
    let lacking: Vec<&str> = parts
        .iter()
        .filter(|(k, _)| !finished(k))
        .map(|(_, n)| *n)
        .collect();
    let all_made = lacking.is_empty();
    let mut checks = vec![
        Check::new(
            "root",
            rustix::process::geteuid().is_root(),
            "needed for chroot and mounts",
            "sudo -E env \"PATH=$PATH\" cargo xtask setup",
        ),
        Check::new(
            "distribution",
            distribution.has_apt(),
            distribution.name.clone(),
            "use Debian 12 or newer, or a distribution made from it",
        ),
        Check::new(
            "mmdebstrap",
            machine::find_program("mmdebstrap"),
            "makes the build root",
            "set-up installs it; by hand: apt-get install mmdebstrap",
        ),
        Check::new(
            "static libc",
            has_static_libc(),
            "test programs are linked statically",
            "apt-get install libc6-dev",
        ),
        Check::new(
            "rustfmt and clippy",
            answers("rustfmt") && answers("cargo-clippy"),
            "the lints run them",
            "rustup component add rustfmt clippy (Debian: apt-get install rustfmt rust-clippy)",
        ),
        Check::new(
            "git",
            machine::find_program("git"),
            "the lints ask it for the files",
            "apt-get install git",
        ),
    ];
    checks.push(match machine::known_mirror().ok_or(()) {
        Ok(mirror) => Check::new("Debian mirror", true, mirror, ""),
        Err(_) => Check::new(
            "Debian mirror",
            false,
            "none in apt's configuration",
            "cargo xtask setup --mirror URI",
        ),
    });
    checks.push(Check::new(
        "disk",
        all_made || free >= machine::DISK_BYTES,
        format!(
            "{:.1} GiB free below {}",
            machine::gib(free),
            cache.dir().display()
        ),
        format!(
            "free {:.0} GiB, or point ZEROSHIFT_CACHE at a larger disk",
            machine::gib(machine::DISK_BYTES)
        ),
    ));
    checks.push(match all_made {
        true => Check::new("set-up", true, "build root and kernels are made", ""),
        false => {
            let found = format!("not made yet: {}", lacking.join(", "));
            Check::unknown(
                "set-up",
                found,
                "cargo xtask setup (demo and test do it as well)",
            )
        }
    });
    checks
}

fn has_static_libc() -> bool {
    [
        "/usr/lib/x86_64-linux-gnu/libc.a",
        "/usr/lib64/libc.a",
        "/usr/lib/libc.a",
    ]
    .iter()
    .any(|p| Path::new(p).is_file())
}

fn rigs(host: &Host<'_>) -> Vec<Check> {
    let memory = host
        .read("/proc/meminfo")
        .and_then(|m| memory_kib(&m))
        .unwrap_or(0);
    let kvm = machine::has_kvm();
    vec![
        Check::new(
            "memory",
            memory >= 5 << 20,
            format!("{:.1} GiB available", machine::gib(memory << 10)),
            "the largest rig takes 3 GiB, and one beside it 2 GiB: free some memory",
        ),
        Check::new(
            "namespaces",
            can_unshare(),
            "mount, PID and network namespaces can be made",
            "run as root, in a container as a privileged one",
        ),
        Check::new(
            "accelerator",
            true,
            if kvm {
                "kvm"
            } else {
                "tcg: works everywhere, some 50 times slower (KVM needs vmx or svm in /proc/cpuinfo, and /dev/kvm)"
            },
            "",
        ),
    ]
}

/// Whether the program runs: rustup has a stand-in for what is not installed.
fn answers(program: &str) -> bool {
    let mut c = command::command(program);
    c.arg("--version");
    command::output(c).is_ok()
}

fn can_unshare() -> bool {
    let mut unshare = command::command("unshare");
    unshare.args(["--mount", "--pid", "--net", "--fork", "true"]);
    command::output(unshare).is_ok()
}

fn memory_kib(meminfo: &str) -> Option<u64> {
    meminfo
        .lines()
        .find_map(|l| l.strip_prefix("MemAvailable:"))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

/// Whether VFIO drivers can report what a function writes: what they need for that is in the kernel when
/// CONFIG_IOMMUFD_DRIVER is set. Its symbols tell, and when they are hidden its configuration.
fn dirty_log(host: &Host<'_>) -> Check {
    const NAME: &str = "dirty log (IOMMUFD)";
    let release = host.read("/proc/sys/kernel/osrelease").unwrap_or_default();
    let symbols = host.read("/proc/kallsyms").filter(|s| !s.is_empty());
    let has = match symbols {
        Some(symbols) => {
            let mut names = symbols.lines().map(|l| l.split_whitespace().nth(2));
            Some(names.any(|name| name == Some("iova_bitmap_set")))
        }
        None => host.option(&release, "CONFIG_IOMMUFD_DRIVER"),
    };
    match has {
        Some(true) => Check::new(
            NAME,
            true,
            format!("{release}: VFIO can report what functions write"),
            "",
        ),
        Some(false) => Check::new(
            NAME,
            false,
            format!("{release}: guests run with functions, but QEMU refuses to migrate them"),
            "boot a kernel with CONFIG_IOMMUFD, and CONFIG_INTEL_IOMMU or CONFIG_AMD_IOMMU, such as that of cargo \
             xtask kernel test; Debian's own kernels (7.2 too) have no IOMMUFD",
        ),
        None => no_config(NAME, &release),
    }
}

fn no_config(name: &'static str, release: &str) -> Check {
    Check::unknown(
        name,
        format!("the configuration of kernel {release} is not shown"),
        format!("apt-get install linux-headers-{release}"),
    )
}

fn hardware(host: &Host<'_>) -> Vec<Check> {
    let (flags, vmx) = (host.cpu("flags"), host.cpu("vmx flags"));
    let has = |flag: &str| vmx.contains(flag);
    let firmware =
        "switch virtualization on in the firmware; protected windows need an Intel processor";
    let intel_only = |name, flag: &str, for_what: &str| {
        Check::new(name, has(flag), format!("{flag}: {for_what}"), firmware)
    };
    let mut checks = vec![
        dirty_log(host),
        Check::new(
            "VMX or SVM",
            flags.contains("vmx") || flags.contains("svm"),
            "guests at full speed",
            firmware,
        ),
        intel_only("EPT", "ept", "protected windows"),
        vmfunc(host, firmware),
        intel_only(
            "MBEC",
            "ept_mode_based_exec",
            "a gate page that only the guest's kernel can run; optional",
        ),
    ];
    checks.push(match host.read("/sys/module/kvm_intel/parameters/nested").as_deref() {
        Some("N" | "0") => Check::new("kvm_intel.nested=0", true, "off: protected windows may attach", ""),
        Some(_) => Check::new(
            "kvm_intel.nested=0",
            false,
            "on: a guest's VMFUNC could make the kernel warn, so attaching is refused",
            "echo options kvm_intel nested=0 > /etc/modprobe.d/kvm-nested.conf, and reload kvm_intel with no guest running",
        ),
        None => Check::unknown("kvm_intel.nested=0", "kvm_intel is not loaded", "modprobe kvm_intel nested=0"),
    });
    checks.push(match host.read("/sys/module/kvm/parameters/tdp_mmu").as_deref() {
        Some("Y" | "1") => Check::new("kvm.tdp_mmu=1", true, "on: protected windows share its tables", ""),
        Some(_) => Check::new(
            "kvm.tdp_mmu=1",
            false,
            "off: attaching is refused",
            "rmmod kvm_intel kvm; modprobe kvm tdp_mmu=1; modprobe kvm_intel nested=0, with no guest running",
        ),
        None => Check::unknown("kvm.tdp_mmu=1", "kvm is not loaded", "modprobe kvm_intel nested=0"),
    });
    let bits = host
        .read("/proc/cpuinfo")
        .as_deref()
        .and_then(physical_bits);
    checks.push(Check::new(
        "physical address bits",
        bits.is_some_and(|b| b >= 40),
        bits.map_or("unknown".to_owned(), |b| {
            format!("{b} (a window takes a 512 GiB slot)")
        }),
        "none: protected windows need 40 or more",
    ));
    checks.push(Check::new(
        "IOMMU",
        host.has_entries("/sys/class/iommu"),
        "pass-through needs one that is switched on",
        "switch VT-d or AMD-Vi on in the firmware; on Intel boot with intel_iommu=on",
    ));
    let huge = host
        .read("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
        .and_then(|n| n.parse::<u64>().ok())
        .unwrap_or(0);
    checks.push(Check::new(
        "2 MiB hugepages",
        huge > 0,
        format!("{huge} reserved; back guests with them"),
        "echo 512 > /proc/sys/vm/nr_hugepages (1 GiB; as many as your guests have)",
    ));
    let release = host.read("/proc/sys/kernel/osrelease").unwrap_or_default();
    checks.push(match host.option(&release, "CONFIG_RUST") {
        Some(rust) => Check::new(
            "Rust in the kernel",
            rust,
            format!("modules can be loaded ({release})"),
            "boot a kernel with CONFIG_RUST=y, such as Debian 13's from backports",
        ),
        None => no_config("Rust in the kernel", &release),
    });
    let build = format!("/lib/modules/{release}/build");
    let metadata = host.exists(&format!("{build}/rust/libkernel.rmeta"));
    checks.push(Check::new(
        "kernel headers",
        host.exists(&build),
        if metadata {
            "with Rust metadata".to_owned()
        } else if !host.exists(&build) {
            format!("no {build}")
        } else {
            format!("{build}; their Rust metadata is rebuilt by cargo xtask build --kdir")
        },
        format!("apt-get install linux-headers-{release}"),
    ));
    checks
}

/// IA32_VMX_VMFUNC, bit 0: EPTP switching. (/proc/cpuinfo never shows it: the kernel looks for it in the
/// register's upper half.)
fn vmfunc(host: &Host<'_>, firmware: &str) -> Check {
    match host.msr(0x491) {
        Some(functions) => Check::new(
            "VMFUNC",
            functions & 1 == 1,
            "EPTP switching: protected windows",
            firmware,
        ),
        None if host.exists("/dev/cpu/0/msr") => Check::new(
            "VMFUNC",
            false,
            "the processor has no IA32_VMX_VMFUNC",
            firmware,
        ),
        None => Check::unknown("VMFUNC", "the msr module is not loaded", "modprobe msr"),
    }
}

fn physical_bits(cpuinfo: &str) -> Option<u32> {
    let sizes = cpuinfo.lines().find(|l| l.starts_with("address sizes"))?;
    sizes
        .split_once(':')?
        .1
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str, files: &[(&str, &str)]) -> std::path::PathBuf {
        let root = std::env::temp_dir().join(format!("xtask-doctor-{name}-{}", std::process::id()));
        fs::remove_dir_all(&root).ok();
        for (path, text) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn state(checks: &[Check], name: &str) -> State {
        checks.iter().find(|c| c.name == name).unwrap().state
    }

    #[test]
    fn a_good_intel_host_has_everything() {
        let msr = format!("{}\u{1}\0\0\0\0\0\0\0", "\0".repeat(0x491));
        let root = host(
            "good",
            &[
                ("proc/cpuinfo", "flags\t\t: fpu vmx\nvmx flags\t: ept ept_mode_based_exec\naddress sizes\t: 46 bits physical, 48 bits virtual\n"),
                ("proc/sys/kernel/osrelease", "7.2.12-x\n"),
                ("boot/config-7.2.12-x", "CONFIG_RUST=y\nCONFIG_IOMMUFD=m\nCONFIG_IOMMUFD_DRIVER=y\n"),
                ("lib/modules/7.2.12-x/build/rust/libkernel.rmeta", ""),
                ("sys/module/kvm_intel/parameters/nested", "N\n"),
                ("sys/module/kvm/parameters/tdp_mmu", "Y\n"),
                ("sys/class/iommu/dmar0", ""),
                ("dev/cpu/0/msr", &msr),
                ("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "512\n"),
            ],
        );
        let checks = hardware(&Host { root: &root });
        fs::remove_dir_all(&root).unwrap();
        assert!(
            checks
                .iter()
                .all(|c| c.state == State::Ok && c.fix.is_empty()),
            "{checks:#?}"
        );
    }

    #[test]
    fn everything_that_is_missing_names_its_remedy() {
        let root = host(
            "bare",
            &[
                (
                    "proc/cpuinfo",
                    "flags\t\t: fpu\naddress sizes\t: 39 bits physical, 48 bits virtual\n",
                ),
                ("proc/sys/kernel/osrelease", "7.2.12+deb13-amd64\n"),
                (
                    "boot/config-7.2.12+deb13-amd64",
                    "CONFIG_RUST=y\n# CONFIG_IOMMUFD is not set\n",
                ),
                ("sys/module/kvm_intel/parameters/nested", "Y\n"),
                ("sys/module/kvm/parameters/tdp_mmu", "N\n"),
                ("dev/cpu/0/msr", ""),
            ],
        );
        let checks = hardware(&Host { root: &root });
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(state(&checks, "Rust in the kernel"), State::Ok);
        for name in [
            "VMX or SVM",
            "EPT",
            "VMFUNC",
            "kvm_intel.nested=0",
            "kvm.tdp_mmu=1",
            "physical address bits",
            "IOMMU",
            "2 MiB hugepages",
            "dirty log (IOMMUFD)",
            "kernel headers",
        ] {
            assert_eq!(state(&checks, name), State::Missing, "{name}");
        }
        assert!(
            checks
                .iter()
                .filter(|c| c.state == State::Missing)
                .all(|c| !c.fix.is_empty()),
            "{checks:#?}"
        );
    }
    #[test]
    fn the_running_kernel_is_believed_before_its_configuration() {
        let state = |name: &str, files: &[(&str, &str)]| {
            let release = [("proc/sys/kernel/osrelease", "7.2\n")];
            let root = host(name, &[&release, files].concat());
            let check = dirty_log(&Host { root: &root });
            fs::remove_dir_all(&root).unwrap();
            assert_eq!(check.state == State::Ok, check.fix.is_empty(), "{check:?}");
            check.state
        };
        let config = |text| ("boot/config-7.2", text);
        let symbols = |text| ("proc/kallsyms", text);
        let (has, has_not) = (
            "0 T a\n0 T iova_bitmap_set\n",
            "0 T a\n0 T iova_bitmap_set_x\n",
        );
        let (on, off) = ("CONFIG_IOMMUFD_DRIVER=y\n", "CONFIG_IOMMUFD=y\n");
        assert_eq!(state("sym", &[symbols(has), config(off)]), State::Ok);
        assert_eq!(
            state("nosym", &[symbols(has_not), config(on)]),
            State::Missing
        );
        assert_eq!(state("config", &[symbols(""), config(on)]), State::Ok);
        assert_eq!(state("noconfig", &[config(off)]), State::Missing);
        assert_eq!(state("dark", &[]), State::Unknown);
    }
}
