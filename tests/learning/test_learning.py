"""Short learning runs with small networks: an agent that stops learning fails here. Full-size runs: experiments/."""

import pytest

from agents import dqn, dsac_t, pmoe, ppo, sac, sac_discrete
from offpolicy_jax.training import Settings, train

SMALL = {"hidden_sizes": (64, 64), "batch_size": 128}


# In-graph, and the same physics on the host.
@pytest.mark.parametrize("env", ["phys2d/Pendulum-v0", pytest.param("Pendulum-v1", marks=pytest.mark.slow)])
def test_sac_swings_the_pendulum_up(env):
    config = sac.Config(learning_rate=1e-3, learning_starts=1_000, **SMALL)
    settings = Settings(env=env, steps=6_000, seeds=3, eval_every=6_000, eval_episodes=50, progress=False)
    assert train(sac, settings, config).summary["iqm"] >= -200


PENDULUM = Settings(env="phys2d/Pendulum-v0", steps=8_000, seeds=3, eval_every=8_000, eval_episodes=50, progress=False)


@pytest.mark.slow
def test_dsac_t_swings_the_pendulum_up():
    config = dsac_t.PRESETS["quick"].replace(**SMALL)  # type: ignore[attr-defined]
    assert train(dsac_t, PENDULUM, config).summary["iqm"] >= -200


@pytest.mark.slow
def test_pmoe_swings_the_pendulum_up():
    config = pmoe.Config(learning_rate=1e-3, learning_starts=1_000, **SMALL)
    assert train(pmoe, PENDULUM, config).summary["iqm"] >= -200


@pytest.mark.slow
def test_discrete_sac_balances_the_pole():
    # With discount 0.99, whose horizon is 100 steps, most seeds still end after 150 to 280, by position or by angle.
    config = sac_discrete.Config(learning_rate=1e-3, discount=0.995, tau=0.05, target_entropy_scale=0.5, **SMALL)
    settings = Settings(
        env="phys2d/CartPole-v1", steps=16_000, seeds=3, eval_every=16_000, eval_episodes=20, progress=False
    )
    assert train(sac_discrete, settings, config).summary["iqm"] >= 400


@pytest.mark.slow
@pytest.mark.parametrize(("agent", "steps"), [(ppo, 150_000), (dqn, 75_000)], ids=["ppo", "dqn"])
def test_the_classic_preset_balances_the_pole(agent, steps):
    settings = Settings(
        env="phys2d/CartPole-v1",
        steps=steps,
        seeds=3,
        num_envs=8,
        eval_every=steps,
        eval_episodes=20,
        progress=False,
    )
    assert train(agent, settings, agent.PRESETS["classic"]).summary["iqm"] >= 475
