/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef ZS_TRAP_H
#define ZS_TRAP_H

struct zs_gate_trap;

/*
 * From now on a VMFUNC of the gate that is mapped at this address is an aborted call when the processor
 * does not know it: the view has ended, or the host has let go of this guest. NULL when there is no
 * memory.
 */
struct zs_gate_trap *zs_gate_trap(const void *gate);

/* Undoes it. Nobody calls the gate any more. */
void zs_gate_untrap(struct zs_gate_trap *trap);

#endif /* ZS_TRAP_H */
