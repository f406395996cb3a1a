"""Golden answers of Hugging Face pipelines (transformers 4.57.1) for every task: testdata/tasks/<case>/.

Each case is a tiny random model with a tokenizer of testdata/tokenizers, and answers.jsonl with rows
{"row": what qberta reads, "options": {...}, "answer": what the pipeline said}.
usage: make_task_golden.py   (needs tools/requirements-golden.txt)
"""
import json, pathlib, shutil, torch, transformers
from transformers import (BertConfig, BertForMaskedLM, BertForTokenClassification, BertTokenizerFast, DebertaV2Config,
                          DebertaV2ForMaskedLM, DebertaV2ForQuestionAnswering, DebertaV2ForSequenceClassification,
                          DebertaV2ForTokenClassification, DebertaV2TokenizerFast, pipeline)

assert transformers.__version__ == "4.57.1", transformers.__version__
torch.set_num_threads(1)
ROOT = pathlib.Path(__file__).resolve().parent.parent
TOKENIZERS, OUT = ROOT / "testdata/tokenizers", ROOT / "testdata/tasks"
NER = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
TEXTS = ["The committee met in Geneva on Tuesday.", "Ada Lovelace wrote the first program for Babbage's engine.",
         "It rained all day, and nobody came to the market.", "Prices rose 3% in May; wages did not."]
LONG = " ".join(f"In {1900 + i} the river flooded the lower town and {name} rebuilt the bridge of stone."
                for i, name in enumerate(["Anna", "Bruno", "Clara", "David", "Emil", "Frida"] * 3))


def randomise(model, scale):
    torch.manual_seed(7)
    with torch.no_grad():
        for name, p in model.named_parameters():
            norm = "LayerNorm.weight" in name
            p.copy_(torch.randn_like(p) * (scale if p.dim() > 1 else 0.2) + (1.0 if norm else 0.0))
    return model.eval()


def config(tokenizer, **more):
    return DebertaV2Config(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                           intermediate_size=40, max_position_embeddings=512, relative_attention=True,
                           position_biased_input=False, pos_att_type=["p2c", "c2p"], position_buckets=16,
                           norm_rel_ebd="layer_norm", share_att_key=True, type_vocab_size=0, **more)


def save(case, model, tokenizer_files, rows):
    out = OUT / case
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    model.save_pretrained(out)
    for f in tokenizer_files.iterdir():
        if f.name != "expected.jsonl":
            shutil.copy(f, out)
    (out / "answers.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    print(case, len(rows), "rows", sum(f.stat().st_size for f in out.iterdir()), "bytes")


def plain(x):
    """Numpy and torch numbers to Python's."""
    if isinstance(x, dict):
        return {k: plain(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [plain(v) for v in x]
    return x.item() if hasattr(x, "item") else x


files = TOKENIZERS / "v3-spm-small"
tok = DebertaV2TokenizerFast(str(files / "spm.model"), do_lower_case=False, split_by_punct=False)

labels = {0: "contradiction", 1: "entailment", 2: "neutral"}
m = randomise(DebertaV2ForSequenceClassification(config(tok, id2label=labels, label2id={v: k for k, v in labels.items()})), 0.3)
p = pipeline("text-classification", model=m, tokenizer=tok)
rows = [{"row": {"text": t}, "options": {"top_k": 3}, "answer": plain(p(t, top_k=3))} for t in TEXTS]
rows += [{"row": {"text": a, "text_pair": b}, "options": {"top_k": 3}, "answer": plain(p({"text": a, "text_pair": b}, top_k=3))}
         for a, b in zip(TEXTS, TEXTS[1:])]
save("sequence", m, files, rows)
z = pipeline("zero-shot-classification", model=m, tokenizer=tok)
wanted, rows = ["weather", "politics", "economy"], []
for t in TEXTS:
    for multi in (False, True):
        a = z(t, wanted, multi_label=multi, hypothesis_template="This text is about {}.")
        rows.append({"row": {"text": t}, "options": {"labels": wanted, "multi_label": multi, "hypothesis": "This text is about {}."},
                     "answer": [{"label": l, "score": s} for l, s in zip(a["labels"], a["scores"])]})
save("zero-shot", m, files, rows)

m = randomise(DebertaV2ForSequenceClassification(config(tok, num_labels=4, problem_type="multi_label_classification")), 0.3)
p = pipeline("text-classification", model=m, tokenizer=tok)
save("multi-label", m, files, [{"row": {"text": t}, "options": {}, "answer": plain(p(t, top_k=None))} for t in TEXTS])
m = randomise(DebertaV2ForSequenceClassification(config(tok, num_labels=1)), 0.3)
p = pipeline("text-classification", model=m, tokenizer=tok)
save("one-logit", m, files, [{"row": {"text": t}, "options": {}, "answer": plain(p(t))} for t in TEXTS])

m = randomise(DebertaV2ForTokenClassification(config(tok, id2label=dict(enumerate(NER)), label2id={n: i for i, n in enumerate(NER)})), 0.5)
rows = []
def entities(model, tokenizer, strategies):
    rows = []
    for strategy in strategies:
        p = pipeline("token-classification", model=model, tokenizer=tokenizer, aggregation_strategy=strategy)
        rows += [{"row": {"text": t}, "options": {"aggregation": strategy}, "answer": plain(p(t))} for t in TEXTS]
    return rows


# The word strategies are compared on WordPiece: on SentencePiece the pipeline guesses words from spaces in the
# text and splits a lone "_" piece from its word, where the tokenizer itself knows better.
save("token", m, files, entities(m, tok, ("none", "simple")))

m = randomise(DebertaV2ForQuestionAnswering(config(tok)), 0.5)
p = pipeline("question-answering", model=m, tokenizer=tok)
# The pipeline adds up the scores of equal texts, also from overlapping windows, so that they can pass 1; qberta keeps
# the best window. Without merging, the pipeline's best answer is that one.
p.get_answer = lambda answers, target: None
rows = []
for q, c, more in [("Where did they meet?", TEXTS[0], {}), ("Who wrote it?", TEXTS[1], {}), ("Who rebuilt the bridge?", LONG, {}),
                   ("When did the river flood?", LONG, dict(max_seq_len=64, doc_stride=20)),
                   ("When did the river flood?", LONG, dict(max_seq_len=48, doc_stride=16, max_answer_len=4)),
                   ("Is there an answer?", TEXTS[2], dict(handle_impossible_answer=True))]:
    rows.append({"row": {"question": q, "context": c}, "options": more,
                 "answer": plain(p(question=q, context=c, align_to_words=False, **more))})
save("question", m, files, rows)

m = randomise(DebertaV2ForMaskedLM(config(tok)), 0.3)
p = pipeline("fill-mask", model=m, tokenizer=tok)
texts = ["The [MASK] met in Geneva.", "It [MASK] all day, and [MASK] came."]
rows = [{"row": {"text": t}, "options": {"top_k": 4}, "answer": plain(p(t, top_k=4))} for t in texts]
save("mask", m, files, rows)

files = TOKENIZERS / "bert-uncased"
tok = BertTokenizerFast(str(files / "vocab.txt"), do_lower_case=True)
bert = dict(vocab_size=len(tok), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40,
            max_position_embeddings=64)
m = randomise(BertForMaskedLM(BertConfig(**bert)), 0.3)
p = pipeline("fill-mask", model=m, tokenizer=tok)
save("mask-bert", m, files, [{"row": {"text": t}, "options": {"top_k": 4}, "answer": plain(p(t, top_k=4))} for t in texts])
m = randomise(BertForTokenClassification(BertConfig(**bert, id2label=dict(enumerate(NER)), label2id={n: i for i, n in enumerate(NER)})), 0.5)
save("token-bert", m, files, entities(m, tok, ("none", "simple", "first", "average", "max")))
