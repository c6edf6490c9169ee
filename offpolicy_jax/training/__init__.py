"""Training: loops, evaluation, checkpoints, run directories. `train` is the way in."""

from offpolicy_jax.training.playback import restore, rollouts
from offpolicy_jax.training.train import Result, Settings, train, train_points

__all__ = ["Result", "Settings", "restore", "rollouts", "train", "train_points"]
