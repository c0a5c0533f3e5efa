// SPDX-License-Identifier: GPL-2.0-only
/*
 * An executable mapping of a page in a guest's kernel: the only place where a page table is edited
 * by hand.
 *
 * The kernel offers modules none: vmap() takes execution away from every protection that it is
 * given (mm/vmalloc.c), set_memory_x() is not exported, and memory for module text is of its own
 * and not for a page that has to be this one. lookup_address() is exported. So the page is mapped
 * by vmap(), read-only, and the no-execute bit of its one entry is cleared.
 *
 * Why that is sound: the entry belongs to our mapping alone, from vmap() to vunmap(), which nothing
 * else changes meanwhile (no debug_pagealloc, no set_memory call without our address); the area is
 * one page long, so no larger entry maps it; x86 may cache the old entry, which forbids more and
 * not less, so a CPU that has it faults spuriously at worst, and INVLPG on all of them rules even
 * that out. What can be executed is one read-only page with known content, and nothing else becomes
 * executable or writable.
 */
#include <linux/mm.h>
#include <linux/smp.h>
#include <linux/vmalloc.h>
#include <asm/pgtable.h>
#include <asm/tlbflush.h>

#include "exec_map.h"

static void zs_forget_here(void *address)
{
	asm volatile("invlpg (%0)" : : "r" (address) : "memory");
}

void *zs_exec_map(struct page *page)
{
	void *address = vmap(&page, 1, VM_MAP, PAGE_KERNEL_RO);
	unsigned int level;
	pte_t *entry, old;

	if (!address)
		return NULL;
	entry = lookup_address((unsigned long)address, &level);
	if (!entry || level != PG_LEVEL_4K) {
		vunmap(address);
		return NULL;
	}
	old = READ_ONCE(*entry);
	if (!pte_present(old) || pte_pfn(old) != page_to_pfn(page) || pte_write(old)) {
		vunmap(address);
		return NULL;
	}
	set_pte(entry, pte_clear_flags(old, _PAGE_NX));
	on_each_cpu(zs_forget_here, address, 1);
	return address;
}

void zs_exec_unmap(void *address)
{
	vunmap(address);
	/* vunmap() clears the entry, and flushes when it likes; this does it, of all address spaces. */
	vm_unmap_aliases();
}
