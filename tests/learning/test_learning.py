"""Short learning runs with small networks: an agent that stops learning fails here. Full-size runs: experiments/."""

import pytest

from agents import sac, sac_discrete
from offpolicy_jax.training import Settings, train

SMALL = {"hidden_sizes": (64, 64), "batch_size": 128}


@pytest.mark.slow
def test_sac_swings_the_pendulum_up():
    config = sac.Config(learning_rate=1e-3, learning_starts=1_000, **SMALL)
    settings = Settings(
        env="phys2d/Pendulum-v0", steps=6_000, seeds=3, eval_every=6_000, eval_episodes=50, progress=False
    )
    assert train(sac, settings, config).summary["iqm"] >= -200


@pytest.mark.slow
def test_sac_balances_on_the_host():
    config = sac.Config(learning_rate=1e-3, learning_starts=1_000, **SMALL)
    settings = Settings(
        env="InvertedPendulum-v5", steps=6_000, seeds=2, eval_every=6_000, eval_episodes=5, progress=False
    )
    assert train(sac, settings, config).summary["mean"] >= 500


@pytest.mark.slow
def test_discrete_sac_balances_the_pole():
    config = sac_discrete.Config(learning_rate=1e-3, target_entropy_scale=0.5, **SMALL)
    settings = Settings(
        env="phys2d/CartPole-v1", steps=10_000, seeds=3, eval_every=10_000, eval_episodes=20, progress=False
    )
    assert train(sac_discrete, settings, config).summary["iqm"] >= 400
