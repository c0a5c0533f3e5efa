// SPDX-License-Identifier: GPL-2.0-only
/*
 * The C side of migdirty.ko: shared helpers, and the layouts that kernel/sys/mod.rs compares.
 */
#include <linux/mm_types.h>

#include "zs_helpers.h"
#include "../../abi/migdirty_backend.h"

const struct zs_layout_entry zs_layout_table[] = {
	ZS_SIZE(struct completion),
	ZS_SIZE(spinlock_t),
	ZS_SIZE(struct file_operations),
	ZS_OFFSET(struct file_operations, owner),
	ZS_OFFSET(struct file_operations, open),
	ZS_OFFSET(struct file_operations, release),
	ZS_OFFSET(struct file_operations, mmap),
	ZS_OFFSET(struct vm_area_struct, vm_pgoff),
	ZS_OFFSET(struct file_operations, unlocked_ioctl),
	ZS_OFFSET(struct file_operations, compat_ioctl),
	ZS_OFFSET(struct file, private_data),
	ZS_SIZE(struct miscdevice),
	ZS_OFFSET(struct miscdevice, minor),
	ZS_OFFSET(struct miscdevice, name),
	ZS_OFFSET(struct miscdevice, fops),
	ZS_OFFSET(struct miscdevice, mode),
	ZS_SIZE(struct pci_dev),
	ZS_OFFSET(struct pci_dev, dev),
	ZS_SIZE(struct pci_driver),
	ZS_OFFSET(struct pci_driver, shutdown),
	ZS_OFFSET(struct pci_driver, err_handler),
	ZS_OFFSET(struct pci_driver, driver),
	ZS_SIZE(struct pci_error_handlers),
	ZS_OFFSET(struct pci_error_handlers, reset_prepare),
	ZS_SIZE(struct migdirty_events),
	ZS_OFFSET(struct migdirty_events, lost),
	ZS_SIZE(struct migdirty_range),
	ZS_OFFSET(struct migdirty_range, iova),
	ZS_OFFSET(struct migdirty_range, length),
	ZS_SIZE(struct migdirty_format),
	ZS_OFFSET(struct migdirty_format, version),
	ZS_OFFSET(struct migdirty_format, uuid),
	ZS_SIZE(struct migdirty_request),
	ZS_OFFSET(struct migdirty_request, function),
	ZS_OFFSET(struct migdirty_request, data),
	ZS_OFFSET(struct migdirty_request, size),
	ZS_OFFSET(struct migdirty_request, granule),
	ZS_OFFSET(struct migdirty_request, format),
	ZS_OFFSET(struct migdirty_request, operation),
	ZS_OFFSET(struct migdirty_request, result),
	ZS_SIZE(struct migdirty_batch),
	ZS_OFFSET(struct migdirty_batch, requests),
	ZS_OFFSET(struct migdirty_batch, count),
	ZS_OFFSET(struct migdirty_batch, pending),
	ZS_OFFSET(struct migdirty_batch, complete),
	ZS_OFFSET(struct migdirty_batch, context),
	ZS_LAYOUT_END
};
