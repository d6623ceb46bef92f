"""The tokenizer of the embedded world."""

import pytest

from multiref_cli.world.tokenizer import tokenizer


@pytest.fixture(scope="session")
def toy():
    return tokenizer()
