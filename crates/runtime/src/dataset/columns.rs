//! Which column means what, and records to examples.

use super::{Form, Label, Record, Target};
use crate::row::Row;
use qberta_model::{Error, Result, Sequence};
use serde_json::Value;
use std::ops::Range;

/// Columns by name; what is `None` is guessed from the names there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Columns {
    /// The text: of [`Form::Question`] the question, of [`Form::Words`] the list of words (or a text).
    pub text: Option<String>,
    /// The second text: of [`Form::Question`] the context.
    pub pair: Option<String>,
    /// The label: of [`Form::Question`] the answers, of [`Form::Words`] the list of tags.
    pub label: Option<String>,
    /// The continuations: one column with a list, or one column each.
    pub choices: Vec<String>,
}

impl Columns {
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        [&self.text, &self.pair, &self.label].into_iter().flatten().chain(&self.choices).map(String::as_str)
    }
}

/// Usual names of a text and its pair. Pairs come first: a file with both columns has both for a reason.
const PAIRS: [(&str, &str); 12] = [
    ("text", "text_pair"),
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("query", "passage"),
    ("query", "document"),
    ("query", "text"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("sentence_a", "sentence_b"),
    ("anchor", "positive"),
];
const TEXTS: [&str; 10] =
    ["text", "sentence", "content", "review", "document", "comment", "prompt", "input", "tweet", "gloss"];
const LABELS: [&str; 10] = [
    "label",
    "labels",
    "target",
    "score",
    "class",
    "category",
    "similarity",
    "stars",
    "rating",
    "gold_label",
];
const WORDS: [&str; 2] = ["tokens", "words"];
const TAGS: [&str; 5] = ["ner_tags", "tags", "labels", "ner", "pos_tags"];
const ANSWERS: [&str; 2] = ["answers", "answer"];
const LISTS: [&str; 3] = ["choices", "endings", "options"];
const NUMBERED: [&str; 2] = ["ending", "choice"];
const STEMS: [&str; 7] = ["text", "question", "sent1", "startphrase", "ctx", "premise", "context"];
const IDS: &str = "input_ids";
const TYPES: &str = "token_type_ids";

/// The columns in use.
#[derive(Clone, Debug, Default)]
pub(super) struct Mapping {
    form: Option<Form>,
    text: Option<String>,
    pair: Option<String>,
    label: Option<String>,
    choices: Vec<String>,
    ids: bool,
    types: bool,
    all: Vec<String>,
    remarks: Vec<String>,
}

impl Mapping {
    /// Decides for a file with columns `all`.
    ///
    /// Errors: a named column that is not there, or nothing to take for the text.
    pub fn decide(form: Form, asked: &Columns, all: &[String]) -> Result<Mapping> {
        let mut mapping = Mapping { form: Some(form), all: all.to_vec(), ..Mapping::default() };
        for name in asked.names() {
            if !all.iter().any(|c| c == name) {
                return Err(missing(name, all));
            }
        }
        mapping.text = asked.text.clone();
        mapping.pair = asked.pair.clone();
        mapping.label = asked.label.clone();
        mapping.choices = asked.choices.clone();
        match form {
            Form::Text => mapping.guess_texts(),
            Form::Question => {
                mapping.guess("question", |m| &mut m.text, &["question"]);
                mapping.guess("context", |m| &mut m.pair, &["context"]);
                mapping.guess("answers", |m| &mut m.label, &ANSWERS);
            }
            Form::Choices => mapping.guess_choices(),
            Form::Words => {
                mapping.guess("words", |m| &mut m.text, &WORDS);
                mapping.guess("text", |m| &mut m.text, &TEXTS);
                mapping.guess("tags", |m| &mut m.label, &TAGS);
            }
        }
        if matches!(form, Form::Text | Form::Choices) {
            mapping.guess("label", |m| &mut m.label, &LABELS);
        }
        if mapping.text.is_none() && matches!(form, Form::Text) && all.iter().any(|c| c == IDS) {
            mapping.ids = true;
            mapping.types = all.iter().any(|c| c == TYPES);
            return Ok(mapping);
        }
        let lacks = |what: &str, option: &str| {
            Error::input(format!("no column looks like {what}"))
                .found(format!("columns {}", listed(all)))
                .hint(format!("name it with {option}"))
        };
        if mapping.text.is_none() {
            let what = match form {
                Form::Text => "the text",
                Form::Question => "the question",
                Form::Choices => "the text before the choices",
                Form::Words => "the words or the text",
            };
            return Err(lacks(what, "--text COLUMN"));
        }
        if form == Form::Question && mapping.pair.is_none() {
            return Err(lacks("the context of the question", "--text-pair COLUMN"));
        }
        if form == Form::Choices && mapping.choices.is_empty() {
            return Err(lacks("the choices", "--choices COLUMN,COLUMN,.. (or one column with a list)"));
        }
        Ok(mapping)
    }

    fn find(&self, name: &str) -> Option<String> {
        self.all.iter().find(|c| c.eq_ignore_ascii_case(name)).cloned()
    }

    /// Takes the first of `names` there is for a column that is not decided, and says so.
    fn guess(&mut self, what: &str, slot: impl Fn(&mut Mapping) -> &mut Option<String>, names: &[&str]) {
        if slot(self).is_some() {
            return;
        }
        if let Some(found) = names.iter().find_map(|n| self.find(n)).filter(|n| !self.taken(n)) {
            self.remarks.push(format!("column {found:?} is taken for the {what}"));
            *slot(self) = Some(found);
        }
    }

    fn taken(&self, name: &str) -> bool {
        let used = [&self.text, &self.pair, &self.label];
        used.into_iter().flatten().any(|c| c == name) || self.choices.iter().any(|c| c == name)
    }

    fn guess_texts(&mut self) {
        if self.text.is_none() && self.pair.is_none() {
            let both = |&(a, b): &(&str, &str)| Some((self.find(a)?, self.find(b)?));
            if let Some((text, pair)) = PAIRS.iter().find_map(both) {
                self.remarks.push(format!("columns {text:?} and {pair:?} are taken for the pair of texts"));
                (self.text, self.pair) = (Some(text), Some(pair));
                return;
            }
        }
        self.guess("text", |m| &mut m.text, &TEXTS);
    }

    fn guess_choices(&mut self) {
        if self.choices.is_empty() {
            if let Some(list) = LISTS.iter().find_map(|n| self.find(n)) {
                self.choices = vec![list];
            } else {
                let counted = |stem: &&str| -> Vec<String> {
                    let from = |first: usize| -> Vec<String> {
                        (first..).map_while(|i| self.find(&format!("{stem}{i}"))).collect()
                    };
                    Some(from(0)).filter(|c| !c.is_empty()).unwrap_or_else(|| from(1))
                };
                self.choices = NUMBERED.iter().map(counted).find(|c| c.len() > 1).unwrap_or_default();
            }
            if !self.choices.is_empty() {
                self.remarks.push(format!("taken for the choices: {}", listed(&self.choices)));
            }
        }
        self.guess("text", |m| &mut m.text, &STEMS);
    }

    /// The label column.
    pub fn label(&self) -> Option<&str> {
        self.label.as_deref()
    }

    /// What was guessed.
    pub fn remarks(&self) -> Vec<String> {
        self.remarks.clone()
    }

    /// Every column in use.
    pub fn used(&self) -> Vec<String> {
        let ids = self.ids.then(|| IDS.to_owned());
        let types = self.types.then(|| TYPES.to_owned());
        let named = [&self.text, &self.pair, &self.label].into_iter().flatten().chain(&self.choices).cloned();
        named.chain(ids).chain(types).collect()
    }

    /// A record as an example.
    pub fn example(&self, record: &mut Record) -> Result<(Row, Target)> {
        if self.ids {
            let ids = self.numbers(record, IDS)?;
            let types = if self.types { self.numbers(record, TYPES)? } else { Vec::new() };
            return Ok((Row::Tokens(Sequence { ids, types }), self.labelled(record)?));
        }
        let column = self.text.as_deref().unwrap_or("text");
        let Some(value) = record.take(column).filter(|v| !v.is_null()) else {
            let all: Vec<String> = record.fields.iter().map(|(name, _)| name.clone()).collect();
            return Err(missing(column, &all));
        };
        if self.form == Some(Form::Words) {
            return self.words(column, value, record);
        }
        let text = string(column, value)?;
        let pair = match self.pair.as_deref() {
            Some(column) => {
                record.take(column).filter(|v| !v.is_null()).map(|v| string(column, v)).transpose()?
            }
            None => None,
        };
        match self.form {
            Some(Form::Question) => {
                let context = pair.ok_or_else(|| Error::input("row has no context"))?;
                let target = match self.label.as_deref().and_then(|c| Some((c, record.take(c)?))) {
                    Some((column, value)) => Target::Answers(answers(&value).ok_or_else(|| {
                        unreadable(column, "the answers", &value).expected(
                            "a text, a list of texts, or {\"text\": [..]} as in SQuAD; empty for no answer",
                        )
                    })?),
                    None => Target::None,
                };
                Ok((Row::Question { question: text, context }, target))
            }
            Some(Form::Choices) => {
                let choices = self.choices(record)?;
                Ok((Row::Choices { text, choices }, self.labelled(record)?))
            }
            _ => Ok((Row::Text { text, pair }, self.labelled(record)?)),
        }
    }

    fn numbers(&self, record: &mut Record, column: &str) -> Result<Vec<u32>> {
        let value = record.take(column).unwrap_or_default();
        let number = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        let all = value.as_array().and_then(|list| list.iter().map(number).collect());
        all.ok_or_else(|| unreadable(column, "token ids", &value).expected("a list of whole numbers"))
    }

    fn labelled(&self, record: &mut Record) -> Result<Target> {
        let Some(column) = self.label.as_deref() else { return Ok(Target::None) };
        match record.take(column) {
            None | Some(Value::Null) => Ok(Target::None),
            Some(value) => Ok(Target::Label(label(column, value)?)),
        }
    }

    fn choices(&self, record: &mut Record) -> Result<Vec<String>> {
        let mut take = |column: &String| {
            record
                .take(column)
                .ok_or_else(|| Error::input("row has no choices").found(format!("no {column:?}")))
        };
        if let [list] = &self.choices[..] {
            let value = take(list)?;
            // ARC and CommonsenseQA hold {"text": [..], "label": [..]}.
            let items = value.as_array().or_else(|| value.get("text")?.as_array());
            let texts = items.and_then(|l| l.iter().map(|v| v.as_str().map(str::to_owned)).collect());
            return texts
                .filter(|t: &Vec<String>| !t.is_empty())
                .ok_or_else(|| unreadable(list, "the choices", &value).expected("a list of texts"));
        }
        self.choices.iter().map(|column| string(column, take(column)?)).collect()
    }

    fn words(&self, column: &str, value: Value, record: &mut Record) -> Result<(Row, Target)> {
        if let Value::String(text) = value {
            return Ok((Row::text(text), Target::None));
        }
        let list = value.as_array();
        let words: Vec<&str> = list
            .and_then(|l| l.iter().map(Value::as_str).collect())
            .ok_or_else(|| unreadable(column, "words", &value).expected("a list of words, or a text"))?;
        let mut text = String::new();
        let mut spans: Vec<Range<usize>> = Vec::with_capacity(words.len());
        let mut at = 0;
        for word in words {
            if !spans.is_empty() {
                text.push(' ');
                at += 1;
            }
            let end = at + word.chars().count();
            spans.push(at..end);
            text.push_str(word);
            at = end;
        }
        let tags = match self.label.as_deref().and_then(|c| record.take(c)) {
            None | Some(Value::Null) => return Ok((Row::text(text), Target::None)),
            Some(value) => match label(self.label.as_deref().unwrap_or("tags"), value)? {
                Label::Many(tags) => tags,
                one => return Err(Error::input("tags are not a list").found(one)),
            },
        };
        if tags.len() != spans.len() {
            return Err(Error::input("row has another number of tags than of words")
                .expected(spans.len())
                .found(tags.len()));
        }
        Ok((Row::text(text), Target::Tags { words: spans, tags }))
    }
}

fn listed(names: &[String]) -> String {
    names.join(", ")
}

fn missing(name: &str, all: &[String]) -> Error {
    Error::input(format!("there is no column {name:?}")).expected(format!("one of {}", listed(all)))
}

fn unreadable(column: &str, what: &str, value: &Value) -> Error {
    let mut shown = value.to_string();
    if shown.chars().count() > 60 {
        shown = shown.chars().take(60).chain("..".chars()).collect();
    }
    Error::input(format!("column {column:?} does not hold {what}")).found(shown)
}

fn string(column: &str, value: Value) -> Result<String> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(unreadable(column, "a text", &other).expected("a text")),
    }
}

fn label(column: &str, value: Value) -> Result<Label> {
    Ok(match value {
        Value::Bool(b) => Label::Id(i64::from(b)),
        Value::String(name) if name.trim_start().starts_with('[') => match serde_json::from_str(&name) {
            // A list in a cell of a CSV file.
            Ok(list @ Value::Array(_)) => label(column, list)?,
            _ => Label::Name(name),
        },
        Value::String(name) => Label::Name(name),
        Value::Number(n) => match (n.as_i64(), n.as_f64()) {
            (Some(id), _) => Label::Id(id),
            (None, Some(x)) if x.is_finite() => Label::Number(x),
            _ => return Err(unreadable(column, "a label", &Value::Number(n))),
        },
        Value::Array(items) => {
            Label::Many(items.into_iter().map(|v| label(column, v)).collect::<Result<_>>()?)
        }
        other => return Err(unreadable(column, "a label", &other).expected("a name, a number or a list")),
    })
}

/// Answers in the spellings of the field; none for a question without an answer.
fn answers(value: &Value) -> Option<Vec<String>> {
    let texts = |list: &[Value]| -> Option<Vec<String>> {
        list.iter().map(|v| Some(v.as_str().or_else(|| v.get("text")?.as_str())?.to_owned())).collect()
    };
    match value {
        Value::Null => Some(Vec::new()),
        Value::String(text) if text.is_empty() => Some(Vec::new()),
        Value::String(text) if text.starts_with(['[', '{']) => {
            serde_json::from_str(text).ok().as_ref().and_then(answers).or_else(|| Some(vec![text.clone()]))
        }
        Value::String(text) => Some(vec![text.clone()]),
        Value::Array(list) => texts(list),
        Value::Object(map) => match map.get("text")? {
            Value::Array(list) => texts(list),
            other => answers(other),
        },
        _ => None,
    }
}
