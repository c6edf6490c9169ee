"""Films show what happened: frames move, start where they say, and what cannot be filmed is said in one line."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from agents import sac
from experiments import run as run_command
from experiments import video as command
from experiments.command_line import parse
from offpolicy_jax.environments import four_rooms, rendering
from offpolicy_jax.errors import UserError
from offpolicy_jax.training import Settings, train, video


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("run") / "run")
    settings = Settings(
        steps=40, seeds=2, eval_every=40, eval_episodes=1, normalize_observations=True, run_dir=path, progress=False
    )
    train(sac, settings, sac.Config(hidden_sizes=(8,), batch_size=4, learning_starts=10))
    return path


def frames(path):
    film = Image.open(path)
    shown = []
    for i in range(film.n_frames):
        film.seek(i)
        shown += [np.asarray(film.convert("RGB"))]
    return shown, film.info["duration"]


def test_a_run_is_filmed(run_dir, capsys):
    pytest.importorskip("pygame")
    assert command.main([f"--run-dir={run_dir}", "--max-steps=6", "--episodes=2", "--pixels=64", "--start=7"]) == 0
    shown, duration = frames(f"{run_dir}/video.gif")
    assert len(shown) == 12 and shown[0].shape == (64, 64, 3) and duration == 30
    assert not np.array_equal(shown[0], shown[5]) and not np.array_equal(shown[0], shown[6])
    printed = capsys.readouterr().out
    assert "greedy policy of seed" in printed and "episodes from seed 7 to 8, cut after 6 steps; return -" in printed


@pytest.mark.parametrize("env", ["HalfCheetah-v5", "dm_control/cartpole-swingup-v0"])
def test_mujoco_is_drawn_without_a_display(env, tmp_path):
    try:
        rendering.choose_opengl()
    except UserError:
        pytest.skip("no OpenGL here")
    size = {"HalfCheetah-v5": 6, "dm_control/cartpole-swingup-v0": 1}[env]
    options = {"max_steps": 7, "pixels": 64, "seed": 3}
    returns = video.film(tmp_path / "a.gif", lambda o: np.ones((1, size), np.float32), env, **options)
    shown, _ = frames(tmp_path / "a.gif")
    every = {"HalfCheetah-v5": 1, "dm_control/cartpole-swingup-v0": 3}[env]  # 20 and 100 steps per second
    assert len(shown) == len(range(0, 7, every)) and np.isfinite(returns[0])
    assert shown[0].std() > 10.0 and not np.array_equal(shown[0], shown[-1])


def test_four_rooms_are_drawn_up_to_the_goal(tmp_path):
    distance = np.full(len(four_rooms.CELLS), np.inf)
    distance[four_rooms.GOAL] = 0.0
    for _ in range(len(distance)):
        distance = np.minimum(distance, 1.0 + distance[four_rooms.SUCCESSOR].min(axis=1))
    shortest = jnp.asarray(distance[four_rooms.SUCCESSOR].argmin(axis=1))
    returns = video.film(tmp_path / "a.gif", lambda cell: shortest[cell], "gridworld/FourRooms-v0", seed=2, pixels=52)
    shown, duration = frames(tmp_path / "a.gif")
    cells = [np.argwhere(frame[2::4, 2::4, 1] > 128) for frame in shown]
    assert returns == [1.0] and duration == 120 and cells[-1].tolist() == [four_rooms.CELLS[four_rooms.GOAL].tolist()]
    start = np.flatnonzero((four_rooms.CELLS == cells[0]).all(axis=1)).item()
    assert len(shown) == distance[start] + 1 and np.array_equal(shown[0][2::4, 2::4, 0] > 128, four_rooms.WALLS)


@pytest.mark.slow  # it starts ffmpeg
def test_an_mp4_shows_what_a_gif_does(tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    import imageio.v2 as imageio

    for name in ("a.gif", "a.mp4"):
        video.film(tmp_path / name, jnp.zeros_like, "gridworld/FourRooms-v0", max_steps=5, pixels=64)
    shown, _ = frames(tmp_path / "a.gif")
    with imageio.get_reader(tmp_path / "a.mp4") as reader:
        film = [np.asarray(frame, int) for frame in reader]
    assert len(film) == 5 and 1 < len(shown) <= 5  # the GIF shows equal pictures once, for longer
    for i in (0, -1):
        assert film[i].shape == shown[i].shape and np.mean(np.abs(film[i] - shown[i])) < 10.0


@pytest.mark.parametrize("env", ["minatar/Breakout-v1", "ALE/Pong-v5"])
def test_games_are_drawn_in_colour(env, tmp_path):
    if env.startswith("ALE/"):
        pytest.importorskip("ale_py")
    video.film(tmp_path / "a.gif", lambda o: jnp.full(1, 2), env, max_steps=20, pixels=64)
    shown, _ = frames(tmp_path / "a.gif")
    assert len(shown) > 2 and max(shown[0].shape) == 64 and not np.array_equal(shown[0], shown[-1])
    assert np.ptp(shown[-1].astype(int), axis=-1).max() > 50  # not grey, which is what the agent may see


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out=x.avi"], "x.avi is neither a .gif nor an .mp4"),
        (["--episodes=0"], "--episodes must be at least 1"),
        (["--pixels=4"], "from 16 to 2048 pixels, not 4"),
        (["--start=-1"], "--start must be from 0"),
        (["--seed=5"], "has seeds 0 to 1, not 5"),
        (["--seed=fast"], "argument --seed"),
        (["--episode"], "argument --episodes: expected one argument"),
    ],
)
def test_filming_refuses_in_one_line(arguments, message, run_dir, capsys):
    assert command.main([f"--run-dir={run_dir}", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_what_is_missing_is_named(run_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"offpolicy-jax\[video\]', or write a .gif"):
        video.check(tmp_path / "a.mp4")
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(rendering, "_BACKENDS", ("nothing",))
    rendering.choose_opengl.cache_clear()
    monkeypatch.setattr("sys.platform", "linux")
    # before anything is trained
    arguments = ["--agent=sac", "--env=HalfCheetah-v5", f"--run-dir={tmp_path}/run", "--video"]
    assert run_command.main(arguments) == 2 and not (tmp_path / "run").exists()
    assert "MuJoCo finds no OpenGL" in capsys.readouterr().err


def test_the_option_needs_no_value():
    assert parse(["--agent=sac"])[3].video is None and parse(["--agent=sac", "--video", "--seeds=1"])[3].video == "gif"
    assert parse(["--agent=sac", "--video", "mp4"])[3].video == parse(["--agent=sac", "--video=mp4"])[3].video == "mp4"
