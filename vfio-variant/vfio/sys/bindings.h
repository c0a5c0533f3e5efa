/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What bindgen reads: headers of which kernel::bindings has nothing. The first line is that of the
 * kernel's own rust/bindings/bindings_helper.h, without which the others do not compile.
 */
#include <linux/hrtimer_types.h>

#include <linux/anon_inodes.h>
#include <linux/interval_tree.h>
#include <linux/iova_bitmap.h>
#include <linux/vfio.h>
#include <linux/vfio_pci_core.h>
