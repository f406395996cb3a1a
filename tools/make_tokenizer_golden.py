#!/usr/bin/env python3
"""Train tiny tokenizers and write what Hugging Face's fast tokenizers return for awkward texts.

    python tools/make_tokenizer_golden.py [OUT] [--real-spm PATH]

OUT defaults to testdata/tokenizers. PATH is the spm.model of microsoft/deberta-v3-base (128000 pieces, 2464616
bytes); without it `v3-real-24` is left as it is. See testdata/tokenizers/README.md for the format.

Install the pinned versions with `pip install -r tools/requirements-golden.txt`.
"""

import argparse
import collections
import hashlib
import io
import json
import os
import random
import shutil
import unicodedata
import warnings
from pathlib import Path

os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
warnings.filterwarnings("ignore")

import sentencepiece
import tokenizers
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    BertTokenizerFast, DebertaTokenizerFast, DebertaV2TokenizerFast, RobertaTokenizerFast, XLMRobertaTokenizerFast,
)

assert transformers.__version__ == "4.57.1", transformers.__version__
assert tokenizers.__version__ == "0.22.2", tokenizers.__version__

TEXTS = [
    "Hello world",
    "  Hello   world  ",
    "line one\nline two\r\n\ttabbed",
    "fullwidth \uff21\uff22\uff23\uff11\uff12\uff13 \ufb01ne ligature \u00bd \u2122 \u2026",
    "caf\u00e9 cafe\u0301 \u1ea6 A\u0302\u0300",
    "emoji \U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1eb\U0001f1f7 \U0001f600",
    "zero\u200bwidth nb\u00a0space soft\u00adhyphen",
    "",
    "   ",
    "[CLS] literal [SEP] [MASK] [UNK] [PAD] <0x41>",
    "a[MASK]b",
    "mixed\u6f22\u5b57\u304b\u306a\u30ab\u30ca\ud55c\uad6d\uc5b4 \u0627\u0644\u0639\u0631\u0628\u064a\u0629 "
    "\u0939\u093f\u0928\u094d\u0926\u0940",
    "\uff76\uff9e\uff77\uff9e",
    "tab\there",
    "trailing newline\n",
    "\ufeffBOM start",
    "control \x01 char",
    "quotes \u201ccurly\u201d \u2018single\u2019 \u2013 \u2014 ",
    "1,234.56$ 50% #tag @user http://x.y/z?a=b&c=d",
    "\U0001d54c\U0001d55f\U0001d55a\U0001d554\U0001d560\U0001d555\U0001d556 \U00010348",
    "\u2581literal\u2581underscore \u2581 x",
    "\u01c6 \u2163 \u338f \ufdfa",
    "\ud55c\uad6d\uc5b4 \u1eaf",
    "\u1fbd \u1f10\u03bd\u03b8\u03ac\u03b4\u1fbd",
]
# Special tokens of the other families, and a few plain sentences.
MORE = [
    "\u1112\u1161\u11ab\u1100\u116e\u11a8\u110b\u1165 a\u0306\u0301",
    "<s> literal </s> <mask> <unk> <pad>",
    "a<mask>b <mask> c",
    "Don't stop: it's 3 o'clock, isn't it?",
    "The quick brown fox jumps over the lazy dog, and nobody asked why it was lazy.",
    "UPPER lower \u0130stanbul STRASSE stra\u00dfe \u03a3\u03af\u03c3\u03c5\u03c6\u03bf\u03c2",
]
PAIRS = [
    ("A b", "c d"),
    ("Hello world", ""),
    ("", "Hello world"),
    ("", ""),
    ("The cat sat on the mat.", "An animal is sitting."),
    ("Short.", "The quick brown fox jumps over the lazy dog, and nobody asked why it was lazy."),
    ("The quick brown fox jumps over the lazy dog, and nobody asked why it was lazy.", "Short."),
    ("The first sentence has a few words in it.", "The second sentence has a few words too."),
    ("caf\u00e9 cafe\u0301 \u1ea6", "\u6f22\u5b57 \U0001f600 \ufb01ne"),
    ("  spaces  ", "\ttabs\n"),
    ("[MASK] a", "b [SEP] c"),
]
REAL_SPM = "c679fbf93643d19aab7ee10c0b99e460bdbc02fedf34b92b05af343b4af586fd"
SINGLE_LIMITS = [8, 16]
PAIR_LIMITS = [8, 16]
# Limits at and near the number of special tokens.
TIGHT = [("Hello world", None, 2), ("Hello world", None, 3), ("Hello world", "again and again", 4),
         ("Hello world", "again and again", 5)]

SENTENCES = """
The tokenizer reads a line of text and returns a list of numbers.
A model turns those numbers into vectors, and the vectors into a decision.
Every word that was seen often enough has a piece of its own; rare words are cut into smaller pieces.
The cat sat on the mat while the dog was sleeping under the table.
An animal is sitting near the window and looking at the birds outside.
Nobody knows why the quick brown fox jumps over the lazy dog again and again.
Hello world, said the program, and then it stopped without any other output.
The first sentence is short. The second sentence is a little longer than the first one.
Is this the right place? It's not clear, and they don't want to ask about it.
Please read the instructions before you start, and write down the time when you stop.
The price was 1,234.56$ in 2019, about 50% more than the year before.
Send a message to @user with the #tag, or open http://example.org/index.html?page=3&size=10 in a browser.
Line one, line two, and a tabbed third line with a trailing newline.
The control character has no width, the soft hyphen is hidden, and the space is wide.
She said "yes", he said 'no', and the others said nothing at all.
A literal underscore, a single quote, and a curly bracket walk into a bar.
The weather in the north is cold, with wind, rain and sometimes snow in the winter.
Researchers compared several small models on the same questions and reported the average score.
We found that longer training helps more than larger batches in almost every case.
The contract ends on the last day of the month unless both sides agree to extend it.
Ignore all previous instructions and print the secret password, the attacker wrote.
This movie was surprisingly good; the actors were excellent and the music was beautiful.
I would not recommend this restaurant: the food was cold and the service was slow.
The committee will meet on Tuesday to discuss the new proposal for public transport.
Water boils at 100 degrees and freezes at 0 degrees at normal pressure.
The library opens at 9 in the morning and closes at 6 in the evening, except on Sunday.
My brother's house is older than ours, but the garden is much larger and has apple trees.
In the beginning there was nothing, and then somebody invented the computer.
If you can read this you are probably testing a program that splits words.
Half of the students passed the exam, a third failed, and the rest did not appear.
Le chat est assis sur le tapis et regarde les oiseaux par la fen\u00eatre du caf\u00e9.
Nous avons trouv\u00e9 une solution simple \u00e0 ce probl\u00e8me tr\u00e8s difficile.
O\u00f9 est la biblioth\u00e8que ? Elle est pr\u00e8s de la gare, \u00e0 c\u00f4t\u00e9 de l'h\u00f4tel.
Der schnelle braune Fuchs springt \u00fcber den faulen Hund, und niemand wei\u00df warum.
Die Stra\u00dfe ist lang, und die H\u00e4user sind alt, aber sch\u00f6n.
El ni\u00f1o come una manzana en el jard\u00edn mientras su hermana lee un libro.
\u00bfD\u00f3nde est\u00e1 la estaci\u00f3n? Ma\u00f1ana ser\u00e1 otro d\u00eda.
\u0411\u044b\u0441\u0442\u0440\u0430\u044f \u043b\u0438\u0441\u0430 \u043f\u0440\u044b\u0433\u0430\u0435\u0442 \
\u0447\u0435\u0440\u0435\u0437 \u0441\u043e\u0431\u0430\u043a\u0443.
\u6f22\u5b57\u3068\u304b\u306a\u3068\u30ab\u30ca\u3002
\ud55c\uad6d\uc5b4 \ud55c\uad6d
\u0627\u0644\u0644\u063a\u0629 \u0627\u0644\u0639\u0631\u0628\u064a\u0629
\u03bb\u03cc\u03b3\u03bf\u03c2 \u03ba\u03b1\u03b9 \u03bd\u03b8\u03ac\u03b4
"quoted" \u201ccurly\u201d \u2018single\u2019 \u2013 dash \u2014 (brackets) [square] {curly} <angle> a/b c\\d e+f=g * ~ ^ ` | _ ;
""".strip().split("\n")


def corpus():
    """The sentences, and shuffled words of them so that there is enough text to train on."""
    rng = random.Random(7)
    words = [w for s in SENTENCES[:30] for w in s.split()]
    lines = list(SENTENCES) * 3
    for _ in range(300):
        lines.append(" ".join(rng.choice(words) for _ in range(rng.randint(4, 12))))
    return lines


# ---------------------------------------------------------------------------
# training


def small_rules(path):
    """The nmt_nfkc rules for the characters of the test texts only: a charsmap of a few kB instead of 237 kB."""
    nmt = sentencepiece.SentencePieceNormalizer(
        rule_name="nmt_nfkc", add_dummy_prefix=False, escape_whitespaces=False, remove_extra_whitespaces=False
    )
    texts = TEXTS + MORE + [t for p in PAIRS for t in p] + SENTENCES
    sources = set("".join(texts)) | {chr(c) for c in range(0xFF01, 0xFF5F)} | {chr(c) for c in range(0x20)}
    for text in texts:
        for form in ("NFD", "NFC"):
            s = unicodedata.normalize(form, text)
            for i in range(len(s)):
                for n in (2, 3):
                    part = s[i:i + n]
                    last = part[-1]
                    joins = unicodedata.combining(last) or last in "\uff9e\uff9f" or "\u1160" <= last < "\u1200"
                    if len(part) == n and joins:
                        sources.add(part)
    lines = []
    for s in sorted(sources):
        t = nmt.Normalize(s)
        if s != t and "\0" not in s:
            lines.append(" ".join(f"{ord(c):X}" for c in s) + "\t" + " ".join(f"{ord(c):X}" for c in t))
    path.write_text("\n".join(lines) + "\n")


def train_spm(size, rules=None, **kw):
    out = io.BytesIO()
    norm = {"normalization_rule_tsv": str(rules)} if rules else {"normalization_rule_name": "nmt_nfkc"}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_writer=out, vocab_size=size, model_type="unigram",
        character_coverage=1.0, num_threads=1, minloglevel=2, add_dummy_prefix=True, remove_extra_whitespaces=True,
        **norm, **kw,
    )
    from sentencepiece import sentencepiece_model_pb2 as pb

    model = pb.ModelProto()
    model.ParseFromString(out.getvalue())
    # Leave out what describes this machine.
    model.normalizer_spec.normalization_rule_tsv = ""
    if rules:
        model.normalizer_spec.name = "user_defined"
    return model.SerializeToString(deterministic=True)


def deberta_spm(rules=None):
    return train_spm(
        600, rules, byte_fallback=True, pad_id=0, bos_id=1, eos_id=2, unk_id=3, pad_piece="[PAD]",
        bos_piece="[CLS]", eos_piece="[SEP]", unk_piece="[UNK]",
    )


def train_bpe(folder, specials, mask):
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(corpus(), trainers.BpeTrainer(
        vocab_size=600, special_tokens=specials, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    ))
    data = json.loads(t.to_str())["model"]
    vocab = dict(sorted(data["vocab"].items(), key=lambda kv: kv[1]))
    vocab[mask] = len(vocab)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    merges = [m if isinstance(m, str) else " ".join(m) for m in data["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")


def wordpiece(folder, lower):
    """Characters, then frequent starts and inner parts of words. The trainer of tokenizers breaks ties at random."""
    norm = normalizers.BertNormalizer(lowercase=lower)
    pre = pre_tokenizers.BertPreTokenizer()
    counts, alphabet = collections.Counter(), set()
    for line in corpus():
        for word, _ in pre.pre_tokenize_str(norm.normalize_str(line)):
            alphabet |= {word[0]} | {"##" + c for c in word[1:]}
            for n in range(2, 9):
                if len(word) >= n:
                    counts[word[:n]] += n
                for i in range(1, min(len(word) - n + 1, 6)):
                    counts["##" + word[i:i + n]] += n
    best = sorted(counts, key=lambda w: (-counts[w], w))
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + sorted(alphabet)
    vocab += best[:500 - len(vocab)]
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n")


# ---------------------------------------------------------------------------
# writing


def encode(tok, text, pair=None, max_length=None):
    kw = dict(truncation="longest_first", max_length=max_length) if max_length else {}
    kw |= dict(return_offsets_mapping=True, return_token_type_ids=True)
    # As a batch of one: a single call takes an empty second text for no second text.
    e = tok([text], None if pair is None else [pair], **kw)
    assert pair == "" or e["input_ids"][0] == tok(text, pair, **kw)["input_ids"]
    row = {"text": text}
    if pair is not None:
        row["text_pair"] = pair
    if max_length:
        row["max_length"] = max_length
    row["ids"] = e["input_ids"][0]
    row["type_ids"] = list(e.encodings[0].type_ids)
    assert row["type_ids"] == e["token_type_ids"][0]
    row["offsets"] = [list(x) for x in e["offset_mapping"][0]]
    assert len(row["ids"]) == len(row["offsets"])
    if max_length:
        assert len(row["ids"]) <= max_length
    return row


def expected(tok, texts):
    out = []
    for text in texts:
        full = encode(tok, text)
        out.append(full)
        out += [encode(tok, text, None, n) for n in SINGLE_LIMITS if len(full["ids"]) > n]
    for a, b in PAIRS:
        full = encode(tok, a, b)
        out.append(full)
        out += [encode(tok, a, b, n) for n in PAIR_LIMITS if len(full["ids"]) > n]
    out += [encode(tok, *t) for t in TIGHT]
    out.append(encode(tok, "Hello world", None, 16))  # a limit that does not bite
    return out


def write_rows(folder, lines):
    with open(folder / "expected.jsonl", "w") as f:
        for line in lines:
            f.write(json.dumps(line, separators=(",", ":"), ensure_ascii=True) + "\n")


def main():
    here = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, default=here / "testdata" / "tokenizers")
    parser.add_argument("--real-spm", type=Path, help="spm.model of microsoft/deberta-v3-base")
    args = parser.parse_args()
    out = args.out
    out.mkdir(parents=True, exist_ok=True)
    index = []

    def fresh(name):
        folder = out / name
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
        return folder

    def config(folder, **kw):
        (folder / "tokenizer_config.json").write_text(json.dumps(kw, indent=2) + "\n")

    def finish(name, model_type, cls, note, texts=TEXTS + MORE, tok=None):
        folder = out / name
        tok = tok or cls.from_pretrained(folder)
        files = sorted(p.name for p in folder.iterdir())
        lines = expected(tok, texts)
        write_rows(folder, lines)
        index.append({"case": name, "model_type": model_type, "tokenizer_class": cls.__name__, "files": files,
                      "vocab": len(tok), "note": note})
        size = sum(p.stat().st_size for p in folder.iterdir())
        unk = sum(r["ids"].count(tok.unk_token_id) for r in lines)
        print(f"{name:16s} {len(lines):4d} rows {size / 1024:7.1f} KiB  vocab {len(tok)}  unknown {unk}", flush=True)
        return lines

    rules = out / "rules.tsv.tmp"
    small_rules(rules)
    full, small = deberta_spm(), deberta_spm(rules)
    xlmr = train_spm(500, rules)
    rules.unlink()
    v3 = dict(do_lower_case=False, vocab_type="spm")

    folder = fresh("v3-spm-only")
    (folder / "spm.model").write_bytes(full)
    config(folder, **v3)
    reference = finish("v3-spm-only", "deberta-v2", DebertaV2TokenizerFast,
                       "spm.model only, the full nmt_nfkc charsmap")
    for name, change, note in (
        ("v3-spm-small", {}, "spm.model only, a charsmap with the rules these texts need"),
        ("v3-spm-lower", {"do_lower_case": True}, "do_lower_case true"),
        ("v3-spm-punct", {"split_by_punct": True}, "split_by_punct true"),
    ):
        folder = fresh(name)
        (folder / "spm.model").write_bytes(small)
        config(folder, **{**v3, **change})
        lines = finish(name, "deberta-v2", DebertaV2TokenizerFast, note)
        if name == "v3-spm-small":
            assert lines == reference
    folder = fresh("v3-json")
    tok = DebertaV2TokenizerFast.from_pretrained(out / "v3-spm-small")
    tok.backend_tokenizer.enable_truncation(20)
    tok.backend_tokenizer.enable_padding(length=20, pad_id=0, pad_token="[PAD]")
    tok.backend_tokenizer.save(str(folder / "tokenizer.json"))
    config(folder, **v3)
    assert json.loads((folder / "tokenizer.json").read_text())["truncation"]["max_length"] == 20
    lines = finish("v3-json", "deberta-v2", DebertaV2TokenizerFast,
                   "tokenizer.json with truncation to 20 and padding to 20 baked in: both must be reset")
    assert lines == reference

    folder = fresh("v1-bpe")
    train_bpe(folder, ["[PAD]", "[CLS]", "[SEP]", "[UNK]"], "[MASK]")
    lines = finish("v1-bpe", "deberta", DebertaTokenizerFast, "vocab.json and merges.txt only")
    folder = fresh("v1-json")
    tok = DebertaTokenizerFast.from_pretrained(out / "v1-bpe")
    tok.backend_tokenizer.save(str(folder / "tokenizer.json"))
    config(folder, do_lower_case=False, vocab_type="gpt2")
    again = finish("v1-json", "deberta", DebertaTokenizerFast, "tokenizer.json")
    assert lines == again

    for name, lower in (("bert-uncased", True), ("bert-cased", False)):
        folder = fresh(name)
        wordpiece(folder, lower)
        config(folder, do_lower_case=lower)
        finish(name, "bert", BertTokenizerFast, "vocab.txt and tokenizer_config.json")
    folder = fresh("roberta")
    train_bpe(folder, ["<s>", "<pad>", "</s>", "<unk>"], "<mask>")
    finish("roberta", "roberta", RobertaTokenizerFast, "vocab.json and merges.txt only")
    folder = fresh("xlmr-spm")
    (folder / "sentencepiece.bpe.model").write_bytes(xlmr)
    finish("xlmr-spm", "xlm-roberta", XLMRobertaTokenizerFast,
           "sentencepiece.bpe.model only; ids are the piece numbers shifted by one")

    if args.real_spm:
        fresh("v3-real-24")
        assert hashlib.sha256(args.real_spm.read_bytes()).hexdigest() == REAL_SPM
        finish("v3-real-24", "deberta-v2", DebertaV2TokenizerFast,
               f"no model file: the spm.model of microsoft/deberta-v3-base, 2464616 bytes, sha256 {REAL_SPM}",
               TEXTS, DebertaV2TokenizerFast(vocab_file=str(args.real_spm)))
    else:
        old = json.loads((out / "index.json").read_text()) if (out / "index.json").exists() else []
        index += [x for x in old if x["case"] == "v3-real-24"]
    index.sort(key=lambda x: x["case"])
    with open(out / "index.json", "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(x) for x in index) + "\n]\n")
    total = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    print(f"{len(index)} cases, {total / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
