"""Family-wise error and cost of `seeds=auto` on simulated runs: equal arms, and one arm that is better by so much.

python tests/bench/bench_seeds_auto.py [--trials 2000] [--write]
"""

import argparse
import itertools
import math

import common
import numpy as np

from multiref_cli.evaluation.crossed import compare
from multiref_cli.evaluation.sequential import decide
from multiref_cli.evaluation.statistics import holm

ARMS, LOOKS, PROMPTS, SPREAD, RESIDUAL, INTERACTION = 4, (3, 5, 7, 9), 64, 0.015, 0.28, 0.1


def simulate(generator, better, prompts, correlation, trials):
    """Share of trials with a false decision and with all true ones, runs of a trial, and naive looks' false share."""
    false = whole = naive = runs = 0
    pairs = list(itertools.combinations(range(ARMS), 2))
    shares = [n / LOOKS[-1] for n in LOOKS]
    for _ in range(trials):
        own = math.sqrt(1 - correlation) * generator.normal(size=(ARMS, LOOKS[-1]))
        effects = SPREAD * (math.sqrt(correlation) * generator.normal(size=LOOKS[-1]) + own)
        effects[0] += better * SPREAD
        if prompts:
            tables = effects[..., None] + RESIDUAL * generator.normal(size=(ARMS, LOOKS[-1], PROMPTS))
            tables += INTERACTION * generator.normal(size=(ARMS, 1, PROMPTS))
        else:
            tables = effects[..., None]
        counts, open_pairs, history, wrong = [0] * ARMS, set(range(len(pairs))), [], False
        for seeds in LOOKS:
            for arm in {arm for pair in open_pairs for arm in pairs[pair]}:
                counts[arm] = seeds
            means = [dict(enumerate(tables[arm, : counts[arm]].mean(1))) for arm in range(ARMS)]
            row = []
            for a, b in pairs:
                sides = [dict(enumerate(tables[arm, : counts[arm]])) for arm in (a, b)]
                fresh = min(counts[a], counts[b]) == seeds
                others = [mean for arm, mean in enumerate(means) if arm not in (a, b)]
                row.append(compare(*sides, means, others=others).p_value if fresh else math.nan)
            history.append(row)
            wrong |= any(p <= 0.05 for p, pair in zip(holm(row), pairs) if better == 0 or 0 not in pair)
            found = decide(history, shares)
            open_pairs = {index for index, one in enumerate(found) if one.look == 0}
            if not open_pairs:
                break
        true = [bool(better) and 0 in pair for pair in pairs]
        false += any(one.look and not real for one, real in zip(found, true))
        whole += all(one.look for one, real in zip(found, true) if real)
        naive += wrong
        runs += sum(counts)
    return {"false": false / trials, "all true": whole / trials, "runs": runs / trials, "naive": naive / trials}


def main():
    """Simulate; print or write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--write", action="store_true", help="write results/bench_seeds_auto.{json,md}")
    options = parser.parse_args()
    rows = []
    designs = ((0, 0, 0), (0, 0, 0.84), (0, 1, 0), (1.5, 0, 0), (3, 0, 0), (6, 0, 0))
    for better, prompts, correlation in designs:
        found = simulate(np.random.default_rng(0), better, prompts, correlation, options.trials)
        rows.append({"better": better, "prompts": prompts, "correlation": correlation, **found})
    facts = common.machine(1)
    lines = [
        f"{options.trials} trials of {ARMS} arms, all {math.comb(ARMS, 2)} pairs in one family, looks at "
        f"{', '.join(map(str, LOOKS))} seeds; one arm better by so many standard deviations over seeds. "
        f"{facts['sentence']}",
        "",
        "| better by | errors | seeds correlated | a false decision | all true ones | runs of "
        f"{ARMS * LOOKS[-1]} | false if p < .05 counted at every look |",
        "|---:|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        errors = f"seeds and {PROMPTS} prompts" if row["prompts"] else "seeds"
        true = f"{row['all true']:.3f}" if row["better"] else "–"
        lines.append(
            f"| {row['better']:g} | {errors} | {row['correlation']:g} | {row['false']:.3f} | {true} | "
            f"{row['runs']:.1f} | {row['naive']:.3f} |"
        )
    text = "\n".join(lines) + "\n"
    if options.write:
        common.write("bench_seeds_auto", {"trials": options.trials, "rows": rows, "machine": facts}, text)
    else:
        print(text)


if __name__ == "__main__":
    main()
