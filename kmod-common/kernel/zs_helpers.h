/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The C side of kmod-common/kernel: what the kernel offers as macros and inline functions only.
 * Included by exactly one C file of each module, which also defines zs_layout_table.
 */
#ifndef ZS_HELPERS_H
#define ZS_HELPERS_H

#include <linux/completion.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/pci.h>
#include <linux/spinlock.h>
#include <linux/stddef.h>
#include <linux/workqueue.h>
#include <asm/barrier.h>

/* One size or offset as the C compiler has it; layout.rs holds Rust's numbers against them. */
struct zs_layout_entry {
	const char *name;
	unsigned long value;
};

#define ZS_SIZE(type) { #type, sizeof(type) }
#define ZS_OFFSET(type, field) { #type "." #field, offsetof(type, field) }
#define ZS_LAYOUT_END { NULL, 0 }

extern const struct zs_layout_entry zs_layout_table[];

unsigned long zs_spin_lock_irqsave(spinlock_t *lock);
int zs_spin_trylock_irqsave(spinlock_t *lock, unsigned long *flags);
void zs_spin_unlock_irqrestore(spinlock_t *lock, unsigned long flags);
void zs_reinit_completion(struct completion *done);
void zs_dma_rmb(void);
unsigned int zs_pci_domain(struct pci_dev *pdev);
struct pci_dev *zs_pci_physical_function(struct pci_dev *pdev);
bool zs_pci_is_added(struct pci_dev *pdev);
struct workqueue_struct *zs_workqueue(const char *name);

unsigned long zs_spin_lock_irqsave(spinlock_t *lock)
{
	unsigned long flags;

	spin_lock_irqsave(lock, flags);
	return flags;
}

int zs_spin_trylock_irqsave(spinlock_t *lock, unsigned long *flags)
{
	unsigned long state;

	if (!spin_trylock_irqsave(lock, state))
		return 0;
	*flags = state;
	return 1;
}

void zs_spin_unlock_irqrestore(spinlock_t *lock, unsigned long flags)
{
	spin_unlock_irqrestore(lock, flags);
}

void zs_reinit_completion(struct completion *done)
{
	reinit_completion(done);
}

void zs_dma_rmb(void)
{
	dma_rmb();
}

unsigned int zs_pci_domain(struct pci_dev *pdev)
{
	return pci_domain_nr(pdev->bus);
}

struct pci_dev *zs_pci_physical_function(struct pci_dev *pdev)
{
	return pdev->is_virtfn ? pci_physfn(pdev) : NULL;
}

bool zs_pci_is_added(struct pci_dev *pdev)
{
	return device_is_registered(&pdev->dev);
}

struct workqueue_struct *zs_workqueue(const char *name)
{
	return alloc_workqueue("%s", WQ_UNBOUND, 0, name);
}

#endif /* ZS_HELPERS_H */
