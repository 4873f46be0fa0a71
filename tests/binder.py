"""The Binder image without Docker: its steps replayed in a fresh virtual environment, then notebooks executed in it.

`make binder` copies the repository, installs binder/requirements.txt, runs binder/postBuild, executes notebooks on committed
results and prints the size of the environment and the peak memory, which must fit Binder's 2 GB. Where PyTorch's index of
CPU wheels cannot be reached, its line and the label +cpu are left out and pip takes the PyTorch it finds.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from collections.abc import Sequence
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
#: The notebook that links to Binder open first: seconds on committed tables, interactive charts, nothing trained.
START = "notebooks/04_figures.ipynb"
#: What Binder gives a session, in MB.
MEMORY = 2048
GENERATED = {".venv", ".git", "runs", "site", "__pycache__", ".ipynb_checkpoints", "out.ipynb"}
INDEX = re.compile(r"^--extra-index-url\s+(\S+)\s*$", re.MULTILINE)


def repository_files() -> list[Path]:
    """Every tracked or new file, as a clone would have it after the next commit; what .gitignore names stays out."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        files = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:  # an unpacked archive
        files = [p for p in ROOT.rglob("*") if not GENERATED & set(p.relative_to(ROOT).parts)]
    return [p for p in files if p.is_file() and not p.is_symlink()]


def copy_repository(folder: Path) -> Path:
    """Copies the repository's files to a folder, and returns it."""
    for file in repository_files():
        copy = folder / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, copy)
    return folder


def without_index(requirements: str) -> str:
    """The requirements without PyTorch's index and without the label that only its wheels have."""
    return INDEX.sub("", requirements).replace("+cpu", "")


def reachable(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=10).close()
    except OSError:
        return False
    return True


def install(repository: Path, environment: Path) -> bool:
    """Replays the build: requirements, then postBuild. Returns whether the requirements were taken as written."""
    file = repository / "binder" / "requirements.txt"
    text = file.read_text(encoding="utf-8")
    as_written = all(reachable(address) for address in INDEX.findall(text))
    if not as_written:
        file.write_text(without_index(text), encoding="utf-8")
    venv.create(environment, with_pip=True)
    run(environment, ["python", "-m", "pip", "install", "--quiet", "--no-cache-dir", "-r", "binder/requirements.txt"],
        repository)  # fmt: skip
    run(environment, ["./binder/postBuild"], repository)
    run(environment, ["python", "-m", "pip", "check"], repository)
    return as_written


def activated(environment: Path) -> dict[str, str]:
    """Environment variables in which `python` is that of the environment, and of nothing else."""
    left_out = ("PYTHONPATH", "PYTHONHOME", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_")  # make test sets the last two
    kept = {k: v for k, v in os.environ.items() if k not in left_out}
    path = f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return {**kept, "VIRTUAL_ENV": str(environment), "PATH": path, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}


def run(environment: Path, command: Sequence[str], cwd: Path) -> str:
    """The output of a command of the environment; raises RuntimeError with its last lines if it fails."""
    program = environment / "bin" / command[0]
    command = [str(program) if program.exists() else command[0], *command[1:]]
    done = subprocess.run(
        command, cwd=cwd, env=activated(environment), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-3000:]}")
    return done.stdout


def memory(process: psutil.Process) -> float:
    """Memory of a process and all below it in MB; pages they share are counted once where the system says so (PSS)."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            info = one.memory_full_info()
            total += getattr(info, "pss", info.rss)
        except psutil.Error:  # it has just ended
            continue
    return total / 2**20


def execute(environment: Path, repository: Path, notebook: str, overrides: Sequence[Sequence[str]]) -> float:
    """Executes a notebook as papermill does and returns the peak memory of papermill and the kernel in MB."""
    out = repository / "runs" / Path(notebook).name
    out.parent.mkdir(exist_ok=True)
    command = [str(environment / "bin" / "papermill"), "--no-progress-bar", "--kernel", "python3", notebook, str(out)]
    command += [word for name, value in overrides for word in ("-p", name, value)]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, cwd=repository, env=activated(environment), stdout=log, stderr=log)
        peak = 0.0
        while process.poll() is None:
            peak = max(peak, memory(psutil.Process(process.pid)))
            time.sleep(0.1)
        log.seek(0)
        if process.returncode:
            raise RuntimeError(f"{notebook} failed:\n{log.read()[-3000:]}")
    return peak


def size(folder: Path) -> float:
    """Size of a folder on disk in MB; links are not followed."""
    return sum(p.lstat().st_blocks * 512 for p in folder.rglob("*")) / 2**20


def replay(folder: Path, notebooks: Sequence[str] = (START,), overrides: Sequence[Sequence[str]] = ()) -> dict:
    """Builds in `folder` and executes `notebooks`; what was found and measured, sizes in MB and times in seconds."""
    repository, environment = copy_repository(folder / "repository"), folder / "environment"
    started = time.monotonic()
    as_written = install(repository, environment)
    found: dict = {"requirements as written": as_written, "install seconds": round(time.monotonic() - started)}
    installed = {
        p["name"].lower(): p["version"]
        for p in json.loads(run(environment, ["python", "-m", "pip", "list", "--format=json"], repository))
    }
    found |= {"python": run(environment, ["python", "-V"], repository).split()[1], "torch": installed["torch"]}
    found["nvidia packages"] = sorted(name for name in installed if name.startswith("nvidia"))
    found["environment MB"] = round(size(environment))
    for notebook in notebooks:
        started = time.monotonic()
        found[f"{notebook}: peak MB"] = round(execute(environment, repository, notebook, overrides))
        found[f"{notebook}: seconds"] = round(time.monotonic() - started)
    return found


def problems(found: dict) -> list[str]:
    """What would not do on Binder, in words; empty if all is well."""
    said = [f"{key} is {value}, above {MEMORY}" for key, value in found.items()
            if key.endswith("peak MB") and value >= MEMORY]  # fmt: skip
    pinned = (ROOT / "binder" / "runtime.txt").read_text().strip().removeprefix("python-")
    if not found["python"].startswith(pinned + "."):
        said.append(f"replayed with Python {found['python']}, not {pinned}: make binder PYTHON=python{pinned}")
    # without PyTorch's index pip may find the build for GPUs, which says nothing about the image
    if found["nvidia packages"] and (found["requirements as written"] or found["torch"].endswith("+cpu")):
        said.append(f"installed {', '.join(found['nvidia packages'])}")
    return said


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", default=[START], help=f"notebooks to execute (default: {START})")
    parser.add_argument("-p", dest="overrides", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = replay(Path(folder), chosen.notebooks, chosen.overrides)
    for key, value in found.items():
        print(f"{key}: {value}")
    said = problems(found)
    print("\n".join(f"NOT WELL: {line}" for line in said) or f"all is well: below {MEMORY} MB, no CUDA")
    return bool(said)


if __name__ == "__main__":
    sys.exit(main())
