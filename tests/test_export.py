"""Exported policies: the bits of the policy they were, without its agent; damaged and foreign files in one line."""

import json
import subprocess
import sys
import textwrap

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import sac
from experiments import export as command
from experiments.open_run import open_run
from offpolicy_jax import environments, export
from offpolicy_jax.environments.spaces import to_space
from offpolicy_jax.errors import UserError
from offpolicy_jax.training import Settings, greedy, train
from offpolicy_jax.transition import ArraySpec, EnvironmentSpec


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run of two seeds with an observation normaliser."""
    path = str(tmp_path_factory.mktemp("run") / "run")
    settings = Settings(
        steps=40, seeds=2, seed=4, eval_every=20, eval_episodes=1, normalize_observations=True, run_dir=path,
        progress=False,
    )  # fmt: skip
    train(sac, settings, sac.Config(hidden_sizes=(8,), batch_size=4, learning_starts=10))
    return path


@pytest.fixture(scope="module")
def exported(run_dir, tmp_path_factory):
    path = tmp_path_factory.mktemp("policy") / "policy.bin"
    assert command.main([f"--run-dir={run_dir}", f"--out={path}", "--seed=5"]) == 0
    return path


def test_a_file_gives_the_policy_s_bits_where_no_agent_can_be_imported(run_dir, exported, tmp_path):
    run = open_run(run_dir, 5)
    observations = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    space = gymnasium.spaces.Box(-2.0, 2.0, (1,), np.float32)
    policy = greedy(run.agent, run.config, run.learner, run.index)
    expected = np.asarray(jax.jit(lambda x: to_space(policy(x), space))(observations))
    np.save(tmp_path / "observations.npy", observations)
    code = f"""
        import sys
        sys.modules["agents"] = sys.modules["offpolicy_jax.training"] = sys.modules["gymnasium"] = None
        import numpy as np
        from offpolicy_jax.export import load
        policy, x = load({str(exported)!r}), np.load({str(tmp_path / "observations.npy")!r})
        assert np.array_equal(policy(x[0].astype(np.float64)), policy(x[:1])[0])
        np.save({str(tmp_path / "actions.npy")!r}, policy(x))
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, cwd=tmp_path)
    actions = np.load(tmp_path / "actions.npy")
    assert actions.shape == (7, 1) and np.array_equal(actions, expected) and np.abs(actions).max() <= 2.0
    other = greedy(run.agent, run.config, run.learner, 0)  # the seed, and the statistics, are part of it
    assert not np.array_equal(actions, np.asarray(to_space(other(observations), space)))


def test_the_header_says_what_the_file_is(run_dir, exported):
    header = export.load(exported).header
    assert (header["environment"], header["action_repeat"]) == ("phys2d/Pendulum-v0", 1)
    assert (header["agent"], header["seed"]) == ("sac", 5)
    assert header["step"] == 40 and header["return"] == open_run(run_dir, 5).greedy_return < 0.0
    assert header["platforms"] == ["cpu", "cuda", "tpu"] and header["versions"]["jax"] == jax.__version__
    assert header["action"]["space"] == "Box(-2.0, 2.0, (1,), float32)" and "commit" in header
    assert json.loads(exported.read_bytes().split(b"\n")[1]) == header


def test_best_is_the_seed_of_the_greatest_last_return(run_dir):
    best = open_run(run_dir)
    other = open_run(run_dir, 9 - best.seed)
    assert best.greedy_return > other.greedy_return and open_run(run_dir, "first").seed == 4


def test_discrete_actions_and_observations_in_parts(tmp_path):
    spec = EnvironmentSpec(
        "made-up",
        {"cell": ArraySpec((), np.dtype(np.int32), 4), "wind": ArraySpec((2,), np.dtype(np.float32))},
        ArraySpec((), np.dtype(np.int32), 3),
    )
    space = gymnasium.spaces.Discrete(3, start=5)
    policy = lambda o: (o["cell"] + (o["wind"][:, 0] > 0)) % 3  # noqa: E731
    export.save(tmp_path / "p", policy, spec, space, {"agent": "none"})
    loaded = export.load(tmp_path / "p")
    cells, wind = np.array([0, 1, 2, 3]), np.array([[1, 0], [0, 0], [1, 0], [0, 0]], np.float64)
    assert loaded({"cell": cells, "wind": wind}).tolist() == [6, 6, 5, 5]
    assert loaded({"cell": 1, "wind": wind[0]}) == 7 and space.contains(loaded({"cell": 1, "wind": wind[0]}).item())
    with pytest.raises(UserError, match="other observations"):
        loaded(wind)
    with pytest.raises(UserError, match=r"has shape \(3,\), not"):
        loaded({"cell": 1, "wind": np.zeros(3)})


def test_every_policy_can_be_exported_for_any_batch():
    """All agents lower with a symbolic batch and for all platforms; nothing is compiled."""
    import agents
    from offpolicy_jax.training.agent import resolve

    for name in agents.REGISTRY:
        agent = agents.load(name)
        for env in ("phys2d/Pendulum-v0", "phys2d/CartPole-v1"):
            environment = environments.make(env)
            config = resolve(agent.Config(), environment.spec, 100)
            try:
                state = jax.eval_shape(lambda: agent.init(config, environment.spec, jax.random.key(0)))  # noqa: B023
            except UserError:  # of the other kind of actions
                continue
            state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state)
            observation = jax.ShapeDtypeStruct(
                (*jax.export.symbolic_shape("b"), *environment.spec.observation.shape), np.float32
            )
            policy = jax.jit(lambda o: agent.policy(config, state, o))  # noqa: B023
            assert len(jax.export.export(policy, platforms=export.PLATFORMS)(observation).platforms) == 3


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b"PK" + b, "is not a policy that offpolicy_jax exported"),
        (lambda b: b"", "is not a policy that offpolicy_jax exported"),
        (lambda b: b[:-1], "is damaged: export the policy again"),
        (lambda b: b[:-9] + bytes([b[-9] ^ 1]) + b[-8:], "is damaged"),
        (lambda b: b.replace(b'"bytes"', b'"butes"'), "is damaged"),
        (lambda b: b[:40], "is damaged"),
    ],
)
def test_files_that_are_no_policies(damage, message, exported, tmp_path):
    (tmp_path / "p").write_bytes(damage(exported.read_bytes()))
    with pytest.raises(UserError, match=message):
        export.load(tmp_path / "p")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run-dir=nowhere"], "there is no run in nowhere"),
        (["--seed=7"], "has seeds 4 to 5, not 7"),
        (["--sed=7"], "unrecognized arguments: --sed=7"),
        (["--out=/proc/policy.bin"], "cannot write /proc/policy.bin"),
    ],
)
def test_exporting_refuses_in_one_line(arguments, message, run_dir, tmp_path, capsys):
    assert command.main([f"--run-dir={run_dir}", f"--out={tmp_path}/p", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    with pytest.raises(UserError, match="cannot read"):
        export.load(tmp_path / "p")


def test_without_flatbuffers_it_says_what_to_install(exported, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'offpolicy-jax\[export\]'"):
        export.load(exported)
