"""multiref: reinforcement learning from human feedback regularized towards several frozen reference models."""

__version__ = "0.1.0"
