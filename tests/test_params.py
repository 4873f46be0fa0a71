"""Parameters: every problem at once, before anything runs; notebooks and files agree with the classes."""

import inspect
import re
import typing
from pathlib import Path

import papermill.cli
import pytest
import yaml

from fairlm_utils import params
from fairlm_utils.__main__ import main
from fairlm_utils.params import EvaluationParams, ParameterError, TrainingParams

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "params").rglob("*.yaml"))
#: What a reader changes most often, in the order in which it leads a parameters cell.
LEADING = (
    "results",
    "effects_weight_decay",
    "theory_weight_decay",
    "weight_decay",
    "seed",
    "model",
    "steps",
    "learning_rate",
    "audited_model",
    "reference_model",
    "corpus",
    "corpus_path",
    "vocab_size",
)


def test_all_problems_are_reported_at_once():
    with pytest.raises(ParameterError) as error:
        TrainingParams.check(
            {"wieght_decay": 0.1, "weight_decay": -1, "learning_rate": "1e-1", "steps": 1.5, "vocab_size": 100}
        )
    message = str(error.value)
    assert "did you mean weight_decay" in message and "write 0.1" in message
    assert message.count("\n  - ") >= 4 and "steps" in message and "greater than or equal to 0" in message


def test_vocabulary_holds_the_byte_alphabet():
    with pytest.raises(ParameterError, match="byte alphabet"):
        TrainingParams.check({"vocab_size": 100})
    assert TrainingParams.check({"vocab_size": 100, "pre_tokenizer": "whitespace-punctuation"}).vocab_size == 100


@pytest.mark.parametrize("value", [0, 0.0])
def test_weight_decay_zero_may_be_an_int(value):
    assert (
        TrainingParams.check({"weight_decay": value}).run_id() == TrainingParams.check({"weight_decay": 0.0}).run_id()
    )


@pytest.mark.parametrize(
    "bad", [{"weight_decay": float("nan")}, {"seed": True}, {"packing": 1}, {"experiment": "../x"}, {"context": 1}]
)
def test_impossible_values_are_refused(bad):
    with pytest.raises(ParameterError, match=next(iter(bad))):
        TrainingParams.check(bad)


def test_a_grid_where_one_value_is_needed_says_how_to_choose():
    with pytest.raises(ParameterError, match=r"-p weight_decay 0\.3"):
        TrainingParams.check({"weight_decay": [0.0, 0.3]})


def test_a_misspelt_name_in_a_notebook_is_an_error_and_other_notebooks_names_are_not():
    namespace = {"weight_decay": 0.3, "eval_batch_size": 8, "results": "x", "_hidden": 1, "In": [], "pd": pytest}
    assert TrainingParams.from_namespace(namespace).weight_decay == 0.3
    with pytest.raises(ParameterError, match="did you mean weight_decay"):
        TrainingParams.from_namespace({**namespace, "wieght_decay": 0.3})


def test_identity_leaves_out_what_does_not_change_results():
    base = EvaluationParams.check({})
    same = EvaluationParams.check(
        {"runs_dir": "elsewhere", "experiment": "x", "checkpoint_steps": 7, "eval_batch_size": 3}
    )
    assert base.run_id() == same.run_id() == TrainingParams.check({}).run_id()
    assert base.run_id() == "qwen2-tiny-wd0.3-seed0-5fbce8cf"  # another name would train all finished runs again
    assert base.run_id() != EvaluationParams.check({"adam_beta2": 0.95}).run_id()


def test_grid_expands_in_the_order_of_the_file():
    points = params.expand({"weight_decay": [0, 0.5], "seed": [0, 1]})
    assert [(p.weight_decay, p.seed) for p in points] == [(0, 0), (0, 1), (0.5, 0), (0.5, 1)]


def test_a_repeated_or_empty_grid_is_refused():
    with pytest.raises(ParameterError, match="repeats"):
        params.expand({"weight_decay": [0, 0.0]})
    with pytest.raises(ParameterError, match="empty"):
        params.expand({"seed": []})


def test_every_point_of_a_grid_is_checked_and_each_problem_told_once():
    with pytest.raises(ParameterError) as error:
        params.expand({"weight_decay": [0.1, -1], "seed": [0, 1], "confidence": 2})
    assert str(error.value).count("weight_decay") == 1 and "confidence" in str(error.value)


@pytest.mark.parametrize(
    "text, said",
    [
        ("- 1", "flat mapping"),
        ("1: 2", "flat mapping"),
        ("a: [", "not YAML"),
        ("steps: !!python/object/apply:os.getcwd []", "not YAML"),
    ],
)
def test_a_file_that_is_not_parameters_is_refused(tmp_path, text, said):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ParameterError, match=said):
        params.read(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ParameterError, match=r"nowhere\.yaml"):
        params.read(tmp_path / "nowhere.yaml")


def test_the_home_folder_is_known_wherever_a_path_may_be_given(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "x.yaml"
    names = ["corpus", "corpus_path", "tokenizer", "model", "runs_dir"]
    file.write_text("".join(f"{name}: ~/{name}\n" for name in names))
    (p,) = params.expand(params.read(file))
    assert [getattr(p, name) for name in names] == [f"{tmp_path}/{name}" for name in names]
    of_audit = ["audited_model", "reference_model", "counts_file", "tables_folder"]
    audited = params.AuditParams.check({name: f"~/{name}" for name in of_audit})
    assert [getattr(audited, name) for name in of_audit] == [f"{tmp_path}/{name}" for name in of_audit]
    assert params.RemediesParams.check({"remedy_results": ["~/a", "b~"]}).remedy_results == [f"{tmp_path}/a", "b~"]


def test_a_copy_of_a_corpus_that_has_none_is_refused_not_ignored():
    with pytest.raises(ParameterError, match=r"corpus_path: python-docs .* have no copy; name what is there as corpus"):
        EvaluationParams.check({"corpus_path": "somewhere"})
    assert EvaluationParams.check({"corpus": "imdb", "corpus_path": "somewhere"}).corpus_path == "somewhere"


@pytest.mark.parametrize("name", ["corpus", "corpus_path", "tokenizer", "model", "runs_dir"])
@pytest.mark.parametrize("value", ["x" * 300, "é" * 200, "/a/" + "b" * 256 + "/c", "d/" * 3000], ids=len)
def test_what_is_too_long_for_a_path_is_a_clear_error(name, value):
    with pytest.raises(ParameterError, match=f"- {name}: is too long for a path"):
        EvaluationParams.check({name: value})


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_every_experiment_file_is_valid_and_every_line_commented(file):
    points = params.expand(params.read(file), str(file))
    assert points and points[0].experiment == file.stem
    for line in file.read_text(encoding="utf-8").splitlines():
        assert not line.strip() or line.lstrip().startswith("#") or re.search(r"\S:\s.*# \S", line), (
            f"no comment: {line}"
        )


def test_what_a_notebook_trains_by_default_is_a_run_of_the_quick_experiment():
    quick = params.expand(params.read(ROOT / "params" / "quick.yaml"))
    assert EvaluationParams().run_id() in {p.run_id() for p in quick} and EvaluationParams().experiment == "quick"


def cell_order(cls: type[params.Parameters]) -> list[str]:
    """The order of a parameters cell: what is changed most often, then a notebook's own parameters, then inherited ones."""
    own = [name for base in cls.__mro__ for name in inspect.get_annotations(base)]
    return list(dict.fromkeys(name for name in (*LEADING, *own) if name in cls.model_fields))


@pytest.mark.parametrize("name", params.NOTEBOOKS)
def test_the_parameters_cell_repeats_its_class_and_begins_with_what_is_changed_most_often(name):
    cell = papermill.inspect_notebook(str(ROOT / "notebooks" / f"{name}.ipynb"))
    fields = params.NOTEBOOKS[name].model_fields
    assert list(cell) == cell_order(params.NOTEBOOKS[name]) and len(cell) == len(fields)
    for key, field in fields.items():
        literal = typing.get_origin(field.annotation) is typing.Literal
        kind = "str" if literal else getattr(field.annotation, "__name__", str(field.annotation))
        kind = str(field.annotation) if typing.get_origin(field.annotation) is list else kind
        assert cell[key]["inferred_type_name"] == kind, key
        assert eval(cell[key]["default"], {}) == field.default, key
        assert cell[key]["help"] == field.description, key


def test_every_notebook_has_its_parameters():
    assert {p.stem for p in (ROOT / "notebooks").glob("*.ipynb")} == set(params.NOTEBOOKS)


def test_variants_are_runs_with_names():
    points = params.expand({"seed": [0, 1], "variants": {"a": {}, "b": {"dropout": 0.1, "weight_decay": 1.0}}})
    assert [(p.seed, p.variant, p.dropout) for p in points] == [(0, "a", 0), (0, "b", 0.1), (1, "a", 0), (1, "b", 0.1)]


@pytest.mark.parametrize(
    "variants, said",
    [
        ({"a": {"droput": 0.1}}, "did you mean dropout"),
        ({"a": {"dropout": 2}}, "dropout"),
        ({"a": 1}, "must map names"),
        ([1], "must map names"),
        ({}, "must map names"),
        ({"a": {}, "b": {}}, "repeats"),
        ({"a": {}, "b": {"experiment": "other"}}, "'b' sets experiment, which all runs of an experiment share"),
        ({"a": {}, "b": {"runs_dir": "other"}}, "'b' sets runs_dir"),
        ({"": {}, "b": {"dropout": 0.1}}, "has no name"),
    ],
)
def test_bad_variants_are_refused(variants, said):
    with pytest.raises(ParameterError, match=said):
        params.expand({"variants": variants})


def test_variants_given_to_one_notebook_say_what_to_do():
    with pytest.raises(ParameterError, match="make reproduce"):
        TrainingParams.from_namespace({"variants": {"a": {}}})


def test_a_file_of_variants_is_not_run_as_one_run_of_none_of_them(tmp_path, capsys):
    path = tmp_path / "v.yaml"
    path.write_text("variants:\n  a: {weight_decay: 0.0}\n  b: {weight_decay: 1.0}\n")
    assert main(["run", str(path)]) == 2 and "variants: name several runs" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text, said",
    [
        ("weight_decay: [0.0, 0.5, 1.0]\nsteps: 100\nweight_decay: 0.1\n", r"'weight_decay' stands twice \(line 3\)"),
        ("variants:\n  plain: {dropout: 0.1}\n  plain: {dropout: 0.2}\n", "'plain' stands twice"),
        ("variants: {a: {dropout: 0.1, 'dropout': 0.2}}", "'dropout' stands twice"),
        ("seed: 010", "seed: is 10 in YAML 1.2 and 8 in YAML 1.1"),
        ("seed: [0, 010]", "write 0.1 for 1e-1, 10 for 010"),
        ("steps: 1:30", "steps: is '1:30' in YAML 1.2 and 90"),
        ("packing: yes", "true for yes"),
        ("experiment: on", "put text in quotes"),
        ("variants: {a: {seed: 0o10}}", "variants: is "),
        ("experiment: 2026-01-01", "experiment: Input should be a valid string"),
        ("seed: 1\n---\nseed: 2", "not YAML"),
    ],
)
def test_a_file_that_says_a_thing_twice_or_two_things_at_once_is_refused(tmp_path, text, said):
    """papermill's own `-f` reads YAML 1.1: a value that it would read otherwise is no value of an experiment file."""
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ParameterError, match=said) as error:
        params.read(path)
    assert "x.yaml" in str(error.value)


def test_both_readers_take_the_same_from_plain_values(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("experiment: 'no'\nseed: [1, 0x10]\nlearning_rate: 1.0e-3\npacking: true\ncorpus: \"010\"\n")
    wanted = {"experiment": "no", "seed": [1, 16], "learning_rate": 0.001, "packing": True, "corpus": "010"}
    assert params.read(path) == yaml.safe_load(path.read_text()) == wanted


@pytest.mark.parametrize("text, value", [("010", 10), ("1:30", "1:30"), ("yes", "yes"), ("off", "off"), ("1e-1", 0.1)])
def test_an_override_is_yaml_1_2_and_what_papermills_own_option_takes(text, value):
    assert params.parse(text, "-p x") == papermill.cli._resolve_type(text) == value


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("corpus", "./texts #2", "# begins a comment; write '\"./texts #2\"'"),
        ("corpus", "2024", "write '\"2024\"'"),
        ("tokenizer", "", "write '\"\"'"),
        ("model", '""', "model: String should have at least 1 character"),
    ],
)
def test_an_override_that_yaml_takes_for_no_text_says_how_it_is_written(name, value, said):
    with pytest.raises(ParameterError, match=re.escape(said)):
        params.read("params/quick.yaml", [(name, value)])
    assert params.read("params/quick.yaml", [("corpus", '"a #2"')])["corpus"] == "a #2"


def test_the_name_of_a_variant_may_be_set_alone():
    assert [p.variant for p in params.expand({"variant": "mine", "seed": [0, 1]})] == ["mine", "mine"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"lowercase": True, "tokenizer": "gpt2"}, "lowercase: acts on a BPE that is trained here"),
        ({"lowercase": True, "by_word": True}, "by_word: needs the text as it is"),
        ({"frequency_exponent": 0.5}, "frequency_exponent: acts with embedding_decay: frequency"),
        ({"corpus": "text\udce9"}, "corpus: is not UTF-8; rename"),
    ],
)
def test_what_would_have_no_effect_or_cannot_be_written_is_refused(values, said):
    with pytest.raises(ParameterError, match=said):
        EvaluationParams.check(values)


def test_an_override_given_twice_is_refused():
    with pytest.raises(ParameterError, match="-p seed: is given 2 times"):
        params.read(ROOT / "params" / "quick.yaml", [("seed", "1"), ("steps", "3"), ("seed", "2")])


@pytest.mark.parametrize(
    "values",
    [
        {"experiment": "x" * 300},
        {"experiment": "x."},
        {"experiment": "tokenized"},
        {"model": "m" * 240},
        {"model": "λ" * 120},
    ],
    ids=str,
)
def test_a_name_that_no_folder_can_have_is_refused(values):
    with pytest.raises(ParameterError, match=next(iter(values))):
        TrainingParams.check(values)


@pytest.mark.parametrize("name, value", [("seed", 2**32), ("vocab_size", 10**8), ("n_threads", 2**62)])
def test_numbers_beyond_what_can_be_are_refused(name, value):
    with pytest.raises(ParameterError, match=name):
        params.expand({name: value})
