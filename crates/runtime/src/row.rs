//! One input row: a line of JSONL, or text from the command line.

use qberta_model::{Error, Result, Sequence};
use serde::Deserialize;

/// What a row asks about.
#[derive(Clone, Debug, PartialEq)]
pub enum Row {
    /// One text, or a pair.
    Text {
        /// The text.
        text: String,
        /// The second text of a pair.
        pair: Option<String>,
    },
    /// A question about a context.
    Question {
        /// The question.
        question: String,
        /// Where the answer is looked for.
        context: String,
    },
    /// One text and several continuations.
    Choices {
        /// The text, or the question.
        text: String,
        /// The continuations.
        choices: Vec<String>,
    },
    /// Token ids with special tokens.
    Tokens(Sequence),
    /// Token ids of several continuations, each with its text.
    TokenChoices(Vec<Sequence>),
}

/// Every key a row may have.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    text: Option<String>,
    text_pair: Option<String>,
    question: Option<String>,
    context: Option<String>,
    choices: Option<Choices>,
    input_ids: Option<Vec<u32>>,
    token_type_ids: Option<Vec<u32>>,
    /// Labels and the like may stand beside the input; they are not read here.
    #[serde(rename = "label")]
    _label: Option<serde_json::Value>,
    #[serde(rename = "id")]
    _id: Option<serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Choices {
    Text(Vec<String>),
    Tokens(Vec<Tokens>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tokens {
    input_ids: Vec<u32>,
    #[serde(default)]
    token_type_ids: Vec<u32>,
}

impl Row {
    /// A single text.
    pub fn text(text: impl Into<String>) -> Row {
        Row::Text { text: text.into(), pair: None }
    }

    /// Parses one line of JSONL.
    ///
    /// Errors: not JSON, unknown keys, or keys that do not make one of the known forms.
    pub fn parse(line: &str) -> Result<Row> {
        const FORMS: &str = r#"{"text":..}, {"text":..,"text_pair":..}, {"question":..,"context":..}, {"text":..,"choices":[..]} or {"input_ids":[..],"token_type_ids":[..]}"#;
        let fields: Fields = serde_json::from_str(line)
            .map_err(|e| Error::input("row cannot be read").expected(FORMS).found(e))?;
        let Fields { text, text_pair, question, context, choices, input_ids, token_type_ids, .. } = fields;
        Ok(match (text, text_pair, question, context, choices, input_ids, token_type_ids) {
            (Some(text), pair, None, None, None, None, None) => Row::Text { text, pair },
            (None, None, Some(question), Some(context), None, None, None) => {
                Row::Question { question, context }
            }
            (Some(text), None, None, None, Some(Choices::Text(choices)), None, None)
            | (None, None, Some(text), None, Some(Choices::Text(choices)), None, None) => {
                Row::Choices { text, choices }
            }
            (None, None, None, None, Some(Choices::Tokens(all)), None, None) => {
                let one = |t: Tokens| Sequence { ids: t.input_ids, types: t.token_type_ids };
                Row::TokenChoices(all.into_iter().map(one).collect())
            }
            (None, None, None, None, None, Some(ids), types) => {
                Row::Tokens(Sequence { ids, types: types.unwrap_or_default() })
            }
            _ => return Err(Error::input("row has keys that do not go together").expected(FORMS)),
        })
    }

    /// What kind of row it is, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Row::Text { pair: None, .. } => "a text",
            Row::Text { .. } => "a pair of texts",
            Row::Question { .. } => "a question with a context",
            Row::Choices { choices, .. } if choices.is_empty() => "a text without choices",
            Row::Choices { .. } => "a text with choices",
            Row::Tokens(_) => "token ids",
            Row::TokenChoices(_) => "token ids of choices",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_documented_form_is_read() {
        let cases = [
            (r#"{"text":"a"}"#, "a text"),
            (r#"{"text":"a","label":"x"}"#, "a text"),
            (r#"{"text":"a","text_pair":"b"}"#, "a pair of texts"),
            (r#"{"question":"a","context":"b"}"#, "a question with a context"),
            (r#"{"text":"a","choices":["b","c"]}"#, "a text with choices"),
            (r#"{"input_ids":[1,2]}"#, "token ids"),
            (r#"{"input_ids":[1,2],"token_type_ids":[0,1]}"#, "token ids"),
            (
                r#"{"choices":[{"input_ids":[1]},{"input_ids":[2],"token_type_ids":[0]}]}"#,
                "token ids of choices",
            ),
        ];
        for (line, kind) in cases {
            assert_eq!(Row::parse(line).unwrap().kind(), kind, "{line}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for line in [
            "",
            "[]",
            "{}",
            "null",
            r#"{"txt":"a"}"#,
            r#"{"text":1}"#,
            r#"{"text":"a","question":"b"}"#,
            r#"{"question":"a"}"#,
            r#"{"input_ids":[-1]}"#,
            r#"{"input_ids":[1.5]}"#,
            r#"{"text":"a","input_ids":[1]}"#,
            r#"{"token_type_ids":[1]}"#,
            r#"{"input_ids":[1],"attention_mask":[1]}"#,
        ] {
            assert!(Row::parse(line).is_err(), "{line}");
        }
    }
}
