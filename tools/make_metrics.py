"""Writes testdata/metrics.json: figures and statistics by scikit-learn, scipy, seqeval, statsmodels and numpy.

    python3 -m venv .venv && .venv/bin/pip install -r tools/requirements-metrics.txt
    .venv/bin/python tools/make_metrics.py > testdata/metrics.json

Nothing here shares a line or a formula with crates/runtime/src/metrics: Tango's interval is found by maximising
the likelihood numerically, the SQuAD functions are those of the official evaluate-v2.0.py.
"""

import collections
import json
import re
import string
import sys

import numpy as np
from scipy import optimize, stats
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.scheme import IOB2
from sklearn import metrics
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

rng = np.random.default_rng(20261124)
out = {}

# Classifiers. Class 4 is never predicted, class 5 never true, class 6 neither.
cases = []
for n, classes, right in [(1, 2, 1.0), (40, 2, 0.8), (300, 6, 0.6), (500, 3, 0.0), (60, 3, 1.0)]:
    truth = rng.integers(0, min(classes, 5), n)
    guess = rng.integers(0, classes, n)
    guess = np.where(guess == 4, 5 if classes > 5 else 0, guess)
    answer = np.where(rng.random(n) < right, truth, guess) if right < 1 else truth
    if classes == 3 and right == 0:
        answer = np.ones(n, int)  # one class only
    answer = np.where(answer == 4, 5, answer)
    cases.append(
        {
            "truth": truth.tolist(),
            "predicted": answer.tolist(),
            "accuracy": metrics.accuracy_score(truth, answer),
            "macro_f1": metrics.f1_score(truth, answer, average="macro"),
            "matthews": metrics.matthews_corrcoef(truth, answer),
        }
    )
out["classes"] = cases

# Sets of labels; label 3 occurs nowhere.
truth = rng.random((80, 4)) < [0.5, 0.1, 0.3, 0.0]
answer = np.where(rng.random((80, 4)) < 0.7, truth, rng.random((80, 4)) < 0.4)
answer[:, 3] = False
out["sets"] = {
    "truth": truth.astype(int).tolist(),
    "predicted": answer.astype(int).tolist(),
    "subset_accuracy": metrics.accuracy_score(truth, answer),
    "micro_f1": metrics.f1_score(truth, answer, average="micro", zero_division=0),
    "macro_f1": metrics.f1_score(truth, answer, average="macro", zero_division=0),
}

# Scores with ties, whole and resampled: weights are how often a row is drawn.
cases = []
for n, steps in [(5, 3), (200, 7), (300, 100000)]:
    x = np.round(rng.normal(size=n) * steps) / steps
    y = np.round((x + rng.normal(size=n)) * steps) / steps
    positive = rng.random(n) < 1 / (1 + np.exp(-2 * x))
    positive[:2] = [True, False]
    weights = np.bincount(rng.integers(0, n, n), minlength=n)
    weights[:2] += 1
    drawn = np.repeat(np.arange(n), weights)
    cases.append(
        {
            "x": x.tolist(),
            "y": y.tolist(),
            "positive": positive.tolist(),
            "weights": weights.tolist(),
            "pearson": [stats.pearsonr(x, y).statistic, stats.pearsonr(x[drawn], y[drawn]).statistic],
            "spearman": [stats.spearmanr(x, y).statistic, stats.spearmanr(x[drawn], y[drawn]).statistic],
            "area": [metrics.roc_auc_score(positive, x), metrics.roc_auc_score(positive[drawn], x[drawn])],
        }
    )
out["scores"] = cases

# Calibration error, bin by bin with numpy's own binning.
p = np.concatenate([rng.random(400), [1.0, 1 / 15, 2 / 15, 1e-9]])
right = rng.random(p.size) < p**1.5
which = np.digitize(p, np.arange(1, 15) / 15, right=True)
ece = sum(
    (which == b).mean() * abs(right[which == b].mean() - p[which == b].mean()) for b in range(15) if (which == b).any()
)
out["calibration"] = {"confidence": p.tolist(), "right": right.tolist(), "error": ece}

# Tags: random ones, so that every odd sequence occurs.
kinds = ["O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
bioes = ["O", "B-PER", "I-PER", "E-PER", "S-PER", "S-LOC", "I-LOC"]
cases = []
for tags, strict in [(kinds, True), (bioes, False)]:
    truth = [[tags[k] for k in rng.integers(0, len(tags), rng.integers(1, 12))] for _ in range(60)]
    answer = [[t if rng.random() < 0.8 else tags[rng.integers(0, len(tags))] for t in row] for row in truth]
    case = {
        "truth": truth,
        "predicted": answer,
        "precision": precision_score(truth, answer),
        "recall": recall_score(truth, answer),
        "f1": f1_score(truth, answer),
    }
    if strict:
        case["strict_f1"] = f1_score(truth, answer, mode="strict", scheme=IOB2)
    cases.append(case)
out["tags"] = cases


# evaluate-v2.0.py of SQuAD.
def normalize_answer(s):
    s = "".join(ch for ch in s.lower() if ch not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", s, flags=re.UNICODE).split())


def compute_f1(a_gold, a_pred):
    gold_toks, pred_toks = normalize_answer(a_gold).split(), normalize_answer(a_pred).split()
    common = collections.Counter(gold_toks) & collections.Counter(pred_toks)
    num_same = sum(common.values())
    if len(gold_toks) == 0 or len(pred_toks) == 0:
        return int(gold_toks == pred_toks)
    if num_same == 0:
        return 0
    precision, recall = 1.0 * num_same / len(pred_toks), 1.0 * num_same / len(gold_toks)
    return (2 * precision * recall) / (precision + recall)


rows = []
for golds, answer in [
    (["the Eiffel Tower", "Eiffel tower"], "Eiffel Tower."),
    (["an apple a day"], "apple, the day!"),
    (["The The"], "the"),
    ([], ""),
    ([], "something"),
    (["x"], ""),
    (["Café-bar"], "cafe bar"),
    (["ÉCOLE normale"], "école Normale"),
    (["to be to be"], "be be be"),
    (["state-of-the-art"], "state of the art"),
    (["theatre a-team"], "theatre team"),
    (["the"], "a"),
    (["1,000.5"], "1000.5"),
    (["don't"], "dont"),
    (["naïve  approach\n twice"], "naïve approach"),
]:
    accepted = [g for g in golds if normalize_answer(g)] or [""]
    rows.append(
        {
            "truth": golds,
            "answer": answer,
            "normalized": normalize_answer(answer),
            "exact": max(int(normalize_answer(g) == normalize_answer(answer)) for g in accepted),
            "f1": max(compute_f1(g, answer) for g in accepted),
        }
    )
out["answers"] = rows

# Statistics.
z = stats.norm.ppf(0.975)
out["wilson"] = [
    [k, n, *proportion_confint(k, n, alpha=0.05, method="wilson")]
    for k, n in [(0, 10), (10, 10), (1, 1), (79, 100), (7959, 10000), (39921, 40430)]
]
out["mcnemar"] = []
for b, c in [(0, 0), (1, 0), (5, 5), (3, 9), (9, 3), (40, 22), (700, 812)]:
    exact = mcnemar([[0, b], [c, 0]], exact=True).pvalue if b + c else 1.0
    mid = min(1.0, 2 * stats.binom.cdf(min(b, c), b + c, 0.5) - stats.binom.pmf(min(b, c), b + c, 0.5)) if b + c else 1.0
    out["mcnemar"].append([b, c, exact, mid])


def tango(b, c, n):
    """The score interval, the nuisance parameter by numerical maximum likelihood."""

    def score(d):
        low, high = max(0.0, -d), min(1.0, (1 - d) / 2 + max(0, 0))  # p21; p12 = p21 + d; p12 + p21 <= 1

        def loss(q):
            total = 0.0
            for count, p in [(b, q + d), (c, q), (n - b - c, 1 - 2 * q - d)]:
                if count:
                    total -= count * np.log(max(p, 1e-300))
            return total

        grid = np.linspace(low, high, 2001)
        best = grid[np.argmin([loss(q) for q in grid])]
        step = (high - low) / 2000
        fit = optimize.minimize_scalar(
            loss, bounds=(max(low, best - step), min(high, best + step)), method="bounded", options={"xatol": 1e-15}
        )
        q = min([low, high, best, fit.x], key=loss)
        return (b - c - n * d) / np.sqrt(max(n * (2 * q + d - d * d), 1e-300))

    estimate = (b - c) / n
    low = -1.0 if estimate <= -1 else optimize.brentq(lambda d: score(d) - z, -1 + 1e-12, estimate - 1e-12, xtol=1e-12)
    high = 1.0 if estimate >= 1 else optimize.brentq(lambda d: score(d) + z, estimate + 1e-12, 1 - 1e-12, xtol=1e-12)
    return low, high


out["tango"] = [
    [b, c, n, *tango(b, c, n)]
    for b, c, n in [(0, 0, 10), (0, 0, 10000), (3, 4, 10000), (12, 2, 50), (1, 5, 44), (0, 7, 30), (9, 9, 408), (20, 60, 9815), (0, 30, 30), (30, 0, 30)]
]
draws = rng.normal(size=999)
out["percentiles"] = {"draws": draws.tolist(), "interval": np.percentile(draws, [2.5, 97.5]).tolist()}


def rounded(v):
    if isinstance(v, float):
        return float(f"{v:.12g}")
    if isinstance(v, dict):
        return {k: rounded(x) for k, x in v.items()}
    if isinstance(v, (list, tuple)):
        return [rounded(x) for x in v]
    return v.item() if hasattr(v, "item") else v


json.dump(rounded(out), sys.stdout, separators=(",", ":"), ensure_ascii=False)
print()
