//! Instruction sets: what a machine has, and how a generic kernel is run on one of them.
//!
//! An [`Isa`] is only a name. The capability is a lanes token (`lanes::Avx2`, `lanes::Avx512`), which can be
//! made only on a machine that has the instructions; [`Isa::run`] is the one place that turns a name into a
//! token and enters code compiled for it. Adding an instruction set: a lanes file, a variant here, an arm in
//! `run`, `is_available`, `needs` and `name`.

#[cfg(target_arch = "x86_64")]
use crate::amx::Amx;
#[cfg(target_arch = "aarch64")]
use crate::lanes::neon;
#[cfg(target_arch = "x86_64")]
use crate::lanes::{Avx2, Avx512};
use crate::lanes::{Kernel, Scalar, Simd};

/// The name of an instruction set that kernels can be run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Plain Rust on arrays of 16; runs everywhere.
    Scalar,
    /// 64-bit ARM; byte dot products of the `i8mm` or `dotprod` extension where the machine has one.
    Neon,
    /// x86-64 with AVX2 and FMA.
    Avx2,
    /// x86-64 with AVX-512 F, BW, VL, DQ and VNNI.
    Avx512Vnni,
    /// The same with AMX tiles for int8 products.
    AmxInt8,
}

impl Isa {
    /// Every name, slowest first, whether or not this machine has it.
    pub const ALL: [Isa; 5] = [Isa::Scalar, Isa::Neon, Isa::Avx2, Isa::Avx512Vnni, Isa::AmxInt8];

    /// The instruction sets of this machine, slowest first. Never empty: `Scalar` is always there.
    pub fn available() -> Vec<Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// The fastest instruction set of this machine.
    pub fn best() -> Isa {
        Isa::available().into_iter().next_back().unwrap_or(Isa::Scalar)
    }

    /// Whether this machine has it. The first call on a machine with AMX asks the operating system to let this
    /// process use tiles.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Scalar => true,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => neon::Neon::<{ neon::WIDENED }>::detect().is_some(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Avx2::detect().is_some(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => Avx512::detect().is_some(),
            #[cfg(target_arch = "x86_64")]
            Isa::AmxInt8 => Avx512::detect().is_some() && Amx::detect().is_some(),
            _ => false,
        }
    }

    /// What it asks of a machine: each feature, and whether this one has it. Empty for `Scalar`, and for an
    /// instruction set of another architecture.
    pub fn needs(self) -> Vec<(&'static str, bool)> {
        match self {
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => vec![("neon", self.is_available())],
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Avx2::needs().to_vec(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => Avx512::needs().to_vec(),
            #[cfg(target_arch = "x86_64")]
            Isa::AmxInt8 => [&Avx512::needs()[..], &Amx::needs()].concat(),
            _ => Vec::new(),
        }
    }

    /// Its tiles, if it has some and this machine has it.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    pub(crate) fn tiles(self) -> Option<Amx> {
        if self == Isa::AmxInt8 { Amx::detect() } else { None }
    }

    /// The name as [`Isa::parse`] reads it.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Neon => "neon",
            Isa::Avx2 => "avx2",
            Isa::Avx512Vnni => "avx512vnni",
            Isa::AmxInt8 => "amxint8",
        }
    }

    /// Reads a name of [`Isa::ALL`] or `auto` (the best of this machine).
    ///
    /// Errors: a sentence, for an unknown name and for one that this machine lacks.
    pub fn parse(name: &str) -> Result<Isa, String> {
        if name == "auto" {
            return Ok(Isa::best());
        }
        match Isa::ALL.into_iter().find(|isa| isa.name() == name) {
            Some(isa) if isa.is_available() => Ok(isa),
            Some(isa) => Err(isa.lacking()),
            None => {
                let names = Isa::ALL.map(Isa::name).join(", ");
                Err(format!("unknown instruction set '{name}': expected {names} or auto"))
            }
        }
    }

    /// The choice in the environment variable `QBERTA_ISA`; unset or empty means `auto`.
    ///
    /// Errors: as [`Isa::parse`], naming the variable.
    pub fn from_env() -> Result<Isa, String> {
        match std::env::var_os("QBERTA_ISA") {
            None => Ok(Isa::best()),
            Some(value) if value.is_empty() => Ok(Isa::best()),
            Some(value) => Isa::parse(&value.to_string_lossy()).map_err(|e| format!("QBERTA_ISA: {e}")),
        }
    }

    /// The sentence that says this machine lacks it, and what it has.
    pub(crate) fn lacking(self) -> String {
        let have: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
        format!("this machine lacks {}; it has {}", self.name(), have.join(", "))
    }

    /// Runs `kernel` on this instruction set. Panics with a sentence if the machine lacks it, which a
    /// [`crate::Context`] made by `Context::new` rules out.
    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Isa::Scalar => Scalar.enter(kernel),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => match neon::enter_best(kernel) {
                Some(output) => output,
                None => panic!("{}", self.lacking()),
            },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => match Avx2::detect() {
                Some(token) => token.enter(kernel),
                None => panic!("{}", self.lacking()),
            },
            // Tiles are for products of codes alone; all else of AmxInt8 is on lanes.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni | Isa::AmxInt8 => match Avx512::detect() {
                Some(token) => token.enter(kernel),
                None => panic!("{}", self.lacking()),
            },
            _ => panic!("{}", self.lacking()),
        }
    }
}

impl std::fmt::Display for Isa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_isa_either_runs_or_says_that_it_does_not() {
        for isa in Isa::ALL {
            match Isa::parse(isa.name()) {
                Ok(found) => {
                    assert_eq!(found, isa);
                    println!("isa {isa}: kernel tests run on it");
                }
                Err(sentence) => {
                    println!("isa {isa}: SKIPPED, {sentence}");
                    assert!(sentence.contains("lacks") && sentence.contains(isa.name()), "{sentence}");
                    assert!(crate::Context::new(isa, 1).is_err());
                }
            }
        }
        assert!(Isa::available().contains(&Isa::Scalar));
        assert_eq!(Isa::parse("auto"), Ok(Isa::best()));
        assert!(Isa::parse("sse9").unwrap_err().contains("sse9"));
    }
}
