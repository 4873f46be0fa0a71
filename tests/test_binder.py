"""Binder: the files in binder/ make the image that is meant, and what it installs runs the start page in 2 GB."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from tests import binder

ROOT = binder.ROOT
REQUIREMENTS = (ROOT / "binder" / "requirements.txt").read_text(encoding="utf-8")
LINES = [line.strip() for line in REQUIREMENTS.splitlines() if line.strip() and not line.startswith("#")]


@pytest.fixture(scope="module")
def dockerfile(tmp_path_factory):
    """The build file that repo2docker makes of a fresh copy; it needs no Docker engine for that."""
    pytest.importorskip("repo2docker", reason="needs repo2docker: pip install -e '.[binder]'")
    copy = binder.copy_repository(tmp_path_factory.mktemp("clone"))
    command = [sys.executable, "-m", "repo2docker", "--no-build", "--debug", "."]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


def test_repo2docker_takes_the_pinned_python(dockerfile):
    assert "Building conda environment for python=3.11\n" in dockerfile
    assert "environment-2epy-2d3-2e11-2d" in dockerfile, "the locked base environment of Python 3.11"


def test_the_repository_is_there_before_requirements_that_name_its_other_files_are_installed(dockerfile):
    copied = dockerfile.index("COPY --chown=0:0 src/ ${REPO_DIR}/")
    installed = dockerfile.index('pip install --no-cache-dir -r "binder/requirements.txt"')
    assert copied < installed < dockerfile.index("RUN ./binder/postBuild")
    assert dockerfile.count('binder/requirements.txt"\n') == 1, "installed once"


def test_binder_installs_the_tested_versions_and_no_cuda():
    assert {"-r ../requirements.txt", "-c constraints.txt"} <= set(LINES)
    torch = next(line for line in LINES if line.startswith("torch=="))
    assert torch.endswith("+cpu") and torch.removesuffix("+cpu") in (ROOT / "requirements.txt").read_text().splitlines()
    locked = (ROOT / "binder" / "constraints.txt").read_text()
    assert torch.removesuffix("+cpu") in locked.splitlines() and not re.search(
        r"^(nvidia|triton)", locked, re.MULTILINE
    )
    assert binder.INDEX.findall(REQUIREMENTS) == ["https://download.pytorch.org/whl/cpu"]
    assert "+cpu" not in binder.without_index(REQUIREMENTS) and "://" not in binder.without_index(REQUIREMENTS)


def test_the_pinned_python_is_the_one_tests_run_with_and_the_package_allows():
    pinned = (ROOT / "binder" / "runtime.txt").read_text().strip()
    assert pinned == "python-3.11"
    assert f'requires-python = ">={pinned.removeprefix("python-")},' in (ROOT / "pyproject.toml").read_text()


def test_post_build_is_executable_and_parses():
    script = ROOT / "binder" / "postBuild"
    assert os.access(script, os.X_OK)
    subprocess.run([shutil.which("bash"), "-n", script], check=True)


def test_the_start_page_exists_and_links_to_binder_open_notebooks_that_exist():
    assert (ROOT / binder.START).exists()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    opened = re.findall(r"mybinder\.org/v2/[^)\s]*?[?&]urlpath=([^)\s&]+)", readme)
    for place in opened:
        page = place.replace("%2F", "/").removeprefix("lab/tree/")
        assert place != page and (ROOT / page).exists(), place


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"notebooks/x.ipynb: peak MB": 2048}, "above 2048"),
        ({"nvidia packages": ["nvidia-cublas"], "torch": "2.13.0+cpu"}, "nvidia-cublas"),
        ({"nvidia packages": ["nvidia-cublas"], "requirements as written": True}, "nvidia-cublas"),
        ({"python": "3.12.1"}, "not 3.11"),
    ],
)
def test_what_would_not_do_on_binder_is_said(changed, said):
    good = {
        "requirements as written": False,
        "python": "3.11.7",
        "torch": "2.13.0",
        "nvidia packages": [],
        "notebooks/x.ipynb: peak MB": 300,
    }
    assert binder.problems(good) == []
    (problem,) = binder.problems({**good, **changed})
    assert said in problem


@pytest.mark.inputs("tests/binder.py", "binder/*", "requirements.txt", "requirements.lock", "pyproject.toml")
def test_a_fresh_environment_from_the_binder_files_runs_the_start_page_in_2_gb(tmp_path, capsys):
    found = binder.replay(tmp_path)
    shutil.rmtree(tmp_path / "environment")  # 2 GB
    with capsys.disabled():
        print("\n" + "; ".join(f"{k}: {v}" for k, v in found.items()))
    assert binder.problems(found) == []
