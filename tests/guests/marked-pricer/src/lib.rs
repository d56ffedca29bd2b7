//! A pricer whose price and conduct stand in its own bytes: a test changes them there, and has another component of
//! another digest without building one. A request that names no service only tries it.

use tollgate_policy::{Counts, NoConfig, Price, Pricer, Request};

/// Its price in nano-dollars for any usage, and its conduct.
static MARK: [u8; 29] = *b"TOLLGATE-MARK-0000000001-fine";

/// Where the price begins, and where it ends.
const PRICE: std::ops::Range<usize> = 14..24;
const CONDUCT: std::ops::Range<usize> = 25..29;

const BURN_STEPS: u32 = 1_200_000;

struct Marked {
    price: u64,
    conduct: [u8; 4],
}

impl Pricer for Marked {
    type Config = NoConfig;

    const STRINGS: &'static [&'static str] = &["service", "user"];

    fn new(_: NoConfig) -> Result<Self, String> {
        // The compiler must not know what stands there: somebody else will write it.
        let mark = std::hint::black_box(&MARK);
        let price = mark[PRICE]
            .iter()
            .fold(0, |price, digit| price * 10 + u64::from(digit - b'0'));
        let mut conduct = [0; 4];
        conduct.copy_from_slice(&mark[CONDUCT]);
        match &conduct {
            b"conf" => Err("no configuration is to my taste".to_owned()),
            b"pnew" => panic!("in new"),
            _ => Ok(Self { price, conduct }),
        }
    }

    fn price(&self, request: &Request, _: &Counts) -> Result<Price, String> {
        let (service, user) = (request.string(0), request.string(1));
        match &self.conduct {
            b"ptry" if service.is_empty() => panic!("when tried"),
            b"trap" if !service.is_empty() => panic!("my own words"),
            // For this user alone.
            b"pbob" if user == "bob" => panic!("not for bob"),
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

/// About two milliseconds: each step needs the one before it.
fn burn() {
    let mut mixed = std::hint::black_box(1_u64);
    for _ in 0..BURN_STEPS {
        mixed = mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(13) ^ 1;
    }
    std::hint::black_box(mixed);
}

tollgate_policy::export_pricer!(Marked);
