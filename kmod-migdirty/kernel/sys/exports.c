// SPDX-License-Identifier: GPL-2.0-only
/*
 * Makes the calls of kernel/sys/backend.rs known to other modules.
 */
#include <linux/export.h>

#include "../../abi/migdirty_backend.h"

EXPORT_SYMBOL_GPL(migdirty_claim);
EXPORT_SYMBOL_GPL(migdirty_release);
EXPORT_SYMBOL_GPL(migdirty_submit);
EXPORT_SYMBOL_GPL(migdirty_log_take);
EXPORT_SYMBOL_GPL(migdirty_identity);
EXPORT_SYMBOL_GPL(migdirty_format);
