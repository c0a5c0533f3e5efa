// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The kernel's own `tools/testing/selftests/vfio` against a function of a card: what plain vfio-pci does, every
//! driver of ours has to do as well.
//!
//! They are compiled from the source of the kernel that runs, statically, by the build root's compiler. The folder's
//! Makefile is not used: it wants installed headers and libuuid.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::buildroot::Network;
use crate::command;
use crate::session::Session;

/// The tests that need nothing but a PCI function. (The others need an SR-IOV device, or a DMA engine that they have
/// a driver for.)
pub(super) const TESTS: [&str; 4] = [
    "vfio_pci_device_test",
    "vfio_dma_mapping_test",
    "vfio_dma_mapping_mmio_test",
    "vfio_iommufd_setup_test",
];

/// Stands in for libuuid. None of the tests has a token to parse.
const UUID: &str = "typedef unsigned char uuid_t[16];
static inline int uuid_parse(const char *in, uuid_t out) { (void)in; (void)out; return -1; }
";

/// What the source of 7.2 uses and does not have.
const MISSING: &str = "#include <stdlib.h>
#ifndef calloc_assert
static inline void *calloc_assert(size_t n, size_t size)
{
\tvoid *memory = calloc(n, size);
\tif (!memory)
\t\tabort();
\treturn memory;
}
#endif
";

/// Compiles the test `$3` in the source folder `$1` to `$2/$3`.
const COMPILE: &str = r#"set -eu
source=$1 to=$2 test=$3
cd "$source/tools/testing/selftests/vfio"
gcc-14 -O1 -static -pthread -D_GNU_SOURCE= -Wall -I"$to" -include "$to/missing.h" -Ilib/include -I"$source/tools/include" \
  -I.. -isystem "$source/tools/include/uapi" -isystem "$source/include/uapi" "$test.c" $(find lib -name '*.c') -o "$to/$test""#;

/// Builds them in `dir`, from the source of the kernel that was built in `tree`.
pub(super) fn build(session: &Session, tree: &Path, dir: &Path) -> Result<Vec<PathBuf>> {
    let source = tree.join("source");
    let source = source
        .canonicalize()
        .with_context(|| format!("find the kernel's source by {}", source.display()))?;
    std::fs::create_dir_all(dir.join("uuid"))?;
    std::fs::write(dir.join("uuid/uuid.h"), UUID)?;
    std::fs::write(dir.join("missing.h"), MISSING)?;
    let mut programs = Vec::new();
    for test in TESTS {
        let mut compile = session.root()?.command_with("sh", &[], Network::None);
        compile.args(["-c", COMPILE, "compile"]);
        compile.arg(&source).arg(dir).arg(test);
        command::run(
            &format!("compiling {test}"),
            &session.cache.log(test),
            compile,
        )?;
        programs.push(dir.join(test));
    }
    Ok(programs)
}
