// SPDX-License-Identifier: GPL-2.0-only
/*
 * Runs code of the gate at any of its offsets, as if a vCPU had fallen out of a view there.
 */
#include <linux/irqflags.h>
#include <linux/types.h>

u32 zs_gate_run(const void *address, u32 eax);

/* EAX when the code at the address returns, which began with it as it was given. */
u32 zs_gate_run(const void *address, u32 eax)
{
	unsigned long flags;

	local_irq_save(flags);
	/* By RET, because most offsets are no target for an indirect call (IBT). */
	asm volatile("leaq 1f(%%rip), %%rcx\n\t"
		     "pushq %%rcx\n\t"
		     "pushq %1\n\t"
		     "ret\n"
		     "1:"
		     : "+a" (eax)
		     : "r" (address)
		     : "rcx", "rdx", "rsi", "rdi", "cc", "memory");
	local_irq_restore(flags);
	return eax;
}
