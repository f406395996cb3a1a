"""Inputs: the same shapes and ids for every program."""
import random

DEFAULT = "1x32,1x128,1x384,1x512,8x128,32x128,8x384,ragged:8x64..128"


def lengths(shape):
    """Tokens of each sequence of `8x128` or `ragged:8x64..128`, as `qberta bench` spreads them."""
    ragged = shape.startswith("ragged:")
    batch, tokens = shape.removeprefix("ragged:").split("x")
    first, _, last = tokens.partition("..")
    if ragged != bool(last):
        raise ValueError(f"shape {shape!r}: expected 8x128 or ragged:8x64..128")
    batch, first, last = int(batch), int(first), int(last or first)
    return [first + (last - first) * (i * 37 % batch) // max(1, batch - 1) for i in range(batch)]


def sequences(shape, vocabulary):
    """Token ids, past the usual special tokens; the same for every caller."""
    draw = random.Random(f"qberta {shape}")
    return [[draw.randrange(5, vocabulary) for _ in range(n)] for n in lengths(shape)]


def padded(rows):
    """What a program without ragged batches needs: ids and mask, int64, `[batch, longest]`."""
    import numpy as np

    longest = max(map(len, rows))
    ids = np.zeros((len(rows), longest), np.int64)
    mask = np.zeros((len(rows), longest), np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return ids, mask
