//! The components of `tests/guests`, built at their first use, and variants made by changing their
//! bytes.

use std::path::PathBuf;
use std::sync::OnceLock;

use crate::policies::component::component;

/// Marks the price and the conduct in the bytes of `marked-pricer`.
const MARK: &str = "TOLLGATE-MARK-";

/// What a marked pricer does besides naming its price.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conduct {
    /// It prices every request.
    Fine,
    /// It refuses its configuration.
    RefusesConfig,
    /// It panics when it is configured.
    PanicsInConfigure,
    /// It panics in the self-test.
    PanicsWhenTried,
    /// It panics for every request.
    Panics,
    /// It panics for requests of the user `bob`.
    PanicsForBob,
    /// It takes about two milliseconds for a call.
    Burns,
    /// It does that for requests alone, and not in the self-test.
    BurnsForRequests,
}

impl Conduct {
    fn word(self) -> &'static str {
        match self {
            Self::Fine => "fine",
            Self::RefusesConfig => "conf",
            Self::PanicsInConfigure => "pnew",
            Self::PanicsWhenTried => "ptry",
            Self::Panics => "trap",
            Self::PanicsForBob => "pbob",
            Self::Burns => "burn",
            Self::BurnsForRequests => "bsrv",
        }
    }
}

/// Returns the component of a crate of `tests/guests`.
///
/// # Panics
/// Panics if it cannot be built.
pub fn guest(name: &str) -> PathBuf {
    component(name)
}

/// Returns a pricer whose price is `nanousd` for any usage: a different component for each price
/// and conduct.
///
/// # Panics
/// Panics if it cannot be built.
pub fn marked_pricer(nanousd: u64, conduct: Conduct) -> Vec<u8> {
    static BUILT: OnceLock<(Vec<u8>, usize)> = OnceLock::new();
    let (bytes, place) = BUILT.get_or_init(|| {
        let bytes = std::fs::read(guest("marked-pricer")).expect("it was built");
        let places: Vec<usize> = (0..bytes.len())
            .filter(|place| bytes[*place..].starts_with(MARK.as_bytes()))
            .collect();
        assert_eq!(places.len(), 1, "the mark stands once in the component");
        (bytes, places[0])
    });
    let mark = format!("{MARK}{nanousd:010}-{}", conduct.word());
    let mut marked = bytes.clone();
    marked[*place..*place + mark.len()].copy_from_slice(mark.as_bytes());
    marked
}
