// SPDX-License-Identifier: GPL-2.0-only
/*
 * The C side of zeroshift_vfio_pci.ko: what the kernel offers as inline functions only, and the
 * layouts that vfio/sys/mod.rs compares.
 */
#include <linux/err.h>
#include <linux/io.h>
#include <linux/pm_runtime.h>
#include <linux/vfio.h>
#include <linux/vfio_pci_core.h>

#include "migdirty_backend.h"
#include "zs_helpers.h"

void zs_vfio_put_device(struct vfio_device *vdev);
int zs_vfio_pci_read32(struct vfio_pci_core_device *vdev, unsigned int bar, u64 offset, u32 *value);
int zs_pm_runtime_get(struct device *dev);
void zs_pm_runtime_put(struct device *dev);

void zs_vfio_put_device(struct vfio_device *vdev)
{
	vfio_put_device(vdev);
}

/* A register of an enabled device, whatever its user has done to the memory enable bit. */
int zs_vfio_pci_read32(struct vfio_pci_core_device *vdev, unsigned int bar, u64 offset, u32 *value)
{
	void __iomem *map;

	if (bar >= PCI_STD_NUM_BARS || !IS_ALIGNED(offset, sizeof(*value)) ||
	    offset >= pci_resource_len(vdev->pdev, bar))
		return -EINVAL;
	map = vfio_pci_core_get_iomap(vdev, bar);
	if (IS_ERR(map))
		return PTR_ERR(map);
	return vfio_pci_core_ioread32(vdev, false, value, map + offset);
}

int zs_pm_runtime_get(struct device *dev)
{
	return pm_runtime_resume_and_get(dev);
}

void zs_pm_runtime_put(struct device *dev)
{
	pm_runtime_put(dev);
}

const struct zs_layout_entry zs_layout_table[] = {
	ZS_SIZE(struct vfio_device),
	ZS_OFFSET(struct vfio_device, mig_ops),
	ZS_OFFSET(struct vfio_device, log_ops),
	ZS_OFFSET(struct vfio_device, migration_flags),
	ZS_OFFSET(struct vfio_device, precopy_info_v2),
	ZS_OFFSET(struct vfio_device, dev),
	ZS_OFFSET(struct vfio_device, device),
	ZS_SIZE(struct vfio_device_ops),
	ZS_OFFSET(struct vfio_device_ops, match_token_uuid),
	ZS_OFFSET(struct vfio_device_ops, device_feature),
	ZS_SIZE(struct vfio_migration_ops),
	ZS_SIZE(struct vfio_log_ops),
	ZS_OFFSET(struct vfio_log_ops, log_read_and_clear),
	ZS_SIZE(struct vfio_precopy_info),
	ZS_SIZE(struct vfio_pci_core_device),
	ZS_OFFSET(struct vfio_pci_core_device, vdev),
	ZS_OFFSET(struct vfio_pci_core_device, pdev),
	ZS_OFFSET(struct vfio_pci_core_device, pci_ops),
	ZS_OFFSET(struct vfio_pci_core_device, memory_lock),
	ZS_OFFSET(struct vfio_pci_core_device, msix_bar),
	ZS_OFFSET(struct vfio_pci_core_device, msix_size),
	ZS_SIZE(struct vfio_pci_device_ops),
	ZS_SIZE(struct rb_root_cached),
	ZS_SIZE(wait_queue_head_t),
	ZS_SIZE(struct interval_tree_node),
	ZS_OFFSET(struct interval_tree_node, start),
	ZS_OFFSET(struct interval_tree_node, last),
	ZS_SIZE(struct file_operations),
	ZS_OFFSET(struct file_operations, owner),
	ZS_OFFSET(struct file_operations, read),
	ZS_OFFSET(struct file_operations, write),
	ZS_OFFSET(struct file_operations, poll),
	ZS_OFFSET(struct file_operations, unlocked_ioctl),
	ZS_OFFSET(struct file_operations, compat_ioctl),
	ZS_OFFSET(struct file_operations, release),
	ZS_OFFSET(struct file, private_data),
	ZS_OFFSET(struct file, f_inode),
	ZS_SIZE(struct completion),
	ZS_SIZE(spinlock_t),
	ZS_SIZE(struct pci_dev),
	ZS_OFFSET(struct pci_dev, dev),
	ZS_SIZE(struct pci_device_id),
	ZS_OFFSET(struct pci_device_id, override_only),
	ZS_SIZE(struct pci_error_handlers),
	ZS_OFFSET(struct pci_error_handlers, error_detected),
	ZS_OFFSET(struct pci_error_handlers, reset_done),
	ZS_SIZE(struct pci_driver),
	ZS_OFFSET(struct pci_driver, id_table),
	ZS_OFFSET(struct pci_driver, probe),
	ZS_OFFSET(struct pci_driver, remove),
	ZS_OFFSET(struct pci_driver, err_handler),
	ZS_OFFSET(struct pci_driver, driver_managed_dma),
	ZS_SIZE(struct migdirty_events),
	ZS_SIZE(struct migdirty_range),
	ZS_OFFSET(struct migdirty_range, length),
	ZS_SIZE(struct migdirty_format),
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
