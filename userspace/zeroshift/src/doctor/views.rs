// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Whether guests of this host can have views (`zeroshift view`): the processor, KVM's parameters, the
//! module. Only looks.

use super::{Check, State};
use crate::modules;
use crate::sysfs::Sysfs;
use crate::usage::System;
use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// IA32_VMX_PROCBASED_CTLS2, whose upper half has the controls that may be set (Intel SDM volume 3,
/// appendix A.3.3), and the bits of three of them (table 26-7).
const CONTROLS: u64 = 0x48b;
const ENABLE_EPT: u32 = 32 + 1;
const ENABLE_VM_FUNCTIONS: u32 = 32 + 13;
const MODE_BASED_EXECUTE: u32 = 32 + 22;
/// IA32_VMX_VMFUNC (appendix A.11); bit 0 is EPTP switching.
const FUNCTIONS: u64 = 0x491;

/// A guest-physical address with 40 bits reaches the first slot, at 512 GiB.
const ADDRESS_BITS: u32 = 40;

const HIDDEN: &str = "switch VT-x on in the firmware; where this host is itself a guest, have its \
                      hypervisor pass it on, if it can";

/// A register of the processor.
#[derive(Clone, Copy)]
enum Msr {
    Value(u64),
    /// The processor has none of that number.
    None,
    /// Cannot be read from here, and what helps.
    Hidden(&'static str),
}

/// All checks, in the order in which they would be mended.
pub(super) fn checks(sysfs: &Sysfs, system: &System, device: &Path) -> Vec<Check> {
    look(sysfs, system, device, |number| msr(system, number))
}

fn look(sysfs: &Sysfs, system: &System, device: &Path, msr: impl Fn(u64) -> Msr) -> Vec<Check> {
    let cpuinfo = fs::read_to_string(system.proc.join("cpuinfo")).unwrap_or_default();
    let vendor = field(&cpuinfo, "vendor_id").unwrap_or_default();
    if matches!(vendor, "AuthenticAMD" | "HygonGenuine") {
        return vec![Check::missing(
            "VMX",
            format!("the processor is one of AMD's ({vendor}), which have no VMFUNC"),
            "none here: views need an Intel processor; migration does not",
        )];
    }
    if !words(&cpuinfo, "flags").contains("vmx") {
        let found = "the processor has no VMX, or it is switched off".into();
        return vec![Check::missing("VMX", found, HIDDEN)];
    }
    let vmx = words(&cpuinfo, "vmx flags");
    let (controls, functions) = (msr(CONTROLS), msr(FUNCTIONS));
    vec![
        Check::ok("VMX", "the processor has it".into()),
        ept(sysfs, &controls, &vmx),
        vmfunc(&controls, &functions),
        mbec(sysfs, &controls, &vmx),
        address_bits(&cpuinfo),
        kvm_intel(sysfs),
        nested(sysfs),
        tdp_mmu(sysfs),
        module(device),
    ]
}

/// What is missing, each with its remedy, in sentences.
pub(crate) fn lacks(sysfs: &Sysfs, system: &System, device: &Path) -> Vec<String> {
    sentences(checks(sysfs, system, device))
}

fn sentences(checks: Vec<Check>) -> Vec<String> {
    let checks = checks.into_iter();
    let missing = checks.filter(|check| check.state == State::Missing);
    missing
        .map(|check| {
            let fix = check.fix.unwrap_or_default();
            format!("{} (remedy: {fix})", check.found)
        })
        .collect()
}

fn ept(sysfs: &Sysfs, controls: &Msr, vmx: &BTreeSet<&str>) -> Check {
    const NAME: &str = "EPT";
    let has = match controls {
        Msr::Value(value) => value >> ENABLE_EPT & 1 == 1,
        _ => vmx.contains("ept"),
    };
    if !has {
        return Check::missing(NAME, "the processor has no EPT".into(), HIDDEN);
    }
    if parameter(sysfs, "kvm_intel", "ept").as_deref() == Some("N") {
        let found = "kvm_intel does not use it (ept=0)".into();
        return Check::missing(
            NAME,
            found,
            "rmmod kvm_intel; modprobe kvm_intel ept=1 nested=0",
        );
    }
    Check::ok(NAME, "the processor has it".into())
}

/// /proc/cpuinfo cannot be asked: it looks for EPTP switching in the upper half of the register, which
/// is zero.
fn vmfunc(controls: &Msr, functions: &Msr) -> Check {
    const NAME: &str = "VMFUNC";
    let none = || {
        let found = "the processor has no EPTP switching (VMFUNC leaf 0), or a hypervisor hides it";
        Check::missing(
            NAME,
            found.into(),
            "none here: use another host, not a guest of one",
        )
    };
    match (controls, functions) {
        (Msr::Value(controls), Msr::Value(functions)) => {
            if controls >> ENABLE_VM_FUNCTIONS & 1 == 0 || functions & 1 == 0 {
                return none();
            }
            Check::ok(NAME, "EPTP switching (leaf 0)".into())
        }
        (Msr::Hidden(how), _) | (_, Msr::Hidden(how)) => {
            let found = "only the processor's registers tell (48Bh and 491h), which cannot be read";
            Check::unknown(NAME, found.into(), how)
        }
        _ => none(),
    }
}

/// Views do without; the gate is then less well kept.
fn mbec(sysfs: &Sysfs, controls: &Msr, vmx: &BTreeSet<&str>) -> Check {
    const NAME: &str = "MBEC";
    let has = match controls {
        Msr::Value(value) => value >> MODE_BASED_EXECUTE & 1 == 1,
        _ => vmx.contains("ept_mode_based_exec"),
    };
    let kvm = |name| parameter(sysfs, "kvm_intel", name);
    let found = match (has, kvm("mbec").as_deref()) {
        (true, Some("Y")) => "only a guest's kernel can execute the gate",
        (true, None) if kvm("nested").is_none() => {
            "the processor has it; whether KVM uses it shows when kvm_intel is loaded"
        }
        // Also what KVM does when the processor does not tell who came with a violation.
        (true, _) => {
            "not used by KVM, which does no harm: a guest's programs can execute the gate, too"
        }
        (false, _) => "none, which does no harm: a guest's programs can execute the gate, too",
    };
    Check::ok(NAME, found.into())
}

fn address_bits(cpuinfo: &str) -> Check {
    const NAME: &str = "address bits";
    // "46 bits physical, 48 bits virtual"
    let sizes = field(cpuinfo, "address sizes").unwrap_or_default();
    let bits: Option<u32> = sizes.split(' ').next().and_then(|bits| bits.parse().ok());
    match bits {
        None => Check::unknown(
            NAME,
            "/proc/cpuinfo does not say how many".into(),
            "look for them in the processor's data sheet: views need 40 physical ones",
        ),
        Some(bits) if bits < ADDRESS_BITS => Check::missing(
            NAME,
            format!("{bits} physical ones: the 512 GiB of the views begin beyond them"),
            "none here: views need a processor with 40 or more",
        ),
        Some(bits) => Check::ok(NAME, format!("{bits} physical ones")),
    }
}

fn kvm_intel(sysfs: &Sysfs) -> Check {
    const NAME: &str = "kvm_intel";
    let module = sysfs.root().join("module").join(NAME);
    if !module.is_dir() {
        let found = "the module is not loaded".into();
        return Check::missing(NAME, found, "modprobe kvm_intel nested=0");
    }
    if !module.join("initstate").exists() {
        let found = "KVM is built into the kernel, where its VMs cannot be told".into();
        return Check::missing(NAME, found, "boot a kernel with CONFIG_KVM_INTEL=m");
    }
    Check::ok(NAME, "the module is loaded".into())
}

fn nested(sysfs: &Sysfs) -> Check {
    const NAME: &str = "nested";
    match parameter(sysfs, "kvm_intel", NAME).as_deref() {
        Some("N" | "0") => Check::ok(NAME, "off (kvm_intel.nested=0)".into()),
        Some(_) => Check::missing(
            NAME,
            "on (kvm_intel.nested=1): a guest's VMFUNC could then make this kernel warn".into(),
            "echo options kvm_intel nested=0 > /etc/modprobe.d/kvm-nested.conf; with no guest \
             running: rmmod kvm_intel; modprobe kvm_intel",
        ),
        None => Check::unknown(
            NAME,
            "kvm_intel does not say".into(),
            "modprobe kvm_intel nested=0",
        ),
    }
}

fn tdp_mmu(sysfs: &Sysfs) -> Check {
    const NAME: &str = "tdp_mmu";
    match parameter(sysfs, "kvm", NAME).as_deref() {
        Some("Y" | "1") => Check::ok(NAME, "on (kvm.tdp_mmu=1)".into()),
        Some(_) => Check::missing(
            NAME,
            "off (kvm.tdp_mmu=0), and views share the tables of that MMU".into(),
            "with no guest running: rmmod kvm_intel kvm; modprobe kvm tdp_mmu=1; modprobe kvm_intel \
             nested=0",
        ),
        None => Check::unknown(
            NAME,
            "kvm does not say".into(),
            "modprobe kvm_intel nested=0",
        ),
    }
}

fn module(device: &Path) -> Check {
    const NAME: &str = "vmfunc_view";
    if device.exists() {
        return Check::ok(NAME, "the module is loaded".into());
    }
    Check::missing(
        NAME,
        "the module that makes views is not loaded".into(),
        &format!(
            "{}; in a container pass /dev/vmfunc in",
            modules::load(NAME)
        ),
    )
}

/// A parameter of a module.
fn parameter(sysfs: &Sysfs, module: &str, name: &str) -> Option<String> {
    let folder = sysfs.root().join("module").join(module).join("parameters");
    let text = fs::read_to_string(folder.join(name)).ok()?;
    Some(text.trim().to_owned())
}

/// What /proc/cpuinfo says of the first processor.
fn field<'a>(cpuinfo: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
    let found = fields.find(|(field, _)| field.trim() == name);
    found.map(|(_, value)| value.trim())
}

fn words<'a>(cpuinfo: &'a str, name: &str) -> BTreeSet<&'a str> {
    let value = field(cpuinfo, name).unwrap_or_default();
    value.split_whitespace().collect()
}

/// A register of the first processor.
fn msr(system: &System, number: u64) -> Msr {
    let mut value = [0; 8];
    let file = fs::File::open(system.dev.join("cpu/0/msr"));
    match file.and_then(|file| file.read_exact_at(&mut value, number)) {
        Ok(()) => Msr::Value(u64::from_le_bytes(value)),
        Err(error) => match error.kind() {
            ErrorKind::NotFound => Msr::Hidden("modprobe msr, then 'zeroshift doctor views' again"),
            ErrorKind::PermissionDenied => Msr::Hidden("sudo zeroshift doctor views"),
            _ => Msr::None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::path::PathBuf;

    /// A host whose files and registers tests write.
    struct Host {
        files: tempfile::TempDir,
        controls: Cell<Msr>,
        functions: Cell<Msr>,
    }

    const GOOD: &str = "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu vmx lm\n\
        vmx flags\t: vnmi ept ept_mode_based_exec\naddress sizes\t: 46 bits physical, 48 bits virtual\n";
    /// Golden bits: SDM table 26-7 counts them from 0, and the upper half says what may be 1.
    const ALL: u64 = 1 << 33 | 1 << 45 | 1 << 54;

    impl Host {
        fn new() -> Self {
            let host = Self {
                files: tempfile::tempdir().unwrap(),
                controls: Cell::new(Msr::Value(ALL)),
                functions: Cell::new(Msr::Value(1)),
            };
            host.write("proc/cpuinfo", GOOD);
            host.write("sys/module/kvm_intel/initstate", "live\n");
            host.write("sys/module/kvm_intel/parameters/nested", "N\n");
            host.write("sys/module/kvm_intel/parameters/ept", "Y\n");
            host.write("sys/module/kvm_intel/parameters/mbec", "Y\n");
            host.write("sys/module/kvm/parameters/tdp_mmu", "Y\n");
            host.write("dev/vmfunc", "");
            host
        }

        fn path(&self, path: &str) -> PathBuf {
            self.files.path().join(path)
        }

        fn write(&self, path: &str, text: impl AsRef<[u8]>) {
            let path = self.path(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn remove(&self, path: &str) {
            fs::remove_file(self.path(path)).unwrap();
        }

        fn msrs(&self, controls: Msr, functions: Msr) {
            self.controls.set(controls);
            self.functions.set(functions);
        }

        fn checks(&self) -> Vec<Check> {
            let system = System {
                dev: self.path("dev"),
                proc: self.path("proc"),
            };
            let sysfs = Sysfs::new(&self.path("sys"));
            look(
                &sysfs,
                &system,
                &self.path("dev/vmfunc"),
                |number| match number {
                    CONTROLS => self.controls.get(),
                    FUNCTIONS => self.functions.get(),
                    _ => Msr::None,
                },
            )
        }

        fn check(&self, name: &str) -> Check {
            let found = self.checks().into_iter().find(|check| check.name == name);
            found.unwrap()
        }

        /// What is not well.
        fn open(&self) -> Vec<(&'static str, State)> {
            let checks = self.checks().into_iter();
            let open = checks.filter(|check| check.state != State::Ok);
            open.map(|check| (check.name, check.state)).collect()
        }
    }

    #[test]
    fn a_good_host_has_everything() {
        let host = Host::new();
        assert_eq!(host.open(), []);
        assert_eq!(host.check("address bits").found, "46 physical ones");
    }

    #[test]
    fn amd_is_told_that_views_need_intel() {
        let host = Host::new();
        host.write("proc/cpuinfo", GOOD.replace("GenuineIntel", "AuthenticAMD"));
        let checks = host.checks();
        assert_eq!(checks.len(), 1, "{checks:?}");
        let fix = checks[0].fix.as_ref().unwrap();
        assert!(
            checks[0].found.contains("AMD") && fix.contains("Intel"),
            "{checks:?}"
        );
        host.write("proc/cpuinfo", GOOD.replace(" vmx", ""));
        assert_eq!(host.open(), [("VMX", State::Missing)]);
    }

    #[test]
    fn each_thing_that_is_missing_is_named() {
        type Spoil = fn(&Host);
        let spoils: [(&str, Spoil, &str); 10] = [
            (
                "EPT",
                |h| h.msrs(Msr::Value(ALL & !(1 << 33)), Msr::Value(1)),
                "firmware",
            ),
            (
                "EPT",
                |h| h.write("sys/module/kvm_intel/parameters/ept", "N\n"),
                "ept=1",
            ),
            (
                "VMFUNC",
                |h| h.msrs(Msr::Value(ALL & !(1 << 45)), Msr::Value(1)),
                "another host",
            ),
            (
                "VMFUNC",
                |h| h.msrs(Msr::Value(ALL), Msr::Value(0)),
                "another host",
            ),
            (
                "address bits",
                |h| h.write("proc/cpuinfo", GOOD.replace("46 bits", "39 bits")),
                "40 or more",
            ),
            (
                "kvm_intel",
                |h| h.remove("sys/module/kvm_intel/initstate"),
                "CONFIG_KVM_INTEL=m",
            ),
            (
                "nested",
                |h| h.write("sys/module/kvm_intel/parameters/nested", "Y\n"),
                "options kvm_intel nested=0",
            ),
            (
                "tdp_mmu",
                |h| h.write("sys/module/kvm/parameters/tdp_mmu", "N\n"),
                "tdp_mmu=1",
            ),
            (
                "vmfunc_view",
                |h| h.remove("dev/vmfunc"),
                "insmod PATH/vmfunc_view.ko",
            ),
            // The processor has none: as when a read of the register fails.
            ("VMFUNC", |h| h.functions.set(Msr::None), "another host"),
        ];
        for (name, spoil, remedy) in spoils {
            let host = Host::new();
            spoil(&host);
            assert_eq!(host.open(), [(name, State::Missing)], "{remedy}");
            let check = host.check(name);
            assert!(check.fix.as_ref().unwrap().contains(remedy), "{check:?}");
            let lacks = sentences(host.checks());
            assert_eq!(lacks.len(), 1);
            assert!(
                lacks[0].contains(&check.found) && lacks[0].contains(remedy),
                "{lacks:?}"
            );
        }
    }

    #[test]
    fn what_cannot_be_told_says_how_it_can() {
        let host = Host::new();
        let hidden = || Msr::Hidden("modprobe msr");
        host.msrs(hidden(), hidden());
        assert_eq!(host.open(), [("VMFUNC", State::Unknown)]);
        let fix = host.check("VMFUNC").fix.unwrap();
        assert!(fix.contains("modprobe msr"), "{fix}");
        // Without registers /proc/cpuinfo knows the other two.
        assert!(host.check("MBEC").found.contains("only a guest's kernel"));
        let mbec = "sys/module/kvm_intel/parameters/mbec";
        host.write(mbec, "N\n");
        assert!(host.check("MBEC").found.contains("not used by KVM"));
        host.remove(mbec);
        assert!(host.check("MBEC").found.contains("not used by KVM"));
        host.write("proc/cpuinfo", GOOD.replace(" ept ept_mode_based_exec", ""));
        assert_eq!(host.check("EPT").state, State::Missing);
        assert!(host.check("MBEC").found.contains("none"));
        fs::remove_dir_all(host.path("sys/module")).unwrap();
        assert_eq!(host.check("kvm_intel").state, State::Missing);
        assert_eq!(host.check("nested").state, State::Unknown);
        assert_eq!(host.check("tdp_mmu").state, State::Unknown);
    }

    #[test]
    fn views_do_without_mbec() {
        let host = Host::new();
        host.msrs(Msr::Value(ALL & !(1 << 54)), Msr::Value(1));
        assert_eq!(host.open(), []);
        assert!(host.check("MBEC").found.contains("none"));
    }

    #[test]
    fn registers_are_read_at_their_number() {
        let host = Host::new();
        let system = System {
            dev: host.path("dev"),
            proc: host.path("proc"),
        };
        assert!(matches!(msr(&system, FUNCTIONS), Msr::Hidden(how) if how.contains("modprobe")));
        let mut registers = vec![0; 0x491];
        registers.extend([1, 0, 0, 0, 0, 0, 0, 0x80]);
        host.write("dev/cpu/0/msr", registers);
        assert!(matches!(
            msr(&system, FUNCTIONS),
            Msr::Value(0x8000_0000_0000_0001)
        ));
        // As when the processor has no such register.
        assert!(matches!(msr(&system, 0x1000), Msr::None));
    }
}
