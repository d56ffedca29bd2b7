//! A pricer whose price and behaviour are encoded in its binary. A test patches them there and so
//! gets a component with another digest without a build. The request of a self-test names no
//! service.

use tollgate_policy::{Counts, NoConfig, Price, Pricer, Request};

/// The price of any usage in nano-dollars, and the behaviour.
static MARK: [u8; 29] = *b"TOLLGATE-MARK-0000000001-fine";

/// The position of the price in [`MARK`].
const PRICE: std::ops::Range<usize> = 14..24;
const CONDUCT: std::ops::Range<usize> = 25..29;

const BURN_STEPS: u32 = 1_200_000;

struct MarkedPricer {
    price: u64,
    conduct: [u8; 4],
}

impl Pricer for MarkedPricer {
    type Config = NoConfig;

    const STRINGS: &'static [&'static str] = &["service", "user"];

    fn new(_: NoConfig) -> Result<Self, String> {
        // Prevents constant folding: tests patch the bytes after compilation.
        let mark = std::hint::black_box(&MARK);
        let price = mark[PRICE]
            .iter()
            .fold(0, |price, digit| price * 10 + u64::from(digit - b'0'));
        let mut conduct = [0; 4];
        conduct.copy_from_slice(&mark[CONDUCT]);
        match &conduct {
            b"conf" => Err("the guest rejects any configuration".to_owned()),
            b"pnew" => panic!("panic in new"),
            _ => Ok(Self { price, conduct }),
        }
    }

    fn price(&self, request: &Request, _: &Counts) -> Result<Price, String> {
        let (service, user) = (request.string(0), request.string(1));
        match &self.conduct {
            b"ptry" if service.is_empty() => panic!("panic in the self-test"),
            b"trap" if !service.is_empty() => panic!("the guest's panic message"),
            // Fails for this user only.
            b"pbob" if user == "bob" => panic!("panic for bob"),
            b"burn" => burn(),
            b"bsrv" if !service.is_empty() => burn(),
            _ => {}
        }
        Ok(Price {
            input: self.price,
            ..Price::default()
        })
    }
}

/// Takes about two milliseconds: each step depends on the one before.
fn burn() {
    let mut mixed = std::hint::black_box(1_u64);
    for _ in 0..BURN_STEPS {
        mixed = mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(13) ^ 1;
    }
    std::hint::black_box(mixed);
}

tollgate_policy::export_pricer!(MarkedPricer);
