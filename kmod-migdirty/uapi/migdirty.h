/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * The ioctl interface of /dev/migdirty. The same as kmod-migdirty/uapi/lib.rs, and tested against
 * it; docs/interfaces.md, section 4, says what the fields mean.
 */
#ifndef _UAPI_LINUX_MIGDIRTY_H
#define _UAPI_LINUX_MIGDIRTY_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* migdirty_card.flags */
#define MIGDIRTY_CARD_LIVE		(1U << 0)	/* answered when it was asked */
#define MIGDIRTY_CARD_LIVE_MIGRATION	(1U << 1)	/* OACS.HMLMS */
#define MIGDIRTY_CARD_TRACKS_MEMORY	(1U << 2)	/* TRATTR.THMCS */

/* The largest argsz. */
#define MIGDIRTY_MAX_ARGSZ		4096

struct migdirty_card {
	__u32 argsz;			/* size that the caller knows */
	__u32 flags;			/* in: 0, out: MIGDIRTY_CARD_* */
	__u32 address;			/* domain << 16 | bus << 8 | device << 3 | function */
	__u16 controller_id;		/* CNTLID */
	__u8 controller_type;		/* CNTRLTYPE */
	__u8 min_granule;		/* MINMRTG, 2^n * 4 KiB */
	__u8 max_granule;		/* MAXMRTG, 2^n * 4 KiB */
	__u8 reserved[3];
	__u16 max_ranges;		/* CMMRTD, of this controller */
	__u16 max_ranges_subsystem;	/* NMMRTD, of the NVM subsystem */
	__u32 version;			/* VS */
	__u32 vectors;			/* interrupt vectors in use */
	__u64 commands;			/* completed since probe */
	__u64 failures;			/* with an error status, or timed out */
	__u64 interrupts;		/* taken since probe */
	__u8 serial[20];		/* SN, space padded */
	__u8 model[40];			/* MN, space padded */
	__u8 firmware[8];		/* FR, space padded */
	__u8 subnqn[256];		/* SUBNQN, zero padded */
	__u8 reserved2[100];
};

/*
 * Describes the card with the lowest address that is not below .address. To walk all cards, begin
 * with 0 and go on with the last answer plus one until ENOENT.
 */
#define MIGDIRTY_GET_CARD		_IOWR(0xE7, 0x00, struct migdirty_card)

/* migdirty_function_info.flags */
#define MIGDIRTY_FUNCTION_LIVE		(1U << 0)	/* its card is not dead */
#define MIGDIRTY_FUNCTION_SUSPENDED	(1U << 1)
#define MIGDIRTY_FUNCTION_LOGGING	(1U << 2)
#define MIGDIRTY_FUNCTION_LOG_LOST	(1U << 3)	/* only stop and start help */
#define MIGDIRTY_FUNCTION_OWNED_BY_VFIO	(1U << 4)
#define MIGDIRTY_FUNCTION_OWNED_BY_TOOL	(1U << 5)

/* A function, named by its PCI address. Counters begin when its card is bound. */
struct migdirty_function_info {
	__u32 argsz;
	__u32 flags;			/* in: 0, out: MIGDIRTY_FUNCTION_* */
	__u32 address;
	__u32 card;			/* address of its card */
	__u16 controller_id;		/* CNTLID */
	__u16 reserved;
	__u32 ranges;			/* tracked now, after joining */
	__u64 granule;			/* bytes, 0 without a log */
	__u64 suspends;
	__u64 resumes;
	__u64 harvests;
	__u64 dirty_bytes;		/* that the harvests reported */
	__u64 states_read;
	__u64 states_written;
	__u64 reserved2[6];
};

/* A function, and nothing else. */
struct migdirty_target {
	__u32 argsz;
	__u32 flags;			/* 0 */
	__u32 address;
	__u32 reserved;
};

/* Addresses as the function uses them. The last byte may be 2^64 - 1. */
struct migdirty_range {
	__u64 iova;			/* multiple of 4096 */
	__u64 length;			/* multiple of 4096, not 0 */
};

#define MIGDIRTY_MAX_LOG_RANGES		256

struct migdirty_log_start {
	__u32 argsz;
	__u32 flags;			/* 0 */
	__u32 address;
	__u32 count;			/* of ranges, 1 to MIGDIRTY_MAX_LOG_RANGES */
	__u64 granule;			/* in: wished (power of two from 4096, 0: any), out: used */
	__u64 ranges;			/* pointer to struct migdirty_range, apart from each other */
};

/* migdirty_log_sync.flags */
#define MIGDIRTY_SYNC_MORE		(1U << 0)	/* there is more than the room */
#define MIGDIRTY_SYNC_COMPLETE		(1U << 1)	/* suspended, and nothing is left */

#define MIGDIRTY_MAX_SYNC_RANGES	65536

struct migdirty_log_sync {
	__u32 argsz;
	__u32 flags;			/* in: 0, out: MIGDIRTY_SYNC_* */
	__u32 address;
	__u32 count;			/* in: room, 1 to MIGDIRTY_MAX_SYNC_RANGES, out: filled */
	__u64 iova;			/* where to look */
	__u64 length;			/* not 0 */
	__u64 ranges;			/* pointer to struct migdirty_range, filled in ascending order */
};

#define MIGDIRTY_MAX_STATE		(64ULL << 20)

struct migdirty_state {
	__u32 argsz;
	__u32 flags;			/* 0 */
	__u32 address;
	__u16 version;			/* of the NVMe Controller State */
	__u16 reserved;
	__u8 uuid[16];			/* of the vendor specific data, zeroes for none */
	__u64 data;			/* pointer */
	__u64 size;			/* bytes, MIGDIRTY_MAX_STATE at most; saving: room, then size */
};

struct migdirty_identity {
	__u32 argsz;
	__u32 flags;			/* 0 */
	__u32 address;
	__u32 size;			/* in: room, out: bytes */
	__u64 data;			/* pointer */
};

/* Describes the function with exactly this address. */
#define MIGDIRTY_GET_FUNCTION		_IOWR(0xE7, 0x01, struct migdirty_function_info)
/* Starts a log of what a function writes. */
#define MIGDIRTY_LOG_START		_IOWR(0xE7, 0x02, struct migdirty_log_start)
/* Reads what was written since and forgets what it hands out. */
#define MIGDIRTY_LOG_SYNC		_IOWR(0xE7, 0x03, struct migdirty_log_sync)
/* Ends the log. */
#define MIGDIRTY_LOG_STOP		_IOWR(0xE7, 0x04, struct migdirty_target)
/* Suspends the function; returns when it is quiet. */
#define MIGDIRTY_PAUSE			_IOWR(0xE7, 0x05, struct migdirty_target)
/* Lets it go on. */
#define MIGDIRTY_RESUME			_IOWR(0xE7, 0x06, struct migdirty_target)
/* Gets the controller state of a paused function. */
#define MIGDIRTY_SAVE			_IOWR(0xE7, 0x07, struct migdirty_state)
/* Sets it. */
#define MIGDIRTY_RESTORE		_IOWR(0xE7, 0x08, struct migdirty_state)
/* Gets the identity record for the header of a migration stream. */
#define MIGDIRTY_GET_IDENTITY		_IOWR(0xE7, 0x09, struct migdirty_identity)

#endif /* _UAPI_LINUX_MIGDIRTY_H */
