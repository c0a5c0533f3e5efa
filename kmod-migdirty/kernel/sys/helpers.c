// SPDX-License-Identifier: GPL-2.0-only
/*
 * The C side of migdirty.ko: shared helpers, and the layouts that kernel/sys/mod.rs compares.
 */
#include "zs_helpers.h"

const struct zs_layout_entry zs_layout_table[] = {
	ZS_SIZE(struct completion),
	ZS_SIZE(spinlock_t),
	ZS_SIZE(struct file_operations),
	ZS_OFFSET(struct file_operations, owner),
	ZS_OFFSET(struct file_operations, open),
	ZS_OFFSET(struct file_operations, release),
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
	ZS_OFFSET(struct pci_driver, driver),
	ZS_LAYOUT_END
};
