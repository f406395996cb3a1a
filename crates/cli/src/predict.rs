//! `qberta predict`: text or token ids in, answers out.

use crate::{Outcome, World, output, task};
use clap::Args;
use qberta_model::{Error, Result};
use qberta_runtime::{Aggregation, Options, Pooling, Row, Session};
use qberta_toolkit::Progress;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};

/// Answer text (or token ids) with a float checkpoint or an artefact
///
/// Writes one JSON object a line, in the order of the input. Rows come from the TEXT arguments, from
/// --input, or from standard input; a line is JSON if it starts with a brace, else a text (a file ending
/// in .jsonl holds JSON only). An error names its line, after the answers of the lines before it.
#[derive(Args)]
#[command(after_help = "\
Examples:
  qberta predict ./int8 \"I loved it.\" \"Never again.\"
  qberta predict ./nli \"A man eats.\" --pair \"Someone eats.\"
  qberta predict ./nli \"The match went to penalties.\" --labels sport,politics
  qberta predict ./squad \"Who wrote it?\" --context \"It was written by Ada.\"
  qberta predict ./int8 --input rows.jsonl --output answers.jsonl
  qberta predict ./int8 --raw --input ids.jsonl

Rows of JSONL: {\"text\":..}, {\"text\":..,\"text_pair\":..}, {\"question\":..,\"context\":..},
{\"text\":..,\"choices\":[..]}, {\"input_ids\":[..],\"token_type_ids\":[..]}")]
pub struct PredictArgs {
    /// Directory of a float checkpoint or an artefact
    model: PathBuf,
    /// Texts to answer
    #[arg(conflicts_with = "input")]
    text: Vec<String>,
    /// Second text of a pair, for every TEXT
    #[arg(long, requires = "text")]
    pair: Option<String>,
    /// Context in which every TEXT is a question
    #[arg(long, requires = "text", conflicts_with_all = ["pair", "choices"])]
    context: Option<String>,
    /// Continuation to choose from (repeatable), for every TEXT
    #[arg(long = "choice", value_name = "TEXT", requires = "text", conflicts_with = "pair")]
    choices: Vec<String>,
    /// Read rows from a JSONL file, `-` for standard input
    #[arg(short, long)]
    input: Option<PathBuf>,
    /// Write answers to a file instead of standard output
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// Write the untouched numbers: logits, start_logits and end_logits, or last_hidden_state
    #[arg(long)]
    raw: bool,
    /// Head to use instead of the one config.json names
    #[arg(long)]
    task: Option<String>,
    /// Longest input in tokens; longer texts are cut, and said to be
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(2..))]
    max_length: Option<u32>,
    /// Rows run together; no result depends on it
    #[arg(long, value_name = "ROWS", value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: Option<u32>,
    /// Labels, words or answers to give [default: 1, for masks 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    top_k: Option<u32>,
    /// Zero-shot labels for an NLI classifier, separated by commas
    #[arg(long, value_delimiter = ',', value_parser = clap::builder::NonEmptyStringValueParser::new())]
    labels: Vec<String>,
    /// Sentence a zero-shot label is put into
    #[arg(long, default_value = "This example is {}.")]
    hypothesis: String,
    /// Zero-shot labels do not exclude each other
    #[arg(long)]
    multi_label: bool,
    /// How tokens become entities: none, simple, first, average, max
    #[arg(long, default_value = "simple", value_parser = aggregation)]
    aggregation: Aggregation,
    /// How hidden states become one vector: mean, cls, none [default: the model's own, else mean]
    #[arg(long, value_parser = pooling)]
    pooling: Option<Pooling>,
    /// Tokens shared by neighbouring windows of a long context
    #[arg(long, value_name = "TOKENS", default_value_t = 128)]
    stride: usize,
    /// Longest answer to a question
    #[arg(long, value_name = "TOKENS", default_value_t = 15)]
    max_answer: usize,
    /// A question may have no answer in its context
    #[arg(long)]
    no_answer: bool,
}

fn named<T: Copy>(all: &[(T, &str)], name: &str) -> std::result::Result<T, String> {
    let known: Vec<&str> = all.iter().map(|(_, n)| *n).collect();
    all.iter()
        .find(|(_, n)| *n == name)
        .map(|(t, _)| *t)
        .ok_or_else(|| format!("expected one of {}", known.join(", ")))
}

fn aggregation(name: &str) -> std::result::Result<Aggregation, String> {
    named(&Aggregation::ALL, name)
}

fn pooling(name: &str) -> std::result::Result<Pooling, String> {
    named(&Pooling::ALL, name)
}

/// Rows read before they are answered together: bounds memory, keeps answers flowing.
const CHUNK: usize = 256;

pub fn run(args: &PredictArgs, world: &World) -> Result<Outcome> {
    let mut session = Session::open(&args.model, task(&args.task)?, world.cx.clone())?;
    if let Some(rows) = args.batch_size {
        session = session.with_batch_rows(rows as usize);
    }
    let masks = session.architecture().head.task == qberta_model::Task::FillMask;
    let options = Options {
        max_length: args.max_length.map(|n| n as usize),
        top_k: args.top_k.map_or(if masks { 5 } else { 1 }, |n| n as usize),
        aggregation: args.aggregation,
        pooling: args.pooling,
        zero_shot: args.labels.clone(),
        hypothesis: args.hypothesis.clone(),
        multi_label: args.multi_label,
        stride: args.stride,
        max_answer: args.max_answer.max(1),
        no_answer: args.no_answer,
    };
    let mut writer = Writer::open(args)?;
    let mut rows = source(args)?;
    world.screen.stage("answering", rows.known_len().unwrap_or(0) as u64);
    loop {
        let (chunk, unreadable) = rows.next_chunk();
        let last = chunk.len() < CHUNK;
        let (places, rows): (Vec<String>, Vec<Row>) = chunk.into_iter().unzip();
        answer(&session, &places, &rows, args.raw, &options, &mut writer)?;
        rows.iter().for_each(|_| world.screen.step());
        if let Some(error) = unreadable {
            // An output file keeps what it held if no row before this one was answered.
            return Err(error);
        }
        if last || writer.gone {
            break;
        }
    }
    writer.finish()?;
    world.screen.finish();
    match session.texts_cut() {
        0 => {}
        1 => world.screen.warn("1 text was longer than the model's limit and was cut; see --max-length"),
        n => world
            .screen
            .warn(&format!("{n} texts were longer than the model's limit and were cut; see --max-length")),
    }
    Ok(Outcome::Done)
}

/// Answers a chunk; if it fails, row by row, so that the error names the row and earlier answers stand.
fn answer(
    session: &Session,
    places: &[String],
    rows: &[Row],
    raw: bool,
    options: &Options,
    writer: &mut Writer,
) -> Result<()> {
    let lines = |rows: &[Row]| -> Result<Vec<String>> {
        let text = |r: serde_json::Result<String>| {
            r.map_err(|e| Error::corrupt("answer cannot be written").found(e))
        };
        match raw {
            true => session.raw(rows, options)?.iter().map(|a| text(serde_json::to_string(a))).collect(),
            false => session.answer(rows, options)?.iter().map(|a| text(serde_json::to_string(a))).collect(),
        }
    };
    match lines(rows) {
        Ok(all) => all.iter().try_for_each(|line| writer.line(line)),
        Err(_) => {
            for (place, row) in places.iter().zip(rows) {
                let mut line = lines(std::slice::from_ref(row)).map_err(|e| e.at(place))?;
                writer.line(&line.remove(0))?;
            }
            Ok(())
        }
    }
}

/// Where rows come from, each with a place for messages.
struct Rows<'a> {
    lines: Box<dyn Iterator<Item = Result<(String, Row)>> + 'a>,
    known: Option<usize>,
}

impl Rows<'_> {
    fn known_len(&self) -> Option<usize> {
        self.known
    }

    /// The next rows, and the error of the one after them if that cannot be read.
    fn next_chunk(&mut self) -> (Vec<(String, Row)>, Option<Error>) {
        let mut chunk = Vec::new();
        for row in self.lines.by_ref().take(CHUNK) {
            match row {
                Ok(row) => chunk.push(row),
                Err(error) => return (chunk, Some(error)),
            }
        }
        (chunk, None)
    }
}

fn source(args: &PredictArgs) -> Result<Rows<'_>> {
    if !args.text.is_empty() {
        let rows = args.text.iter().enumerate().map(|(i, text)| {
            let text = text.clone();
            let row = match (&args.context, &args.choices[..]) {
                (Some(context), _) => Row::Question { question: text, context: context.clone() },
                (None, []) => Row::Text { text, pair: args.pair.clone() },
                (None, choices) => Row::Choices { text, choices: choices.to_vec() },
            };
            Ok((format!("text {}", i + 1), row))
        });
        return Ok(Rows { lines: Box::new(rows), known: Some(args.text.len()) });
    }
    let (name, reader): (String, Box<dyn BufRead>) = match args.input.as_deref() {
        Some(path) if path.as_os_str() != "-" => {
            let file = File::open(path).map_err(|e| Error::io("cannot read", path.display(), &e))?;
            (path.display().to_string(), Box::new(BufReader::new(file)))
        }
        given => {
            if given.is_none() && std::io::stdin().is_terminal() {
                return Err(Error::input("nothing to answer").hint(
                    "give a text, --input FILE.jsonl, or pipe lines in; `qberta predict --help` has examples",
                ));
            }
            ("standard input".to_owned(), Box::new(BufReader::new(std::io::stdin())))
        }
    };
    let named = |end: &str| Path::new(&name).extension().is_some_and(|e| e.eq_ignore_ascii_case(end));
    let objects = ["jsonl", "ndjson", "json"].into_iter().any(named);
    let lines = reader.lines().enumerate().filter_map(move |(i, line)| {
        let place = format!("{name} line {}", i + 1);
        // Editors of some systems put a mark before the first line.
        let line = line.map(|l| if i == 0 { l.trim_start_matches('\u{feff}').to_owned() } else { l });
        match line {
            Ok(line) if line.trim().is_empty() => None,
            Ok(line) => Some(parse(&line, objects).map_err(|e| e.at(&place)).map(|row| (place, row))),
            Err(e) => Some(Err(Error::io("cannot read", place, &e))),
        }
    });
    Ok(Rows { lines: Box::new(lines), known: None })
}

/// A line as a row; a text that is no JSON object only where the file does not promise `objects`.
fn parse(line: &str, objects: bool) -> Result<Row> {
    if objects || line.trim_start().starts_with('{') { Row::parse(line) } else { Ok(Row::text(line)) }
}

/// The output file, or standard output.
struct Writer {
    out: BufWriter<Box<dyn Write>>,
    name: String,
    /// The output file until the first answer: an error before it leaves what the file held.
    fresh: Option<File>,
    /// Whoever read standard output has gone (`| head`): nothing more to do, and nothing wrong.
    gone: bool,
}

impl Writer {
    fn open(args: &PredictArgs) -> Result<Writer> {
        let Some(path) = &args.output else {
            let out: Box<dyn Write> = Box::new(std::io::stdout());
            return Ok(Writer {
                out: BufWriter::new(out),
                name: "standard output".to_owned(),
                fresh: None,
                gone: false,
            });
        };
        let read: Vec<&Path> = args.input.iter().map(PathBuf::as_path).collect();
        let file = output::open(path, "--output", &read)?;
        let name = path.display().to_string();
        let fresh = file.try_clone().map_err(|e| Error::io("cannot write", &name, &e))?;
        Ok(Writer { out: BufWriter::new(Box::new(file)), name, fresh: Some(fresh), gone: false })
    }

    fn line(&mut self, line: &str) -> Result<()> {
        self.begin()?;
        let written = writeln!(self.out, "{line}");
        self.check(written)
    }

    fn begin(&mut self) -> Result<()> {
        self.fresh.take().map_or(Ok(()), |file| output::begin(&file, &self.name))
    }

    fn finish(mut self) -> Result<()> {
        self.begin()?;
        let flushed = self.out.flush();
        self.check(flushed)
    }

    fn check(&mut self, done: std::io::Result<()>) -> Result<()> {
        match done {
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => self.gone = true,
            Err(e) => return Err(Error::io("cannot write", &self.name, &e)),
            Ok(()) => {}
        }
        Ok(())
    }
}
