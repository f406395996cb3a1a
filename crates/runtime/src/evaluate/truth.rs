//! Right answers: labels of a file as what a model can answer.

use super::Problem;
use crate::dataset::{Example, Label, Target};
use crate::row::Row;
use qberta_model::{Error, Result};

/// The right answer of one example.
#[derive(Clone, Debug, PartialEq)]
pub enum Truth {
    /// The index of a label or choice.
    Class(usize),
    /// One flag per label.
    Set(Vec<bool>),
    /// A number.
    Score(f64),
    /// One label index per word.
    Tags(Vec<usize>),
    /// Accepted answers; none means there is no answer.
    Answers(Vec<String>),
}

/// How labels of the data become outputs of the model.
pub(super) struct Labels<'a> {
    /// The model's names.
    labels: &'a [String],
    /// The data's names of its ids.
    names: Option<&'a [String]>,
    /// The model's names say nothing (`LABEL_0`), so ids stand for themselves.
    generic: bool,
}

const SHOWN: usize = 12;

impl<'a> Labels<'a> {
    pub fn new(labels: &'a [String], names: Option<&'a [String]>) -> Result<Labels<'a>> {
        let generic = labels.iter().enumerate().all(|(i, l)| l.eq_ignore_ascii_case(&format!("label_{i}")));
        let all = Labels { labels, names, generic };
        if let Some(names) = names
            && !generic
            && let Some(strange) = names.iter().find(|n| all.find(n).is_none())
        {
            return Err(Error::input("the data names a label that the model does not have")
                .expected(all.known())
                .found(strange)
                .hint("--label-names A,B,.. gives the model's names for the ids 0, 1, .. of the data"));
        }
        Ok(all)
    }

    fn find(&self, name: &str) -> Option<usize> {
        let name = name.trim();
        self.labels.iter().position(|l| l == name).or_else(|| {
            let mut same = (0..self.labels.len()).filter(|&i| self.labels[i].eq_ignore_ascii_case(name));
            same.next().filter(|_| same.next().is_none())
        })
    }

    fn known(&self) -> String {
        let shown = self.labels.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
        match self.labels.len().checked_sub(SHOWN) {
            None | Some(0) => shown,
            Some(more) => format!("{shown} and {more} more"),
        }
    }

    fn refuse(&self, label: &Label) -> Error {
        let error = Error::input("label is not one of the model's")
            .expected(format!(
                "{} (or an id from 0 to {})",
                self.known(),
                self.labels.len().saturating_sub(1)
            ))
            .found(label);
        match label {
            Label::Id(-1) => error.hint("-1 usually stands for a hidden label: use a split that has labels"),
            Label::Name(_) if self.generic => {
                error.hint("the model does not name its labels; --label-names A,B,.. names them in order")
            }
            _ => error,
        }
    }

    fn id(&self, id: i64, label: &Label) -> Result<usize> {
        let id = usize::try_from(id).map_err(|_| self.refuse(label))?;
        match self.names {
            Some(names) if !self.generic => {
                let name = names.get(id).ok_or_else(|| {
                    Error::input("label id has no name").expected(format!("below {}", names.len())).found(id)
                })?;
                self.find(name).ok_or_else(|| self.refuse(label))
            }
            _ if id < self.labels.len() => Ok(id),
            _ => Err(self.refuse(label)),
        }
    }

    fn class(&self, label: &Label) -> Result<usize> {
        match label {
            Label::Name(name) => {
                if let Some(i) = self.find(name) {
                    return Ok(i);
                }
                let named = self.names.and_then(|names| names.iter().position(|n| n == name));
                match (named.filter(|&i| self.generic && i < self.labels.len()), name.trim().parse()) {
                    (Some(i), _) => Ok(i),
                    (None, Ok(id)) => self.id(id, label),
                    (None, Err(_)) => Err(self.refuse(label)),
                }
            }
            Label::Id(id) => self.id(*id, label),
            Label::Number(x) if x.fract() == 0.0 && x.abs() < 1e9 => self.id(*x as i64, label),
            Label::Number(_) | Label::Many(_) => Err(self.refuse(label)),
        }
    }

    fn set(&self, label: &Label) -> Result<Vec<bool>> {
        let mut flags = vec![false; self.labels.len()];
        let mut add = |label: &Label| -> Result<()> {
            flags[self.class(label)?] = true;
            Ok(())
        };
        match label {
            Label::Many(all) => {
                // As many zeros and ones as there are labels are flags; anything else is a list of labels.
                let flag = |l: &Label| match l {
                    Label::Id(i @ (0 | 1)) => Some(*i == 1),
                    Label::Number(x) if *x == 0.0 || *x == 1.0 => Some(*x == 1.0),
                    _ => None,
                };
                match all.iter().map(flag).collect::<Option<Vec<bool>>>() {
                    Some(given) if given.len() == self.labels.len() => return Ok(given),
                    _ => all.iter().try_for_each(add)?,
                }
            }
            Label::Name(name) if self.find(name).is_none() => {
                let parts = name.split([',', ';', '|']).map(str::trim).filter(|p| !p.is_empty());
                parts.map(|p| Label::Name(p.to_owned())).try_for_each(|l| add(&l))?;
            }
            one => add(one)?,
        }
        Ok(flags)
    }

    fn score(label: &Label) -> Result<f64> {
        let number = match label {
            Label::Id(i) => Some(*i as f64),
            Label::Number(x) => Some(*x),
            Label::Name(text) => text.trim().parse().ok().filter(|x: &f64| x.is_finite()),
            Label::Many(_) => None,
        };
        number.ok_or_else(|| {
            Error::input("label is not a number")
                .found(label)
                .hint("the model gives one score, so labels are numbers")
        })
    }

    fn choice(label: &Label, row: &Row) -> Result<usize> {
        let texts: &[String] = if let Row::Choices { choices, .. } = row { choices } else { &[] };
        let count = if let Row::TokenChoices(all) = row { all.len() } else { texts.len() };
        let letter = |name: &str| match name.as_bytes() {
            [c @ b'A'..=b'Z'] => Some(usize::from(c - b'A')),
            _ => None,
        };
        let index = match label {
            Label::Id(i) => usize::try_from(*i).ok(),
            Label::Name(name) => (texts.iter().position(|t| t == name))
                .or_else(|| name.trim().parse().ok())
                .or_else(|| letter(name.trim())),
            _ => None,
        };
        index.filter(|&i| i < count).ok_or_else(|| {
            Error::input("label is not one of the choices")
                .expected(format!("0 to {}, a letter, or the text of a choice", count.saturating_sub(1)))
                .found(label)
        })
    }

    /// The right answer of an example.
    pub fn truth(&self, problem: Problem, example: &Example) -> Result<Truth> {
        let none = |what: &str, option: &str| {
            Error::input(format!("example has no {what}"))
                .hint(format!("evaluation needs one on every line; {option} COLUMN names the column"))
        };
        match (problem, &example.target) {
            (Problem::Answers, Target::Answers(all)) => Ok(Truth::Answers(all.clone())),
            (Problem::Answers, _) => Err(none("accepted answers", "--label")),
            (Problem::Tags, Target::Tags { tags, .. }) => {
                let all = tags
                    .iter()
                    .enumerate()
                    .map(|(i, tag)| self.class(tag).map_err(|e| e.at(format!("word {}", i + 1))));
                Ok(Truth::Tags(all.collect::<Result<_>>()?))
            }
            (Problem::Tags, _) => Err(none("words with tags", "--text and --label")),
            (Problem::Classes, Target::Label(label)) => self.class(label).map(Truth::Class),
            (Problem::Sets, Target::Label(label)) => self.set(label).map(Truth::Set),
            (Problem::Score { .. }, Target::Label(label)) => Labels::score(label).map(Truth::Score),
            (Problem::Choices, Target::Label(label)) => Labels::choice(label, &example.row).map(Truth::Class),
            _ => Err(none("label", "--label")),
        }
    }

    /// What a reader should know about how ids were read.
    pub fn remarks(&self, problem: Problem, examples: &[Example]) -> Vec<String> {
        let id = |l: &Label| match l {
            Label::Id(_) => true,
            Label::Name(name) => self.find(name).is_none() && name.trim().parse::<i64>().is_ok(),
            _ => false,
        };
        let ids = examples.iter().any(|e| match &e.target {
            Target::Label(label) => id(label),
            Target::Tags { tags, .. } => tags.iter().any(id),
            _ => false,
        });
        match (problem, self.names) {
            (Problem::Classes | Problem::Tags, None) if ids && !self.generic => {
                let mut map: Vec<String> =
                    self.labels.iter().take(SHOWN).enumerate().map(|(i, l)| format!("{i} {l}")).collect();
                map.extend((self.labels.len() > SHOWN).then(|| "..".to_owned()));
                vec![format!(
                    "labels are ids, read in the model's order ({}); if the data counts differently, say so with --label-names",
                    map.join(", ")
                )]
            }
            _ => Vec::new(),
        }
    }
}
