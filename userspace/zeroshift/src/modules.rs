// SPDX-License-Identifier: Apache-2.0 OR MIT

//! How a module is loaded, in the same words in every message.

use crate::cli::DRIVER;

/// The command that loads `module`. Ours may be installed, or only built: then they have a path, which
/// `cargo xtask build` prints, and nobody loads what they need. `docs/zeroshift.md` explains it.
pub(crate) fn load(module: &str) -> String {
    match module {
        "migdirty" | "vmfunc_view" => or_by_path(module),
        DRIVER => format!("modprobe vfio_pci_core; {}", or_by_path(module)),
        // The kernel's own.
        _ => format!("modprobe {module}"),
    }
}

fn or_by_path(module: &str) -> String {
    format!("modprobe {module} || insmod PATH/{module}.ko")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_may_not_be_installed() {
        assert_eq!(
            load("migdirty"),
            "modprobe migdirty || insmod PATH/migdirty.ko"
        );
        // insmod loads nothing that it needs.
        assert_eq!(
            load(DRIVER),
            "modprobe vfio_pci_core; \
             modprobe zeroshift_vfio_pci || insmod PATH/zeroshift_vfio_pci.ko"
        );
        assert_eq!(load("vfio_pci"), "modprobe vfio_pci");
    }
}
