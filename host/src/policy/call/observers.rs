//! The observers of a policy's calls: its recorder and its shadow, if it has
//! them.

use std::sync::{Arc, PoisonError, RwLock};

use super::comparison::PolicyShadow;
use super::recorded::RecordedCall;
use super::recorder::CallRecorder;

#[derive(Default)]
pub(crate) struct CallObservers {
    recorder: Option<CallRecorder>,
    shadow: RwLock<Option<Arc<PolicyShadow>>>,
}

impl CallObservers {
    pub(crate) fn new(recorder: Option<CallRecorder>) -> Self {
        Self {
            recorder,
            shadow: RwLock::default(),
        }
    }

    /// Passes a call to the observers. `call` is evaluated only if there are any.
    pub(crate) fn observe(&self, call: impl FnOnce() -> RecordedCall) {
        let shadow = self.shadow();
        if self.recorder.is_none() && shadow.is_none() {
            return;
        }
        let call = Arc::new(call());
        if let Some(recorder) = &self.recorder {
            recorder.record(&call);
        }
        if let Some(shadow) = shadow {
            shadow.compare(&call);
        }
    }

    /// Returns the number of calls that could not be recorded because the disk was too slow.
    pub(crate) fn unrecorded(&self) -> u64 {
        self.recorder.as_ref().map_or(0, CallRecorder::left_out)
    }

    pub(crate) fn shadow(&self) -> Option<Arc<PolicyShadow>> {
        self.shadow
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn set_shadow(&self, shadow: Option<Arc<PolicyShadow>>) {
        *self.shadow.write().unwrap_or_else(PoisonError::into_inner) = shadow;
    }
}
