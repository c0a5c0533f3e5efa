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

#endif /* _UAPI_LINUX_MIGDIRTY_H */
