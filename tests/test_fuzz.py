"""Arbitrary input ends in a result or in one clear error; longer by `make fuzz`."""

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fairlm_utils import frequency, params
from fairlm_utils.analysis import metrics
from fairlm_utils.experiment import audit
from fairlm_utils.lm import tokenization
from fairlm_utils.params import EvaluationParams, ParameterError
from tests import fuzz_files

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=8), v, max_size=3), max_leaves=6
)
names = st.sampled_from([*params.ALL_FIELDS, params.VARIANTS]) | st.text(max_size=12)
anywhere = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@given(st.dictionaries(names, values, max_size=6))
@example({"experiment": "../../x"})
@example({"experiment": "a/b"})
@example({"variants": {"../x": {"seed": 1}}})
def test_any_mapping_expands_or_is_refused(mapping):
    """And whatever is accepted writes below its runs_dir alone."""
    try:
        points = params.expand(mapping)
    except ParameterError as error:
        assert str(error)
        return
    for p in points:
        assert isinstance(p, EvaluationParams)
        for name in (p.experiment, p.run_id()):
            assert "/" not in name and name not in ("", ".", "..") and not name.startswith(".")


@anywhere
@given(st.text(max_size=200) | values.map(lambda v: yaml.safe_dump(v)))
@example("a: &a [x, x, x]\nb: &b [*a, *a, *a]\nc: &c [*b, *b, *b]")
@example("? [1]\n: 2")
@example("<<: 1")
def test_any_text_as_an_experiment_file_is_read_or_refused(tmp_path, text):
    path = tmp_path / "x.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        params.read(path)
    except ParameterError as error:
        assert "x.yaml" in str(error)


@pytest.fixture(scope="module")
def tokenizer(documents):
    return tokenization.train_bpe(documents, 300)


@anywhere
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), min_size=1, max_size=5))
@example(["\x00", "", "\u2028 \r\n", "a" * 10_000])
def test_byte_level_tokens_decode_to_the_text(tokenizer, texts):
    ids, starts = tokenization.encode(tokenizer, texts)
    ends = [*starts[1:], len(ids)]
    decoded = [
        tokenizer.decode(ids[a : b - 1].tolist(), clean_up_tokenization_spaces=False)
        for a, b in zip(starts, ends, strict=True)
    ]
    specials = tuple(tokenization.SPECIAL_TOKENS.values())
    for text, found in zip(texts, decoded, strict=True):
        assert found == text or any(s in text for s in specials)
    assert (ids[np.array(ends, dtype=int) - 1] == tokenizer.eos_token_id).all()


@given(
    st.lists(
        st.tuples(st.integers(0, 100), st.integers(0, 400), st.fractions(0, 20, max_denominator=64)),
        min_size=1,
        max_size=20,
    )
)
def test_totals_agree_with_exact_fractions(rows):
    """Losses that are sums of powers of two, so that both sides mean the same numbers."""
    table = pd.DataFrame(
        {
            "n_train": [t for _, t, _ in rows],
            "n_eval": [n for n, _, _ in rows],
            "loss": [float(x) if n else np.nan for n, _, x in rows],
            "accuracy": 0.5,
        }
    )
    seen = [(n, Fraction(float(x))) for n, _, x in rows if n]
    found = metrics.totals(table)
    if not seen:
        assert np.isnan(found["average_loss"])
        return
    average = sum(n * x for n, x in seen) / sum(n for n, _ in seen)
    assert found["average_loss"] == pytest.approx(float(average), rel=1e-12, abs=1e-12)
    assert found["token_balanced_loss"] == pytest.approx(
        float(sum(x for _, x in seen) / len(seen)), rel=1e-12, abs=1e-12
    )


@given(st.lists(st.integers(0, 2**53), min_size=1, max_size=30))
def test_bins_hold_every_type_and_token_once(counts):
    bins = frequency.frequency_bins(np.array(counts))
    assert bins["n_types"].sum() == len(counts) and bins["n_tokens"].sum() == sum(counts)


@anywhere
@given(
    st.binary(max_size=200)
    | st.text(max_size=100).map(lambda t: ("token_id,count\n" + t).encode("utf-8", "surrogatepass"))
)
def test_any_bytes_as_a_counts_file_are_counts_or_refused(tmp_path, data):
    path = tmp_path / "counts.csv"
    path.write_bytes(data)
    try:
        counts = audit.read_counts(path, 50)
    except ParameterError as error:
        assert "counts_file" in str(error)
    else:
        assert counts.shape == (50,) and counts.min() >= 0 and counts.sum() > 0


@pytest.mark.parametrize("target", fuzz_files.TARGETS, ids=lambda t: t.__name__)
def test_a_file_near_a_valid_one_is_read_or_refused(target, tmp_path):
    """Seeded, and without atheris, which goes further by `make fuzz`."""
    valid = fuzz_files.TARGETS[target]()
    with fuzz_files.attempts(target) as attempt:
        assert attempt(valid)
        read = [attempt(data) for data in fuzz_files.mutations(valid, 200, seed=0)]
    assert not all(read), "mutations are none"


FOUND = Path(__file__).parent / "fixtures" / "fuzzed"


def test_a_damaged_corpus_that_once_ended_the_process_is_refused():
    """Found by make fuzz, in a process of its own: PyArrow aborts where the metadata of a column are read."""
    code = "import sys; from fairlm_utils import params; from fairlm_utils.lm import corpora; "
    code += "corpora.load_corpus(params.CorpusParams(corpus=sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, FOUND / "corpus.parquet"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "CorpusError: corpus: " in done.stderr, done.stderr


def test_damaged_counts_that_once_ended_in_an_error_of_pyarrow_are_refused():
    with pytest.raises(ParameterError, match=r"counts_file: .* cannot be read"):
        audit.read_counts(FOUND / "counts.parquet", 50)
