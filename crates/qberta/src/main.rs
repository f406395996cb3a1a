//! The `qberta` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    qberta_cli::main()
}
