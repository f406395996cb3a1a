//! Files nobody should have written, and the arithmetic of truncation.

use std::collections::BTreeMap;

use proptest::prelude::*;
use qberta_model::error::Kind as Trouble;
use serde_json::{Value, json};
use tokenizers::normalizers::Precompiled;

use super::*;

/// A protobuf field of bytes.
fn field(number: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    prost::encode_length_delimiter(body.len(), &mut out).expect("room");
    out.extend(body);
    out
}

fn piece(text: &str, score: f32, kind: u8) -> Vec<u8> {
    let mut body = field(1, text.as_bytes());
    body.push(2 << 3 | 5);
    body.extend(score.to_le_bytes());
    body.extend([3 << 3, kind]);
    field(1, &body)
}

/// `unk_id` is field 40, so its key takes two bytes.
fn unknown_is(id: u8) -> Vec<u8> {
    field(2, &[0xc0, 0x02, id])
}

fn small_spm() -> Vec<u8> {
    let markers = [("[PAD]", 3), ("[CLS]", 3), ("[SEP]", 3), ("[UNK]", 2)];
    let mut bytes: Vec<u8> = markers.iter().flat_map(|&(text, kind)| piece(text, 0.0, kind)).collect();
    for (text, score) in [("▁", -2.0), ("▁a", -1.0), ("b", -2.5), ("▁ab", -1.5)] {
        bytes.extend(piece(text, score, 1));
    }
    bytes.extend(unknown_is(3));
    bytes
}

/// A character map with one rule, "x" to "yz".
fn small_map() -> Vec<u8> {
    let mut units = vec![0u32; 512];
    units[0] = 1 << 10; // root: children around unit 1
    let x = 1 ^ usize::from(b'x');
    units[x] = u32::from(b'x') | 1 << 8 | 256 << 10; // a key ends here; its value is 256 away
    units[x ^ 256] = 0;
    let mut map = 2048u32.to_le_bytes().to_vec();
    map.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
    map.extend(b"yz\0");
    map
}

type Files = BTreeMap<&'static str, Vec<u8>>;

fn build(files: &Files) -> Result<Option<Tokenizer>> {
    Tokenizer::from_files(|name| files.get(name).cloned())
}

fn refusal(files: &Files) -> Error {
    match build(files) {
        Ok(_) => panic!("accepted"),
        Err(e) => e,
    }
}

fn spm(bytes: Vec<u8>) -> Files {
    Files::from([("spm.model", bytes)])
}

fn json_file(value: &Value) -> Files {
    Files::from([("tokenizer.json", value.to_string().into_bytes())])
}

/// A word-level tokenizer.json to break in one place.
fn small_json() -> Value {
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "a": 1}, "unk_token": "[UNK]"}
    })
}

#[test]
fn a_directory_without_tokenizer_files_has_no_tokenizer() {
    let dir = tempfile::tempdir().expect("a directory");
    assert!(Tokenizer::open(dir.path()).expect("no error").is_none());
    assert!(build(&Files::new()).expect("no error").is_none());
    std::fs::write(dir.path().join("spm.model"), small_spm()).expect("written");
    let tokenizer = Tokenizer::open(dir.path()).expect("read").expect("there");
    assert_eq!(tokenizer.origin(), "spm.model");
}

#[test]
fn a_small_sentencepiece_model_works() {
    let tokenizer = build(&spm(small_spm())).expect("built").expect("there");
    let got = tokenizer.encode("a ab", Some("é[MASK]"), None).expect("encoded");
    assert_eq!(got.ids, [1, 5, 7, 2, 4, 3, 8, 2]);
    assert_eq!(got.type_ids, [0, 0, 0, 0, 1, 1, 1, 1]);
    assert_eq!(got.offsets, [(0, 0), (0, 1), (1, 4), (0, 0), (0, 1), (0, 1), (1, 7), (0, 0)]);
    assert_eq!(got.segment, [None, Some(0), Some(0), None, Some(1), Some(1), Some(1), None]);
    assert_eq!(tokenizer.mask(), Some((8, "[MASK]".to_owned())));
    assert_eq!(tokenizer.pad_id(), Some(0));
    assert_eq!(tokenizer.vocabulary(), 9);
    assert_eq!(tokenizer.token(7).as_deref(), Some("▁ab"));
    assert_eq!(tokenizer.token(9), None);
    assert_eq!(tokenizer.decode(&got.ids).expect("decoded"), "a ab ");
    assert_eq!(tokenizer.max_length(), None);
}

#[test]
fn a_field_the_schema_lacks_is_skipped() {
    let mut bytes = small_spm();
    bytes.extend([0x92, 0x03, 2, 0xff, 0xff]); // field 50, two bytes
    let mut trainer = vec![0x92, 0x03, 1, 0xff]; // and inside the trainer's part
    trainer.extend([0xc0, 0x02, 3]);
    bytes.extend(field(2, &trainer));
    assert_eq!(parse_spm(&bytes).expect("parsed").len(), 8);
}

#[test]
fn a_broken_sentencepiece_model_is_refused_with_a_sentence() {
    let with = |extra: Vec<u8>| [small_spm(), extra].concat();
    let long = "x".repeat(2000);
    let unknown_model = with(field(2, &[3 << 3, 7]));
    let bpe = with(field(2, &[3 << 3, 2]));
    let latin: Vec<u8> = field(1, &field(1, &[0xe9, 0xe9]));
    for (bytes, words) in [
        (vec![], "has no pieces"),
        (unknown_is(0), "has no pieces"),
        (b"{\"not\": \"protobuf\"}".to_vec(), "not a protobuf"),
        (small_spm()[..50].to_vec(), "cut short"),
        (with(vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]), "cut short"),
        (with(piece("n", f32::NAN, 1)), "not finite"),
        (with(piece("n", f32::NEG_INFINITY, 1)), "not finite"),
        (with(piece("", 0.0, 1)), "is empty"),
        (with(piece("b", 0.0, 1)), "listed twice"),
        (with(piece(&long, 0.0, 1)), "too long"),
        (with(latin), "cannot be decoded"),
        (with(unknown_is(77)), "not in the vocabulary"),
        (bpe, "of type BPE"),
        (unknown_model, "unknown type"),
        (with(field(3, &field(2, &[1, 2]))), "character map is cut short"),
        (with(field(3, &field(2, &[0xff; 400]))), "character map is cut short"),
        (with(field(3, &field(2, &[0; 4]))), "character map has no trie"),
    ] {
        let e = refusal(&spm(bytes));
        assert!(e.to_string().contains(words), "{e} (wanted {words:?})");
        assert!(e.to_string().starts_with("spm.model: "), "{e}");
    }
}

#[test]
fn an_absurd_number_of_pieces_is_refused() {
    let bytes: Vec<u8> =
        (0..=1u32 << 20).flat_map(|i| field(1, &field(1, format!("{i}").as_bytes()))).collect();
    assert!(refusal(&spm(bytes)).to_string().contains("too many pieces"));
}

#[test]
fn character_maps_are_walked() {
    let map = small_map();
    spm::check_charsmap(&map).expect("a good map");
    assert_eq!(Precompiled::from(&map).expect("parsed").normalize_string("axb"), "ayzb");

    let mut outside = map.clone();
    outside[4 + 4 * (1 ^ usize::from(b'x')) + 2] = 0xff; // the children of x lie far away
    let mut value = map.clone();
    value[4 + 4 * (1 ^ usize::from(b'x') ^ 256)] = 9; // past the replacements
    let mut inside = map.clone();
    inside.truncate(map.len() - 3);
    inside.extend("é\0".as_bytes());
    inside[4 + 4 * (1 ^ usize::from(b'x') ^ 256)] = 1; // in the middle of é
    for broken in [outside, value, inside] {
        assert!(spm::check_charsmap(&broken).is_err());
    }
}

#[test]
fn a_broken_tokenizer_json_is_refused_with_a_sentence() {
    let edit = |path: &str, value: Value| {
        let mut json = small_json();
        *json.pointer_mut(path).expect("a place") = value;
        json_file(&json)
    };
    let bpe = |merges: Value| json!({"type": "BPE", "vocab": {"a": 0, "b": 1, "aaa": 2}, "merges": merges});
    let template = |single: Value| json!({"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {}});
    let grow = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaaaaaaaaa"});
    let piece =
        |length: usize| json!({"type": "Unigram", "unk_id": 0, "vocab": [["x".repeat(length), -1.0]]});
    for (files, words) in [
        (Files::from([("tokenizer.json", b"{".to_vec())]), "not a tokenizer.json"),
        (Files::from([("tokenizer.json", b"\xff\xfe".to_vec())]), "not a tokenizer.json"),
        (edit("/version", json!("9")), "does not work"),
        (edit("/model", json!({"type": "Unigram", "unk_id": 5, "vocab": [["a", 0.0]]})), "does not work"),
        (edit("/model", piece(5000)), "pieces that are too long"),
        (edit("/model", bpe(json!(["a b"]))), "not in the vocabulary"),
        (edit("/model", bpe(json!([["aaa", "aaa"]]))), "not in the vocabulary"),
        (edit("/model", bpe(json!(["ab"]))), "not a merge"),
        (
            edit("/model", json!({"type": "BPE", "vocab": {"a": 0}, "merges": [], "dropout": 0.1})),
            "at random",
        ),
        (edit("/model/vocab", json!({"a": 4_000_000_000u32})), "ids past"),
        (edit("/model/vocab", json!({"a": -1})), "not a tokenizer.json"),
        (
            edit("/normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "////"})),
            "character map",
        ),
        (edit("/normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "%"})), "not base64"),
        (edit("/normalizer", json!({"type": "Sequence", "normalizers": vec![grow; 20]})), "too long"),
        (edit("/pre_tokenizer", json!({"type": "FixedLength", "length": 0})), "length 0"),
        (
            edit("/post_processor", template(json!([{"SpecialToken": {"id": "[X]", "type_id": 0}}]))),
            "not define",
        ),
        (edit("/post_processor", template(json!([{"Sequence": {"id": "B", "type_id": 0}}]))), "asks for two"),
    ] {
        let e = refusal(&files);
        assert!(e.to_string().contains(words), "{e} (wanted {words:?})");
        assert!(e.to_string().starts_with("tokenizer.json: "), "{e}");
    }
    build(&json_file(&small_json())).expect("the unbroken one").expect("is there");
}

#[test]
fn padding_and_truncation_in_the_file_do_not_count() {
    let mut json = small_json();
    json["truncation"] =
        json!({"max_length": 1, "strategy": "LongestFirst", "stride": 0, "direction": "Right"});
    json["padding"] = json!({"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 1, "pad_type_id": 0, "pad_token": "a"});
    let tokenizer = build(&json_file(&json)).expect("built").expect("there");
    assert_eq!(tokenizer.encode("a a a", None, None).expect("encoded").ids, [1, 1, 1]);
}

#[test]
fn broken_byte_pair_files_are_refused_with_a_sentence() {
    let vocab = br#"{"[PAD]":0,"[CLS]":1,"[SEP]":2,"[UNK]":3,"a":4,"b":5,"ab":6}"#.to_vec();
    let with = |vocab: &[u8], merges: &str| {
        Files::from([("vocab.json", vocab.to_vec()), ("merges.txt", merges.as_bytes().to_vec())])
    };
    let good = build(&with(&vocab, "#version: 0.2\na b\n")).expect("built").expect("there");
    assert_eq!(good.encode("ab", None, None).expect("encoded").ids, [1, 6, 2]);
    assert_eq!(good.mask(), Some((7, "[MASK]".to_owned())));
    for (files, words) in [
        (with(&vocab, "#version: 0.2\na c\n"), "merges.txt: line 2: a merge names a token"),
        (with(&vocab, "#version: 0.2\nab ab\n"), "not in the vocabulary"),
        (with(&vocab, "#version: 0.2\na b c\n"), "line 2: not a merge"),
        (with(b"[]", "#version: 0.2\n"), "neither DeBERTa's [CLS] nor"),
        (with(b"{\"a\": 1.5}", "#version: 0.2\n"), "vocab.json: not a vocabulary"),
        (with(b"", "#version: 0.2\n"), "vocab.json: not a vocabulary"),
        (Files::from([("vocab.json", vocab.clone())]), "merges.txt is missing"),
        (Files::from([("vocab.txt", vec![])]), "vocab.txt: not a vocabulary"),
        (Files::from([("vocab.txt", b"[CLS]\n[SEP]\n".to_vec())]), "unknown token is not in the vocabulary"),
        (Files::from([("vocab.txt", b"\xff\xfe\n".to_vec())]), "not UTF-8"),
        (Files::from([("sentencepiece.bpe.model", piece("a", 0.0, 1))]), "lacks XLM-RoBERTa's markers"),
    ] {
        let e = refusal(&files);
        assert!(e.to_string().contains(words), "{e} (wanted {words:?})");
    }
}

#[test]
fn settings_that_do_not_fit_the_vocabulary_are_refused() {
    let with = |config: Value| {
        let mut files = spm(small_spm());
        files.insert("tokenizer_config.json", config.to_string().into_bytes());
        files
    };
    let listed = |id: &str, content: &str| json!({"added_tokens_decoder": {id: {"content": content, "special": true}}});
    let e = refusal(&with(listed("70", "[MASK]")));
    assert!(e.to_string().contains("does not get the id it is listed with: expected 70, found 8"), "{e}");
    assert!(refusal(&with(listed("x", "[MASK]"))).to_string().contains("no numeric id"));
    assert!(refusal(&with(json!({"mask_token": 7}))).to_string().contains("mask_token: not a token"));
    assert!(refusal(&with(json!([]))).to_string().contains("tokenizer_config.json: not a JSON object"));
    let other = refusal(&with(json!({"tokenizer_class": "T5Tokenizer"})));
    assert_eq!(other.kind(), Trouble::Unsupported);
    assert!(other.advice().is_some());

    let fine = with(json!({"model_max_length": 512, "mask_token": {"content": "<m>", "lstrip": true}}));
    let fine = build(&fine).expect("built").expect("there");
    assert_eq!(fine.max_length(), Some(512));
    assert_eq!(fine.mask(), Some((8, "<m>".to_owned())));
    let none = with(json!({"model_max_length": 1e30}));
    assert_eq!(build(&none).expect("built").expect("there").max_length(), None);
}

#[test]
fn limits_without_room_are_errors_of_the_request() {
    let tokenizer = build(&spm(small_spm())).expect("built").expect("there");
    assert_eq!(tokenizer.encode("a a a", None, Some(2)).expect("encoded").ids, [1, 2]);
    for e in [
        tokenizer.encode("a", None, Some(1)).expect_err("no room"),
        tokenizer.encode("a", Some("a"), Some(2)).expect_err("no room"),
        tokenizer.windows("a a a", "a a a", 6, 0).expect_err("no room for the context"),
        tokenizer.windows("a", "a a a", 6, 2).expect_err("no step"),
        tokenizer.windows("a", "a", 0, 0).expect_err("no room at all"),
    ] {
        assert_eq!(e.kind(), Trouble::Input);
    }
    let windows = tokenizer.windows("a", "a b a a", 6, 1).expect("windows");
    assert_eq!(windows.iter().map(|w| w.ids.len()).collect::<Vec<_>>(), [6; 4]);
}

#[test]
fn the_longer_text_loses_tokens_first() {
    for (n, m, budget, expected) in [
        (10, 3, 9, (6, 3)),
        (3, 10, 9, (3, 6)),
        (10, 10, 9, (4, 5)),
        (11, 10, 9, (5, 4)),
        (5, 5, 0, (0, 0)),
        (0, 9, 4, (0, 4)),
        (9, 0, 1, (1, 0)),
        (4, 6, 9, (4, 5)),
    ] {
        assert_eq!(shares(n, m, budget), expected, "{n} and {m} into {budget}");
    }
}

#[test]
fn character_offsets_end_where_the_text_ends() {
    let mut offsets = [(0, 2), (2, 3), (3, 7), (7, 7), (7, 99)];
    to_characters("éx😀", &mut offsets);
    assert_eq!(offsets, [(0, 1), (1, 2), (2, 3), (3, 3), (3, 3)]);
}

#[test]
fn tokenizers_are_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Tokenizer>();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse_spm(&bytes);
    }

    #[test]
    fn no_damage_makes_a_model_panic(
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        text in "[a-bxé ]{0,8}",
    ) {
        let mut bytes = [small_spm(), field(3, &field(2, &small_map()))].concat();
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        // Not through `guard`, which would hide a panic.
        if let Ok(model) = parse_spm(&bytes) {
            if !model.charsmap.is_empty() {
                Precompiled::from(&model.charsmap).expect("checked").normalize_string(&text);
            }
            let _ = build(&spm(bytes)).map(|t| t.map(|t| t.encode(&text, None, None)));
        }
    }

    #[test]
    fn a_map_that_passes_can_be_walked(
        units in proptest::collection::vec(prop_oneof![Just(0u32), 0u32..2048, any::<u32>()], 256),
        text in "\\PC{0,20}",
    ) {
        let mut map = 1024u32.to_le_bytes().to_vec();
        map.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
        map.extend("a\0é\0".as_bytes());
        if spm::check_charsmap(&map).is_ok() {
            Precompiled::from(&map).expect("checked").normalize_string(&text);
        }
    }
}
