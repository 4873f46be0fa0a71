"""Tests that are left out while the files they depend on are those they passed with."""

from pathlib import Path

import pytest

from fairlm_utils import files
from tests import conftest

pytest_plugins = ["pytester"]
ROOT = Path(__file__).parents[1]


@pytest.fixture
def project(pytester):
    """A project with our conftest.py and one test, which asks for what a file says."""
    pytester.makeini("[pytest]\nmarkers = inputs\naddopts = -p no:cacheprovider")
    pytester.mkdir("tests").joinpath("conftest.py").write_text(Path(conftest.__file__).read_text(encoding="utf-8"))
    pytester.path.joinpath("tests/test_a.py").write_text(
        'import pytest\n\n@pytest.mark.inputs("inputs/*.txt")\ndef test_a():\n'
        '    assert open("inputs/a.txt").read() == "right"\n\ndef test_b():\n    pass\n'
    )
    pytester.mkdir("inputs").joinpath("a.txt").write_text("right")
    return pytester


def test_a_test_is_left_out_on_the_inputs_it_passed_with_and_on_no_others(project):
    def outcomes(*options, text=""):
        if text:
            project.path.joinpath("inputs/a.txt").write_text(text)
        return project.runpytest("tests", *options).parseoutcomes()

    assert outcomes() == {"passed": 2}
    assert outcomes() == {"passed": 1, "skipped": 1}
    assert outcomes("--all") == {"passed": 2}
    assert outcomes(text="wrong") == {"passed": 1, "failed": 1}
    assert outcomes() == {"passed": 1, "failed": 1}, "what failed is not left out"
    assert outcomes(text="right") == {"passed": 2}, "nor what passed before it failed"
    project.path.joinpath("inputs/b.txt").write_text("")
    assert outcomes("-n", "1") == {"passed": 2}, "a new file is another input"
    assert outcomes() == {"passed": 1, "skipped": 1}


def test_inputs_that_do_not_exist_are_refused(project):
    project.path.joinpath("inputs/a.txt").unlink()
    project.runpytest("tests").stderr.fnmatch_lines(["*inputs/*.txt, which does not exist*"])


def test_what_is_recorded_are_tests_that_exist():
    for name in files.read_json(ROOT / conftest.PASSED):
        path, test = name.split("::")
        assert f"\ndef {test.partition('[')[0]}(" in (ROOT / path).read_text(encoding="utf-8"), name
