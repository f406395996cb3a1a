//! Repository chores. `cargo xtask test` is the one test command; CI runs nothing else.

mod fuzz;
mod run;
mod source;
mod test;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  test [--quick]                  everything a change has to pass; --quick leaves out models, deny and fuzz
  tidy [--bless]                  house rules that no compiler knows; --bless records the hash FORMAT.md names
  fuzz [--seconds N] [TARGET..]   libFuzzer on the readers of untrusted bytes [default: 15 s each]
  models                          fetch the real models the tests use (Python 3.11, about 400 MB)
  size                            the ten longest source files";

/// What a command says: whether all was well, or why it could not run.
type Outcome = Result<bool, String>;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (command, rest) = args.split_first().map_or(("", &[][..]), |(c, r)| (c.as_str(), r));
    let outcome = match (command, rest) {
        ("test", []) => test::test(test::Extent::Full),
        ("test", [quick]) if quick == "--quick" => test::test(test::Extent::Quick),
        ("tidy", []) => tidy::tidy(),
        ("tidy", [bless]) if bless == "--bless" => tidy::bless(),
        ("fuzz", rest) => fuzz::command(rest),
        ("models", []) => run::command(&test::fetch_models()).map(|done| done.success),
        ("size", []) => source::size(),
        ("" | "help" | "--help" | "-h", _) => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => Err(format!("unknown command or option: {}\n\n{USAGE}", args.join(" "))),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("xtask: {why}");
            ExitCode::from(2)
        }
    }
}

/// The repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the repository").to_owned()
}

/// Where builds go.
fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}
