// SPDX-License-Identifier: GPL-2.0-only
/*
 * The C side of vmfunc_view.ko: what KVM's headers say as structures, macros and inline functions.
 * kernel/sys/mod.rs has the Rust face of each, and what it promises.
 */
#include <linux/anon_inodes.h>
#include <linux/eventfd.h>
#include <linux/file.h>
#include <linux/hash.h>
#include <linux/kvm_host.h>
#include <linux/magic.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/tracepoint.h>
#include <asm/asm.h>
#include <asm/hypervisor.h>
#include <asm/msr.h>
#include <asm/vmx.h>

#include "zs_helpers.h"

/* Exported by kvm.ko: EXPORT_TRACEPOINT_SYMBOL_GPL in arch/x86/kvm/x86.c. */
extern struct tracepoint __tracepoint_kvm_entry;

/* What an entry of a vCPU is about: sys::kvm::Vcpu. */
struct zs_vcpu {
	const struct kvm *kvm;
	/*
	 * Moves with each flush that KVM does for this vCPU alone, before it enters. (Root can clear it in
	 * debugfs, and so hide a flush if as many come before the next entry as there were before.)
	 */
	u64 flushes;
	u32 index;
	/* In SMM, or in a guest of its own: KVM uses other roots for both. */
	bool elsewhere;
	/* KVM has written RIP since the exit: it emulated or skipped an instruction, or was told to. */
	bool moved;
};

/* A VM's address space, watched for its end. */
struct zs_mm_watch {
	struct mmu_notifier notifier;
	void (*ended)(void *context);
	void *context;
};

unsigned long zs_bucket(unsigned long name);
int zs_probe_register(void);
void zs_probe_unregister(void);
struct kvm *zs_kvm_get(int fd, u64 end, struct module **owner, int *error, const char **why);
void zs_kvm_put(struct kvm *kvm, struct module *owner);
u32 zs_kvm_vcpus(struct kvm *kvm);
u32 zs_kvm_max_vcpus(struct kvm *kvm);
bool zs_kvm_is_only_ours(struct kvm *kvm);
void zs_invept_everywhere(void);
struct zs_mm_watch *zs_mm_watch(struct kvm *kvm, void (*ended)(void *), void *context);
/* sys::probe. */
void zs_vmfunc_entry(const void *first, const struct zs_vcpu *vcpu);
void zs_mm_unwatch(struct zs_mm_watch *watch);
int zs_pin(unsigned long address, unsigned long count, struct page **pages);
int zs_pin_file(int fd, u64 offset, unsigned long count, struct page **pages);
void zs_unpin(struct page **pages, unsigned long count, struct mm_struct *mm);
struct mm_struct *zs_mm_grab(void);
struct eventfd_ctx *zs_eventfd_get(int fd);
void zs_eventfd_signal(struct eventfd_ctx *context);
void zs_eventfd_put(struct eventfd_ctx *context);
u64 zs_page_physical(struct page *page);
bool zs_page_is_poisoned(struct page *page);
void *zs_page_address(struct page *page);
void *zs_physical_address(u64 physical);

/* Heads of the lists of attached VMs: sys::registry. */
void *zs_attached[64];

/* Which list has a VM: by its page, as hash_32() does it. */
unsigned long zs_bucket(unsigned long name)
{
	return hash_32(name >> PAGE_SHIFT, ilog2(ARRAY_SIZE(zs_attached)));
}

/* Without a check of the stack, on which nothing is indexed. */
static noinline __no_stack_protector void zs_attached_entry(void *first, const struct kvm_vcpu *vcpu)
{
	u32 elsewhere = HF_GUEST_MASK;
	struct zs_vcpu known;

#ifdef CONFIG_KVM_SMM
	elsewhere |= HF_SMM_MASK;
#endif
	known.kvm = vcpu->kvm;
	known.flushes = vcpu->stat.tlb_flush;
	known.index = vcpu->vcpu_idx;
	known.elsewhere = vcpu->arch.hflags & elsewhere;
	known.moved = test_bit(VCPU_REG_RIP, vcpu->arch.regs_dirty);
	zs_vmfunc_entry(first, &known);
}

/* The probe. VMs that nobody is attached to pay just this. */
static void zs_entry(void *data, struct kvm_vcpu *vcpu, bool force_immediate_exit)
{
	void *first = smp_load_acquire(&zs_attached[zs_bucket((unsigned long)vcpu->kvm)]);

	if (first)
		zs_attached_entry(first, vcpu);
}

int zs_probe_register(void)
{
	return tracepoint_probe_register(&__tracepoint_kvm_entry, zs_entry, NULL);
}

/* Afterwards it does not run. */
void zs_probe_unregister(void)
{
	tracepoint_probe_unregister(&__tracepoint_kvm_entry, zs_entry, NULL);
	tracepoint_synchronize_unregister();
}

/* The value of a boolean parameter of a module, or what is assumed when it has none of that name. */
static bool zs_parameter(struct module *module, const char *name, bool otherwise)
{
	unsigned int i;

	for (i = 0; i < module->num_kp; i++) {
		const struct kernel_param *parameter = &module->kp[i];

		if (!strcmp(parameter->name, name) && parameter->ops == &param_ops_bool)
			return *(bool *)parameter->arg;
	}
	return otherwise;
}

/*
 * IA32_VMX_PROCBASED_CTLS2 bit 45 allows "enable VM functions", IA32_VMX_VMFUNC bit 0 is EPTP
 * switching (Intel SDM volume 3, appendix A.3.3 and A.11).
 */
static bool zs_has_vmfunc(void)
{
	u64 controls, functions;

	return !rdmsrq_safe(MSR_IA32_VMX_PROCBASED_CTLS2, &controls) && controls & BIT_ULL(45) &&
	       !rdmsrq_safe(MSR_IA32_VMX_VMFUNC, &functions) && functions & BIT_ULL(0);
}

/*
 * IA32_VMX_EPT_VPID_CAP bit 25: INVEPT of one context (Intel SDM volume 3, appendix A.10). KVM can do
 * without. Where it is missing the instruction fails by flags, which nobody would see.
 */
static bool zs_has_invept_of_context(void)
{
	u64 capabilities;

	return !rdmsrq_safe(MSR_IA32_VMX_EPT_VPID_CAP, &capabilities) &&
	       capabilities & VMX_EPT_EXTENT_CONTEXT_BIT;
}

/*
 * Why a VM cannot have a slot that ends at this guest-physical address. What vCPUs without CPUID will
 * be, and those that are made later, is not known here.
 */
static const char *zs_out_of_reach(struct kvm *kvm, u64 end)
{
	union kvm_mmu_page_role role;
	struct kvm_vcpu *vcpu;
	unsigned long i;

	/* CPUID 80000008h, EAX bits 7:0. What the host itself reserves of them is the guest's, too. */
	if (end > BIT_ULL(cpuid_eax(0x80000008) & 0xff))
		return "the slot is beyond this processor's physical addresses (40 bits reach slot 1): take a lower one, or another host";
	kvm_for_each_vcpu(i, vcpu, kvm) {
		if (!READ_ONCE(vcpu->arch.cpuid_nent))
			continue;
		if (end > BIT_ULL(READ_ONCE(vcpu->arch.maxphyaddr)))
			return "the slot is beyond the guest's physical addresses: give it more bits (QEMU: -cpu host,host-phys-bits=on), or take a lower slot";
		role.word = READ_ONCE(vcpu->arch.root_mmu.root_role.word);
		if (role.level > 4)
			return "KVM's tables for this guest have five levels: give it at most 48 physical address bits (QEMU: -cpu host,host-phys-bits-limit=48)";
	}
	return NULL;
}

/* Why a VM of kvm_intel cannot have views, and what to do. */
static const char *zs_obstacle(struct kvm *kvm, struct module *module, u64 end)
{
	if (zs_parameter(module, "nested", true))
		return "kvm_intel lets guests use VMX, and then a VMFUNC exit of a guest warns in the host: load it with nested=0";
	/* Enlightened VMCS, and remote flushes of KVM's own tables only. */
	if (hypervisor_is_type(X86_HYPER_MS_HYPERV))
		return "this host is a guest of Hyper-V, by which KVM flushes its own tables only: use another host";
	if (!zs_parameter(module, "ept", true))
		return "kvm_intel runs without EPT: load it with ept=1";
	/* The shadow MMU frees tables below a root that stays. Set by kvm_mmu_init_tdp_mmu(). */
	if (!kvm->arch.tdp_mmu_roots.next)
		return "kvm runs without the TDP MMU: load it with tdp_mmu=1";
	if (!zs_has_vmfunc())
		return "this processor has no EPTP switching (VMFUNC leaf 0), or the hypervisor below hides it";
	if (!zs_has_invept_of_context())
		return "this processor has no single-context INVEPT, or the hypervisor below hides it";
	if (kvm->arch.vm_type != KVM_X86_DEFAULT_VM)
		return "the VM is of a protected type, whose tables are not the host's to change";
	return zs_out_of_reach(kvm, end);
}

/*
 * The VM behind a file descriptor, with a reference, and one to the module that it is of: VMs hold
 * none, their files do, and the last reference to a VM runs code of that module. file_is_kvm() is for
 * KVM's own modules only, so the file is known by what kvm_intel makes: an anonymous inode of this
 * name, whose operations belong to that module (virt/kvm/kvm_main.c, kvm_init and
 * kvm_dev_ioctl_create_vm).
 */
struct kvm *zs_kvm_get(int fd, u64 end, struct module **owner, int *error, const char **why)
{
	struct file *file = fget(fd);
	struct module *module;
	struct kvm *kvm = NULL;

	*why = NULL;
	*error = -EBADF;
	if (!file)
		return NULL;
	*error = -EINVAL;
	module = file->f_op->owner;
	if (file_inode(file)->i_sb->s_magic != ANON_INODE_FS_MAGIC ||
	    strcmp(file->f_path.dentry->d_name.name, "kvm-vm"))
		goto out;
	*error = -EOPNOTSUPP;
	if (!module || strcmp(module->name, "kvm_intel")) {
		*why = "the VM is not one of the module kvm_intel (another processor, or KVM is built into the kernel)";
		goto out;
	}
	*why = zs_obstacle(file->private_data, module, end);
	if (*why)
		goto out;
	/* The file holds one of each. */
	kvm = file->private_data;
	kvm_get_kvm(kvm);
	__module_get(module);
	*owner = module;
out:
	fput(file);
	return kvm;
}

void zs_kvm_put(struct kvm *kvm, struct module *owner)
{
	kvm_put_kvm(kvm);
	module_put(owner);
}

u32 zs_kvm_vcpus(struct kvm *kvm)
{
	return atomic_read(&kvm->online_vcpus);
}

u32 zs_kvm_max_vcpus(struct kvm *kvm)
{
	return kvm->max_vcpus;
}

/* Every file of the VM and of its vCPUs holds a reference, so nobody can run one any more. */
bool zs_kvm_is_only_ours(struct kvm *kvm)
{
	return refcount_read(&kvm->users_count) == 1;
}

static void zs_invept_here(void *unused)
{
	struct { u64 eptp, reserved; } nothing = {};

	/*
	 * All contexts. #UD: this CPU is not in VMX operation, for example because it is going offline.
	 * KVM has cleared its VMCSs then, and a VMCS that comes back to it asks for a flush of all
	 * contexts before its guest is entered (vmx_vcpu_load_vmcs, KVM_REQ_TLB_FLUSH).
	 */
	asm volatile("1: invept %0, %1\n"
		     "2:\n"
		     _ASM_EXTABLE(1b, 2b)
		     : : "m" (nothing), "r" (2UL) : "cc", "memory");
}

void zs_invept_everywhere(void)
{
	on_each_cpu(zs_invept_here, NULL, 1);
}

static void zs_mm_release(struct mmu_notifier *notifier, struct mm_struct *mm)
{
	struct zs_mm_watch *watch = container_of(notifier, struct zs_mm_watch, notifier);

	watch->ended(watch->context);
}

static const struct mmu_notifier_ops zs_mm_operations = {
	.release = zs_mm_release,
};

/*
 * Calls ended() when the address space that may run the VM's vCPUs ends, or the watch is given up
 * before (mmu_notifier_unregister). Process context.
 */
struct zs_mm_watch *zs_mm_watch(struct kvm *kvm, void (*ended)(void *), void *context)
{
	struct zs_mm_watch *watch = kzalloc(sizeof(*watch), GFP_KERNEL);
	int error;

	if (!watch)
		return ERR_PTR(-ENOMEM);
	watch->notifier.ops = &zs_mm_operations;
	watch->ended = ended;
	watch->context = context;
	/* An mm without users has nobody who could run the VM. */
	if (!mmget_not_zero(kvm->mm)) {
		kfree(watch);
		return ERR_PTR(-ESRCH);
	}
	error = mmu_notifier_register(&watch->notifier, kvm->mm);
	mmput(kvm->mm);
	if (error) {
		kfree(watch);
		return ERR_PTR(error);
	}
	return watch;
}

/* Afterwards ended() does not run. Not from within it. */
void zs_mm_unwatch(struct zs_mm_watch *watch)
{
	mmu_notifier_unregister(&watch->notifier, watch->notifier.mm);
	kfree(watch);
}

/* Pins pages of the caller for as long as it likes, to be read, and counts them as locked. */
int zs_pin(unsigned long address, unsigned long count, struct page **pages)
{
	int error = account_locked_vm(current->mm, count, true);
	long got;

	if (error)
		return error;
	got = pin_user_pages_fast(address, count, FOLL_LONGTERM, pages);
	if (got == count)
		return 0;
	if (got > 0)
		unpin_user_pages(pages, got);
	account_locked_vm(current->mm, count, false);
	/* Also for a range that ends beyond the last address, -EOVERFLOW. */
	return got == -ENOMEM ? got : -EFAULT;
}

/* Pins pages of the folios, from page first of the first one on, as if one by one. */
static int zs_take_pages(struct folio **folios, long got, unsigned long first,
			 unsigned long count, struct page **pages)
{
	unsigned long done = 0, here, i;
	int error = 0;
	long f;

	for (f = 0; f < got; f++) {
		if (done == count || first >= folio_nr_pages(folios[f]))
			break;
		here = min(folio_nr_pages(folios[f]) - first, count - done);
		/* One is there. */
		if (here > 1)
			error = folio_add_pins(folios[f], here - 1);
		if (error)
			break;
		for (i = 0; i < here; i++)
			pages[done++] = folio_page(folios[f], first + i);
		first = 0;
	}
	if (done == count && f == got)
		return 0;
	/* No room for more pins, or the file was cut meanwhile. */
	unpin_user_pages(pages, done);
	unpin_folios(folios + f, got - f);
	return error ?: -EINVAL;
}

/*
 * The same of a file of memory (shmem, hugetlbfs). Whoever may read it may read this. What is not
 * there yet is made.
 */
int zs_pin_file(int fd, u64 offset, unsigned long count, struct page **pages)
{
	unsigned long length = count << PAGE_SHIFT;
	struct folio **folios;
	struct file *file;
	pgoff_t first = 0;
	int error;
	long got;

	file = fget(fd);
	if (!file)
		return -EBADF;
	error = -EACCES;
	if (!(file->f_mode & FMODE_READ))
		goto put;
	error = -EINVAL;
	if (offset > MAX_LFS_FILESIZE - length)
		goto put;
	error = account_locked_vm(current->mm, count, true);
	if (error)
		goto put;
	error = -ENOMEM;
	folios = kvcalloc(count, sizeof(*folios), GFP_KERNEL_ACCOUNT);
	if (!folios)
		goto uncount;
	got = memfd_pin_folios(file, offset, offset + length - 1, folios, count, &first);
	if (got > 0)
		error = zs_take_pages(folios, got, first >> PAGE_SHIFT, count, pages);
	else
		error = got ?: -EINVAL;
	kvfree(folios);
uncount:
	if (error)
		account_locked_vm(current->mm, count, false);
put:
	fput(file);
	return error;
}

void zs_unpin(struct page **pages, unsigned long count, struct mm_struct *mm)
{
	unpin_user_pages(pages, count);
	account_locked_vm(mm, count, false);
	mmdrop(mm);
}

struct mm_struct *zs_mm_grab(void)
{
	mmgrab(current->mm);
	return current->mm;
}

struct eventfd_ctx *zs_eventfd_get(int fd)
{
	return eventfd_ctx_fdget(fd);
}

void zs_eventfd_signal(struct eventfd_ctx *context)
{
	eventfd_signal(context);
}

void zs_eventfd_put(struct eventfd_ctx *context)
{
	eventfd_ctx_put(context);
}

u64 zs_page_physical(struct page *page)
{
	return page_to_phys(page);
}

/* Of a page of hugetlbfs only the whole is known. */
bool zs_page_is_poisoned(struct page *page)
{
	struct folio *folio = page_folio(page);

	return PageHWPoison(page) || (folio_test_hugetlb(folio) && folio_test_hwpoison(folio));
}

void *zs_page_address(struct page *page)
{
	return page_address(page);
}

void *zs_physical_address(u64 physical)
{
	return phys_to_virt(physical);
}

const struct zs_layout_entry zs_layout_table[] = {
	ZS_SIZE(struct completion),
	ZS_SIZE(spinlock_t),
	ZS_SIZE(struct file_operations),
	ZS_OFFSET(struct file_operations, owner),
	ZS_OFFSET(struct file_operations, open),
	ZS_OFFSET(struct file_operations, release),
	ZS_OFFSET(struct file_operations, mmap),
	ZS_OFFSET(struct file_operations, unlocked_ioctl),
	ZS_OFFSET(struct file_operations, compat_ioctl),
	ZS_OFFSET(struct file, private_data),
	ZS_SIZE(struct miscdevice),
	ZS_OFFSET(struct miscdevice, minor),
	ZS_OFFSET(struct miscdevice, name),
	ZS_OFFSET(struct miscdevice, fops),
	ZS_OFFSET(struct miscdevice, mode),
	ZS_SIZE(struct vm_area_struct),
	ZS_OFFSET(struct vm_area_struct, vm_pgoff),
	ZS_LAYOUT_END
};
