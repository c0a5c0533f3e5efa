/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * The ioctl interface of /dev/vmfunc. The same as kmod-vmfunc/uapi/lib.rs, and tested against it;
 * docs/interfaces.md, section 15, says what the fields mean.
 */
#ifndef _UAPI_LINUX_VMFUNC_H
#define _UAPI_LINUX_VMFUNC_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* The largest argsz. */
#define VMFUNC_MAX_ARGSZ	4096
/* Bytes of the private slot, and what its base is a multiple of. */
#define VMFUNC_SLOT_SIZE	(512ULL << 30)
/* The largest index of a view. Index 0 is the default view. */
#define VMFUNC_MAX_VIEWS	63
/* Most windows of one view. */
#define VMFUNC_MAX_WINDOWS	1024
/* Most bytes of one window. */
#define VMFUNC_MAX_WINDOW	(64ULL << 20)
/* Offset of the first window in the slot. */
#define VMFUNC_FIRST_WINDOW	(2ULL << 20)

/* Attaches this file to a VM. */
struct vmfunc_attach {
	__u32 argsz;		/* size that the caller knows */
	__u32 flags;		/* 0 */
	__s32 vm_fd;
	__u32 vcpus;		/* out: vCPUs that are prepared */
	__u64 slot;		/* guest-physical, a multiple of VMFUNC_SLOT_SIZE, not 0 */
};
#define VMFUNC_ATTACH		_IOWR(0xE7, 0x40, struct vmfunc_attach)

/* A view, by the index that VMFUNC takes in ECX. */
struct vmfunc_view {
	__u32 argsz;
	__u32 flags;		/* 0 */
	__u32 view;		/* create: in 0, out */
	__u32 reserved;		/* 0 */
};
#define VMFUNC_VIEW_CREATE	_IOWR(0xE7, 0x41, struct vmfunc_view)
#define VMFUNC_VIEW_DESTROY	_IOWR(0xE7, 0x42, struct vmfunc_view)

/* vmfunc_window.flags */
#define VMFUNC_WINDOW_WRITE	(1U << 0)	/* only with VMFUNC_WINDOW_OWNED */
#define VMFUNC_WINDOW_OWNED	(1U << 1)	/* memory that the module makes */
#define VMFUNC_WINDOW_FILE	(1U << 2)	/* memory of a file: memfd, tmpfs, hugetlbfs */

struct vmfunc_window {
	__u32 argsz;
	__u32 flags;		/* VMFUNC_WINDOW_* */
	__u32 view;
	__s32 fd;		/* FILE: the file, else 0 */
	__u64 offset;		/* in the slot */
	__u64 length;
	__u64 address;		/* the caller's memory; FILE: offset in the file;
				 * OWNED: in 0, out the offset for mmap
				 */
};
#define VMFUNC_WINDOW_ADD	_IOWR(0xE7, 0x43, struct vmfunc_window)
#define VMFUNC_WINDOW_REMOVE	_IOWR(0xE7, 0x44, struct vmfunc_window)
#define VMFUNC_GET_WINDOW	_IOWR(0xE7, 0x48, struct vmfunc_window)

/* vmfunc_vcpu.flags */
#define VMFUNC_VCPU_ARMED	(1U << 0)
#define VMFUNC_VCPU_UNABLE	(1U << 1)	/* KVM's tables for it have five levels */

/* Counters of a vCPU since VMFUNC_ATTACH. */
struct vmfunc_vcpu {
	__u32 argsz;
	__u32 flags;		/* in: 0, out: VMFUNC_VCPU_* */
	__u32 vcpu;		/* in: index */
	__u32 reserved;		/* 0 */
	__u64 arms;
	__u64 loads;
	__u64 resyncs;
	__u64 bounces;
	__u64 invepts;
};
#define VMFUNC_GET_VCPU		_IOWR(0xE7, 0x45, struct vmfunc_vcpu)

/* vmfunc_query.flags */
#define VMFUNC_QUERY_ENDED	(1U << 0)	/* no vCPU of the VM can enter any more */

/* What there is. */
struct vmfunc_query {
	__u32 argsz;
	__u32 flags;		/* in: 0, out: VMFUNC_QUERY_* */
	__u32 vcpus;		/* that are prepared */
	__u32 windows;		/* of all views */
	__u64 views;		/* a bit for each view, by its index */
	__u64 slot;		/* as in VMFUNC_ATTACH */
	__u32 max_views;
	__u32 max_windows;	/* of one view */
	__u64 first_window;	/* least offset of a window */
	__u64 max_window;	/* bytes */
};
#define VMFUNC_QUERY		_IOWR(0xE7, 0x46, struct vmfunc_query)

/* An eventfd that is signalled when something has changed. */
struct vmfunc_eventfd {
	__u32 argsz;
	__u32 flags;		/* 0 */
	__s32 fd;		/* -1: none any more */
	__u32 reserved;		/* 0 */
};
#define VMFUNC_SET_EVENTFD	_IOWR(0xE7, 0x47, struct vmfunc_eventfd)

#endif /* _UAPI_LINUX_VMFUNC_H */
