use super::figures::Kind;
use super::*;
use crate::dataset::{Columns, Dataset, Form};

/// An exam over `rows` of JSONL for a classifier with `labels`.
fn exam(problem: Problem, labels: &[&str], names: Option<&[&str]>, rows: &str) -> Result<Exam> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.jsonl");
    std::fs::write(&path, rows).unwrap();
    let form = match problem {
        Problem::Tags => Form::Words,
        Problem::Answers => Form::Question,
        Problem::Choices => Form::Choices,
        _ => Form::Text,
    };
    let examples: Vec<Example> =
        Dataset::open(&path, form, &Columns::default()).unwrap().collect::<Result<_>>().unwrap();
    let owned = |all: &[&str]| all.iter().map(|s| s.to_string()).collect::<Vec<_>>();
    let (labels, names) = (owned(labels), names.map(owned));
    let map = Labels::new(&labels, names.as_deref())?;
    let truths = examples.iter().map(|e| map.truth(problem, e)).collect::<Result<_>>()?;
    let remarks = map.remarks(problem, &examples);
    Ok(Exam { examples, truths, problem, labels, remarks })
}

fn trial(outputs: Vec<Output>) -> Trial {
    Trial { outputs, seconds: 1.0, cut: 0 }
}

fn classes(labels: &[&str], names: Option<&[&str]>, label: &str) -> Result<usize> {
    let row = format!("{{\"text\":\"a\",\"label\":{label}}}");
    exam(Problem::Classes, labels, names, &row).map(|e| match &e.truths[0] {
        Truth::Class(c) => *c,
        other => panic!("{other:?}"),
    })
}

#[test]
fn labels_are_names_or_ids_and_ids_go_by_the_names_of_the_data() {
    const MODEL: [&str; 3] = ["contradiction", "Entailment", "neutral"];
    const DATA: [&str; 3] = ["entailment", "neutral", "contradiction"];
    assert_eq!(classes(&MODEL, None, "\"neutral\"").unwrap(), 2);
    assert_eq!(classes(&MODEL, None, "\"ENTAILMENT\"").unwrap(), 1);
    assert_eq!(classes(&MODEL, None, "2").unwrap(), 2);
    assert_eq!(classes(&MODEL, None, "\"2\"").unwrap(), 2, "CSV cells are texts");
    assert_eq!(classes(&MODEL, None, "2.0").unwrap(), 2);
    // The data counts from entailment: its 2 is the model's 0.
    assert_eq!(classes(&MODEL, Some(&DATA), "2").unwrap(), 0);
    assert_eq!(classes(&MODEL, Some(&DATA), "\"neutral\"").unwrap(), 2);
    // A model without names takes ids as they are, and names through the data's order.
    const PLAIN: [&str; 3] = ["LABEL_0", "LABEL_1", "LABEL_2"];
    assert_eq!(classes(&PLAIN, Some(&DATA), "2").unwrap(), 2);
    assert_eq!(classes(&PLAIN, Some(&DATA), "\"contradiction\"").unwrap(), 2);
    assert_eq!(classes(&PLAIN, None, "\"LABEL_1\"").unwrap(), 1);
}

#[test]
fn labels_that_are_not_the_models_are_refused() {
    const MODEL: [&str; 2] = ["no", "yes"];
    for (names, label, part) in [
        (None, "\"maybe\"", "expected no, yes (or an id from 0 to 1), found maybe"),
        (None, "2", "found 2"),
        (None, "-1", "found -1"),
        (None, "0.5", "found 0.5"),
        (None, "[0]", "found [0]"),
        (Some(&["no", "perhaps"][..]), "0", "found perhaps"),
    ] {
        let error = classes(&MODEL, names, label).unwrap_err();
        assert!(error.to_string().contains(part), "{label}: {error}");
    }
    let hidden = classes(&MODEL, None, "-1").unwrap_err();
    assert!(hidden.advice().unwrap().contains("hidden label"));
    // Ambiguous when case is ignored, so only the exact name will do.
    assert!(classes(&["a", "A"], None, "\"a\"").is_ok());
    assert!(classes(&["x", "ab", "AB"], None, "\"Ab\"").is_err());
}

#[test]
fn ids_without_names_are_remarked_on() {
    let rows = "{\"text\":\"a\",\"label\":1}";
    let said = exam(Problem::Classes, &["no", "yes"], None, rows).unwrap().remarks;
    assert!(said[0].contains("0 no, 1 yes"), "{said:?}");
    assert!(exam(Problem::Classes, &["no", "yes"], Some(&["no", "yes"]), rows).unwrap().remarks.is_empty());
}

#[test]
fn sets_are_lists_flags_or_separated_names() {
    let set = |label: &str| {
        let row = format!("{{\"text\":\"a\",\"label\":{label}}}");
        exam(Problem::Sets, &["a", "b", "c"], None, &row).map(|e| e.truths[0].clone())
    };
    let flags = |f: [bool; 3]| Truth::Set(f.to_vec());
    for label in ["[\"a\",\"c\"]", "[0,2]", "[1,0,1]", "[1.0,0.0,1.0]", "\"c, a\"", "\"a|c\"", "\"[0, 2]\""] {
        assert_eq!(set(label).unwrap(), flags([true, false, true]), "{label}");
    }
    assert_eq!(set("[]").unwrap(), flags([false; 3]));
    assert_eq!(set("\"\"").unwrap(), flags([false; 3]));
    assert_eq!(set("\"b\"").unwrap(), flags([false, true, false]));
    assert!(set("[\"a\",\"d\"]").is_err());
}

#[test]
fn choices_are_numbers_letters_or_texts() {
    for label in ["1", "\"1\"", "\"B\"", "\"two\""] {
        let row = format!("{{\"text\":\"s\",\"choices\":[\"one\",\"two\"],\"label\":{label}}}");
        let truth = exam(Problem::Choices, &[], None, &row).unwrap().truths[0].clone();
        assert_eq!(truth, Truth::Class(1), "{label}");
    }
    let row = "{\"text\":\"s\",\"choices\":[\"one\",\"two\"],\"label\":2}";
    assert!(exam(Problem::Choices, &[], None, row).unwrap_err().to_string().contains("0 to 1"));
}

/// Six rows of a two-label classifier; the second model loses row 1 and gains row 4.
fn paired() -> (Exam, Trial, Trial) {
    let rows: Vec<String> = (0..6).map(|i| format!("{{\"text\":\"t\",\"label\":{}}}", i % 2)).collect();
    let exam = exam(Problem::Classes, &["no", "yes"], None, &rows.join("\n")).unwrap();
    let says = |labels: [usize; 6]| {
        trial(
            labels
                .iter()
                .map(|&l| Output::Logits(if l == 0 { vec![1.0, 0.0] } else { vec![0.0, 2.0] }))
                .collect(),
        )
    };
    let (first, second) = (says([0, 1, 0, 0, 1, 1]), says([0, 0, 0, 0, 0, 1]));
    (exam, first, second)
}

#[test]
fn a_comparison_counts_what_changed_row_by_row() {
    let (exam, first, second) = paired();
    let plan = Plan { resamples: 500, seed: 0, threads: 1 };
    let report = report(&exam, &[&first, &second], &plan);
    let c = report.comparison.as_ref().unwrap();
    assert_eq!(c.counts, Some([3, 1, 1, 1]));
    assert_eq!(c.flips, [1, 4], "what was lost comes first");
    let same = c.agreement.unwrap();
    assert_eq!((same.hits, same.rows), (4, 6));
    assert_eq!(c.mcnemar.unwrap().exact, 1.0);
    let accuracy = c.differences[0].estimate;
    assert_eq!(accuracy.value, Some(0.0));
    assert!(accuracy.interval.unwrap()[0] < -40.0, "six rows prove next to nothing: {accuracy:?}");
    // Rows 1 and 4 changed from [0, 2] to [1, 0] or back: the worst score moves by 2.
    assert_eq!(c.scores, Some([2.0 * 2.0 / 6.0, 2.0]));
    let [mean, worst] = c.divergence.unwrap();
    assert!(mean > 0.0 && worst > mean);
    let alone = super::report(&exam, &[&first], &plan);
    assert!(alone.comparison.is_none());
    assert_eq!(alone.figures[0].1[0].value, report.figures[0].1[0].value);
}

#[test]
fn equal_models_leave_open_what_their_rows_leave_open() {
    let (exam, first, _) = paired();
    let plan = Plan { resamples: 500, seed: 0, threads: 1 };
    let c = report(&exam, &[&first, &first], &plan).comparison.unwrap();
    for d in &c.differences {
        let [low, high] = d.estimate.interval.unwrap();
        if d.metric.kind.is_decided() {
            assert!(low < -30.0 && high > 30.0, "{}: six equal rows prove nothing", d.metric.name);
        }
    }
    assert!(c.flips.is_empty());
}

#[test]
fn gates_decide_on_the_end_of_the_interval_or_on_the_point() {
    let (exam, first, second) = paired();
    let plan = Plan { resamples: 500, seed: 0, threads: 1 };
    let report = report(&exam, &[&first, &second], &plan);
    let passed = |gate: &str, on| Gate::parse(gate).unwrap().decide(&report, on).unwrap().passed;
    assert!(passed("accuracy>=0", On::Point));
    assert!(!passed("accuracy>=-10", On::Interval));
    assert!(passed("accuracy>=-90", On::Interval));
    assert!(passed("accuracy>=abs:66.6", On::Point));
    assert!(!passed("accuracy>=abs:66.7", On::Point));
    assert!(!passed("accuracy>=abs:66.6", On::Interval));
    assert!(passed("agreement>=abs:66", On::Point));
    assert!(!passed("agreement>=abs:67", On::Point));
    let failed = Gate::parse("accuracy>=-10").unwrap().decide(&report, On::Interval).unwrap();
    let said = failed.sentence();
    for part in [
        "accuracy>=-10 failed",
        "changed by +0.00 points",
        "from 66.67 to 66.67",
        "interval [-",
        "at least -10",
    ] {
        assert!(said.contains(part), "{part:?} is not in {said:?}");
    }
    let alone = super::report(&exam, &[&first], &plan);
    let error = Gate::parse("accuracy>=-1").unwrap().decide(&alone, On::Point).unwrap_err();
    assert!(error.to_string().contains("compares two models"), "{error}");
    for (gate, part) in [("spearman>=-1", "no such figure"), ("ece>=-1", "better the lower")] {
        let error = Gate::parse(gate).unwrap().decide(&report, On::Point).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("expected accuracy, macro-f1, mcc, auc"), "{error}");
    }
}

#[test]
fn malformed_gates_are_refused() {
    for (gate, part) in [
        ("", "cannot be read"),
        ("accuracy", "cannot be read"),
        ("accuracy>-0.2", "cannot be read"),
        ("accuracy<=0.2", "cannot be read"),
        (">=-0.2", "name of a figure"),
        ("Accuracy of all>=-0.2", "name of a figure"),
        ("accuracy>=", "no number"),
        ("accuracy>=-0.2%", "no number"),
        ("accuracy>=abs:", "no number"),
        ("accuracy>=nan", "no number"),
        ("accuracy>=-inf", "no number"),
        ("accuracy>=-101", "outside"),
        ("accuracy>=0.2", "more than the float model"),
        ("accuracy>=90", "more than the float model"),
        ("accuracy>=abs:0.9", "next to nothing"),
        ("agreement>=-0.5", "not a difference"),
    ] {
        let error = Gate::parse(gate).expect_err(gate).to_string();
        assert!(error.contains(part) && error.contains("--gate"), "{gate:?}: {error}");
    }
    assert!(Gate::parse("accuracy>=90").unwrap_err().advice().unwrap().contains("accuracy>=abs:90"));
    assert!(Gate::parse("accuracy>=abs:0.9").unwrap_err().advice().unwrap().contains("abs:90"));
    for good in ["accuracy>=-0.2", " f1 >= 0 ", "mcc>=abs:0", "agreement>=abs:99.5", "f1>=-0"] {
        Gate::parse(good).unwrap_or_else(|e| panic!("{good:?}: {e}"));
    }
}

#[test]
fn tags_and_answers_and_scores_are_judged() {
    let rows = r#"{"tokens":["Ada","L","in","Rome"],"tags":["B-PER","I-PER","O","B-LOC"]}
{"tokens":["no","one"],"tags":["O","O"]}"#;
    let exam = exam(Problem::Tags, &["O", "B-PER", "I-PER", "B-LOC"], None, rows).unwrap();
    let tag = |t: &[Option<usize>]| Output::Tags(t.iter().map(|t| (*t, vec![0.0; 4])).collect());
    // One of two entities, and the last word cut off.
    let t = trial(vec![tag(&[Some(1), Some(2), Some(0), None]), tag(&[Some(0), Some(0)])]);
    let at = |kind| exam.figure(kind, &t).at(&[1, 1]);
    assert!((at(Kind::EntityF1) - 2.0 / 3.0).abs() < 1e-12);
    assert_eq!((at(Kind::EntityPrecision), at(Kind::EntityRecall)), (1.0, 0.5));
    assert!((at(Kind::WordAccuracy) - 5.0 / 6.0).abs() < 1e-12);
    assert_eq!(exam.right(&t), [false, true]);
    assert_eq!(exam.spelled(&t.outputs[0]), "B-PER I-PER O (cut)");
}
