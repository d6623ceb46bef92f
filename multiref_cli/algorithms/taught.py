"""Which stored responses of the teachers a step of a distillation takes beside the student's own."""

from collections.abc import Mapping, Sequence

import torch

from multiref_cli.seeding import derive


def taught_responses(
    stored: Sequence[Mapping[int, list[list[int]]]], row: int, weights: Sequence[float], count: int, *key: int
) -> list[list[int]]:
    """Some of the teachers' responses to one prompt, of each teacher as often as its weight says.

    A teacher is drawn for each response, by its weight where that is positive; its own stored ones are taken without
    repetition. A pure function of its arguments: a resumed run takes the same ones.

    Args:
        stored: for each of K teachers prompt number -> [S] token ids, S at least `count`.
        row: number of the prompt.
        weights: K weights, negative ones of an extrapolation allowed.
        count: how many are wanted.
        key: what the draw depends on, such as seed and window.

    Returns:
        [count] token ids.
    """
    generator = torch.Generator().manual_seed(derive(*key[:1], "teacher", *key[1:], row))
    chance = torch.tensor(weights, dtype=torch.float64).clamp(min=0)
    teachers = torch.multinomial(chance, count, replacement=True, generator=generator).tolist()
    orders = [torch.randperm(len(one[row]), generator=generator).tolist() for one in stored]
    return [stored[teacher][row][orders[teacher].pop()] for teacher in teachers]
