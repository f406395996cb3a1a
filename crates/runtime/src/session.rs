//! An open model: weights, tokenizer, kernels. Rows go in, answers come out in order.

use crate::answer::{Answer, RawAnswer};
use crate::row::Row;
use crate::tasks::{self, Options};
use crate::tokenize::{Encoded, Tokenizer};
use qberta_kernels::{Context, Matrix};
use qberta_model::{
    Architecture, Batch, Error, Model, Native, Result, Sequence, StageTimes, Task, Timed, forward,
    forward_rows,
};
use qberta_store::{Account, Source, whole};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Where the weights of a session came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// A float checkpoint.
    Checkpoint,
    /// An artefact.
    Artefact,
}

/// A model ready to answer.
#[derive(Debug)]
pub struct Session {
    model: Model,
    account: Account,
    tokenizer: Option<Tokenizer>,
    cx: Context,
    origin: Origin,
    vectors: tasks::Vectors,
    batch_rows: usize,
    cut: AtomicUsize,
}

/// Tokens per batch: enough rows to keep the kernels busy, few enough to stay in cache.
const BATCH_TOKENS: usize = 2048;

impl Session {
    /// Opens a float checkpoint or an artefact. `task` overrides the head its configuration names.
    ///
    /// Errors: whatever the loader or the tokenizer refuses.
    pub fn open(dir: &Path, task: Option<Task>, cx: Context) -> Result<Session> {
        let source = Source::open(dir, task)?;
        let tokenizer = Tokenizer::open(dir)?;
        let mut session = Session::new(&source, tokenizer, cx)?;
        let settings = |name: &str| {
            let path = dir.join(name);
            let read =
                || whole::read(&path, whole::SMALL).map_err(|e| Error::io("cannot read", path.display(), &e));
            path.exists().then(read).transpose()
        };
        if let Some(bytes) = settings("1_Pooling/config.json")? {
            session.vectors.pooling =
                tasks::Pooling::from_sentence_transformers(&bytes).map_err(|e| e.at(dir.display()))?;
        }
        if let Some(bytes) = settings("modules.json")? {
            session.vectors.modules(&bytes).map_err(|e| e.at(dir.display()))?;
        }
        Ok(session)
    }

    /// A session over tensors already read.
    pub fn new(source: &Source, tokenizer: Option<Tokenizer>, cx: Context) -> Result<Session> {
        let loaded = source.load(&cx)?;
        let origin = if source.is_artefact() { Origin::Artefact } else { Origin::Checkpoint };
        Ok(Session {
            model: loaded.model,
            account: loaded.account,
            tokenizer,
            cx,
            origin,
            vectors: tasks::Vectors::default(),
            batch_rows: usize::MAX,
            cut: AtomicUsize::new(0),
        })
    }

    /// Puts another model of the same architecture in the place of this one, which is given back.
    ///
    /// Errors: a model of another architecture.
    pub fn exchange(&mut self, model: Model) -> Result<Model> {
        if model.architecture() != self.architecture() {
            return Err(Error::input("model is of another architecture than the session's"));
        }
        Ok(std::mem::replace(&mut self.model, model))
    }

    /// At most `rows` sequences (at least one) run together. Speed and memory only: no bit depends on it.
    pub fn with_batch_rows(mut self, rows: usize) -> Session {
        self.batch_rows = rows.max(1);
        self
    }

    /// Texts that were cut at the length limit so far.
    pub fn texts_cut(&self) -> usize {
        self.cut.load(Ordering::Relaxed)
    }

    /// What the model computes.
    pub fn architecture(&self) -> &Architecture {
        self.model.architecture()
    }

    /// The weights and what they compute.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// What became of each tensor of the files.
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// Where the weights came from.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// The vectors the model was made for (features only).
    pub fn vectors(&self) -> &tasks::Vectors {
        &self.vectors
    }

    /// The kernels in use.
    pub fn context(&self) -> &Context {
        &self.cx
    }

    /// The tokenizer.
    ///
    /// Errors: the model directory has none.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| {
            Error::input("model has no tokenizer files, so it cannot read text")
                .hint("pass rows of token ids ({\"input_ids\":[..]}), or add tokenizer.json, spm.model or a vocabulary to its directory")
        })
    }

    /// Answers `rows` in order.
    ///
    /// Errors: a row that the task cannot answer, named by its index in `rows`.
    pub fn answer(&self, rows: &[Row], options: &Options) -> Result<Vec<Answer>> {
        tasks::answer(self, rows, options)
    }

    /// The untouched numbers of `rows`, in order.
    pub fn raw(&self, rows: &[Row], options: &Options) -> Result<Vec<RawAnswer>> {
        tasks::raw(self, rows, options)
    }

    /// What the model sees of `row`: one sequence, or one for each choice; a question and its context are
    /// cut to one sequence.
    ///
    /// Errors: a row that the task cannot read.
    pub fn sequences(&self, row: &Row, options: &Options) -> Result<Vec<Sequence>> {
        tasks::sequences(self, row, options)
    }

    /// The longest input in tokens: what was asked, else what the tokenizer says, both within what the
    /// model can embed. `None` means no limit but memory.
    pub fn length_limit(&self, asked: Option<usize>) -> Option<usize> {
        let embeds = self.architecture().length_limit();
        let wanted = asked.or_else(|| self.tokenizer.as_ref().and_then(Tokenizer::max_length));
        match (wanted, embeds) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Token ids of a text or pair, cut at the length limit.
    pub fn encode(&self, text: &str, pair: Option<&str>, options: &Options) -> Result<Encoded> {
        let encoded = self.tokenizer()?.encode(text, pair, self.length_limit(options.max_length))?;
        self.cut.fetch_add(usize::from(encoded.truncated), Ordering::Relaxed);
        Ok(encoded)
    }

    /// Model outputs of each sequence: `[1, outputs]` for tasks with one answer a sequence, else
    /// `[tokens, outputs]`. Sequences are batched by length; no bit depends on how.
    pub fn run(&self, sequences: &[Sequence]) -> Result<Vec<Matrix>> {
        self.run_batches(sequences, |mut engine, batch| forward(self.architecture(), &mut engine, batch))
    }

    /// As [`Session::run`], with the time spent in each stage of the network. The outputs are the same bits.
    pub fn run_timed(&self, sequences: &[Sequence]) -> Result<(Vec<Matrix>, StageTimes)> {
        let times = std::cell::Cell::new(StageTimes::default());
        let outputs = self.run_batches(sequences, |engine, batch| {
            let mut timed = Timed::new(engine);
            let y = forward(self.architecture(), &mut timed, batch);
            let mut sum = times.get();
            sum.add(timed.times());
            times.set(sum);
            y
        })?;
        Ok((outputs, times.get()))
    }

    /// Outputs for the rows `picked[i]` of sequence `i` only: `[picked, outputs]`.
    pub fn run_rows(&self, sequences: &[Sequence], picked: &[Vec<usize>]) -> Result<Vec<Matrix>> {
        let rows_of = |members: &[usize], batch: &Batch| -> Vec<usize> {
            let spans = batch.spans().iter().zip(members);
            spans.flat_map(|(span, &m)| picked[m].iter().map(|r| span.start + r)).collect()
        };
        let mut cut = Vec::with_capacity(sequences.len());
        self.each_batch(sequences, |members, batch| {
            let rows = rows_of(members, batch);
            let y = forward_rows(self.architecture(), &mut Native::new(&self.model, &self.cx), batch, &rows);
            let mut start = 0;
            for &m in members {
                cut.push((m, rows_from(&y, start, picked[m].len())));
                start += picked[m].len();
            }
            Ok(())
        })?;
        in_order(cut)
    }

    fn run_batches(
        &self,
        sequences: &[Sequence],
        run: impl Fn(Native<'_>, &Batch) -> Matrix,
    ) -> Result<Vec<Matrix>> {
        let one_row =
            matches!(self.architecture().head.task, Task::SequenceClassification | Task::MultipleChoice);
        let mut cut = Vec::with_capacity(sequences.len());
        self.each_batch(sequences, |members, batch| {
            let y = run(Native::new(&self.model, &self.cx), batch);
            for (i, (&m, span)) in members.iter().zip(batch.spans()).enumerate() {
                let (start, rows) = if one_row { (i, 1) } else { (span.start, span.len) };
                cut.push((m, rows_from(&y, start, rows)));
            }
            Ok(())
        })?;
        in_order(cut)
    }

    /// Groups sequences of similar length into batches of about [`BATCH_TOKENS`] tokens.
    fn each_batch(
        &self,
        sequences: &[Sequence],
        mut work: impl FnMut(&[usize], &Batch) -> Result<()>,
    ) -> Result<()> {
        let mut order: Vec<usize> = (0..sequences.len()).collect();
        order.sort_by_key(|&i| sequences[i].ids.len());
        let mut rest = &order[..];
        while !rest.is_empty() {
            let mut tokens = 0;
            let fits = rest.iter().take(self.batch_rows).take_while(|&&i| {
                tokens += sequences[i].ids.len();
                tokens <= BATCH_TOKENS
            });
            let (members, later) = rest.split_at(fits.count().max(1));
            let group: Vec<Sequence> = members.iter().map(|&i| sequences[i].clone()).collect();
            let batch = Batch::new(self.architecture(), &group)?;
            work(members, &batch)?;
            rest = later;
        }
        Ok(())
    }
}

fn rows_from(y: &Matrix, start: usize, rows: usize) -> Matrix {
    Matrix::from_vec(rows, y.cols(), y.as_slice()[start * y.cols()..(start + rows) * y.cols()].to_vec())
}

/// Outputs back in the order of the sequences, refused if the model overflowed.
fn in_order(mut cut: Vec<(usize, Matrix)>) -> Result<Vec<Matrix>> {
    cut.sort_by_key(|(i, _)| *i);
    for (i, y) in &cut {
        if let Some(v) = y.as_slice().iter().find(|v| !v.is_finite()) {
            return Err(Error::corrupt("model gave a value that is not finite").at(format!("sequence {i}")).found(v).hint(
                "the weights are damaged or overflow in f32; `qberta verify` checks an artefact, `qberta inspect` a checkpoint",
            ));
        }
    }
    Ok(cut.into_iter().map(|(_, y)| y).collect())
}
