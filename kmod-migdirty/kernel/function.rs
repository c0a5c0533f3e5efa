// SPDX-License-Identifier: GPL-2.0-only

//! A function that a card manages: who owns it, what is known of it, and its operations in order.
//!
//! Made when somebody first asks for it, kept by its card until that is unbound. What the operations
//! do is in `operations.rs`, `harvest.rs` and `state.rs`; here is everything that is not a command:
//! ownership, and the news that the card is lost. Must never hold a lock while an owner is called.

use crate::{
    abi::operation,
    card::Card,
    common::{pci_driver::Address, work},
    dirty::Dirty,
    operations::Protocol,
    registry,
    sys::backend::{FrontEnd, QueuedRequest},
    uapi::{
        MigdirtyFunctionInfo, MIGDIRTY_FUNCTION_LIVE, MIGDIRTY_FUNCTION_LOGGING,
        MIGDIRTY_FUNCTION_LOG_LOST, MIGDIRTY_FUNCTION_OWNED_BY_TOOL,
        MIGDIRTY_FUNCTION_OWNED_BY_VFIO, MIGDIRTY_FUNCTION_SUSPENDED,
    },
};
use kernel::{
    impl_has_work, new_spinlock, new_work,
    prelude::*,
    sync::{
        lock::{mutex::MutexBackend, Guard},
        new_condvar, new_mutex, Arc, CondVar, Mutex, SpinLock,
    },
    workqueue::{Work, WorkItem},
};

/// Operations of one function that may wait, and how many of these places only the news of a reset
/// may take: it must not be lost because others ask too much.
const QUEUED: usize = 10;
const KEPT_FOR_RESETS: usize = 2;

/// A function that a card manages.
#[pin_data]
pub(crate) struct Function {
    card: Arc<Card>,
    address: Address,
    controller: u16,
    #[pin]
    owner: Mutex<Owner>,
    /// An owner was told that the card is lost.
    #[pin]
    told: CondVar,
    /// What the card was told. Held over commands: operations of a function come one after another.
    #[pin]
    pub(crate) protocol: Mutex<Protocol>,
    /// What was harvested. Never held over a command.
    #[pin]
    pub(crate) dirty: Mutex<Dirty>,
    /// What can be said at any time.
    #[pin]
    status: SpinLock<Status>,
    #[pin]
    queue: SpinLock<Queue>,
    #[pin]
    work: Work<Self>,
}

impl_has_work! {
    impl HasWork<Self> for Function { self.work }
}

/// Who may give orders.
enum Owner {
    Nobody,
    /// Tools: so many calls are under way, and whether they left something behind.
    Tools {
        calls: u32,
        holds: bool,
    },
    /// A front end.
    FrontEnd {
        front_end: FrontEnd,
        news: News,
    },
    /// A front end that is giving it back.
    Leaving,
}

type OwnerGuard<'a> = Guard<'a, Owner, MutexBackend>;

/// Whether a front end knows that the card is lost.
#[derive(Clone, Copy, PartialEq, Eq)]
enum News {
    None,
    /// It is being told.
    Telling,
    Told,
}

/// What is known of a function without asking the card. Counters wrap.
#[derive(Clone, Copy, Default)]
pub(crate) struct Status {
    pub(crate) suspended: bool,
    pub(crate) logging: bool,
    pub(crate) lost: bool,
    /// Ranges that are tracked, after joining.
    pub(crate) ranges: u32,
    /// Bytes, 0 without a log.
    pub(crate) granule: u64,
    pub(crate) suspends: u64,
    pub(crate) resumes: u64,
    pub(crate) harvests: u64,
    pub(crate) dirty_bytes: u64,
    pub(crate) states_read: u64,
    pub(crate) states_written: u64,
}

/// Operations of a front end, in the order in which they came.
struct Queue {
    waiting: [Option<QueuedRequest>; QUEUED],
    first: usize,
    count: usize,
    /// Places that a batch has, which is not there yet.
    reserved: usize,
}

impl Function {
    /// A function that nobody owns.
    pub(crate) fn new(card: Arc<Card>, address: Address, controller: u16) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                card,
                address,
                controller,
                owner <- new_mutex!(Owner::Nobody, "Function::owner"),
                told <- new_condvar!("Function::told"),
                protocol <- new_mutex!(Protocol::new(), "Function::protocol"),
                dirty <- new_mutex!(Dirty::new(), "Function::dirty"),
                status <- new_spinlock!(Status::default(), "Function::status"),
                queue <- new_spinlock!(
                    Queue {
                        waiting: [const { None }; QUEUED],
                        first: 0,
                        count: 0,
                        reserved: 0,
                    },
                    "Function::queue"
                ),
                work <- new_work!("Function::work"),
            }),
            GFP_KERNEL,
        )
    }

    /// The card that manages it.
    pub(crate) fn card(&self) -> &Arc<Card> {
        &self.card
    }

    /// Where it is.
    pub(crate) fn address(&self) -> Address {
        self.address
    }

    /// Its controller id (CNTLID).
    pub(crate) fn controller(&self) -> u16 {
        self.controller
    }

    /// Whether nobody owns it.
    pub(crate) fn is_idle(&self) -> bool {
        matches!(*self.owner.lock(), Owner::Nobody)
    }

    /// Changes what is known of it.
    pub(crate) fn note(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.status.lock());
    }

    /// Describes it. Asks nobody and waits for nothing.
    pub(crate) fn describe(&self) -> MigdirtyFunctionInfo {
        let status = *self.status.lock();
        let mut flags = match *self.owner.lock() {
            // Of a card that was bound anew, while a front end has it from before.
            Owner::Nobody if registry::is_claimed(self.address) => MIGDIRTY_FUNCTION_OWNED_BY_VFIO,
            Owner::Nobody => 0,
            Owner::Tools { .. } => MIGDIRTY_FUNCTION_OWNED_BY_TOOL,
            Owner::FrontEnd { .. } | Owner::Leaving => MIGDIRTY_FUNCTION_OWNED_BY_VFIO,
        };
        for (is, flag) in [
            (self.card.is_live(), MIGDIRTY_FUNCTION_LIVE),
            (status.suspended, MIGDIRTY_FUNCTION_SUSPENDED),
            (status.logging, MIGDIRTY_FUNCTION_LOGGING),
            (status.lost, MIGDIRTY_FUNCTION_LOG_LOST),
        ] {
            if is {
                flags |= flag;
            }
        }
        MigdirtyFunctionInfo {
            flags,
            address: self.address.0,
            card: self.card.address().0,
            controller_id: self.controller,
            ranges: status.ranges,
            granule: status.granule,
            suspends: status.suspends,
            resumes: status.resumes,
            harvests: status.harvests,
            dirty_bytes: status.dirty_bytes,
            states_read: status.states_read,
            states_written: status.states_written,
            ..MigdirtyFunctionInfo::ZERO
        }
    }

    /// Makes a front end its owner. `EBUSY` when it has one.
    pub(crate) fn claim(&self, front_end: FrontEnd) -> Result {
        registry::claim(self.address)?;
        let mut owner = self.owner.lock();
        if let Owner::Nobody = *owner {
            *owner = Owner::FrontEnd {
                front_end,
                news: News::None,
            };
            return Ok(());
        }
        drop(owner);
        registry::unclaim(self.address);
        Err(EBUSY)
    }

    /// Takes it back from a front end: nothing of it runs any more when this returns, the log has
    /// ended and the function runs, as far as the card does what it is told.
    pub(crate) fn release(&self) {
        *self.wait_until_told(self.owner.lock()) = Owner::Leaving;
        self.end_everything();
        *self.owner.lock() = Owner::Nobody;
        registry::unclaim(self.address);
        // The last operation has told its owner, and may still be on its way back from there.
        work::flush(&self.work);
    }

    /// A tool gives an order. `EBUSY` when a front end owns the function, `ENODEV` when the card does
    /// not know it any more.
    pub(crate) fn enter(&self) -> Result<ToolCall<'_>> {
        let mut owner = self.owner.lock();
        if registry::is_claimed(self.address) {
            return Err(EBUSY);
        }
        match &mut *owner {
            Owner::Nobody => {
                *owner = Owner::Tools {
                    calls: 1,
                    holds: false,
                };
            }
            Owner::Tools { calls, .. } => *calls = calls.saturating_add(1),
            Owner::FrontEnd { .. } | Owner::Leaving => return Err(EBUSY),
        }
        drop(owner);
        let call = ToolCall { function: self };
        match self.card.holds(self) {
            true => Ok(call),
            false => Err(ENODEV),
        }
    }

    /// The card is lost: tells the owner, once. Returns when it was told, by whomever.
    pub(crate) fn tell_owner(&self) {
        let mut owner = self.owner.lock();
        if let Owner::FrontEnd { front_end, news } = &mut *owner {
            if *news == News::None {
                let front_end = *front_end;
                *news = News::Telling;
                drop(owner);
                front_end.tell();
                owner = self.owner.lock();
                if let Owner::FrontEnd { news, .. } = &mut *owner {
                    *news = News::Told;
                }
                self.told.notify_all();
            }
        }
        drop(self.wait_until_told(owner));
    }

    /// Waits until nobody tells a front end that the card is lost; returns with the lock held.
    fn wait_until_told<'a>(&self, mut owner: OwnerGuard<'a>) -> OwnerGuard<'a> {
        while matches!(
            *owner,
            Owner::FrontEnd {
                news: News::Telling,
                ..
            }
        ) {
            self.told.wait(&mut owner);
        }
        owner
    }

    /// The card is lost: nothing is suspended any more, and a log is lost. Waits for the operation
    /// under way, which fails by itself.
    pub(crate) fn card_lost(&self) {
        self.forget_card();
        self.settle_tools();
    }

    /// Notes whether tools have left something behind.
    pub(crate) fn settle_tools(&self) {
        let mut owner = self.owner.lock();
        // Under the owner's lock: who leaves later knows more.
        let Status {
            suspended, logging, ..
        } = *self.status.lock();
        if let Owner::Tools { calls, holds } = &mut *owner {
            *holds = suspended || logging;
            if *calls == 0 && !*holds {
                *owner = Owner::Nobody;
            }
        }
    }

    /// Reserves a place for an operation. `EBUSY` when too many wait.
    pub(crate) fn reserve(&self, operation: u32) -> Result {
        let places = match operation {
            operation::WAS_RESET => QUEUED,
            _ => QUEUED - KEPT_FOR_RESETS,
        };
        let mut queue = self.queue.lock();
        if queue.count.saturating_add(queue.reserved) >= places {
            return Err(EBUSY);
        }
        queue.reserved += 1;
        Ok(())
    }

    /// Gives a reserved place back.
    pub(crate) fn unreserve(&self) {
        let mut queue = self.queue.lock();
        queue.reserved = queue.reserved.saturating_sub(1);
    }

    /// Puts an operation into a reserved place; it runs when those before it have ended.
    pub(crate) fn enqueue(this: &Arc<Self>, request: QueuedRequest) {
        let mut queue = this.queue.lock();
        queue.reserved = queue.reserved.saturating_sub(1);
        let at = (queue.first + queue.count) % QUEUED;
        if let Some(place) = queue.waiting.get_mut(at) {
            *place = Some(request);
        }
        queue.count += 1;
        drop(queue);
        work::enqueue(this.clone());
    }

    fn dequeue(&self) -> Option<QueuedRequest> {
        let mut queue = self.queue.lock();
        let at = queue.first;
        let request = queue.waiting.get_mut(at)?.take()?;
        queue.first = (at + 1) % QUEUED;
        queue.count = queue.count.saturating_sub(1);
        Some(request)
    }
}

impl WorkItem for Function {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        while let Some(request) = this.dequeue() {
            request.perform(&this);
        }
    }
}

/// A tool's order that is being carried out: nobody else can become the owner.
pub(crate) struct ToolCall<'a> {
    function: &'a Function,
}

impl Drop for ToolCall<'_> {
    fn drop(&mut self) {
        if let Owner::Tools { calls, .. } = &mut *self.function.owner.lock() {
            *calls = calls.saturating_sub(1);
        }
        self.function.settle_tools();
    }
}
