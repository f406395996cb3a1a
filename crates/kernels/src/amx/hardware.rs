//! The tiles of the processor: stable Rust has no names for these instructions, but its assembler has.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use std::marker::PhantomData;
use std::sync::OnceLock;

use super::{BYTES, Block, Dots, ROWS, Tiles, Unit, listing};

/// Proof that this machine has AMX with int8, and that the operating system lets this process use it: only
/// [`Amx::detect`] makes one.
#[derive(Clone, Copy)]
pub(crate) struct Amx {
    _made_by_detect: (),
}

impl Amx {
    /// Asks the processor, then the operating system (once: a permission holds for the whole process).
    pub fn detect() -> Option<Amx> {
        static PERMITTED: OnceLock<bool> = OnceLock::new();
        let has = *PERMITTED.get_or_init(|| Amx::needs().iter().all(|(_, has)| *has));
        has.then_some(Amx { _made_by_detect: () })
    }

    /// What it takes, and whether it is there. The permission is asked for if all else is.
    pub fn needs() -> [(&'static str, bool); 3] {
        let (tile, int8) = processor();
        let system = tile && int8 && system_keeps_tiles() && permission();
        [("amx-tile", tile), ("amx-int8", int8), ("permission of the operating system", system)]
    }
}

/// Whether the processor has tiles, and their int8 product.
fn processor() -> (bool, bool) {
    if __cpuid(0).eax < 7 {
        return (false, false);
    }
    let features = __cpuid_count(7, 0).edx;
    (features & 1 << 24 != 0, features & 1 << 25 != 0)
}

/// Whether the operating system saves tiles and their shapes when it changes threads.
fn system_keeps_tiles() -> bool {
    #[target_feature(enable = "xsave")]
    fn enabled() -> u64 {
        // SAFETY: register 0 exists wherever xsave does.
        unsafe { _xgetbv(0) }
    }
    const OSXSAVE: u32 = 1 << 27;
    const TILES: u64 = 0b11 << 17;
    // SAFETY: the bit says that xgetbv may be used here.
    __cpuid(1).ecx & OSXSAVE != 0 && unsafe { enabled() } & TILES == TILES
}

/// Linux gives the room for tiles only to processes that ask; a refusal is final.
#[cfg(target_os = "linux")]
fn permission() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const XTILEDATA: u64 = 18;
    let result: i64;
    // SAFETY: the call reads no memory of this process and writes none; the kernel clobbers rcx and r11.
    unsafe {
        asm!("syscall", inlateout("rax") ARCH_PRCTL => result, in("rdi") ARCH_REQ_XCOMP_PERM, in("rsi") XTILEDATA,
            out("rcx") _, out("r11") _, options(nostack));
    }
    result == 0
}

/// Other systems are not known to this program.
#[cfg(not(target_os = "linux"))]
fn permission() -> bool {
    false
}

impl Unit for Amx {
    type Tiles = Configured;
    fn configure(self, height: usize) -> Configured {
        Configured::new(self, height)
    }
}

/// Tile shapes as `ldtilecfg` reads them.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes: [u16; 16],
    rows: [u8; 16],
}

/// The tiles of one thread, while this value lives.
pub(crate) struct Configured {
    height: usize,
    this_thread: PhantomData<*const ()>, // not Send: shapes belong to a thread
}

impl Configured {
    fn new(_proof: Amx, height: usize) -> Configured {
        assert!((1..=ROWS).contains(&height), "tiles of {height} rows");
        let mut shapes =
            Shapes { palette: 1, start_row: 0, reserved: [0; 14], bytes: [0; 16], rows: [0; 16] };
        shapes.bytes[..8].fill(BYTES as u16);
        shapes.rows[..6].fill(height as u8);
        shapes.rows[6..8].fill(ROWS as u8);
        // SAFETY: the token proves the instruction and the permission; it reads the 64 bytes of `shapes`. The
        // tiles it clears are not in use: no compiled code and no other piece of assembly keeps one.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &shapes, options(nostack, readonly, preserves_flags)) };
        Configured { height, this_thread: PhantomData }
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        // SAFETY: this value exists, so the processor has the instruction. Tiles are not in use (see `new`).
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    }
}

macro_rules! instruction {
    (load $tile:literal $from:ident $by:ident) => {
        concat!("tileloadd tmm", $tile, ", [{", stringify!($from), "} + {", stringify!($by), "}]")
    };
    (dot $sum:literal $a:literal $b:literal) => {
        concat!("tdpbusd tmm", $sum, ", tmm", $a, ", tmm", $b)
    };
}

macro_rules! assemble {
    (
        ($block:ident $dots:ident $R:ident $P:ident)
        zero $(($zero:literal))*
        step $(($($step:tt)*))*
        store $(($sum:literal $at:literal))*
    ) => {
        asm!(
            $(concat!("tilezero tmm", $zero),)*
            "test {n}, {n}",
            "jz 3f",
            "2:",
            $(instruction!($($step)*),)*
            "add {a0}, 64",
            "add {a1}, 64",
            "add {b0}, 1024",
            "add {b1}, 1024",
            "dec {n}",
            "jnz 2b",
            "3:",
            "test {rest}, {rest}",
            "jz 4f",
            "mov {b0}, {rest}",
            "lea {b1}, [{rest} + 1024]",
            $(instruction!($($step)*),)*
            "4:",
            $(concat!("tilestored [{dots} + {out} + ", $at, "], tmm", $sum),)*
            n = inout(reg) $block.steps => _,
            a0 = inout(reg) $block.bands[0].as_ptr() => _,
            a1 = inout(reg) $block.bands[$R - 1].as_ptr() => _,
            row = in(reg) $block.stride,
            b0 = inout(reg) $block.panels[0].as_ptr() => _,
            b1 = inout(reg) $block.panels[$P - 1].as_ptr() => _,
            line = in(reg) BYTES,
            rest = in(reg) $block.rest.map_or(std::ptr::null(), |rest| rest.as_ptr()),
            dots = in(reg) $dots.0.as_mut_ptr(),
            out = in(reg) $P * BYTES,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    };
}

impl Tiles for Configured {
    fn height(&self) -> usize {
        self.height
    }

    #[inline]
    fn block<const R: usize, const P: usize>(&mut self, block: &Block<'_, R, P>, dots: &mut Dots<P>) {
        block.check(self.height);
        // SAFETY: `self` proves the instructions and that the tiles of this thread have its height. Loads stay
        // inside the bands and panels by `check`, or read `rest` (P tiles of 1024 bytes); each store writes at
        // most 16 rows of 64 bytes, `P * 64` apart, from the start of one of its four parts of `dots`.
        unsafe {
            match (R, P) {
                (2, 2) => listing!(assemble (block dots R P) 2 by 2),
                (2, 1) => listing!(assemble (block dots R P) 2 by 1),
                (1, 2) => listing!(assemble (block dots R P) 1 by 2),
                (1, 1) => listing!(assemble (block dots R P) 1 by 1),
                _ => unreachable!("a block of {R} by {P} tiles"),
            }
        }
    }
}
