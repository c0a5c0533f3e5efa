/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef ZS_EXEC_MAP_H
#define ZS_EXEC_MAP_H

struct page;

/*
 * Maps a page that is not the kernel's own text, to be read and executed by the kernel. NULL when
 * there is no memory or the tables are not as expected.
 */
void *zs_exec_map(struct page *page);

/* Undoes it. Nobody runs there any more. */
void zs_exec_unmap(void *address);

#endif /* ZS_EXEC_MAP_H */
