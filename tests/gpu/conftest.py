"""The sizes at which claims about a GPU are measured."""

import pytest
import torch

from tests.gpu.parts import Scale


@pytest.fixture
def scale():
    """Real sizes where there is a GPU, else tiny ones."""
    return Scale(torch.cuda.is_available())
