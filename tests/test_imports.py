"""Who may import what: three wings on one ground floor, and one line for practitioners."""

import subprocess
import sys

from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports


def test_imports_go_one_way(monkeypatch, pytestconfig):
    monkeypatch.chdir(pytestconfig.rootpath)
    assert lint_imports(no_cache=True) == EXIT_STATUS_SUCCESS, "see [tool.importlinter] in pyproject.toml"


def test_what_practitioners_import_is_one_line_and_loads_neither_notebooks_nor_charts():
    code = (
        "import sys, fairlm_utils\n"
        "assert not {'torch', 'pandas', 'pydantic'} & sys.modules.keys()\n"
        "from fairlm_utils import Objective, TokenFrequencyCallback, frequency_aware_adamw, loss_weights\n"
        "assert set(fairlm_utils.__all__) == set(fairlm_utils._HOMES)\n"
        "print(sorted({'papermill', 'altair', 'ray', 'nbformat'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_waits_for_runs_and_notebooks_leaves_the_memory_to_them():
    """Commands start at once, and sweeps and pipelines load models and pictures in other processes or when all is done."""
    code = (
        "import sys\n"
        "import fairlm_utils.__main__, fairlm_utils.experiment.sweep, fairlm_utils.experiment.reproduce\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'altair', 'nbconvert'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
