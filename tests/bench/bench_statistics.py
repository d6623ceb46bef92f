"""Coverage of intervals and power of comparisons on simulated runs with the measured components of variance.

python tests/bench/bench_statistics.py [--trials 2000] [--write]
"""

import argparse
import math

import common
import numpy as np

from multiref_cli.evaluation.crossed import compare, estimate
from multiref_cli.evaluation.statistics import t_interval

SEEDS, PROMPTS, CONDITIONS, RESIDUAL, INTERACTION = 3, 512, 10, 0.28, 0.1


def intervals(generator, seed_error, prompt_error, trials):
    """Share of crossed and of seed-only 95 % intervals that hold the true mean."""
    crossed = alone = 0
    for _ in range(trials):
        table = seed_error * math.sqrt(SEEDS) * generator.normal(size=(SEEDS, 1))
        table = table + prompt_error * math.sqrt(PROMPTS) * generator.normal(size=PROMPTS)
        table = table + RESIDUAL * generator.normal(size=(SEEDS, PROMPTS))
        both, one = estimate(dict(enumerate(table))).interval, t_interval(table.mean(1))
        crossed += both.low <= 0 <= both.high
        alone += one.low <= 0 <= one.high
    return {"crossed": crossed / trials, "seeds alone": alone / trials}


def comparisons(generator, correlation, spread, unequal, trials):
    """Coverage, and power at three standard errors, of a pair's own spread and of the shared residual."""
    size = 3 * spread * math.sqrt(2 * (1 - correlation) / SEEDS)
    ways = {"paired t": [0, 0], "crossed pair": [0, 0], "shared residual": [0, 0]}
    for _ in range(trials):
        own = math.sqrt(1 - correlation) * generator.normal(size=(CONDITIONS, SEEDS))
        own[0] *= unequal
        effects = spread * (math.sqrt(correlation) * generator.normal(size=SEEDS) + own)
        tables = effects[:2, :, None] + RESIDUAL * generator.normal(size=(2, SEEDS, PROMPTS))
        tables = tables + INTERACTION * generator.normal(size=(2, 1, PROMPTS))
        means = effects + RESIDUAL / math.sqrt(PROMPTS) * generator.normal(size=effects.shape)
        means[:2] = tables.mean(2)
        block = [dict(enumerate(row)) for row in means]
        first, second = (dict(enumerate(table)) for table in tables)
        shared = compare(first, second, block, others=block[2:])
        found = (compare(block[0], block[1]), compare(first, second), shared)
        for counts, one in zip(ways.values(), found):
            counts[0] += one.difference.low <= 0 <= one.difference.high
            counts[1] += one.difference.low + size > 0
    return {name: {"coverage": c / trials, "power": p / trials} for name, (c, p) in ways.items()}


def main():
    """Simulate; print or write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--write", action="store_true", help="write results/bench_statistics.{json,md}")
    options = parser.parse_args()
    generator, trials = np.random.default_rng(0), options.trials
    covered = {
        f"SE over seeds {s}, over prompts {p}": intervals(generator, s, p, trials)
        for s, p in ((0.0086, 0.0138), (0.0, 0.0138), (0.0138, 0.0045))
    }
    pairs = {
        "offline: seeds correlated .84": comparisons(generator, 0.84, 0.03, 1, trials),
        "online: seeds not correlated": comparisons(generator, 0.0, 0.0149, 1, trials),
        "one side with four times the spread": comparisons(generator, 0.0, 0.0149, 4, trials),
    }
    facts = common.machine(1)
    lines = [f"{trials} trials, {SEEDS} seeds, {PROMPTS} prompts, {CONDITIONS} conditions. {facts['sentence']}", ""]
    lines += ["| components | crossed | seeds alone |", "|---|---:|---:|"]
    lines += [f"| {name} | {x['crossed']:.3f} | {x['seeds alone']:.3f} |" for name, x in covered.items()]
    lines += ["", "| design | way | coverage | power at 3 SE |", "|---|---|---:|---:|"]
    for name, ways in pairs.items():
        lines += [f"| {name} | {way} | {x['coverage']:.3f} | {x['power']:.3f} |" for way, x in ways.items()]
    text = "\n".join(lines) + "\n"
    if options.write:
        results = {"trials": trials, "intervals": covered, "comparisons": pairs, "machine": facts}
        common.write("bench_statistics", results, text)
    else:
        print(text)


if __name__ == "__main__":
    main()
