// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The accelerator of a QEMU rig: always named, never "kvm:tcg". A /dev/kvm that opens proves nothing; the
//! processor's flags do.

use std::fs;

use anyhow::{bail, Result};

use crate::machine;

/// How QEMU runs guest code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accelerator {
    /// QEMU's own translator: works everywhere, some 50 times slower than metal.
    Tcg,
    /// Hardware virtualization.
    Kvm,
}

impl Accelerator {
    /// `ZEROSHIFT_ACCEL` (`tcg` or `kvm`), else what this processor can do.
    pub(crate) fn pick() -> Result<Self> {
        Self::choose(wish().as_deref(), machine::has_kvm())
    }

    /// The same for a machine that runs guests itself: KVM only if it nests.
    pub(crate) fn pick_nested() -> Result<Self> {
        let nests = |module: &str| {
            let path = format!("/sys/module/{module}/parameters/nested");
            fs::read_to_string(path).is_ok_and(|v| matches!(v.trim(), "Y" | "1"))
        };
        let nested = nests("kvm_intel") || nests("kvm_amd");
        Self::choose(wish().as_deref(), machine::has_kvm() && nested)
    }

    fn choose(wish: Option<&str>, hardware: bool) -> Result<Self> {
        match wish.filter(|w| !w.is_empty()) {
            None => Ok(if hardware { Self::Kvm } else { Self::Tcg }),
            Some("tcg") => Ok(Self::Tcg),
            Some("kvm") if hardware => Ok(Self::Kvm),
            Some("kvm") => {
                bail!("ZEROSHIFT_ACCEL=kvm, but there is no usable KVM: /proc/cpuinfo must show vmx or svm, /dev/kvm must open, and \
                 a nested rig needs kvm_intel.nested=1\n=> leave it unset, or say tcg")
            }
            Some(other) => bail!("ZEROSHIFT_ACCEL={other}\n=> say tcg or kvm, or leave it unset"),
        }
    }

    /// QEMU's arguments. Without la57=off a KASAN kernel reports a wild access early in some boots: while
    /// the kernel identifies the processor it briefly forgets that it has five page-table levels.
    pub(crate) fn arguments(self) -> Vec<&'static str> {
        match self {
            Self::Tcg => vec!["-accel", "tcg,thread=multi", "-cpu", "max,la57=off"],
            Self::Kvm => vec!["-accel", "kvm", "-cpu", "host"],
        }
    }

    /// The machine type; an emulated IOMMU under KVM needs the split interrupt controller.
    pub(crate) fn machine(self) -> &'static str {
        match self {
            Self::Tcg => "q35",
            Self::Kvm => "q35,kernel-irqchip=split",
        }
    }

    /// The module that lets a machine under this accelerator run guests itself.
    pub(crate) fn kvm_module(self) -> Result<&'static str> {
        Ok(match self {
            // QEMU's -cpu max has SVM.
            Self::Tcg => "kvm_amd",
            Self::Kvm if fs::read_to_string("/proc/cpuinfo")?.contains(" svm ") => "kvm_amd",
            Self::Kvm => "kvm_intel",
        })
    }
}

fn wish() -> Option<String> {
    std::env::var("ZEROSHIFT_ACCEL").ok()
}

#[cfg(test)]
mod tests {
    use super::Accelerator::{self, Kvm, Tcg};

    #[test]
    fn kvm_is_taken_only_when_the_processor_has_it() {
        let choose = Accelerator::choose;
        assert_eq!(choose(None, true).unwrap(), Kvm);
        assert_eq!(choose(None, false).unwrap(), Tcg);
        assert_eq!(choose(Some("tcg"), true).unwrap(), Tcg);
        assert!(choose(Some("kvm"), false)
            .unwrap_err()
            .to_string()
            .contains("vmx"));
        assert!(choose(Some("kvm:tcg"), true).is_err());
    }
}
