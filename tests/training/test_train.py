"""`train` end to end on tiny problems: tables, files, seeds, resume, traces, divergence."""

import dataclasses
import json
import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import dqn, dsac_t, pmoe, ppo, props, sac, sac_discrete
from offpolicy_jax import environments
from offpolicy_jax.errors import UserError
from offpolicy_jax.training import Settings, host, in_graph, read_finished, train, unless_interrupted
from offpolicy_jax.training import seeds as seed_axis
from offpolicy_jax.training.agent import check, resolve
from offpolicy_jax.training.settings import differences
from offpolicy_jax.training.summary import as_json
from tests import probes

# Tests that can do with these sizes, two seeds and a ring of 40 share their compiled programs, whatever their steps.
SMALL = sac.Config(hidden_sizes=(16,), batch_size=16, learning_starts=20, replay_capacity=40)


@pytest.fixture(autouse=True)
def probe_environments():
    """Both backends with the same tiny environment."""
    environment = probes.ConstantReward()
    environments.register("probe/in-graph", lambda num_envs: environment)
    environments.register("probe/host", lambda num_envs: probes.HostProbe(environment, num_envs))


def settings(**changes):
    base = Settings(env="probe/in-graph", seeds=2, steps=120, eval_every=40, eval_episodes=3, progress=False)
    return dataclasses.replace(base, **changes)


def same(a, b):
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in leaves)


def test_runs_and_their_evaluations_repeat_actions():
    asked = settings(env="Pendulum-v1", action_repeat=8, steps=60, eval_every=30, eval_episodes=1)
    table = train(sac, asked, SMALL).table
    assert table["step"].tolist() == [30, 30, 60, 60] and table["length"].tolist() == [25] * 4


BACKENDS = pytest.mark.parametrize("env", ["probe/in-graph", "probe/host", "phys2d/Pendulum-v0", "InvertedPendulum-v5"])


def test_table_has_one_row_per_seed_and_evaluation():
    result = train(sac, settings(seed=5), SMALL)
    assert result.table["step"].tolist() == [40, 40, 80, 80, 120, 120]
    assert result.table["seed"].tolist() == [5, 6] * 3
    assert np.all(result.table["return"] == 10.0) and np.all(result.table["length"] == 10.0)
    assert result.summary["final_return"] == {"5": 10.0, "6": 10.0}
    assert result.states.log_alpha.shape == (2,)


def test_run_directory(tmp_path):
    train(sac, settings(run_dir=str(tmp_path / "run")), SMALL)
    run = tmp_path / "run"
    names = {p.name for p in run.iterdir()}
    assert names == {
        "config.json", "metrics.csv", "evaluations.csv", "summary.json", "learning_curve.png", "checkpoints"
    }  # fmt: skip
    config = json.loads((run / "config.json").read_text())
    assert config["agent"] == "sac" and config["config"]["hidden_sizes"] == [16]
    assert config["resolved_config"]["replay_capacity"] == 40 and "jax" in config["versions"]
    lines = (run / "evaluations.csv").read_text().splitlines()
    assert lines[0].startswith("step,seed,return,length") and len(lines) == 1 + 6
    header, first, *_ = (run / "metrics.csv").read_text().splitlines()
    assert "critic/loss" in header and len(first.split(",")) == len(header.split(","))
    summary = json.loads((run / "summary.json").read_text())
    keys = {
        "final_return",
        "iqm",
        "iqm_interval_95",
        "environment_steps_per_second",
        "compile_seconds",
        "peak_memory_mb",
    }
    assert keys <= summary.keys()
    assert (run / "learning_curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("env", ["phys2d/Pendulum-v0", "InvertedPendulum-v5"])
def test_seed_of_a_run_equals_that_seed_alone(env):
    three = train(sac, settings(env=env, seeds=3, seed=4), SMALL)
    one = train(sac, settings(env=env, seeds=1, seed=5), SMALL)
    for many, single in zip(jax.tree.leaves(three.states), jax.tree.leaves(one.states), strict=True):
        np.testing.assert_allclose(many[1], single[0], rtol=2e-3, atol=2e-4)  # batched products round differently
    assert not np.allclose(three.states.log_alpha[0], three.states.log_alpha[1], rtol=1e-6, atol=0)


@pytest.fixture
def turns(monkeypatch):
    """Lanes in turn, whatever their size: an entry for each time that they are traced so."""
    seen = []

    def counted(*args):
        seen.append(True)
        return run_in_turn(*args)

    run_in_turn = in_graph.run_in_turn
    monkeypatch.setattr(in_graph, "run_in_turn", counted)
    monkeypatch.setattr(in_graph, "IN_TURN_BYTES", (0, 2**60))
    monkeypatch.setattr(seed_axis, "num_cores", lambda: 1)
    return seen


@pytest.mark.parametrize("agent", [sac, dqn, ppo])
def test_lanes_in_turn_learn_what_they_learn_together(agent, turns, monkeypatch, tmp_path):
    """Off policy, on pixels that are kept as frames, and on policy; every lane with its own hyper-parameters."""
    rates = np.array([1e-3, 1e-2], np.float32)
    if agent is sac:
        config, options = SMALL, {"normalize_observations": True, "normalize_rewards": True}
    elif agent is dqn:
        config = dqn.Config(hidden_sizes=(8,), torso="mlp", batch_size=8, learning_starts=20, replay_capacity=60)
        options = {"env": "gridworld/FourRoomsPixels-v0", "num_envs": 2}
    else:
        config, options = ppo.Config(hidden_sizes=(8,), rollout_length=10, minibatches=2), {"num_envs": 2}
    config, results = dataclasses.replace(config, learning_rate=rates), {}
    for name in ("in turn", "together"):
        results[name] = train(agent, settings(run_dir=str(tmp_path / name), **options), config)
        assert bool(turns) == (name == "in turn")
        turns.clear()
        monkeypatch.setattr(in_graph, "IN_TURN_BYTES", (2**60, 2**60))
    for one, other in zip(*(jax.tree.leaves(result.states) for result in results.values()), strict=True):
        if not jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-4)  # batched products round differently
    tables = [np.genfromtxt(tmp_path / name / "metrics.csv", delimiter=",", names=True) for name in results]
    assert tables[0].dtype == tables[1].dtype and len(tables[0]) == len(tables[1]) > 3
    for column in tables[0].dtype.names:
        if "seconds" not in column:
            np.testing.assert_allclose(*(table[column] for table in tables), rtol=5e-3, atol=5e-4, err_msg=column)


@pytest.mark.parametrize(
    ("agent", "env", "config"),
    [
        (sac, "probe/in-graph", dataclasses.replace(SMALL, replay_capacity=100_000)),
        (
            dqn,
            "gridworld/FourRoomsPixels-v0",
            dqn.Config(hidden_sizes=(8,), torso="mlp", batch_size=8, learning_starts=20, replay_capacity=100_000),
        ),
    ],
)
def test_lanes_in_turn_copy_no_ring(agent, env, config, turns):
    config = jax.tree.map(np.float32, config)
    loop = in_graph.Loop(agent, environments.make(env), config, 2, 1)
    carry = jax.eval_shape(loop._begin, config, seed_axis.keys(0, 2), None)
    memory = loop._run.lower(config, carry, np.int32(0), np.int32(9)).compile().memory_analysis()
    kept = carry.learner.replay.storage, carry.learner.replay.frames
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(kept))
    assert turns
    assert memory.alias_size_in_bytes >= size
    assert memory.temp_size_in_bytes < size / 10


@pytest.mark.parametrize(
    ("changes", "devices", "cores", "processes", "expected"),
    [
        ({}, 2, 2, 1, True),
        ({"hidden_sizes": (64, 64)}, 2, 2, 1, False),
        ({"hidden_sizes": (128, 128)}, 2, 2, 1, True),
        ({"hidden_sizes": (2_048, 2_048)}, 2, 2, 1, False),  # 168 MB
        ({"learning_rate": np.array([1e-3, 1e-4], np.float32)}, 1, 2, 1, True),
        ({}, 2, 5, 1, False),
        ({}, 2, 2, 2, False),
    ],
)
def test_large_lanes_take_turns_where_cores_are_few(changes, devices, cores, processes, expected, monkeypatch):
    monkeypatch.setattr(seed_axis, "num_cores", lambda: cores)
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    spec, config = environments.make("phys2d/Pendulum-v0").spec, jax.tree.map(np.float32, sac.Config(**changes))
    assert in_graph._take_turns(sac, config, spec, devices) is expected


def test_a_run_in_turn_resumes_as_an_uninterrupted_one(turns, tmp_path):
    whole = train(sac, settings(run_dir=str(tmp_path / "whole")), SMALL)
    train(sac, settings(run_dir=str(tmp_path / "cut"), steps=80), SMALL)
    resumed = train(sac, settings(run_dir=str(tmp_path / "cut"), resume=True), SMALL)
    assert len(turns) >= 3 and same(whole.states, resumed.states)


@BACKENDS
def test_resumed_run_equals_an_uninterrupted_one(env, tmp_path):
    """With all that a run keeps beside its agents: moments of the data, and a ring that is full at the cut."""
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    options = {"env": env, "normalize_observations": True, "normalize_rewards": True}
    whole = train(sac, settings(run_dir=str(straight), **options), SMALL)
    train(sac, settings(run_dir=str(stopped), **(options | {"steps": 80})), SMALL)
    resumed = train(sac, settings(run_dir=str(stopped), resume=True, **options), SMALL)
    assert same(whole.states, resumed.states)
    for name in ("evaluations.csv", "metrics.csv"):
        assert (straight / name).read_bytes() == (stopped / name).read_bytes()


def test_resume_without_a_checkpoint_starts_again(tmp_path):
    whole = train(sac, settings(run_dir=str(tmp_path / "a")), SMALL)
    train(sac, settings(run_dir=str(tmp_path / "b")), SMALL)
    for checkpoint in (tmp_path / "b" / "checkpoints").iterdir():
        checkpoint.rename(checkpoint.with_name("." + checkpoint.name + ".partial"))
    again = train(sac, settings(run_dir=str(tmp_path / "b"), resume=True), SMALL)
    assert same(whole.states, again.states)
    assert (tmp_path / "a/evaluations.csv").read_bytes() == (tmp_path / "b/evaluations.csv").read_bytes()


def test_resume_after_the_end_changes_nothing(tmp_path):
    first = train(sac, settings(run_dir=str(tmp_path / "run")), SMALL)
    before = (tmp_path / "run/evaluations.csv").read_bytes()
    second = train(sac, settings(run_dir=str(tmp_path / "run"), resume=True), SMALL)
    assert same(first.states, second.states) and before == (tmp_path / "run/evaluations.csv").read_bytes()


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """A run to its end, and what it was asked to be."""
    environment = probes.ConstantReward()
    environments.register("probe/in-graph", lambda num_envs: environment)
    asked = settings(run_dir=str(tmp_path_factory.mktemp("finished") / "run"))
    return asked, train(sac, asked, SMALL)


def test_a_finished_run_is_read_from_its_files(finished_run):
    asked, trained = finished_run
    result = read_finished(sac, dataclasses.replace(asked, resume=True), SMALL)
    assert result is not None and result.states is None and result.summary == trained.summary
    for name, column in trained.table.items():
        np.testing.assert_array_equal(result.table[name], column)
        assert result.table[name].dtype == column.dtype


@pytest.mark.parametrize("changes", [{"steps": 160}, {"seed": 1}, {"run_dir": None}, {"run_dir": "elsewhere"}])
def test_another_run_than_the_finished_one_is_not_read(finished_run, changes):
    asked, _ = finished_run
    assert read_finished(sac, dataclasses.replace(asked, **changes), SMALL) is None
    assert read_finished(sac, asked, dataclasses.replace(SMALL, tau=0.5)) is None


def test_a_run_grows_with_its_steps(tmp_path):
    """Cut, given more steps (so a larger ring), cut again, and resumed from its directory's own settings."""
    config = dataclasses.replace(SMALL, replay_capacity=10_000)  # which is cut to the steps
    whole = train(sac, settings(run_dir=str(tmp_path / "a"), steps=240), config)
    for steps in (80, 160, 240):
        last = train(sac, settings(run_dir=str(tmp_path / "b"), resume=True, steps=steps), config)
    assert same(whole.states, last.states)
    assert (tmp_path / "a/evaluations.csv").read_bytes() == (tmp_path / "b/evaluations.csv").read_bytes()
    assert json.loads((tmp_path / "b/config.json").read_text())["settings"]["steps"] == 240


def test_a_run_on_pixels_grows_with_its_steps(tmp_path):
    """Each frame is kept once, in a ring that a resumed run may find too small."""
    config = dqn.Config(hidden_sizes=(8,), torso="mlp", batch_size=8, learning_starts=20, n_step=3)
    options = {"env": "gridworld/FourRoomsPixels-v0", "seeds": 2, "num_envs": 2, "eval_episodes": 1, "eval_every": 80}
    whole = train(dqn, settings(run_dir=str(tmp_path / "a"), **options, steps=240), config)
    for steps in (80, 240):
        last = train(dqn, settings(run_dir=str(tmp_path / "b"), resume=True, **options, steps=steps), config)
    assert same(whole.states, last.states)


def test_a_larger_ring_goes_on_after_the_youngest_row():
    from offpolicy_jax import replay as ring
    from offpolicy_jax.training import checkpoints
    from offpolicy_jax.transition import ArraySpec, EnvironmentSpec, example_transition

    spec = EnvironmentSpec("x", ArraySpec((1,), np.dtype("float32")), ArraySpec((1,), np.dtype("float32")))
    example = example_transition(spec)

    def filled(capacity, count):
        buffer = ring.init(capacity, example)
        for i in range(count):
            row = jax.tree.map(lambda x, i=i: jnp.full((1, 1, *x.shape), i, x.dtype), example)
            buffer = ring.add(buffer, row)
        stacked = jax.tree.map(lambda x: x[None], buffer.storage)
        return types.SimpleNamespace(replay=dataclasses.replace(buffer, storage=stacked))

    old, new = filled(4, 6), filled(8, 0)
    stored = {
        f".learner.replay{jax.tree_util.keystr(path)}": np.asarray(x)
        for path, x in jax.tree_util.tree_leaves_with_path(old.replay)
    }

    @dataclasses.dataclass
    class Carry:
        learner: object

    jax.tree_util.register_dataclass(Carry, ["learner"], [])

    @dataclasses.dataclass
    class Learner:
        replay: object

    jax.tree_util.register_dataclass(Learner, ["replay"], [])
    restored = checkpoints._unflatten(stored, 4, Carry(Learner(new.replay)), "mismatch").learner.replay
    assert restored.storage.reward[0, :, 0].tolist() == [2, 3, 4, 5, 0, 0, 0, 0]
    assert (int(restored.position), int(restored.size)) == (4, 4)


@pytest.mark.parametrize("env", ["probe/in-graph", "probe/host"])
def test_each_program_is_traced_once(env):
    traces = {"act": 0, "update": 0}

    def counted(name):
        def function(*args):
            traces[name] += 1
            return getattr(sac, name)(*args)

        return function

    members = {name: getattr(sac, name) for name in ("Config", "State", "init", "policy")}
    agent = types.SimpleNamespace(**members, act=counted("act"), update=counted("update"), __name__="counted")
    train(agent, settings(env=env), SMALL)  # type: ignore[arg-type]
    first = dict(traces)
    train(agent, settings(env=env, steps=400), SMALL)  # type: ignore[arg-type]
    # A longer run traces no more than a short one: the number of steps, of reports and the warm-up are not static.
    assert {name: traces[name] - first[name] for name in traces} == first
    assert first["update"] <= 3  # shapes of the metrics, the program, and its loop's fixed point


@pytest.mark.parametrize("env", ["probe/in-graph", "probe/host"])
@pytest.mark.parametrize("seeds", [1, 2])
def test_each_program_is_compiled_once(env, seeds):
    environment = environments.make(env, seeds)
    kind = in_graph if environments.is_in_graph(environment) else host
    config = jax.tree.map(np.float32, dataclasses.replace(SMALL, replay_capacity=100))
    loop = kind.Loop(sac, environment, config, seeds, 1)
    carry = loop.start(seed_axis.keys(0, seeds), np.arange(seeds))
    for _ in range(3):
        carry = loop.clear_totals(loop.advance(carry, 25, bool))
    carry = loop.load(*loop.save(carry))
    loop.advance(carry, 5, bool)
    programs = {name: member for name, member in vars(loop).items() if hasattr(member, "_cache_size")}
    assert len(programs) >= 3 and all(program._cache_size() == 1 for program in programs.values()), {
        name: program._cache_size() for name, program in programs.items()
    }


def test_parallel_environments_share_the_steps():
    result = train(sac, settings(num_envs=4), SMALL)
    assert result.table["step"].max() == 120
    count = jax.tree.leaves(result.states.actor_optimizer)[0]
    assert count.tolist() == [104, 104]  # one gradient step per step from the update that ends the warm-up on


def test_float_fields_may_differ_by_seed():
    config = dataclasses.replace(SMALL, learning_rate=np.array([0.0, 1e-2], np.float32))
    states = train(sac, settings(), config).states
    assert states.log_alpha[0] == 0.0 and states.log_alpha[1] != 0.0


@pytest.mark.parametrize("env", ["probe/in-graph", "probe/host"])
def test_divergence_names_the_seed_and_keeps_the_rest(env, tmp_path):
    config = dataclasses.replace(SMALL, reward_scale=np.array([1.0, 1e29], np.float32), learning_starts=60)
    with pytest.raises(UserError, match=r"not finite.*seed 1 at step 60.*last good checkpoint"):
        train(sac, settings(env=env, run_dir=str(tmp_path / "run")), config)
    rows = (tmp_path / "run/evaluations.csv").read_text().splitlines()[1:]
    assert [row.split(",")[1] for row in rows] == ["0", "1", "0"]  # at step 40 both, then seed 0 alone
    assert [p.name for p in (tmp_path / "run/checkpoints").iterdir()] == ["000000000040"]
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert "0" in summary["final_return"] and summary["iqm"] is None  # the survivors alone make no average


def test_divergence_on_dm_control_is_reported_like_any_other():
    config = dataclasses.replace(SMALL, reward_scale=np.array([1.0, 1e29], np.float32))
    with pytest.raises(UserError, match=r"not finite.*seed 1 at step 20"):
        train(sac, settings(env="dm_control/cartpole-swingup-v0", seeds=2, eval_episodes=1), config)


def test_a_directory_left_by_a_kill_at_the_start_is_new(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.config.json.partial").write_text("{")
    train(sac, settings(run_dir=str(tmp_path / "run"), resume=True), SMALL)


@pytest.mark.parametrize("text", ["{", "[]", '{"agent": ["x"], "settings": {}, "config": {}, "schedule": {}}', "{}"])
def test_a_config_that_is_not_a_run_is_one_line(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config.json is not a run's config"):
        train(sac, settings(run_dir=str(tmp_path), resume=True), SMALL)


def test_torn_tables_are_mended(tmp_path):
    train(sac, settings(run_dir=str(tmp_path / "a")), SMALL)
    train(sac, settings(run_dir=str(tmp_path / "b")), SMALL)
    with open(tmp_path / "b/metrics.csv", "a") as file:
        file.write("garbage\n160,0,1")
    train(sac, settings(run_dir=str(tmp_path / "b"), resume=True), SMALL)
    assert (tmp_path / "a/metrics.csv").read_bytes() == (tmp_path / "b/metrics.csv").read_bytes()


@pytest.mark.parametrize(("seeds", "steps"), [(1, 1), (2_000, 100), (3, 10_000), (1, 1_000_000)])
def test_schedule_has_no_empty_interval(seeds, steps):
    from offpolicy_jax.training.train import make_schedule

    schedule = make_schedule(Settings(seeds=seeds, steps=steps))
    assert 1 <= schedule["report_every"] <= schedule["eval_every"] <= steps


def test_choices_are_checked():
    with pytest.raises(UserError, match="critic_gradient must be adjusted or huber or unadjusted, not adjustd"):
        train(dsac_t, settings(), dsac_t.Config(critic_gradient="adjustd"))  # type: ignore[arg-type]


def test_hyper_parameters_are_checked():
    for change, message in [
        ({"learning_rate": np.array([1e-3, -1.0])}, "config.learning_rate must be between"),
        ({"learning_rate": np.array([1e-3] * 5)}, "one for each of 2 seeds"),
        ({"tau": float("nan")}, "config.tau must be between"),
        ({"batch_size": 0}, "config.batch_size must be from 1"),
        ({"rollout_length": 1_000}, "one update takes 1000 steps"),
        ({"batch_size": 2**31 - 1}, "GB and the machine has"),
    ]:
        with pytest.raises(UserError, match=message):
            train(sac, settings(), dataclasses.replace(SMALL, **change))
    train(
        sac_discrete,
        settings(env="phys2d/CartPole-v1", steps=20, eval_every=20),
        sac_discrete.Config(learning_starts=-1),
    )


def test_full_disk_is_one_line_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    from offpolicy_jax.training import checkpoints

    original, calls = checkpoints.save, []

    def save(*args, **options):
        calls.append(args)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return original(*args, **options)

    monkeypatch.setattr(checkpoints, "save", save)
    with pytest.raises(UserError, match="No space left on device"):
        train(sac, settings(run_dir=str(tmp_path / "run")), SMALL)
    monkeypatch.undo()
    whole = train(sac, settings(run_dir=str(tmp_path / "straight")), SMALL)
    resumed = train(sac, settings(run_dir=str(tmp_path / "run"), resume=True), SMALL)
    assert same(whole.states, resumed.states)


def test_damaged_and_foreign_checkpoints(tmp_path):
    run = tmp_path / "run"
    train(sac, settings(run_dir=str(run)), SMALL)
    newest = sorted((run / "checkpoints").iterdir())[-1]
    victim = next(p for p in sorted(newest.rglob("*")) if p.is_file() and p.stat().st_size > 200)
    content = victim.read_bytes()
    victim.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="is damaged: remove"):
        train(sac, settings(run_dir=str(run), resume=True), SMALL)
    victim.write_bytes(content)
    document = json.loads((run / "config.json").read_text())
    document["config"]["hidden_sizes"] = [8]
    (run / "config.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match="belongs to another"):
        train(sac, settings(run_dir=str(run), resume=True), dataclasses.replace(SMALL, hidden_sizes=(8,)))


def test_directories_that_are_taken(tmp_path):
    train(sac, settings(run_dir=str(tmp_path / "run")), SMALL)
    with pytest.raises(UserError, match="already holds a run"):
        train(sac, settings(run_dir=str(tmp_path / "run")), SMALL)
    with pytest.raises(UserError, match=r"--config.tau=0.005, not 0.5"):
        train(sac, settings(run_dir=str(tmp_path / "run"), resume=True), dataclasses.replace(SMALL, tau=0.5))
    with pytest.raises(UserError, match=r"--seeds=2, not 1"):
        train(sac, settings(run_dir=str(tmp_path / "run"), resume=True, seeds=1), SMALL)
    with pytest.raises(UserError, match="at step 120 already"):
        train(sac, settings(run_dir=str(tmp_path / "run"), resume=True, steps=50), SMALL)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="not a run's"):
        train(sac, settings(run_dir=str(tmp_path / "other")), SMALL)


def test_agents_refuse_the_wrong_kind_of_action():
    with pytest.raises(UserError, match="sac_discrete"):
        train(sac, settings(env="phys2d/CartPole-v1"))
    with pytest.raises(UserError, match="--agent=sac"):
        train(sac_discrete, settings(env="phys2d/Pendulum-v0"))


def test_interrupt_takes_a_checkpoint(tmp_path):
    import signal

    def act(config, state, observation, step, key):
        jax.debug.callback(lambda s: signal.raise_signal(signal.SIGINT) if s == 50 else None, step)
        return sac.act(config, state, observation, step, key)

    members = {name: getattr(sac, name) for name in ("Config", "State", "init", "policy", "update")}
    agent = types.SimpleNamespace(**members, act=act, __name__="sac")
    options = settings(env="probe/host", seeds=1, run_dir=str(tmp_path / "run"))
    result = train(agent, options, SMALL)  # type: ignore[arg-type]
    assert result.interrupted and list((tmp_path / "run/checkpoints").iterdir())
    with pytest.raises(UserError, match="interrupted"):
        unless_interrupted(result)
    resumed = train(sac, dataclasses.replace(options, resume=True), SMALL)
    whole = train(sac, dataclasses.replace(options, run_dir=str(tmp_path / "whole")), SMALL)
    assert unless_interrupted(resumed) is resumed and same(whole.states, resumed.states)
    for name in ("evaluations.csv", "metrics.csv"):  # the interval under way was neither lost nor reported early
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_tensorboard_has_a_series_per_seed(tmp_path):
    train(sac, settings(run_dir=str(tmp_path / "run"), log=("tensorboard",)), SMALL)
    for seed in ("seed_0", "seed_1"):
        assert list((tmp_path / "run/tensorboard" / seed).glob("events.*"))


def test_wandb_has_a_run_per_directory(tmp_path, monkeypatch):
    """Directories of one name, as points of several sweeps have, are runs of their own."""

    def init(**options):
        begun.append(options)
        return types.SimpleNamespace(log=logged.append, finish=lambda: finished.append(options["id"]))

    begun, logged, finished = [], [], []
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    for parent in ("a", "b"):
        train(sac, settings(run_dir=str(tmp_path / parent / "tau=0.1"), log=("wandb",)), SMALL)
    assert begun[0]["name"] == begun[1]["name"] == "tau=0.1" and begun[0]["id"] != begun[1]["id"]
    assert all(options["reinit"] == "create_new" and "=" not in options["id"] for options in begun)
    assert finished == [options["id"] for options in begun]
    names = {name for row in logged for name in row}
    assert {"evaluation/return/seed_0", "step"} <= names and not names & {"seed/seed_0", "step/seed_0"}


def test_notebook_use_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(sac, settings(), SMALL)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("env", ["probe/in-graph", "probe/host"])
def test_value_bias_of_a_known_prediction(env):
    """Reward 1 at each of 10 steps, then a cut: the prediction is off by 2, and scaled like the reward."""

    def predict(config, state, observation, key):
        value = 3.0 * (1.0 / (1.0 - config.discount) + 2.0 - config.discount * 0.25 / (1.0 - config.discount))
        return agent_of(observation), jnp.full(len(observation), value), jnp.full(len(observation), -0.75)

    def agent_of(observation):
        return jnp.zeros((len(observation), 1))

    agent = types.SimpleNamespace(**{**vars(sac), "predict": predict})
    config = dataclasses.replace(SMALL, discount=np.array([0.6, 0.7], np.float32), reward_scale=3.0)
    table = train(agent, settings(env=env, value_bias=True), config).table  # type: ignore[arg-type]
    for i, discount in enumerate((0.6, 0.7)):
        distance = np.array([n for n in range(1, 10) if discount**n <= 0.2])
        np.testing.assert_allclose(table["value_bias"][i::2], 2.0 * np.mean(1.0 - discount**distance), rtol=1e-4)
        value = (1.0 - 0.25 * discount) / (1.0 - discount) + 2.0
        np.testing.assert_allclose(table["value"][i::2], value, rtol=1e-4)


@pytest.mark.parametrize("env", ["probe/in-graph", "probe/host"])
def test_value_bias_pairs_predictions_with_what_followed_them(env):
    """Rewards 0 and 1, then an ending; prediction and bonus depend on the step, and on the seed's scale."""
    delayed = probes.DelayedReward()
    environments.register("probe/in-graph", lambda num_envs: delayed)
    environments.register("probe/host", lambda num_envs: probes.HostProbe(delayed, num_envs))

    def predict(config, state, observation, key):
        second = observation[:, 0] == 1.0
        value, bonus = jnp.where(second, 7.0, 5.0), jnp.where(second, 0.25, 100.0)
        return jnp.zeros((len(observation), 1)), config.reward_scale * value, config.reward_scale * bonus

    agent = types.SimpleNamespace(**{**vars(sac), "predict": predict})
    config = dataclasses.replace(SMALL, discount=0.5, reward_scale=np.array([1.0, 4.0], np.float32))
    table = train(agent, settings(env=env, value_bias=True), config).table  # type: ignore[arg-type]
    first, second = 5.0 - 0.5 * (0.25 + 1.0), 7.0 - 1.0
    np.testing.assert_allclose(table["value_bias"], 0.5 * (first + second), rtol=1e-5)
    np.testing.assert_allclose(table["value"], 6.0, rtol=1e-5)


def test_value_bias_survives_a_resume(tmp_path):
    whole = train(sac, settings(value_bias=True), SMALL).table
    path = str(tmp_path / "run")
    train(sac, settings(value_bias=True, steps=40, run_dir=path), SMALL)
    table = train(sac, settings(value_bias=True, run_dir=path, resume=True), SMALL).table
    assert set(table) == set(whole) and "value_bias" in table
    np.testing.assert_allclose(table["value_bias"], whole["value_bias"], rtol=1e-6)


def test_value_bias_needs_an_agent_that_predicts():
    agent = types.SimpleNamespace(**{k: v for k, v in vars(sac).items() if k != "predict"})
    with pytest.raises(UserError, match="predicts no values"):
        train(agent, settings(value_bias=True), SMALL)  # type: ignore[arg-type]


def test_a_run_names_every_commit_that_trained_it(tmp_path, monkeypatch):
    from offpolicy_jax.training import run_directory

    path, commits = str(tmp_path / "run"), []
    for commit, steps in (("a", 40), ("b", 80), ("c", 80)):  # the third call finds nothing to do
        monkeypatch.setattr(run_directory, "_commit", lambda commit=commit: commit)
        train(sac, settings(run_dir=path, resume=True, steps=steps), SMALL)
        commits.append(json.loads((tmp_path / "run/config.json").read_text())["commits"])
    assert commits == [["a"], ["a", "b"], ["a", "b"]]


def test_runs_from_before_a_setting_existed_can_be_resumed(tmp_path):
    path = tmp_path / "run"
    train(sac, settings(run_dir=str(path), steps=40), SMALL)
    document = json.loads((path / "config.json").read_text())
    del document["settings"]["value_bias"]
    (path / "config.json").write_text(json.dumps(document))
    assert train(sac, settings(run_dir=str(path), resume=True), SMALL).summary["step"] == 120
    with pytest.raises(UserError, match="value-bias=False, not True"):
        train(sac, settings(run_dir=str(path), resume=True, value_bias=True), SMALL)


def test_time_limit_does_not_end_the_value():
    """Reward 1 a step, cut after 10 steps: Q is 1 / (1 - 0.9) = 10, not the 6.5 of ten steps and nothing after."""
    config = dataclasses.replace(
        SMALL,
        discount=0.9,
        initial_temperature=1e-6,
        learn_temperature=False,
        learning_rate=3e-3,
        tau=0.05,
        replay_capacity=2_000,
    )
    for env in ("probe/in-graph", "probe/host"):
        state = train(sac, settings(env=env, steps=2_000, eval_every=2_000), config).states
        state = jax.tree.map(lambda x: x[0], state)
        environment = probes.ConstantReward()
        _, observation = environment.reset(jax.random.key(0))
        q = state.critic_network.apply(state.critics, observation[None], jnp.zeros((1, 1)))
        np.testing.assert_allclose(q, 10.0, rtol=0.05)


# Configs within configs: the target of PROPS is PPO's


TARGET = ppo.Config(hidden_sizes=(8,), rollout_length=8, epochs=2, minibatches=2, buffer_batches=2)
NESTED = props.Config(target=TARGET, rollout_length=4, epochs=2, minibatches=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 2.0}, r"learning_rate must be between 0 and 1, not 2\.0"),
        ({"learning_rate": np.array([1e-3, np.nan])}, r"learning_rate must be between 0 and 1, not .*"),
        ({"discount": np.zeros(5)}, r"discount has shape \(5,\): .* one for each of 2 seeds"),
        ({"epochs": 0}, r"epochs must be from 1 to 2147483647, not 0"),
        ({"anneal_steps": -2}, r"anneal_steps must be from -1 to 2147483647, not -2"),
        ({"hidden_sizes": (8, 0)}, r"hidden_sizes must be a list of positive sizes, not \(8, 0\)"),
        ({"activation": "tahn"}, r"activation must be relu or gelu or tanh, not tahn"),
    ],
)
def test_a_nested_hyper_parameter_is_refused_by_its_whole_name(change, message):
    bad = TARGET.replace(**change)
    for refuse, path in [
        (lambda: check(NESTED.replace(target=bad), 2), "config.target"),
        (lambda: train(props, settings(), NESTED.replace(target=bad)), "config.target"),
        (lambda: check(bad, 2), "config"),  # PPO by itself
    ]:
        with pytest.raises(UserError, match=f"^{re.escape(path)}\\.{message}$") as error:
            refuse()
        assert "\n" not in str(error.value)


def test_the_outer_values_of_a_nested_config_are_checked_too():
    check(NESTED, num_seeds=2)
    check(NESTED.replace(target=TARGET.replace(learning_rate=np.array([1e-3, 1e-2]))), num_seeds=2)
    with pytest.raises(UserError, match=r"^config\.learning_rate must be between 0 and 1, not -1\.0$"):
        check(NESTED.replace(learning_rate=-1.0))
    with pytest.raises(UserError, match=r"^config\.kl_direction must be "):
        check(NESTED.replace(kl_direction="sideways"))


def test_what_depends_on_the_run_is_filled_in_within_a_nested_config():
    spec = probes.ConstantReward().spec
    resolved = resolve(NESTED, spec, 777)
    assert NESTED.target.anneal_steps == -1  # what was asked stays what it was
    assert resolved == NESTED.replace(target=TARGET.replace(anneal_steps=777))
    for asked in (0, 50):
        given = NESTED.replace(target=TARGET.replace(anneal_steps=asked))
        assert resolve(given, spec, 777) == given
    inner = sac.Config(learning_starts=-1, replay_capacity=10**6)
    resolved = resolve(NESTED.replace(target=inner), spec, 777).target  # whatever the inner agent is
    assert resolved == inner.replace(learning_starts=100, replay_capacity=777)


def test_a_nested_config_is_nested_json():
    rates = np.array([0.25, 0.5], np.float32)
    config = NESTED.replace(target=TARGET.replace(learning_rate=rates, value_clip=np.float32(0.5)), clip=jnp.array(0.5))
    plain = as_json(config)
    assert json.loads(json.dumps(plain)) == plain
    assert plain["target"] == as_json(config.target) and plain["clip"] == 0.5
    assert set(plain) == {field.name for field in dataclasses.fields(props.Config)}
    assert set(plain["target"]) == {field.name for field in dataclasses.fields(ppo.Config)}
    assert (plain["target"]["hidden_sizes"], plain["target"]["learning_rate"]) == ([8], [0.25, 0.5])
    assert plain["target"]["value_clip"] == 0.5 and plain["target"]["activation"] == "tanh"


def test_differences_are_named_like_the_flags_of_nested_values():
    def document(config, **changes):
        return {"agent": "props", "settings": dataclasses.asdict(settings(**changes)), "config": as_json(config)}

    previous = json.loads(json.dumps(document(NESTED)))
    assert list(differences(previous, document(NESTED))) == []
    other = NESTED.replace(target=TARGET.replace(epochs=3, hidden_sizes=(8, 8)), epochs=4)
    assert sorted(differences(previous, document(other, seeds=3, steps=7)), key=lambda x: x[0]) == [
        ("--config.epochs", 2, 4),
        ("--config.target.epochs", 2, 3),
        ("--config.target.hidden_sizes", [8], [8, 8]),
        ("--seeds", 2, 3),
    ]
    del previous["settings"]["action_repeat"]  # a run of an older version
    assert list(differences(previous, document(NESTED))) == []
    assert list(differences(previous, document(NESTED, action_repeat=2))) == [("--action-repeat", 1, 2)]
    del previous["config"]["target"]["clip"]
    assert list(differences(previous, document(NESTED))) == [("--config.target.clip", "(absent)", 0.2)]


def test_a_nested_run_resumes_as_what_it_was(tmp_path):
    options = {"steps": 96, "eval_every": 32, "seeds": 2}
    config = NESTED.replace(target=TARGET.replace(learning_rate=np.float32([1e-3, 1e-2])))
    whole = train(props, settings(run_dir=str(tmp_path / "whole"), **options), config)
    document = json.loads((tmp_path / "whole/config.json").read_text())
    assert document["config"]["target"]["anneal_steps"] == -1
    assert document["resolved_config"]["target"]["anneal_steps"] == 96
    assert document["resolved_config"]["target"]["hidden_sizes"] == [8]

    # Annealing ends with the run, so a run that is to be cut says where.
    config = config.replace(target=config.target.replace(anneal_steps=96))
    path = str(tmp_path / "cut")
    train(props, settings(run_dir=path, **(options | {"steps": 32})), config)
    for change, message in [
        ({"epochs": 5}, r"--config\.target\.epochs=2, not 5: drop that option"),
        ({"learning_rate": 0.1}, r"--config\.target\.learning_rate=\[0\.001.*\], not 0\.1"),
    ]:
        other = config.replace(target=config.target.replace(**change))
        with pytest.raises(UserError, match=message):
            train(props, settings(run_dir=path, resume=True, **options), other)
    resumed = train(props, settings(run_dir=path, resume=True, **options), config)
    assert same(whole.states, resumed.states)
    for name in ("evaluations.csv", "metrics.csv"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


def test_no_hidden_layers_are_a_linear_network():
    for config in (sac.Config(), ppo.Config(), pmoe.Config(), NESTED.target):
        check(config.replace(hidden_sizes=()))
        for sizes in [(0,), (-8,), (8, 0), (8.0,), (2**31,)]:
            with pytest.raises(UserError, match=r"^config\.hidden_sizes must be a list of positive sizes"):
                check(config.replace(hidden_sizes=sizes))
    linear = NESTED.replace(target=TARGET.replace(hidden_sizes=()))
    states = train(props, settings(steps=32, eval_every=32), linear).states
    assert set(states.behaviour["params"]) == {"Dense_0", "log_std"}
    assert states.behaviour["params"]["Dense_0"]["kernel"].shape == (2, 1, 1)  # seeds, observation, action
    states = train(sac, settings(), SMALL.replace(hidden_sizes=())).states
    assert set(states.actor["params"]) == {"Dense_0"} and np.all(np.isfinite(states.log_alpha))
