// SPDX-License-Identifier: GPL-2.0-only
/*
 * Runs code of the gate at any of its offsets, as if a vCPU had fallen out of a view there.
 */
#include <linux/highmem.h>
#include <linux/irqflags.h>
#include <linux/mm.h>

#include "exec_map.h"

int zs_gate_run(struct page *page, unsigned long offset, unsigned int *result);

int zs_gate_run(struct page *page, unsigned long offset, unsigned int *result)
{
	void *address = zs_exec_map(page);
	unsigned long flags, target, eax = 0;

	if (!address)
		return -ENOMEM;
	target = (unsigned long)address + offset;
	local_irq_save(flags);
	/*
	 * By RET, because most offsets are no target for an indirect call (IBT). R11 is what the
	 * return stub would hand out.
	 */
	asm volatile("movl $0x5a, %%r11d\n\t"
		     "leaq 1f(%%rip), %%rax\n\t"
		     "pushq %%rax\n\t"
		     "pushq %1\n\t"
		     "ret\n"
		     "1:"
		     : "=&a" (eax)
		     : "r" (target)
		     : "rcx", "rsi", "rdi", "r8", "r10", "r11", "cc", "memory");
	local_irq_restore(flags);
	*result = eax;
	zs_exec_unmap(address);
	return 0;
}
