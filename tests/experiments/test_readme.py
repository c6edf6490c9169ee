"""The README names what exists: commands that parse, scripts, records and pages."""

import pathlib
import re
import shlex

import pytest

from experiments import command_line, sweep

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = "\n".join(re.findall(r"```bash\n(.*?)```", README, flags=re.S)).replace("\\\n", " ")
COMMANDS = [line.split("&&")[-1].strip() for line in BLOCKS.splitlines() if "python " in line]
COMMANDS += [text.replace("\n", " ") for text in re.findall(r"`(python experiments/[^`]*)`", README)]


def words(command):
    """Words of a command without its comment."""
    return shlex.split(command, comments=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_names_a_script_and_options_that_exist(command, tmp_path, monkeypatch):
    program, script, *arguments = words(command)
    assert program == "python" and (ROOT / script).is_file()
    monkeypatch.chdir(tmp_path)  # where no run exists yet
    if "--resume" in arguments:  # what it resumes is another command's
        (directory,) = (word for word in arguments if word.startswith("--run-dir="))
        assert any(directory in words(other) and "--resume" not in other for other in COMMANDS)
    elif "--help" in arguments:
        with pytest.raises(SystemExit):
            command_line.parse(arguments)
    elif script == "experiments/run.py":
        command_line.parse(arguments)
    elif script == "experiments/sweep.py":
        assert sweep.plan([*arguments, f"--run-dir={tmp_path}/sweep"]).programs
    else:  # argparse: each option is spelled out in the script
        source = (ROOT / script).read_text()
        flags = [word.split("=")[0] for word in arguments if word.startswith("--")]
        assert all(f'"{flag}"' in source for flag in flags), flags


def test_every_link_within_the_repository_leads_somewhere():
    targets = [t.split("#")[0] for t in re.findall(r"\]\(([^)]+)\)", README) if not t.startswith("http")]
    assert len(targets) > 20 and all((ROOT / target).exists() for target in targets if target)


def test_the_quoted_records_of_speed_exist():
    for name in ("scaling_h100", "lanes", "atari", "throughput", "on_policy", "cost", "sweep"):
        assert (ROOT / f"experiments/results/{name}.json").is_file()
