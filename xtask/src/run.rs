//! Runs programs: shows what they print and keeps what is to be read from it.

use crate::root;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

/// A program to run in the repository.
pub struct Program {
    /// Program and arguments.
    pub words: Vec<String>,
    /// Environment on top of ours.
    pub env: Vec<(String, String)>,
}

impl Program {
    /// `line` split at spaces.
    pub fn new(line: &str) -> Program {
        Program { words: line.split_whitespace().map(str::to_owned).collect(), env: Vec::new() }
    }

    /// A program by its path, which may hold spaces.
    pub fn of(path: &str) -> Program {
        Program { words: vec![path.to_owned()], env: Vec::new() }
    }

    /// The same with one more argument, which may hold spaces.
    pub fn arg(mut self, word: impl Into<String>) -> Program {
        self.words.push(word.into());
        self
    }

    /// The same with a variable set.
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Program {
        self.env.push((name.to_owned(), value.into()));
        self
    }

    /// Ready to start.
    pub fn command(&self) -> Command {
        // Inside `cargo xtask`, CARGO is the toolchain's own program; rustup need not choose again.
        let first = match self.words[0].as_str() {
            "cargo" => std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()),
            other => other.to_owned(),
        };
        let mut command = Command::new(first);
        command.args(&self.words[1..]).current_dir(root());
        command.envs(self.env.iter().map(|(k, v)| (k, v)));
        command
    }
}

/// How a program ended.
pub struct Done {
    /// Exit status 0.
    pub success: bool,
    /// Tests passed, by `test result:` lines on its standard output.
    pub passed: usize,
    /// Tests failed.
    pub failed: usize,
}

/// Runs `program`, printing its command line and its output.
pub fn command(program: &Program) -> Result<Done, String> {
    let line = program.words.join(" ");
    let env: String = program.env.iter().map(|(k, v)| format!("{k}={v} ")).collect();
    println!("$ {env}{line}");
    let mut child = program
        .command()
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| format!("cannot run {}: {e}", program.words[0]))?;
    let mut done = Done { success: false, passed: 0, failed: 0 };
    for line in BufReader::new(child.stdout.take().expect("piped above")).lines() {
        let line = line.unwrap_or_default();
        println!("{line}");
        if let Some(result) = line.strip_prefix("test result: ") {
            done.passed += count(result, " passed");
            done.failed += count(result, " failed");
        }
    }
    done.success = child.wait().map_err(|e| e.to_string())?.success();
    Ok(done)
}

/// The number before `what` in "ok. 12 passed; 0 failed; ...".
fn count(line: &str, what: &str) -> usize {
    let before = line.split_once(what).map_or("", |(before, _)| before);
    before.rsplit(|c: char| !c.is_ascii_digit()).next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// Whether `program` runs, quietly.
pub fn exists(program: &Program) -> bool {
    let quiet = program.command().stdout(Stdio::null()).stderr(Stdio::null()).status();
    quiet.is_ok_and(|s| s.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_from_the_line_cargo_prints() {
        let line = "FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.10s";
        assert_eq!((count(line, " passed"), count(line, " failed")), (12, 3));
        assert_eq!(count("ok.", " passed"), 0);
    }
}
