//! Parts of one task that are polled only when they themselves were woken.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

/// A part of a task, with a waker.
pub(super) struct WakeablePart {
    woken: Arc<WakeFlag>,
    waker: Waker,
}

struct WakeFlag {
    is_set: AtomicBool,
    task: Waker,
}

impl Wake for WakeFlag {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.is_set.swap(true, Ordering::AcqRel) {
            self.task.wake_by_ref();
        }
    }
}

impl WakeablePart {
    /// Creates a part of the task that `cx` belongs to. Its first poll always happens.
    pub(super) fn of(cx: &Context<'_>) -> Self {
        let woken = Arc::new(WakeFlag {
            is_set: AtomicBool::new(true),
            task: cx.waker().clone(),
        });
        Self {
            waker: Arc::clone(&woken).into(),
            woken,
        }
    }

    /// Wakes the part after a change that none of its wakers reports.
    pub(super) fn touch(&self) {
        self.woken.is_set.store(true, Ordering::Release);
    }

    /// Polls the part if it was woken since the last poll.
    pub(super) fn poll<T>(
        &mut self,
        cx: &Context<'_>,
        poll: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        if !self.woken.task.will_wake(cx.waker()) {
            *self = Self::of(cx);
        }
        if self.woken.is_set.load(Ordering::Relaxed)
            && self.woken.is_set.swap(false, Ordering::AcqRel)
        {
            poll(&mut Context::from_waker(&self.waker))
        } else {
            Poll::Pending
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts how often it was woken.
    #[derive(Default)]
    struct WakeCount(std::sync::atomic::AtomicUsize);

    impl Wake for WakeCount {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Polls `part` and returns the waker that it was polled with.
    fn polled(part: &mut WakeablePart, task: &Waker) -> Option<Waker> {
        let polled = part.poll(&Context::from_waker(task), |cx| {
            Poll::Ready(cx.waker().clone())
        });
        if let Poll::Ready(waker) = polled {
            Some(waker)
        } else {
            None
        }
    }

    #[test]
    fn each_is_polled_when_it_was_woken() {
        let count = Arc::new(WakeCount::default());
        let task = Waker::from(Arc::clone(&count));
        let mut parts = [
            WakeablePart::of(&Context::from_waker(&task)),
            WakeablePart::of(&Context::from_waker(&task)),
        ];
        let wakers = parts
            .each_mut()
            .map(|part| polled(part, &task).expect("polled at first"));
        assert!(
            parts.iter_mut().all(|part| polled(part, &task).is_none()),
            "neither was woken"
        );
        wakers[1].wake_by_ref();
        wakers[1].wake_by_ref();
        assert_eq!(count.0.load(Ordering::Relaxed), 1, "the task is woken once");
        let polled = parts.each_mut().map(|part| polled(part, &task).is_some());
        assert_eq!(polled, [false, true]);
    }

    #[test]
    fn a_part_that_moved_to_another_task_wakes_the_new_one() {
        let (before, after) = (
            Arc::new(WakeCount::default()),
            Arc::new(WakeCount::default()),
        );
        let task = Waker::from(Arc::clone(&before));
        let mut part = WakeablePart::of(&Context::from_waker(&task));
        polled(&mut part, &task).expect("polled at first");
        let task = Waker::from(Arc::clone(&after));
        polled(&mut part, &task).expect("polled again").wake();
        let counts = [before, after].map(|count| count.0.load(Ordering::Relaxed));
        assert_eq!(counts, [0, 1]);
    }
}
