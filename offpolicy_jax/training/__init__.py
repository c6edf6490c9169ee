"""Training: loops, evaluation, checkpoints, run directories. `train` is the way in."""

from offpolicy_jax.training.finished import read_finished
from offpolicy_jax.training.playback import greedy, restore, rollouts
from offpolicy_jax.training.train import Result, Settings, train, train_points, unless_interrupted

__all__ = [
    "Result",
    "Settings",
    "greedy",
    "read_finished",
    "restore",
    "rollouts",
    "train",
    "train_points",
    "unless_interrupted",
]
