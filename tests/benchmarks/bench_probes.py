"""Which non-linear probe finds most leakage: balanced accuracy and seconds a fit, as a table.

What counts is the mean of the best of three probes: neighbours, linear and the candidate.

Five shapes in which a class can lie in codes of 2, 4 and 16 dimensions, banks of 100, 500 and 2000
rows, 1500 test rows, two seeds, CPU seconds.

    OMP_NUM_THREADS=1 python -W ignore tests/benchmarks/bench_probes.py
"""

from __future__ import annotations

import time
from collections import defaultdict

import numpy as np
from sklearn.metrics import balanced_accuracy_score
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from medvae.metrics.probes import knn, linear, nonlinear


def shifted(rng, rows, dims):
    label, code = rng.integers(3, size=rows), rng.normal(size=(rows, dims))
    code[:, 0] += 1.2 * (label - 1)
    return code, label


def exclusive_or(rng, rows, dims):
    first, label = rng.integers(2, size=(2, rows))
    code = rng.normal(size=(rows, dims))
    code[:, 0] += 1.5 * (2 * first - 1)
    code[:, 1] += 1.5 * (2 * (first ^ label) - 1)
    return code, label


def shells(rng, rows, dims):
    label, code = rng.integers(3, size=rows), rng.normal(size=(rows, dims))
    code *= (0.7 + 0.8 * label)[:, None] / np.linalg.norm(code, axis=1, keepdims=True)
    return code + 0.25 * rng.normal(size=(rows, dims)), label


def folded(rng, rows, dims):
    place, code = 1.5 * rng.normal(size=rows), 0.15 * rng.normal(size=(rows, dims))
    code[:, 0] += place
    code[:, 1] += np.sin(2 * place)
    return code, np.floor(1.2 * place).astype(int) % 2


def within(rng, rows, dims):
    """A class that moves codes a little within the clusters of another factor, as leakage does."""
    other, label = rng.integers(3, size=(2, rows))
    code = rng.normal(size=(rows, dims))
    for part, size in ((other, 2.0), (label, 0.7)):
        angle = 2 * np.pi / 3 * part
        push = size * np.column_stack([np.cos(angle), np.sin(angle)])
        code[:, :2] = push + (0.5 * code[:, :2] if part is other else code[:, :2])
    return code, label


def of(model):
    return lambda x, y, x_new, continuous: model().fit(x, y).predict(x_new)


PROBES = {
    "30 neighbours": knn,
    "linear": linear,
    "boosting, small trees (ours)": nonlinear,
    "Gaussian SVM": of(lambda: make_pipeline(StandardScaler(), SVC())),
    "Gaussian SVM, C = 10": of(lambda: make_pipeline(StandardScaler(), SVC(C=10))),
    "network, 64 hidden": of(
        lambda: make_pipeline(
            StandardScaler(),
            MLPClassifier((64,), alpha=1e-2, learning_rate_init=5e-3, max_iter=150, random_state=0),
        )
    ),
}


SHAPES = (shifted, exclusive_or, shells, folded, within)


def main() -> None:
    sizes = (100, 500, 2000)
    scores, seconds = defaultdict(list), defaultdict(list)
    for rows in sizes:
        for dims in (2, 4, 16):
            for shape in SHAPES:
                for seed in range(2):
                    rng = np.random.default_rng(seed)
                    (x, y), (x_new, y_new) = (shape(rng, n, dims) for n in (rows, 1500))
                    alone = {}
                    for name, probe in PROBES.items():
                        start = time.process_time()
                        said = probe(x, y, x_new, False)
                        seconds[name, rows].append(time.process_time() - start)
                        alone[name] = balanced_accuracy_score(y_new, said)
                    for name, score in alone.items():
                        company = max(score, alone["30 neighbours"], alone["linear"])
                        scores[name, rows].append((score, company))
                        if shape is within:
                            scores[name, rows, "within"].append((score, company))
    for which, key in (("all shapes", ()), ("within clusters", ("within",))):
        print(which)
        table(scores, seconds, key)


def table(scores, seconds, key):
    sizes = (100, 500, 2000)
    print("| probe | " + " | ".join(f"{n} rows" for n in sizes) + " |\n|---|---|---|---|")
    for name in PROBES:
        cells = []
        for n in sizes:
            score, company = np.mean(scores[(name, n, *key)], axis=0)
            cells.append(f"{company:.3f} ({score:.3f} alone, {np.mean(seconds[name, n]):.2f} s)")
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
