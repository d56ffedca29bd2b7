//! The code behind the export macros: adapts an author's type to the exports of a component.

use std::cell::OnceCell;

use crate::balancer::{Balancer, Candidates, PoolLayout, Weights};
use crate::bindings::balancer::exports::tollgate::policy::balancer as balancer_world;
use crate::bindings::lifecycle::tollgate::policy::types;
use crate::bindings::pricer::exports::tollgate::policy::pricer as pricer_world;
use crate::config;
use crate::pricer::{Pricer, TokenColumns};
use crate::request::Request;
use crate::rewriter::{Edit, Headers, Refusal, Rewriter};

/// The error of a call before `configure`, which is a violation of the contract by the host.
const NOT_CONFIGURED: &str = "called before configure";

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn diagnostic(message: String) -> Vec<types::Diagnostic> {
    vec![types::Diagnostic {
        pointer: String::new(),
        message,
    }]
}

/// Compiles only for a balancer. Native builds, which export nothing, still check the macro's
/// argument.
pub fn is_balancer<P: Balancer>() {}
/// Compiles only for a rewriter; see [`is_balancer`].
pub fn is_rewriter<P: Rewriter>() {}
/// Compiles only for a pricer; see [`is_balancer`].
pub fn is_pricer<P: Pricer>() {}

/// A configured instance of an author's type, with the pool or columns that the host passed to it
/// last.
pub struct ConfiguredPolicy<P, Known> {
    policy: OnceCell<P>,
    weights: OnceCell<Weights>,
    known: std::cell::RefCell<Known>,
}

impl<P, Known: Default> Default for ConfiguredPolicy<P, Known> {
    fn default() -> Self {
        Self {
            policy: OnceCell::new(),
            weights: OnceCell::new(),
            known: Default::default(),
        }
    }
}

impl<P, Known> ConfiguredPolicy<P, Known> {
    fn set_policy(&self, created: Result<P, String>) -> Result<(), Vec<types::Diagnostic>> {
        let policy = created.map_err(diagnostic)?;
        self.policy
            .set(policy)
            .map_err(|_| diagnostic("configured twice".to_owned()))
    }
}

/// The instance of a balancer, with its pool.
pub type BalancerInstance<P> = ConfiguredPolicy<P, PoolLayout>;
/// The instance of a rewriter.
pub type RewriterInstance<P> = ConfiguredPolicy<P, ()>;
/// The instance of a pricer, with the positions of its columns.
pub type PricerInstance<P> = ConfiguredPolicy<P, TokenColumns>;

impl<P: Balancer> ConfiguredPolicy<P, PoolLayout> {
    /// Implements `describe` of the interface `lifecycle`.
    pub fn describe(name: &str, version: &str) -> types::Manifest {
        types::Manifest {
            name: name.to_owned(),
            version: version.to_owned(),
            config_schema: config::schema::<P::Config>(),
            strings: owned(P::STRINGS),
            request_headers: Vec::new(),
            response_headers: Vec::new(),
        }
    }

    /// Implements `configure` of the interface `lifecycle`.
    pub fn configure(&self, text: &str) -> Result<(), Vec<types::Diagnostic>> {
        let mut weights = Weights::default();
        let created = config::parse(text).and_then(|config| P::new(config, &mut weights));
        self.set_policy(created)?;
        let _ = self.weights.set(weights);
        Ok(())
    }

    /// Implements `members` of the interface `balancer`.
    pub fn members(&self, columns: Vec<String>, members: Vec<balancer_world::Member>) -> Vec<f64> {
        let members = members
            .into_iter()
            .map(|member| (member.tag, member.plan))
            .collect();
        let pool = PoolLayout::new(
            &columns,
            members,
            self.weights.get_or_init(Weights::default),
        );
        let weights = pool.weights();
        *self.known.borrow_mut() = pool;
        weights
    }

    /// Implements `pick` of the interface `balancer`.
    pub fn pick(
        &self,
        request: types::Request,
        table: &[f64],
        home: i32,
    ) -> Result<balancer_world::Decision, String> {
        let policy = self.policy.get().ok_or(NOT_CONFIGURED)?;
        let pool = self.known.borrow();
        let candidates = Candidates::new(&pool, table, home)?;
        let decision = policy.pick(&Request::from(request), &candidates);
        Ok(balancer_world::Decision {
            member: decision.member.map_or(-1, |member| member as i32),
            move_home: decision.move_home,
            reason: decision.reason,
        })
    }
}

impl<P: Rewriter> ConfiguredPolicy<P, ()> {
    /// Implements `describe` of the interface `lifecycle`.
    pub fn describe(name: &str, version: &str) -> types::Manifest {
        types::Manifest {
            name: name.to_owned(),
            version: version.to_owned(),
            config_schema: config::schema::<P::Config>(),
            strings: owned(P::STRINGS),
            request_headers: owned(P::REQUEST_HEADERS),
            response_headers: owned(P::RESPONSE_HEADERS),
        }
    }

    /// Implements `configure` of the interface `lifecycle`.
    pub fn configure(&self, text: &str) -> Result<(), Vec<types::Diagnostic>> {
        self.set_policy(config::parse(text).and_then(P::new))
    }

    /// Implements `rewrite-request` of the interface `rewriter`.
    pub fn request(
        &self,
        request: types::Request,
        headers: Vec<types::Header>,
    ) -> Result<Vec<Edit>, Refusal> {
        let Some(policy) = self.policy.get() else {
            return Err(Refusal {
                status: 500,
                message: NOT_CONFIGURED.to_owned(),
            });
        };
        policy.request(&Request::from(request), &Headers::new(headers))
    }

    /// Implements `rewrite-response` of the interface `rewriter`.
    pub fn response(
        &self,
        request: types::Request,
        status: u32,
        headers: Vec<types::Header>,
    ) -> Result<Vec<Edit>, String> {
        let policy = self.policy.get().ok_or(NOT_CONFIGURED)?;
        let status =
            u16::try_from(status).map_err(|_| format!("status {status}: expected 100 to 999"))?;
        policy.response(&Request::from(request), status, &Headers::new(headers))
    }
}

impl<P: Pricer> ConfiguredPolicy<P, TokenColumns> {
    /// Implements `describe` of the interface `lifecycle`.
    pub fn describe(name: &str, version: &str) -> types::Manifest {
        types::Manifest {
            name: name.to_owned(),
            version: version.to_owned(),
            config_schema: config::schema::<P::Config>(),
            strings: owned(P::STRINGS),
            request_headers: Vec::new(),
            response_headers: Vec::new(),
        }
    }

    /// Implements `configure` of the interface `lifecycle`.
    pub fn configure(&self, text: &str) -> Result<(), Vec<types::Diagnostic>> {
        self.set_policy(config::parse(text).and_then(P::new))
    }

    /// Implements `columns` of the interface `pricer`.
    pub fn columns(&self, columns: &[String]) {
        *self.known.borrow_mut() = TokenColumns::new(columns);
    }

    /// Implements `price` of the interface `pricer`.
    pub fn price(
        &self,
        request: types::Request,
        counts: &[f64],
    ) -> Result<pricer_world::Quote, String> {
        let policy = self.policy.get().ok_or(NOT_CONFIGURED)?;
        let columns = self.known.borrow();
        let price = policy.price(&Request::from(request), &columns.counts(counts))?;
        Ok(pricer_world::Quote {
            by_kind: columns.by_kind(&price),
            total: price.total() as f64,
            context_window: price.context_window as f64,
        })
    }
}

/// Exports `lifecycle` for a component whose instance is of type `$instance`.
#[doc(hidden)]
#[macro_export]
macro_rules! __export_lifecycle {
    ($instance:ident) => {
        use $crate::bindings::lifecycle as lifecycle_part;
        use lifecycle_part::exports::tollgate::policy::lifecycle;
        use lifecycle_part::tollgate::policy::types;

        std::thread_local! { static INSTANCE: $instance = $instance::default(); }

        struct Component;

        impl lifecycle::Guest for Component {
            fn describe() -> types::Manifest {
                $instance::describe(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"))
            }
            fn configure(config: String) -> Result<(), Vec<types::Diagnostic>> {
                INSTANCE.with(|instance| instance.configure(&config))
            }
        }

        lifecycle_part::export_lifecycle!(Component with_types_in lifecycle_part);
    };
}

/// Exports a [`Balancer`](crate::Balancer) as the component that the calling crate builds.
#[macro_export]
macro_rules! export_balancer {
    ($policy:ty) => {
        // Native linkers reject the names of a component's exports.
        #[cfg(target_family = "wasm")]
        const _: () = {
            use part::exports::tollgate::policy::balancer;
            use $crate::bindings::balancer as part;

            type Instance = $crate::export::BalancerInstance<$policy>;
            $crate::__export_lifecycle!(Instance);

            impl balancer::Guest for Component {
                fn members(columns: Vec<String>, members: Vec<balancer::Member>) -> Vec<f64> {
                    INSTANCE.with(|instance| instance.members(columns, members))
                }
                fn pick(
                    request: types::Request,
                    table: Vec<f64>,
                    home: i32,
                ) -> Result<balancer::Decision, String> {
                    INSTANCE.with(|instance| instance.pick(request, &table, home))
                }
            }

    part::export_balancer_part!(Component with_types_in part);
        };
        const _: fn() = $crate::export::is_balancer::<$policy>;
    };
}

/// Exports a [`Rewriter`](crate::Rewriter) as the component that the calling crate builds.
#[macro_export]
macro_rules! export_rewriter {
    ($policy:ty) => {
        // Native linkers reject the names of a component's exports.
        #[cfg(target_family = "wasm")]
        const _: () = {
            use part::exports::tollgate::policy::rewriter;
            use $crate::bindings::rewriter as part;

            type Instance = $crate::export::RewriterInstance<$policy>;
            $crate::__export_lifecycle!(Instance);

            impl rewriter::Guest for Component {
                fn rewrite_request(
                    request: types::Request,
                    headers: Vec<types::Header>,
                ) -> Result<Vec<types::Edit>, types::Refusal> {
                    INSTANCE.with(|instance| instance.request(request, headers))
                }
                fn rewrite_response(
                    request: types::Request,
                    status: u32,
                    headers: Vec<types::Header>,
                ) -> Result<Vec<types::Edit>, String> {
                    INSTANCE.with(|instance| instance.response(request, status, headers))
                }
            }

    part::export_rewriter_part!(Component with_types_in part);
        };
        const _: fn() = $crate::export::is_rewriter::<$policy>;
    };
}

/// Exports a [`Pricer`](crate::Pricer) as the component that the calling crate builds.
#[macro_export]
macro_rules! export_pricer {
    ($policy:ty) => {
        // Native linkers reject the names of a component's exports.
        #[cfg(target_family = "wasm")]
        const _: () = {
            use part::exports::tollgate::policy::pricer;
            use $crate::bindings::pricer as part;

            type Instance = $crate::export::PricerInstance<$policy>;
            $crate::__export_lifecycle!(Instance);

            impl pricer::Guest for Component {
                fn columns(columns: Vec<String>) {
                    INSTANCE.with(|instance| instance.columns(&columns));
                }
                fn price(
                    request: types::Request,
                    counts: Vec<f64>,
                ) -> Result<pricer::Quote, String> {
                    INSTANCE.with(|instance| instance.price(request, &counts))
                }
            }

    part::export_pricer_part!(Component with_types_in part);
        };
        const _: fn() = $crate::export::is_pricer::<$policy>;
    };
}
