"""papermill as its users meet it: experiment files given to every notebook, and the help of every notebook."""

import re
import typing
from pathlib import Path

import pytest
from click.testing import CliRunner
from papermill.cli import papermill
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from fairlm_utils import params
from tests.test_params import FILES, ROOT


def injected(notebook: str, values: dict) -> dict:
    """What the cells `parameters` and papermill's `injected-parameters` assign when a notebook is given `values`."""
    short = load_notebook_node(str(ROOT / "notebooks" / f"{notebook}.ipynb"))
    short.cells = short.cells[:2]  # the question and the parameters
    scope: dict = {}
    for cell in parameterize_notebook(short, values).cells:
        if {"parameters", "injected-parameters"} & set(cell.metadata.tags):
            exec(cell.source, scope)
    return scope


def single_runs(file: Path) -> list[dict]:
    """The values of an experiment file for one run: the first of each grid, and each variant."""
    values = params.read(file)
    first = {k: v[0] if params.is_grid(k, v) else v for k, v in values.items() if k != params.VARIANTS}
    variants = values.get(params.VARIANTS, {"": {}})
    return [{**first, **variant, **({"variant": name} if name else {})} for name, variant in variants.items()]


@pytest.mark.parametrize("notebook", params.NOTEBOOKS)
@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_a_notebook_takes_every_experiment_file_through_papermill(file, notebook):
    cls = params.NOTEBOOKS[notebook]
    for values in single_runs(file):
        checked = cls.from_namespace(injected(notebook, values))
        given = {k: v for k, v in values.items() if k in cls.model_fields}
        assert {k: getattr(checked, k) for k in given} == given, "a value was changed on its way"


@pytest.mark.parametrize("notebook", ["02_training", "03_evaluation"])
def test_a_grid_that_papermill_passes_on_is_refused_before_anything_runs(notebook):
    with pytest.raises(params.ParameterError, match="choose one value"):
        params.NOTEBOOKS[notebook].from_namespace(injected(notebook, params.read(ROOT / "params" / "quick.yaml")))


@pytest.mark.parametrize("notebook", params.NOTEBOOKS)
def test_the_help_of_a_notebook_tells_type_default_and_meaning_of_every_parameter(notebook):
    """What `papermill --help-notebook` prints, run in this process; the command itself is in README and run with it."""
    told = CliRunner().invoke(papermill, ["--help-notebook", str(ROOT / "notebooks" / f"{notebook}.ipynb")])
    assert told.exit_code == 0
    lines = re.sub(r"\s+", " ", told.output)
    assert "No parameters" not in lines and "Unknown" not in lines
    for name, field in params.NOTEBOOKS[notebook].model_fields.items():
        kind = "str" if typing.get_origin(field.annotation) is typing.Literal else None
        kind = kind or getattr(field.annotation, "__name__", "")
        kind = str(field.annotation) if typing.get_origin(field.annotation) is list else kind
        head = rf" {name}: {re.escape(kind)} \(default (?P<default>[^()]*)\) "
        found = re.search(head + re.escape(field.description), lines)
        assert found, (name, lines)
        assert eval(found["default"], {}) == field.default, name
