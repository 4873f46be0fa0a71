"""What the project takes from outside: no network while it works, and licences that allow its use."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from binder import address

ROOT = Path(__file__).parents[1]

GUARD = """
import socket
def refuse(self, address, *_):
    if self.family != getattr(socket, "AF_UNIX", None) and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise SystemExit(f"connects to {address}")
    return original[self.__class__](self, address)
original = {}
class Guarded(socket.socket):
    connect = refuse
    connect_ex = refuse
original[Guarded] = socket.socket.connect
socket.socket = Guarded
def resolve(host, *arguments, **options):
    if host not in (None, "127.0.0.1", "::1", "localhost"):
        raise SystemExit(f"looks up {host}")
    return look_up(host, *arguments, **options)
look_up, socket.getaddrinfo = socket.getaddrinfo, resolve
"""

WORK = """
import importlib, json, pkgutil, sys
import fairlm_utils
names = [m.name for m in pkgutil.walk_packages(fairlm_utils.__path__, "fairlm_utils.")]
for name in names:
    importlib.import_module(name)
from fairlm_utils.analysis.results import load_results
from fairlm_utils.experiment import runs
from fairlm_utils.params import EvaluationParams
directory = runs.evaluate(EvaluationParams.check(json.loads(sys.argv[1])))
load_results(directory.parent)
print(len(names), "modules")
"""


def guarded(folder: Path, code: str, *arguments: str) -> subprocess.CompletedProcess:
    """Run `code` in a process that ends at its first attempt to leave this machine, with no variable that says offline."""
    (folder / "sitecustomize.py").write_text(GUARD)
    offline = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY")
    environment = {k: v for k, v in os.environ.items() if k not in offline}
    environment["PYTHONPATH"] = os.pathsep.join([str(folder), str(ROOT)])
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)


def test_local_data_are_tokenized_trained_on_and_evaluated_without_the_network(miniature, tmp_path):
    values = miniature(runs_dir=str(tmp_path / "runs"), steps=2, window_steps=2).model_dump()
    done = guarded(tmp_path, WORK, json.dumps(values))
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-2]) >= 20


def test_the_guard_of_this_test_catches_both_ways_out(tmp_path):
    for code in (
        "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)",
        "import urllib.request; urllib.request.urlopen('http://example.invalid')",
    ):
        done = guarded(tmp_path, code)
        assert done.returncode == 1 and ("connects to" in done.stderr or "looks up" in done.stderr), done.stderr


def locked_hashes() -> dict[str, tuple[str, list[str]]]:
    """Version and SHA-256 sums by name of requirements.lock, whose every line is one or the other."""
    found: dict[str, tuple[str, list[str]]] = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if pin := re.fullmatch(r"([A-Za-z0-9._-]+)==(\S+) \\", line):
            found[canonicalize_name(pin[1])] = (pin[2], hashes := [])
        else:
            hashes.append(re.fullmatch(r"    --hash=sha256:([0-9a-f]{64})(?: \\)?", line)[1])
    return found


def locked_versions() -> dict[str, str]:
    """Version by name of the list without hashes."""
    lines = (ROOT / "binder" / "constraints.txt").read_text().splitlines()
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def test_every_dependency_is_locked_with_hashes_and_without_them_in_the_same_version():
    """PyTorch has builds of several indices, and a version alone."""
    hashes, versions = locked_hashes(), locked_versions()
    assert all(sums for _, sums in hashes.values())
    assert versions == {name: version for name, (version, _) in hashes.items()} | {"torch": versions["torch"]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    wanted += [line for extra in project["optional-dependencies"].values() for line in extra]
    for requirement in map(Requirement, wanted):
        version = versions[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), (requirement, version)


@pytest.mark.skipif(Path(sys.prefix) != ROOT / ".venv", reason="of the environment that make setup makes")
def test_the_environment_of_make_setup_holds_the_locked_versions():
    installed = {name: importlib.metadata.version(name).removesuffix("+cpu") for name in locked_versions()}
    assert installed == locked_versions()


def test_make_setup_installs_nothing_that_no_hash_was_compared_for_but_pytorch():
    target = re.search(r"^\.venv/installed:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    torch, lock, own = (line for line in target.splitlines() if "$(PIP)" in line)
    assert torch.endswith("--no-deps $$(grep '^torch==' requirements.txt)")
    assert "--no-deps --require-hashes -r requirements.lock" in lock and "--no-build-isolation -e " in own


def test_a_package_whose_bytes_are_not_the_locked_ones_is_not_installed(tmp_path):
    wheel = tmp_path / "stranger-1.0-py3-none-any.whl"
    wheel.write_bytes(b"PK")
    lock = tmp_path / "requirements.lock"
    lock.write_text(f"stranger==1.0 \\\n    --hash=sha256:{'0' * 64}\n")
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "--no-deps", "--require-hashes"]
    done = subprocess.run([*pip, "--find-links", tmp_path, "-r", lock], capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "DO NOT MATCH THE HASHES" in done.stderr.upper(), done.stderr


def licences(*options: str) -> subprocess.CompletedProcess:
    """What `make licences` says, by [tool.pip-licenses] of pyproject.toml, of the packages installed here."""
    command = [Path(sys.prefix) / "bin" / "pip-licenses", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.skipif(Path(sys.prefix) != ROOT / ".venv", reason="of the environment that make setup makes")
def test_every_dependency_has_a_licence_that_allows_use_and_stands_in_the_table():
    done = licences()
    assert done.returncode == 0, done.stderr
    names = set(re.findall(r"^\| ([\w.-]+)", (ROOT / "LICENCES.md").read_text(), re.MULTILINE)) - {"Name"}
    assert names == set(re.findall(r"^\| ([\w.-]+)", done.stdout, re.MULTILINE)) - {"Name"}, "make licences"


def test_a_licence_that_is_not_allowed_is_found():
    assert licences("--fail-on", "Apache").returncode == 1 and licences("--allow-only", "MIT").returncode == 1


def test_the_address_of_the_repository_is_set_in_one_place_and_no_link_is_dead_before(tmp_path):
    names = ("README.md", "pyproject.toml", "CITATION.cff")
    for name in names:
        shutil.copy(ROOT / name, tmp_path)
    before = {name: (ROOT / name).read_text() for name in names}
    assert not any(re.search("OWNER|mybinder.org|repository-code|project.urls", text) for text in before.values())
    address.main("https://github.com/someone/fair.lm.git", tmp_path)
    once = {name: (tmp_path / name).read_text() for name in names}
    assert once["README.md"].count("mybinder.org/v2/gh/someone/fair.lm/HEAD?urlpath=") == 1
    assert (
        tomllib.loads(once["pyproject.toml"])["project"]["urls"]["Repository"] == "https://github.com/someone/fair.lm"
    )
    assert yaml.safe_load(once["CITATION.cff"])["repository-code"] == "https://github.com/someone/fair.lm"
    address.main("https://github.com/someone/fair.lm", tmp_path)
    assert {name: (tmp_path / name).read_text() for name in names} == once, "a second time adds something"
    for wrong in ("", "github.com/someone/fairlm", "https://github.com/someone", "https://example.org/a/b"):
        with pytest.raises(SystemExit, match="ACCOUNT/REPOSITORY"):
            address.main(wrong, tmp_path)
