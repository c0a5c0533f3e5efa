/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What migdirty.ko offers to front ends in the kernel. The same as lib.rs; a front end compares
 * sizes and offsets when it is loaded. docs/interfaces.md, section 11, is the contract.
 *
 * A front end links to these symbols, so migdirty cannot be unloaded under it. Migdirty calls a
 * front end only between migdirty_claim() and the return of migdirty_release(), so a front end that
 * releases what it claimed can be unloaded.
 */
#ifndef MIGDIRTY_BACKEND_H
#define MIGDIRTY_BACKEND_H

#include <linux/types.h>

struct pci_dev;

/* A function that a card manages, claimed by its one owner. */
struct migdirty_function;

/* What a front end wants to hear of. */
struct migdirty_events {
	/*
	 * The card cannot be relied on any more: it died, or it is about to be reset or to go, which
	 * ends every suspension and every log. Before this returns the owner has to make sure that a
	 * function that is not meant to run cannot touch memory (bus master), because it may run
	 * again at any moment afterwards. Once per claim, in process context; may sleep. Operations
	 * in flight have ended with an error, or will without waiting for this. May come before
	 * migdirty_claim() has returned, also when that fails.
	 */
	void (*lost)(void *context);
};

/* A range of addresses as the function uses them. The last byte may be 2^64 - 1. */
struct migdirty_range {
	u64 iova;	/* first byte */
	u64 length;	/* bytes, not 0 */
};

/* In which form a controller state is. */
struct migdirty_format {
	u16 version;	/* of the NVMe Controller State (Identify CNS 20h) */
	u16 reserved;	/* 0 */
	u32 reserved2;	/* 0 */
	u8 uuid[16];	/* of the vendor specific data, zeroes for none */
};

enum migdirty_operation {
	MIGDIRTY_SUSPEND = 1,
	MIGDIRTY_RESUME = 2,
	MIGDIRTY_GET_STATE = 3,		/* format: out; data, size: room in, bytes out */
	MIGDIRTY_SET_STATE = 4,		/* format: in; data, size: the whole state */
	MIGDIRTY_LOG_START = 5,		/* data, size: ranges; granule: in and out */
	MIGDIRTY_LOG_STOP = 6,
	MIGDIRTY_LOG_HARVEST = 7,
	MIGDIRTY_WAS_RESET = 8,
};

/* One operation on one function. Untouched by its owner from submit to complete. */
struct migdirty_request {
	struct migdirty_function *function;
	void *data;			/* kernel memory */
	u64 size;			/* bytes; of LOG_START: number of ranges */
	u64 granule;			/* bytes, power of two from 4096; 0: any */
	struct migdirty_format format;
	u32 operation;			/* enum migdirty_operation */
	s32 result;			/* out: 0 or a negative errno */
};

/* Operations that run at the same time. */
struct migdirty_batch {
	struct migdirty_request *requests;
	u32 count;			/* from 1 */
	u32 pending;			/* of migdirty: 0 when submitted */
	/* Once, in process context, when every request has ended; then the batch is its owner's. */
	void (*complete)(struct migdirty_batch *batch);
	void *context;			/* of the owner */
};

int migdirty_claim(struct pci_dev *pdev, const struct migdirty_events *events, void *context,
		   struct migdirty_function **function);
void migdirty_release(struct migdirty_function *function);
int migdirty_submit(struct migdirty_batch *batch);
int migdirty_log_take(struct migdirty_function *function, u64 first, u64 last,
		      void (*dirty)(void *context, u64 iova, u64 length), void *context);
ssize_t migdirty_identity(struct migdirty_function *function, void *buffer, size_t room);
int migdirty_format(struct migdirty_function *function, struct migdirty_format *format);

#endif /* MIGDIRTY_BACKEND_H */
