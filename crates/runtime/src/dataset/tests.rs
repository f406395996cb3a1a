use super::*;
use std::path::PathBuf;

fn file(name: &str, content: impl AsRef<[u8]>) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, content).unwrap();
    (dir, path)
}

fn read_as(path: &Path, form: Form, columns: &Columns) -> Result<Vec<Example>> {
    Dataset::open(path, form, columns)?.collect()
}

fn read(name: &str, content: impl AsRef<[u8]>) -> Result<Vec<Example>> {
    let (_dir, path) = file(name, content);
    read_as(&path, Form::Text, &Columns::default())
}

fn texts(examples: &[Example]) -> Vec<&str> {
    examples
        .iter()
        .map(|e| match &e.row {
            Row::Text { text, .. } => text.as_str(),
            other => panic!("{other:?}"),
        })
        .collect()
}

fn stored(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/datasets").join(name)
}

#[test]
fn every_line_format_gives_the_same_examples() {
    let jsonl = "\u{feff}{\"text\":\"one, two\",\"label\":\"x\"}\r\n\n{\"label\":\"y\",\"text\":\"three\"}\n";
    let csv = "\u{feff}text,label\r\n\"one, two\",x\r\nthree,y\r\n";
    let tsv = "text\tlabel\none, two\tx\nthree\ty\n";
    for (name, content) in [("a.jsonl", jsonl), ("a.csv", csv), ("a.tsv", tsv), ("A.JSONL", jsonl)] {
        let all = read(name, content).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(texts(&all), ["one, two", "three"], "{name}");
        let labels: Vec<_> = all.iter().map(|e| e.target.clone()).collect();
        let name_of = |s: &str| Target::Label(Label::Name(s.into()));
        assert_eq!(labels, [name_of("x"), name_of("y")], "{name}");
    }
    let plain = read("a.txt", "one, two\n \nthree").unwrap();
    assert_eq!(texts(&plain), ["one, two", "three"]);
    assert_eq!(plain[1].place.number, 3, "empty lines count");
    assert_eq!(plain[1].target, Target::None);
}

#[test]
fn labels_keep_the_kind_they_are_written_in() {
    let rows = r#"{"text":"a","label":3}
{"text":"a","label":-1.5}
{"text":"a","label":true}
{"text":"a","label":["p","q"]}
{"text":"a","label":null}
{"text":"a"}"#;
    let targets: Vec<Target> = read("a.jsonl", rows).unwrap().into_iter().map(|e| e.target).collect();
    let label = Target::Label;
    let many = Label::Many(vec![Label::Name("p".into()), Label::Name("q".into())]);
    let expected =
        [label(Label::Id(3)), label(Label::Number(-1.5)), label(Label::Id(1)), label(many), Target::None];
    assert_eq!(targets[..5], expected);
    assert_eq!(targets[5], Target::None);
}

#[test]
fn columns_are_guessed_by_their_usual_names_and_the_guess_is_said() {
    let (_dir, path) = file("a.csv", "idx,premise,Hypothesis,label\n1,p,h,0\n");
    let data = Dataset::open(&path, Form::Text, &Columns::default()).unwrap();
    let said = data.remarks().join("; ");
    assert!(said.contains("\"premise\" and \"Hypothesis\"") && said.contains("\"label\""), "{said}");
    let all: Vec<Example> = data.map(|e| e.unwrap()).collect();
    assert_eq!(all[0].row, Row::Text { text: "p".into(), pair: Some("h".into()) });
    // A named column is not guessed, and a text alone is no pair.
    let named = Columns { text: Some("Hypothesis".into()), label: Some("idx".into()), ..Columns::default() };
    let data = Dataset::open(&path, Form::Text, &named).unwrap();
    assert!(data.remarks().is_empty());
    let all: Vec<Example> = data.map(|e| e.unwrap()).collect();
    assert_eq!(all[0].row, Row::text("h"));
    assert_eq!(all[0].target, Target::Label(Label::Name("1".into())));
}

#[test]
fn questions_choices_and_words_are_read() {
    let (_d, path) = file(
        "a.jsonl",
        r#"{"question":"q","context":"c","answers":{"text":["a","b"],"answer_start":[0,1]}}
{"question":"q","context":"c","answers":["a"]}
{"question":"q","context":"c","answers":[{"text":"a"}]}
{"question":"q","context":"c","answers":"a"}
{"question":"q","context":"c","answers":{"text":[],"answer_start":[]}}"#,
    );
    let all = read_as(&path, Form::Question, &Columns::default()).unwrap();
    let counts: Vec<usize> = all
        .iter()
        .map(|e| match &e.target {
            Target::Answers(a) => a.len(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(counts, [2, 1, 1, 1, 0]);

    let choices = Row::Choices { text: "s".into(), choices: vec!["a".into(), "b".into()] };
    for content in [
        r#"{"text":"s","choices":["a","b"],"label":1}"#,
        r#"{"sent1":"s","ending0":"a","ending1":"b","label":1}"#,
        r#"{"premise":"s","choice1":"a","choice2":"b","label":1}"#,
        r#"{"question":"s","choices":{"text":["a","b"],"label":["A","B"]},"label":1}"#,
    ] {
        let (_d, path) = file("a.jsonl", content);
        let all = read_as(&path, Form::Choices, &Columns::default()).unwrap();
        assert_eq!((&all[0].row, &all[0].target), (&choices, &Target::Label(Label::Id(1))), "{content}");
    }

    let (_d, path) = file("a.jsonl", r#"{"tokens":["Zoë","in","Rome"],"ner_tags":[1,0,"B-LOC"]}"#);
    let all = read_as(&path, Form::Words, &Columns::default()).unwrap();
    assert_eq!(texts(&all), ["Zoë in Rome"]);
    let tags = vec![Label::Id(1), Label::Id(0), Label::Name("B-LOC".into())];
    assert_eq!(all[0].target, Target::Tags { words: vec![0..3, 4..6, 7..11], tags });
}

#[test]
fn parquet_is_read_as_pyarrow_writes_it() {
    for name in ["pairs.parquet", "pairs-plain.parquet"] {
        let data = Dataset::open(&stored(name), Form::Text, &Columns::default()).unwrap();
        assert_eq!(data.label_names().unwrap(), ["entailment", "neutral", "contradiction"], "{name}");
        let all: Vec<Example> = data.map(|e| e.unwrap()).collect();
        assert_eq!(all.len(), 3);
        let second = Row::Text {
            text: "É tarde — the café\nis shut.".into(),
            pair: Some("Nobody is there.".into()),
        };
        assert_eq!(all[1].row, second);
        let targets: Vec<_> = all.iter().map(|e| e.target.clone()).collect();
        let id = |i| Target::Label(Label::Id(i));
        assert_eq!(targets, [id(0), id(2), Target::None]);
        assert_eq!(all[2].place.to_string(), format!("{} row 3", stored(name).display()));
    }
    let tags = Dataset::open(&stored("tags.parquet"), Form::Words, &Columns::default()).unwrap();
    assert_eq!(tags.label_names().unwrap(), ["O", "B-PER", "B-LOC"]);
    let all: Vec<Example> = tags.map(|e| e.unwrap()).collect();
    let ids = [2, 0].map(Label::Id).to_vec();
    assert_eq!(texts(&all)[1], "日本 !");
    assert_eq!(all[1].target, Target::Tags { words: vec![0..2, 3..4], tags: ids });
    let all = read_as(&stored("squad.parquet"), Form::Question, &Columns::default()).unwrap();
    assert_eq!(all[0].target, Target::Answers(vec!["Ada".into(), "Ada L.".into()]));
    assert_eq!(all[1].target, Target::Answers(vec![]));
}

#[test]
fn what_cannot_be_read_is_refused_with_its_line() {
    let long = format!("{{\"text\":\"a\"}}\n{{\"text\":\"{}\"}}\n", "x".repeat(17 << 20));
    let open_quote = format!("text,label\na,b\n\"{}", "x\n".repeat(10 << 20));
    let deep = format!("{{\"text\":\"a\"}}\n{{\"text\":{}1{}}}", "[".repeat(5000), "]".repeat(5000));
    let cases: Vec<(&str, Vec<u8>, &[&str])> = vec![
        ("a.jsonl", b"".into(), &["holds no rows"]),
        ("a.txt", b"\n \n".into(), &["holds no rows"]),
        ("a.csv", b"text,label\n".into(), &["holds no rows"]),
        ("a.jsonl", b"{\"text\":\"a\"}\n\n{\"text\":".into(), &["line 3", "EOF"]),
        ("a.jsonl", b"{\"text\":\"a\"}\n{\"text\":\"a\",\"text\":\"b\"}".into(), &["line 2", "stands twice"]),
        ("a.jsonl", b"{\"text\":\"a\"}\n{\"txt\":\"a\"}".into(), &["line 2", "no column \"text\"", "txt"]),
        ("a.jsonl", b"{\"text\":\"a\"}\n{\"text\":7}".into(), &["line 2", "does not hold a text", "7"]),
        ("a.jsonl", b"{\"text\":\"a\"}\n\xff\xfe".into(), &["line 2", "not UTF-8", "position 1"]),
        ("a.jsonl", b"[{\"text\":\"a\"}]".into(), &["line 1", "not a JSON object"]),
        ("a.jsonl", b"{\"a\":\"a\"}".into(), &["no column looks like the text", "columns a"]),
        ("a.jsonl", b"{\"text\":\"a\",\"label\":{\"b\":1}}".into(), &["line 1", "does not hold a label"]),
        ("a.jsonl", long.into(), &["line 2", "too long"]),
        ("a.jsonl", deep.into(), &["line 2", "recursion limit"]),
        ("a.csv", b"text,label\na,b\nc\n".into(), &["line 3", "expected 2, found 1"]),
        ("a.csv", b"text,label\na,b,c\n".into(), &["line 2", "expected 2, found 3"]),
        ("a.csv", b"text,text\na,b\n".into(), &["line 1", "two columns have one name"]),
        ("a.csv", b"text,label\na,\xff\n".into(), &["line 2", "not UTF-8"]),
        ("a.csv", open_quote.into(), &["longer than"]),
        ("a.parquet", b"PAR1 no".into(), &["Parquet file is damaged"]),
        ("a.parquet", b"text\n".into(), &["not a Parquet file"]),
        ("a.xlsx", b"PK".into(), &["kind of data file is not known", ".jsonl, .csv"]),
    ];
    for (name, content, parts) in cases {
        let shown = String::from_utf8_lossy(&content[..content.len().min(40)]).into_owned();
        let error = read(name, content).expect_err(&shown).to_string();
        for part in [&[name][..], parts].concat() {
            assert!(error.contains(part), "{shown:?}: {part:?} is not in {error:?}");
        }
    }
    let error = read_as(&stored("pairs-zstd.parquet"), Form::Text, &Columns::default()).unwrap_err();
    assert!(
        error.to_string().contains("compression") && error.advice().unwrap().contains("snappy"),
        "{error}"
    );
    let error = read_as(&stored("empty.parquet"), Form::Text, &Columns::default()).unwrap_err();
    assert!(error.to_string().contains("holds no rows"), "{error}");
    let named = Columns { text: Some("txt".into()), ..Columns::default() };
    let error = read_as(&stored("pairs.parquet"), Form::Text, &named).unwrap_err().to_string();
    assert!(error.contains("no column \"txt\"") && error.contains("premise"), "{error}");
    let (_d, path) = file("a.jsonl", r#"{"tokens":["a","b"],"tags":["O"]}"#);
    let error = read_as(&path, Form::Words, &Columns::default()).unwrap_err().to_string();
    assert!(error.contains("line 1") && error.contains("expected 2, found 1"), "{error}");
}

#[test]
fn an_error_ends_the_examples() {
    let (_dir, path) = file("a.jsonl", "{\"text\":\"a\"}\nno\n{\"text\":\"b\"}\n");
    let mut data = Dataset::open(&path, Form::Text, &Columns::default()).unwrap();
    assert!(data.next().unwrap().is_ok());
    assert!(data.next().unwrap().is_err());
    assert!(data.next().is_none());
}

/// No damage to a Parquet file panics, hangs or gives rows that were not written.
#[test]
fn a_damaged_parquet_file_is_an_error_or_the_same_rows() {
    let good = std::fs::read(stored("pairs.parquet")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    let quiet = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let mut refused = 0;
    for at in (0..good.len()).step_by(11) {
        let mut bad = good.clone();
        bad[at] ^= 0x55;
        std::fs::write(&path, &bad).unwrap();
        let run = std::panic::catch_unwind(|| read_as(&path, Form::Text, &Columns::default()));
        let read = run.unwrap_or_else(|_| panic!("byte {at} panics"));
        refused += usize::from(read.is_err());
    }
    for end in (0..good.len()).step_by(29) {
        std::fs::write(&path, &good[..end]).unwrap();
        let run = std::panic::catch_unwind(|| read_as(&path, Form::Text, &Columns::default()));
        assert!(run.expect("a cut file panics").is_err(), "cut at {end}");
    }
    std::panic::set_hook(quiet);
    assert!(refused > 20, "only {refused} changes were noticed");
}
