"""Reward functions as users of TRL write them, well and badly; called by dotted path in the tests."""

import functools


def length(completions, **kwargs):
    return [float(len(completion)) for completion in completions]


def topic_is(prompts, completions, topic, wanted="sums"):
    return [float(one == wanted) for one in topic]


def everything(prompts, completions, answer, **columns):
    assert set(columns) == {"topic", "solution"} and prompts == ["Q1", "Q2"] and answer == ["5", "so #### 7"]
    return [1.0] * len(completions)


def talk(prompts, completions, **kwargs):
    assert prompts[0][0]["role"] == "system" and completions[0][0]["role"] == "assistant"
    return [len(completion[0]["content"]) for completion in completions]


def needs_a_column(completions, ground_truth):
    return [0.0] * len(completions)


def only_sums(completions, topic, **kwargs):
    return [1.0 if one == "sums" else None for one in topic]


def nothing(completions, **kwargs):
    return [None] * len(completions)


def _right(completions):
    return [len(completion) > 5 for completion in completions]


def array(completions, **kwargs):
    import numpy

    return numpy.array(_right(completions))


def tensor(completions, **kwargs):
    import torch

    return torch.tensor(_right(completions))


def booleans(completions, **kwargs):
    return tuple(_right(completions))


def generator(completions, **kwargs):
    return (one for one in _right(completions))


class _Reward:
    def __call__(self, completions, **kwargs):
        return _right(completions)


an_object = _Reward()
partial = functools.partial(lambda completions, cut, **kwargs: [len(one) > cut for one in completions], cut=5)


def a_dict(completions, **kwargs):
    return {"reward": 1.0}


def a_text(completions, **kwargs):
    return "1"


def texts(completions, **kwargs):
    return ["1" for _ in completions]


def none(completions, **kwargs):
    return None


def one_number(completions, **kwargs):
    return 1.0


def too_many(completions, **kwargs):
    return [1.0] * (len(completions) + 1)


def pairs(completions, **kwargs):
    return [(1.0, 2.0) for _ in completions]


async def asynchronous(completions, **kwargs):
    return [1.0 for _ in completions]


def infinite(completions, **kwargs):
    return [float("inf") for _ in completions]


def breaks(completions, **kwargs):
    return [1 / 0]
