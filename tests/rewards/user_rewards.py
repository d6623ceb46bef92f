"""Reward functions as a user might write them, well and badly; called by dotted path in the tests."""

import os
import time


def length(samples, scale=1.0):
    return [scale * len(sample.completion) for sample in samples]


def extra(samples):
    return [sample.extra["bonus"] for sample in samples]


def rank(samples):
    """Depends on the whole batch."""
    order = sorted(len(sample.completion) for sample in samples)
    return [order.index(len(sample.completion)) for sample in samples]


def hangs_on_x(samples):
    for sample in samples:
        while "x" in sample.completion:
            time.sleep(0.01)
    return [1.0] * len(samples)


def holds_the_interpreter(samples):
    """A regular expression that backtracks for ever inside C: no thread could stop it."""
    import re

    return [float(bool(re.match(r"(a+)+$", sample.completion))) for sample in samples]


def raises_on_x(samples):
    return [1 / (0 if "x" in sample.completion else 1) for sample in samples]


def raises_in_company(samples):
    if len(samples) > 1:
        raise RuntimeError("one at a time")
    return [0.0]


def too_few(samples):
    return [0.0]


def not_a_number(samples):
    return [float("nan") if "x" in sample.completion else 0.0 for sample in samples]


def dies(samples):
    os._exit(3)


def prints(samples):
    print("a reward function may print")
    os.system("echo and so may its children")
    return [1.0 for _ in samples]


def process(samples):
    return [float(os.getpid()) for _ in samples]


NUMBER = 7


def closes_and_lives(samples):
    os.closerange(3, 256)
    time.sleep(600)


def eats_memory(samples):
    return [float(len(bytearray(2**45)))]
