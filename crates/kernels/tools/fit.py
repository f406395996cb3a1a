"""Fits the polynomials of crates/kernels/src/rows/math.rs. Needs mpmath and numpy.

Each is a minimax fit by a few rounds of Lawson's reweighted least squares in extended precision; coefficients
are then rounded to f32 one at a time from the lowest, refitting the rest. The bounds that count are those
that the Rust tests measure on the f32 program itself.
"""
import mpmath as mp
import numpy as np

mp.mp.dps = 40


def fit(f, lo, hi, powers, weight, n=400, rounds=60):
    """Coefficients c with sum c[i] x^powers[i] ~ f(x) on [lo, hi], minimising max weight(x) |error|."""
    xs = [mp.mpf(lo) + (mp.mpf(hi) - lo) * (1 - mp.cos(mp.pi * (2 * i + 1) / (2 * n))) / 2 for i in range(n)]
    fixed, out = {}, []
    fx = np.array([float(0)] * n, dtype=object)
    for i, x in enumerate(xs):
        fx[i] = f(x)
    for step in range(len(powers)):
        free = [p for p in powers if p not in fixed]
        rest = [fx[i] - sum(fixed[p] * xs[i] ** p for p in fixed) for i in range(n)]
        w = np.ones(n)
        best = None
        for _ in range(rounds):
            rows = np.array([[float(weight(x) * x**p) for p in free] for x in xs]) * np.sqrt(w)[:, None]
            y = np.array([float(weight(x) * r) for x, r in zip(xs, rest)]) * np.sqrt(w)
            norm = np.linalg.norm(rows, axis=0)
            c = np.linalg.lstsq(rows / norm, y, rcond=None)[0] / norm
            err = np.array([abs(float(weight(x) * (r - sum(mp.mpf(c[k]) * x**p for k, p in enumerate(free))))) for x, r in zip(xs, rest)])
            if best is None or err.max() < best[0]:
                best = (err.max(), c)
            w = w * (err / err.max() + 1e-12)
            w /= w.sum()
        fixed[free[0]] = mp.mpf(float(np.float32(best[1][0])))
    return [float(fixed[p]) for p in powers], best[0]


def show(name, c, err):
    print(f"{name}: max weighted error {err:.3e}")
    for v in c:
        print(f"    {np.float32(v)!r:>28}  0x{np.float32(v).view(np.uint32):08x}")


if __name__ == "__main__":
    # exp(r) = 1 + r + r^2 q(r), |r| <= ln2/2 (a little more: the reduction rounds)
    h = mp.log(2) / 2 * mp.mpf("1.0001")
    q = lambda r: (mp.exp(r) - 1 - r) / r**2 if abs(r) > mp.mpf("1e-9") else mp.mpf(1) / 2
    show("exp q(r)", *fit(q, -h, h, list(range(5)), lambda r: r**2))
    # tanh(x) = x + x^3 t(x^2), |x| <= 0.625
    t = lambda x: (mp.tanh(x) - x) / x**3 if x > mp.mpf("1e-9") else -mp.mpf(1) / 3
    show("tanh t(x^2)", *fit(lambda u: t(mp.sqrt(u)), 0, mp.mpf("0.625") ** 2, list(range(5)), lambda u: u))
    # erf(x) = x e(x^2), |x| <= 1
    e = lambda x: mp.erf(x) / x if x > mp.mpf("1e-12") else 2 / mp.sqrt(mp.pi)
    show("erf e(x^2)", *fit(lambda u: e(mp.sqrt(u)), 0, 1, list(range(7)), lambda u: mp.sqrt(u)))
    # erf(x) = 1 - exp(-c(x)), 1 <= x <= 4; the weight is the sensitivity of erf
    show("erf c(x)", *fit(lambda x: -mp.log(mp.erfc(x)), 1, 4, list(range(8)), lambda x: mp.erfc(x)))
