//! Compiling components, and the compiled code that is kept in memory.
//!
//! Invariant: compiling while the gateway serves uses threads of low priority, so that requests go
//! first.

use std::num::NonZeroUsize;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use lru::LruCache;
use rayon::{ThreadPool, ThreadPoolBuilder};
use wasmtime::component::Component;

use super::cache::CompiledCodeCache;
use crate::platform::lower_thread_priority;

/// The components whose compiled code stays in memory even if no policy uses them.
// Evaluated at compile time: 16 is not 0.
const COMPILED_MAX: NonZeroUsize = NonZeroUsize::new(16).unwrap();

/// The SHA-256 of a component.
pub(crate) type ComponentDigest = [u8; 32];

/// How a component is compiled relative to other work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CompilePriority {
    /// The gateway starts and does not serve requests yet: compile at normal priority.
    Startup,
    /// The gateway serves requests: compile behind them.
    Background,
}

/// Compiles components, each once.
pub(super) struct ComponentCompiler {
    engine: wasmtime::Engine,
    compiled: Mutex<LruCache<ComponentDigest, Component>>,
}

impl ComponentCompiler {
    pub(super) fn new(engine: &wasmtime::Engine) -> Self {
        Self {
            engine: engine.clone(),
            compiled: Mutex::new(LruCache::new(COMPILED_MAX)),
        }
    }

    /// Returns the compiled code of the component `bytes`: from memory, from `cache`, or by
    /// compiling it.
    pub(super) fn compile(
        &self,
        digest: ComponentDigest,
        bytes: &[u8],
        priority: CompilePriority,
        cache: Option<&CompiledCodeCache>,
    ) -> wasmtime::Result<Component> {
        if let Some(component) = self.compiled().get(&digest) {
            return Ok(component.clone());
        }
        let cached = cache.and_then(|cache| cache.load(&self.engine, &digest));
        let component = match cached {
            Some(component) => component,
            None => self.compile_and_store(digest, bytes, priority, cache)?,
        };
        self.compiled().put(digest, component.clone());
        Ok(component)
    }

    fn compile_and_store(
        &self,
        digest: ComponentDigest,
        bytes: &[u8],
        priority: CompilePriority,
        cache: Option<&CompiledCodeCache>,
    ) -> wasmtime::Result<Component> {
        let background = match priority {
            CompilePriority::Background => BACKGROUND.as_ref(),
            CompilePriority::Startup => None,
        };
        let compile = || Component::from_binary(&self.engine, bytes);
        let component = match background {
            Some(threads) => threads.install(compile)?,
            None => compile()?,
        };
        if let Some(cache) = cache.cloned() {
            let (engine, component) = (self.engine.clone(), component.clone());
            let store = move || cache.store(&engine, &digest, &component);
            match background {
                // The component can be used before its code is on disk.
                Some(threads) => threads.spawn(store),
                None => store(),
            }
        }
        Ok(component)
    }

    fn compiled(&self) -> MutexGuard<'_, LruCache<ComponentDigest, Component>> {
        self.compiled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The threads that compile while the gateway serves: one per processor, so that a new component is
/// ready soon, and all of low priority. If they cannot be started, the calling thread compiles.
static BACKGROUND: LazyLock<Option<ThreadPool>> = LazyLock::new(|| {
    // `install` passes a panic to its caller. A spawned job has no caller, and without this handler
    // its panic would abort the process.
    let report_panic = |_| tracing::error!("storing compiled code panicked");
    ThreadPoolBuilder::new()
        .thread_name(|_| "policy-compile".to_owned())
        .start_handler(|_| lower_thread_priority())
        .panic_handler(report_panic)
        .build()
        .ok()
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panicking_background_job_leaves_the_other_threads_running() {
        let threads = BACKGROUND.as_ref().expect("the threads start");
        let (started, starts) = std::sync::mpsc::channel();
        threads.spawn(move || {
            started.send(()).expect("the test waits");
            panic!("on purpose");
        });
        starts.recv().expect("the job runs");
        let results = threads.broadcast(|_| 7);
        assert_eq!(results, vec![7; threads.current_num_threads()]);
    }
}
