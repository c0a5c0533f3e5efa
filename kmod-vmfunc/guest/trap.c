// SPDX-License-Identifier: GPL-2.0-only
/*
 * What becomes of a VMFUNC that the processor does not know.
 *
 * The host may end a view at any time, and VMFUNC is an invalid opcode then, in the kernel: an oops. The
 * exception table of a module is for its own text only, but traps of the kernel ask the notifiers of
 * die() first (exc_invalid_op, notify_die with DIE_TRAP). Ours sends those of the gate's page down the
 * slide of the default face, so that the call is aborted.
 */
#include <linux/kdebug.h>
#include <linux/notifier.h>
#include <linux/ptrace.h>
#include <linux/slab.h>
#include <asm/trapnr.h>

#include "trap.h"

/* Offset of the slide's first byte: docs/interfaces.md, section 16. */
#define SLIDE 8

struct zs_gate_trap {
	struct notifier_block block;
	unsigned long gate;
};

static int zs_trapped(struct notifier_block *block, unsigned long event, void *data)
{
	const struct zs_gate_trap *trap = container_of(block, struct zs_gate_trap, block);
	const struct die_args *args = data;

	if (event != DIE_TRAP || args->trapnr != X86_TRAP_UD || user_mode(args->regs) ||
	    args->regs->ip - trap->gate >= PAGE_SIZE)
		return NOTIFY_DONE;
	args->regs->ip = trap->gate + SLIDE;
	return NOTIFY_STOP;
}

struct zs_gate_trap *zs_gate_trap(const void *gate)
{
	struct zs_gate_trap *trap = kzalloc(sizeof(*trap), GFP_KERNEL);

	if (!trap)
		return NULL;
	trap->block.notifier_call = zs_trapped;
	trap->gate = (unsigned long)gate;
	register_die_notifier(&trap->block);
	return trap;
}

void zs_gate_untrap(struct zs_gate_trap *trap)
{
	/* Waits for those that are being notified. */
	unregister_die_notifier(&trap->block);
	kfree(trap);
}
