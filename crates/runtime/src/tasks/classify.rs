//! Sequence classification (single, pair, one logit, multi-label, zero-shot) and multiple choice.

use super::{Options, each, ranked, raw, sigmoid, single, softmax, wrong_row};
use crate::answer::{Answer, Scored};
use crate::row::Row;
use crate::session::Session;
use qberta_model::{Error, Reading, Result, Sequence};

/// The best label of each row, all labels when they are independent, or the regression score.
pub(super) fn labels(session: &Session, rows: &[Row], options: &Options) -> Result<Vec<Answer>> {
    let arch = session.architecture();
    let sequences = each(rows, |row| Ok(single(session, row, options)?.0))?;
    let named = |scores: &[f32], i: usize| Scored { label: arch.labels[i].clone(), score: scores[i] };
    let answers = session.run(&sequences)?.into_iter().map(|y| match arch.reading {
        Reading::Regression => Answer::Score { score: y.row(0)[0] },
        Reading::Independent if arch.labels.len() > 1 => {
            let scores: Vec<f32> = y.row(0).iter().map(|&x| sigmoid(x)).collect();
            Answer::Labels { labels: ranked(&scores).into_iter().map(|i| named(&scores, i)).collect() }
        }
        reading => {
            let scores = match reading {
                Reading::Exclusive => softmax(y.row(0)),
                _ => vec![sigmoid(y.row(0)[0])],
            };
            best(&scores, options.top_k, |i| arch.labels[i].clone())
        }
    });
    Ok(answers.collect())
}

fn best(scores: &[f32], top_k: usize, name: impl Fn(usize) -> String) -> Answer {
    let order = ranked(scores);
    let scored = |&i: &usize| Scored { label: name(i), score: scores[i] };
    let top = if top_k > 1 { order.iter().take(top_k).map(scored).collect() } else { Vec::new() };
    Answer::Label { label: name(order[0]), score: scores[order[0]], top }
}

/// Which outputs of an NLI classifier mean what, by the label names of the configuration.
///
/// Released NLI models use at least three different orders, so an index is never assumed.
struct Nli {
    entailment: usize,
    /// The label against which entailment is weighed when labels are independent.
    contradiction: usize,
}

impl Nli {
    fn of(labels: &[String]) -> Result<Nli> {
        let find = |prefix: &str| labels.iter().position(|l| l.to_lowercase().starts_with(prefix));
        let refuse = |what: &str| {
            Error::input(what)
                .at("id2label")
                .expected("labels such as entailment, neutral, contradiction")
                .found(labels.join(", "))
                .hint("zero-shot classification needs a model trained on natural language inference")
        };
        let entailment = find("entail").ok_or_else(|| refuse("no label means entailment"))?;
        let contradiction = find("contra")
            .or_else(|| find("not_entail").or_else(|| find("not entail")).or_else(|| find("not-entail")))
            .or_else(|| (labels.len() == 2).then(|| 1 - entailment))
            .ok_or_else(|| refuse("no label means contradiction"))?;
        Ok(Nli { entailment, contradiction })
    }
}

/// Zero-shot classification: each label as a hypothesis about the text.
pub(super) fn zero_shot(session: &Session, rows: &[Row], options: &Options) -> Result<Vec<Answer>> {
    let nli = Nli::of(&session.architecture().labels)?;
    if !options.hypothesis.contains("{}") {
        return Err(Error::input("hypothesis has no place for the label")
            .at("--hypothesis")
            .expected("a sentence with {}"));
    }
    let hypotheses: Vec<String> =
        options.zero_shot.iter().map(|l| options.hypothesis.replace("{}", l)).collect();
    let sequences: Vec<Vec<Sequence>> = each(rows, |row| {
        let Row::Text { text, pair: None } = row else { return Err(wrong_row(session, row, "a text")) };
        hypotheses.iter().map(|h| Ok(super::sequence(&session.encode(text, Some(h), options)?))).collect()
    })?;
    let outputs = session.run(&sequences.concat())?;
    Ok(outputs
        .chunks_exact(hypotheses.len())
        .map(|labels| {
            let entailment: Vec<f32> = labels.iter().map(|y| y.row(0)[nli.entailment]).collect();
            let scores: Vec<f32> = if options.multi_label || labels.len() == 1 {
                labels
                    .iter()
                    .map(|y| softmax(&[y.row(0)[nli.entailment], y.row(0)[nli.contradiction]])[0])
                    .collect()
            } else {
                softmax(&entailment)
            };
            let scored = |i: usize| Scored { label: options.zero_shot[i].clone(), score: scores[i] };
            Answer::Labels { labels: ranked(&scores).into_iter().map(scored).collect() }
        })
        .collect())
}

/// The best of several choices.
pub(super) fn choices(session: &Session, rows: &[Row], options: &Options) -> Result<Vec<Answer>> {
    let groups = each(rows, |row| raw::choice_sequences(session, row, options))?;
    let outputs = session.run(&groups.concat())?;
    let mut logits = outputs.iter().map(|y| y.row(0)[0]);
    Ok(groups
        .iter()
        .map(|group| {
            let scores = softmax(&logits.by_ref().take(group.len()).collect::<Vec<_>>());
            let choice = ranked(&scores)[0];
            Answer::Choice { choice, score: scores[choice], scores }
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(names: &[&str]) -> Vec<String> {
        names.iter().map(|s| s.to_string()).collect()
    }

    #[test]
    fn nli_labels_are_found_by_name_in_every_published_order() {
        let orders: [(&[&str], usize, usize); 5] = [
            (&["CONTRADICTION", "NEUTRAL", "ENTAILMENT"], 2, 0),
            (&["entailment", "neutral", "contradiction"], 0, 2),
            (&["contradiction", "entailment", "neutral"], 1, 0),
            (&["entailment", "not_entailment"], 0, 1),
            (&["not_entailment", "entailment"], 1, 0),
        ];
        for (names, entailment, contradiction) in orders {
            let nli = Nli::of(&labels(names)).unwrap();
            assert_eq!((nli.entailment, nli.contradiction), (entailment, contradiction), "{names:?}");
        }
        assert!(Nli::of(&labels(&["positive", "negative"])).is_err());
        assert!(Nli::of(&labels(&["entailment", "b", "c"])).is_err());
    }

    #[test]
    fn equal_scores_keep_the_order_of_labels() {
        let Answer::Label { label, top, .. } = best(&[0.25, 0.5, 0.25], 3, |i| i.to_string()) else {
            panic!()
        };
        assert_eq!(label, "1");
        assert_eq!(top.iter().map(|t| t.label.as_str()).collect::<Vec<_>>(), ["1", "0", "2"]);
    }
}
