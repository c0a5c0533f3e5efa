// SPDX-License-Identifier: GPL-2.0-only
/*
 * The C side of vmfunc_view.ko: what KVM's headers say as structures, macros and inline functions.
 * kernel/sys/mod.rs has the Rust face of each, and what it promises.
 */
#include <linux/anon_inodes.h>
#include <linux/file.h>
#include <linux/kvm_host.h>
#include <linux/magic.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/tracepoint.h>
#include <linux/workqueue.h>
#include <asm/asm.h>
#include <asm/hypervisor.h>
#include <asm/msr.h>

#include "zs_helpers.h"

/* Exported by kvm.ko: EXPORT_TRACEPOINT_SYMBOL_GPL in arch/x86/kvm/x86.c. */
extern struct tracepoint __tracepoint_kvm_entry;
extern struct tracepoint __tracepoint_kvm_exit;

/* A VM's address space, watched for its end. */
struct zs_mm_watch {
	struct mmu_notifier notifier;
	void (*ended)(void *context);
	void *context;
};

struct kvm *zs_vcpu_kvm(struct kvm_vcpu *vcpu);
u32 zs_vcpu_index(struct kvm_vcpu *vcpu);
bool zs_vcpu_is_elsewhere(struct kvm_vcpu *vcpu);
u64 zs_vcpu_flushes(struct kvm_vcpu *vcpu);
bool zs_vcpu_was_moved(struct kvm_vcpu *vcpu);
int zs_probes_register(void *entry, void *exit);
void zs_probes_unregister(void *entry, void *exit);
struct kvm *zs_kvm_get(int fd, int *error, const char **why);
void zs_kvm_put(struct kvm *kvm);
u32 zs_kvm_vcpus(struct kvm *kvm);
bool zs_kvm_is_only_ours(struct kvm *kvm);
void zs_invept_everywhere(void);
struct workqueue_struct *zs_vmfunc_workqueue(void);
struct zs_mm_watch *zs_mm_watch(struct kvm *kvm, void (*ended)(void *), void *context);
void zs_mm_unwatch(struct zs_mm_watch *watch);
int zs_pin(unsigned long address, unsigned long count, struct page **pages);
void zs_unpin(struct page **pages, unsigned long count, struct mm_struct *mm);
struct mm_struct *zs_mm_grab(void);
u64 zs_page_physical(struct page *page);
void *zs_page_address(struct page *page);
void *zs_physical_address(u64 physical);

struct kvm *zs_vcpu_kvm(struct kvm_vcpu *vcpu)
{
	return vcpu->kvm;
}

u32 zs_vcpu_index(struct kvm_vcpu *vcpu)
{
	return vcpu->vcpu_idx;
}

/* In SMM, or in a guest of its own: KVM uses other roots for both. */
bool zs_vcpu_is_elsewhere(struct kvm_vcpu *vcpu)
{
	u32 elsewhere = HF_GUEST_MASK;

#ifdef CONFIG_KVM_SMM
	elsewhere |= HF_SMM_MASK;
#endif
	return vcpu->arch.hflags & elsewhere;
}

/* Moves with each flush that KVM does for this vCPU alone, before it enters. */
u64 zs_vcpu_flushes(struct kvm_vcpu *vcpu)
{
	return vcpu->stat.tlb_flush;
}

/* KVM has written RIP since the exit: it emulated or skipped an instruction, or was told to. */
bool zs_vcpu_was_moved(struct kvm_vcpu *vcpu)
{
	return test_bit(VCPU_REG_RIP, vcpu->arch.regs_dirty);
}

int zs_probes_register(void *entry, void *exit)
{
	int error = tracepoint_probe_register(&__tracepoint_kvm_entry, entry, NULL);

	if (error)
		return error;
	error = tracepoint_probe_register(&__tracepoint_kvm_exit, exit, NULL);
	if (error) {
		tracepoint_probe_unregister(&__tracepoint_kvm_entry, entry, NULL);
		tracepoint_synchronize_unregister();
	}
	return error;
}

/* Afterwards no probe runs. */
void zs_probes_unregister(void *entry, void *exit)
{
	tracepoint_probe_unregister(&__tracepoint_kvm_entry, entry, NULL);
	tracepoint_probe_unregister(&__tracepoint_kvm_exit, exit, NULL);
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
 * The VM behind a file descriptor, with a reference. file_is_kvm() is for KVM's own modules only,
 * so the file is known by what kvm_intel makes: an anonymous inode of this name, whose operations
 * belong to that module (virt/kvm/kvm_main.c, kvm_init and kvm_dev_ioctl_create_vm).
 */
struct kvm *zs_kvm_get(int fd, int *error, const char **why)
{
	struct file *file = fget(fd);
	struct module *owner;
	struct kvm *kvm = NULL;

	*why = NULL;
	*error = -EBADF;
	if (!file)
		return NULL;
	*error = -EINVAL;
	owner = file->f_op->owner;
	if (file_inode(file)->i_sb->s_magic != ANON_INODE_FS_MAGIC ||
	    strcmp(file->f_path.dentry->d_name.name, "kvm-vm"))
		goto out;
	*error = -EOPNOTSUPP;
	if (!owner || strcmp(owner->name, "kvm_intel")) {
		*why = "the VM is not one of the module kvm_intel (another processor, or KVM is built into the kernel)";
		goto out;
	}
	kvm = file->private_data;
	if (zs_parameter(owner, "nested", true)) {
		*why = "kvm_intel lets guests use VMX, and then a VMFUNC exit of a guest warns in the host: load it with nested=0";
		kvm = NULL;
	} else if (hypervisor_is_type(X86_HYPER_MS_HYPERV)) {
		/* Enlightened VMCS, and remote flushes of KVM's own tables only. */
		*why = "this host is a guest of Hyper-V, by which KVM flushes its own tables only: use another host";
		kvm = NULL;
	} else if (!kvm->arch.tdp_mmu_roots.next) {
		/* Its shadow MMU frees tables below a root that stays. Set by kvm_mmu_init_tdp_mmu(). */
		*why = "kvm runs without the TDP MMU: load it with tdp_mmu=1";
		kvm = NULL;
	} else if (!zs_has_vmfunc()) {
		*why = "this processor has no EPTP switching (VMFUNC leaf 0), or the hypervisor below hides it";
		kvm = NULL;
	} else if (!zs_parameter(owner, "ept", true)) {
		*why = "kvm_intel runs without EPT: load it with ept=1";
		kvm = NULL;
	} else if (kvm->arch.vm_type != KVM_X86_DEFAULT_VM) {
		*why = "the VM is of a protected type, whose tables are not the host's to change";
		kvm = NULL;
	} else if (!kvm_get_kvm_safe(kvm)) {
		*why = "the VM is ending";
		kvm = NULL;
	}
out:
	fput(file);
	return kvm;
}

void zs_kvm_put(struct kvm *kvm)
{
	kvm_put_kvm(kvm);
}

u32 zs_kvm_vcpus(struct kvm *kvm)
{
	return atomic_read(&kvm->online_vcpus);
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
	 * What it has cached it does not use before KVM brings it back, and then KVM flushes all
	 * contexts (vmx_enable_virtualization_cpu).
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

struct workqueue_struct *zs_vmfunc_workqueue(void)
{
	return alloc_workqueue("vmfunc_view", WQ_UNBOUND, 0);
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

u64 zs_page_physical(struct page *page)
{
	return page_to_phys(page);
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
