"""Shell lines of README and of params/README.md run as they are written there, in a copy of the repository.

Appended options make each take seconds.

A line that is not executed must match NOT_EXECUTED, which says why; a line that is neither executed nor listed fails.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.binder import ROOT, copy_repository

PAGES = "".join((ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "params/README.md"))
#: Lines only looked at, and why.
NOT_EXECUTED = {
    r"^make ": "sets up an environment or takes minutes; test_readme.py knows the targets",
    r"^(python\S* -m venv|source |\. )": "makes or enters an environment",
    r"^(\S*/)?(pip|uv|conda) |^git |^(curl|wget) ": "needs a network",
    r"^(cd|export|mkdir) ": "changes only the shell",
    r"\b(sbatch|srun|squeue|scancel|kubectl|helm|ray (start|job|submit))\b|--ray-address": "needs a cluster",
    r"^docker |repo2docker": "needs a Docker engine",
    r"^(\S*/)?(jupyter|tensorboard) ": "opens a server and a browser",
    r"fairlm_utils reproduce": "minutes even when shortened; make reproduce is the same, by test_sweep.py in parts",
    r"(papermill|sweep|run|panel) .*(imdb|params/paper)": "needs IMDB from the network, or hours",
    r"fairlm_utils audit (?!runs/|results/)": "needs a model from the network; test_audit.py runs it on one made there",
    r"fairlm_utils (show|repeat) ": "names a run by the digest of a full-size run; test_runs.py runs it on one made there",
    r"(?<![\w$./-])[A-Z]{3,}(?![\w=])": "a word in capitals stands for the reader's own",
}
SMALL = {"steps": 4, "window_steps": 2, "checkpoint_steps": 4, "batch_size": 4, "warmup_steps": 1, "context": 16,
         "max_documents": 60, "vocab_size": 300, "max_train_blocks": 8, "max_heldout_blocks": 8}  # fmt: skip
#: What is appended to a line that names this, so that it takes seconds.
APPENDED = {
    "02_training": SMALL,
    "03_evaluation": SMALL,
    "fairlm_utils run": SMALL,
    "fairlm_utils sweep": {**SMALL, "weight_decay": [1.0], "seed": [0]},
    "fairlm_utils audit": {"max_documents": 60, "max_heldout_blocks": 8},
}
RUN = re.compile(r"^(?:\w+=\S* )*(?:\S*/)?(?:papermill|python\S* -m fairlm_utils \w+|torchrun .*-m fairlm_utils \w+)")


def commands(text: str) -> list[str]:
    """Every command of the ```sh blocks of a text: continued lines joined, comments dropped, `a && b` as two."""
    found = []
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            found += [part.strip() for part in re.sub(r"(^|\s)#.*", "", line).split("&&")]
    return list(dict.fromkeys(line for line in found if line))


def why_not(command: str) -> str:
    """Why a command is not executed; empty if it is."""
    return next((why for pattern, why in NOT_EXECUTED.items() if re.search(pattern, command)), "")


def shortened(command: str) -> str:
    """A command with what APPENDED has for it; a file's variants are replaced by one."""
    values = next((v for name, v in APPENDED.items() if name in command and "--help" not in command), {})
    file = next((w for w in shlex.split(command) if w.endswith(".yaml")), "")
    if values and "variants" in (yaml.safe_load((ROOT / file).read_text(encoding="utf-8")) if file else {}):
        values = {**values, "variants": {"plain": {}}}
    return command + "".join(f" -p {name} {shlex.quote(str(value))}" for name, value in values.items())


EXECUTED = [c for c in commands(PAGES) if RUN.match(c) and not why_not(c)]


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A copy of the repository with a .venv, where those lines leave what they make."""
    folder = copy_repository(tmp_path_factory.mktemp("clone"))
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


@pytest.mark.parametrize("command", EXECUTED)
def test_a_line_of_readme_runs_as_it_is_written(command, clone):
    path = f"{clone / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(clone), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    line = shortened(command)
    done = subprocess.run(["bash", "-c", line], cwd=clone, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{line}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"


def test_every_line_of_readme_is_executed_or_listed_with_the_reason_why_not():
    lines = commands(PAGES)
    assert [c for c in lines if c not in EXECUTED and not why_not(c)] == []
    assert {"papermill", "python"} <= {c.split()[0] for c in EXECUTED}, "neither papermill nor the package is executed"


@pytest.mark.parametrize(
    "line, executed",
    [
        ("papermill notebooks/02_training.ipynb out.ipynb -f params/quick.yaml -p weight_decay 0.3", True),
        ("HF_HUB_OFFLINE=1 python -m fairlm_utils cost params/paper/openelm-270m-imdb.yaml", True),
        ("torchrun --nproc-per-node 2 -m fairlm_utils run params/quick.yaml -p seed 1", True),
        ("papermill notebooks/02_training.ipynb out.ipynb -f params/imdb-small.yaml", False),
        ("python -m fairlm_utils sweep params/quick.yaml --ray-address auto", False),
        ("python -m fairlm_utils audit HuggingFaceTB/SmolLM2-135M python-docs", False),
        ("srun python -m fairlm_utils sweep params/quick.yaml", False),
        ("python -m fairlm_utils show RUN", False),
    ],
)
def test_what_is_executed_is_what_needs_neither_network_nor_cluster_nor_hours(line, executed):
    assert (bool(RUN.match(line)) and not why_not(line)) == executed


def test_a_line_of_an_unknown_kind_is_found_and_blocks_are_read_as_a_shell_reads_them():
    block = "```sh\na \\\n  --b 1   # says what\n# only a comment\nc && d#e\n```"
    assert commands(block) == ["a    --b 1", "c", "d#e"]
    assert not RUN.match("rm -r runs") and not why_not("rm -r runs")
    assert "-p weight_decay '[1.0]'" in shortened("python -m fairlm_utils sweep params/quick.yaml")
    assert "variants" in shortened("python -m fairlm_utils sweep params/remedies-onepass.yaml")
