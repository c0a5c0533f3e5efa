# SPDX-License-Identifier: GPL-2.0-only
# Bindings for kernel headers that the kernel's own do not cover; included by a module's Kbuild.
#
#   $(obj)/NAME.rs: $(src)/NAME.h $(src)/bindgen_parameters FORCE
#   	$(call if_changed_dep,zs_bindgen)
#
# The command is that of the kernel's rust/Makefile, which cannot be included from a module. What
# gcc knows and clang does not is left out; the list comes from that Makefile, so that it fits the
# kernel that is built for.

ifdef CONFIG_CC_IS_CLANG
zs_bindgen_c_flags = $(c_flags)
else
zs_bindgen_skip := $(shell sed -n -e '/^bindgen_skip_c_flags :=/,/[^\\]$$/{s/^.*:=//;s/\\$$//;p}' \
	$(srctree)/rust/Makefile)
ifeq ($(strip $(zs_bindgen_skip)),)
$(error $(srctree)/rust/Makefile has no list of flags for bindgen to leave out)
endif
zs_bindgen_c_flags = $(filter-out $(zs_bindgen_skip),$(c_flags)) -w --target=x86_64-linux-gnu
endif

# Link time optimisation takes the declarations apart.
zs_bindgen_c_flags_final = $(filter-out $(CC_FLAGS_LTO),$(zs_bindgen_c_flags)) \
	-fno-builtin -D__BINDGEN__ -DMODULE

quiet_cmd_zs_bindgen = BINDGEN $@
      cmd_zs_bindgen = \
	$(BINDGEN) $< $(shell grep -Ev '^\#|^$$' $(filter %bindgen_parameters,$^)) \
		--rust-target 1.85 --use-core --with-derive-default --ctypes-prefix ffi \
		--no-layout-tests --no-debug '.*' --enable-function-attribute-detection \
		-o $@ -- $(zs_bindgen_c_flags_final)
