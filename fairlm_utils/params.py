"""Typed parameters: one class per notebook, one YAML file per experiment, every problem reported at once.

The fields below are the single definition of every parameter. A notebook's `parameters` cell repeats the
fields of its class (a test compares names, types, defaults and comments), and an experiment file in `params/`
may set any field of any notebook. In an experiment file a list for a parameter that takes one value is a
*grid*: `weight_decay: [0.0, 0.1]` asks for one run at each value.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_origin

import yaml as pyyaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer, ComposerError, MaxDepthExceededError
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import YAMLError

from fairlm_utils import files

#: The 256 byte values, all of which a byte-level vocabulary contains.
BYTE_ALPHABET = 256
#: An experiment file is a page of text: no more bytes, no deeper nesting.
MAX_FILE_BYTES, MAX_DEPTH = 10**6, 20
#: The longest name of a file that common file systems take, and the longest path, less what is made below `runs_dir`.
MAX_NAME_BYTES, MAX_PATH_BYTES = 255, 3000
#: Folder of runs_dir that holds tokenized corpora, and so no experiment.
TOKENIZED = "tokenized"


DecayedParameters = Literal["all", "matrices", "no-embedding", "no-embedding-nor-norms", "embedding", "head", "norms"]
#: An unquoted yes or no is a boolean in YAML 1.1, which papermill reads.
Bos = Annotated[
    Literal["auto", "yes", "no"],
    BeforeValidator(lambda value: ("no", "yes")[value] if isinstance(value, bool) else value),
]


def _path_name(name: str) -> str:
    name = os.path.expanduser(name)
    encoded = os.fsencode(name)
    if any("\ud800" <= character <= "\udfff" for character in name):
        raise ValueError("is not UTF-8; rename the file or folder")
    if len(encoded) > MAX_PATH_BYTES or any(len(part) > MAX_NAME_BYTES for part in encoded.split(b"/")):
        raise ValueError(f"is too long for a path, of at most {MAX_NAME_BYTES} bytes per name, {MAX_PATH_BYTES} in all")
    return name


#: A name that may be that of a file or folder: `~` is the home folder, in an experiment file as in a shell.
PathName = Annotated[str, AfterValidator(_path_name)]
#: One that must be given, or several.
GivenPath = Annotated[str, Field(min_length=1), AfterValidator(_path_name)]
PathNames = Annotated[list[str], Field(min_length=1), AfterValidator(lambda names: list(map(_path_name, names)))]


def _param(default: Any, description: str, **bounds: Any) -> Any:
    """A field of a class of parameters; its description is the comment in a notebook's parameters cell."""
    return Field(default, description=description, **bounds)


class ParameterError(files.UserError, ValueError):
    """Parameters that are unknown, of the wrong type or impossible; the message lists every one of them."""


class Parameters(BaseModel):
    """Checked, immutable parameters; one subclass per notebook."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @classmethod
    def check(cls, values: Mapping[str, Any], source: str = "parameters") -> Self:
        """Parameters of this class from `values`; keys left out take their defaults.

        Raises ParameterError naming `source` and every problem: unknown keys (with the nearest known name),
        grids where one value is needed, wrong types, impossible values.
        """
        grids = {key: value for key, value in values.items() if is_grid(key, value)}
        problems = [
            f"{key}: {value!r} is a grid; choose one value, e.g. papermill's `-p {key} {value[-1] if value else '...'}`,"
            " or run the whole file with `make reproduce PARAMS=file`"
            for key, value in grids.items()
        ]
        if VARIANTS in values:
            problems.append("variants: name several runs; run the whole file with `make reproduce PARAMS=file`")
        taken = {key: value for key, value in values.items() if key not in grids and key != VARIANTS}
        try:
            checked = cls.model_validate(taken)
        except ValidationError as error:
            problems += [_describe(item, cls) for item in error.errors()]
        if problems:
            raise ParameterError(f"{source}: {len(problems)} problem(s)\n" + "\n".join(f"  - {p}" for p in problems))
        return checked

    @classmethod
    def from_namespace(cls, namespace: Mapping[str, Any]) -> Self:
        """Parameters from a notebook's `globals()`, called right after its parameters and imports.

        Every plain value (number, string, boolean, list, mapping, None) assigned so far must be a parameter of some
        notebook, so that a misspelt key, which papermill only logs, is an error. Parameters of other notebooks are
        ignored: one experiment file serves all notebooks.
        """
        others = {"In", "Out"} | ALL_FIELDS.keys() - cls.model_fields.keys()
        assigned = {
            name: value
            for name, value in namespace.items()
            if not name.startswith("_") and name not in others
            if isinstance(value, bool | int | float | str | list | dict | None)
        }
        return cls.check(assigned, source=f"{cls.__name__} of this notebook")


#: The corpus that every machine with Python has.
PYTHON_DOCS = "python-docs"


class CorpusParams(Parameters):
    """Which documents."""

    corpus: PathName = _param(PYTHON_DOCS, "python-docs, imdb, imdb-xl, a Hub data set id, or a local folder or file")
    corpus_path: PathName = _param("", "local copy of a named corpus; empty reads it from the Hub")
    text_column: str = _param("text", "column that holds a document's text")
    txt_documents: Literal["auto", "file", "paragraph", "line"] = _param(
        "auto", "what a document of .txt is, auto takes whole files if there are several, else paragraphs or lines"
    )
    max_documents: int = _param(0, "documents kept of each split, 0 keeps all", ge=0)
    heldout_fraction: float = _param(0.1, "share of documents held out if the corpus has no test split", gt=0, lt=1)
    data_seed: int = _param(0, "seed of the document order and of a split made here", ge=0)

    @model_validator(mode="after")
    def _python_docs_have_no_copy(self) -> Self:
        if self.corpus == PYTHON_DOCS and self.corpus_path:
            raise ValueError(
                f"corpus_path: {PYTHON_DOCS} are those of this Python and have no copy; name what is there as corpus, "
                f"imdb or {self.corpus_path!r} itself, or leave corpus_path out"
            )
        return self


class TokenizationParams(CorpusParams):
    """Parameters of `01_tokenization`."""

    tokenizer: PathName = _param("bpe", "bpe trains one on the corpus; else a Hub id or folder of a pre-trained one")
    vocab_size: int = _param(4096, "types a trained BPE learns, to which 5 special tokens are added", ge=1, le=10**7)
    pre_tokenizer: Literal["byte-level", "whitespace-punctuation"] = _param(
        "byte-level", "byte-level, or whitespace-punctuation"
    )
    lowercase: bool = _param(False, "a trained BPE lower-cases its text first, as the paper's example shows")
    bos: Bos = _param("auto", "documents begin with the BOS token, auto as the tokenizer's own rule has it")
    low_frequency_percentile: float = _param(
        95.0, "types at or below this percentile of the counts are low-frequency", gt=0, lt=100
    )
    runs_dir: GivenPath = _param("runs", "folder of everything generated")

    @model_validator(mode="after")
    def _vocabulary_holds_the_bytes(self) -> Self:
        if self.tokenizer == "bpe" and self.pre_tokenizer == "byte-level" and self.vocab_size < BYTE_ALPHABET:
            raise ValueError(
                f"vocab_size: {self.vocab_size} is smaller than the byte alphabet ({BYTE_ALPHABET}); raise it"
            )
        return self

    @model_validator(mode="after")
    def _lowercase_acts(self) -> Self:
        if self.lowercase and self.tokenizer != "bpe":
            raise ValueError("lowercase: acts on a BPE that is trained here; leave it out, or set tokenizer: bpe")
        return self


class TrainingParams(TokenizationParams):
    """Parameters of `02_training`."""

    experiment: str = _param(
        "quick", "name of the experiment, a folder of runs_dir", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200
    )
    context: int = _param(64, "tokens per block", ge=2)
    packing: bool = _param(
        True, "documents joined and cut into full blocks; False takes the first block of each document"
    )
    max_train_blocks: int = _param(800, "training blocks, 0 takes all", ge=0)
    max_heldout_blocks: int = _param(192, "held-out blocks evaluated, 0 takes all", ge=0)
    model: GivenPath = _param(
        "qwen2-tiny", "a name of fairlm_utils.lm.models.REGISTRY, a config JSON file, or a Hub id"
    )
    weight_decay: float = _param(0.3, "AdamW decoupled weight decay λ", ge=0)
    decayed_parameters: DecayedParameters = _param(
        "all", "what λ acts on: all, matrices, no-embedding, no-embedding-nor-norms, embedding, head or norms"
    )
    embedding_decay: Literal["uniform", "when-seen", "lazy", "frequency"] = _param(
        "uniform",
        "rows of embedding and head decay alike, when their token occurs, then by all owed (lazy), or by frequency",
    )
    frequency_exponent: float = _param(
        1.0, "γ of embedding_decay frequency, a row decays by λ·min(1, n_v/n_95)^γ", ge=0
    )
    weight_decay_form: Literal["decoupled", "cautious", "l2"] = _param(
        "decoupled", "decoupled as in AdamW, cautious only where the update agrees in sign, or l2 as a term of the loss"
    )
    optimizer: Literal["adamw", "muon"] = _param(
        "adamw", "adamw, or muon for the matrices of the layers and AdamW for the rest"
    )
    dropout: float = _param(0.0, "dropout of embeddings and of what each layer's parts add", ge=0, lt=1)
    label_smoothing: float = _param(0.0, "share of the target spread over the vocabulary", ge=0, lt=1)
    loss_weight_exponent: float = _param(
        0.0, "loss weighted by n_v to minus this, 0.5 square-root-balanced, 1 token-balanced", ge=0, le=1
    )
    logit_adjustment: float = _param(0.0, "τ of logit adjustment, τ·log frequency added in training", ge=0)
    variant: str = _param("", "name of a variant of an experiment file, a label without effect")
    learning_rate: float = _param(2e-3, "peak AdamW learning rate", gt=0)
    lr_schedule: Literal["constant", "linear", "cosine"] = _param(
        "linear", "learning rate after warm-up, linear and cosine fall to 0"
    )
    warmup_steps: int = _param(20, "steps of linear warm-up", ge=0)
    adam_beta1: float = _param(0.9, "AdamW β1", ge=0, lt=1)
    adam_beta2: float = _param(0.999, "AdamW β2", ge=0, lt=1)
    adam_epsilon: float = _param(1e-8, "AdamW ε", gt=0)
    max_grad_norm: float = _param(1.0, "gradient norm is clipped to this, 0 does not clip", ge=0)
    steps: int = _param(400, "optimiser steps", ge=1)
    batch_size: int = _param(16, "blocks per step, over all devices, before accumulation", ge=1)
    gradient_accumulation_steps: int = _param(1, "batches summed into one step", ge=1)
    window_steps: int = _param(36, "steps per window of the recorded learning curves", ge=1)
    checkpoint_steps: int = _param(200, "steps between checkpoints, from which an interrupted run continues", ge=1)
    dtype: Literal["float32", "bfloat16"] = _param("float32", "bfloat16 is autocast over float32 parameters")
    torch_compile: Literal["none", "default", "reduce-overhead"] = _param(
        "none", "torch.compile of the model's layers in this mode, reduce-overhead takes CUDA graphs"
    )
    device: Literal["auto", "cpu", "cuda"] = _param("auto", "auto takes a GPU if there is one")
    sharded: bool = _param(
        False, "shard a model over the processes of torchrun (FSDP) that is too large for one device"
    )
    n_threads: int = _param(1, "CPU threads of a run, part of what makes results repeat bit for bit", ge=1, le=4096)
    seed: int = _param(0, "seed of the initialisation and of the batch order", ge=0, lt=2**32)

    #: Fields that change where or how often a run writes, not its results: left out of its identity.
    NOT_IN_RUN_ID: ClassVar[frozenset[str]] = frozenset(
        {"experiment", "runs_dir", "corpus_path", "checkpoint_steps", "device", "sharded", "variant"}
    )
    #: Fields added later: left out of the identity at their defaults, so that earlier runs keep their names.
    OMITTED_AT_DEFAULT: ClassVar[frozenset[str]] = frozenset({
        "bos", "embedding_decay", "frequency_exponent", "weight_decay_form", "optimizer", "dropout", "label_smoothing",
        "loss_weight_exponent", "logit_adjustment", "torch_compile", "lowercase", "txt_documents",
    })  # fmt: skip

    @field_validator("experiment")
    @classmethod
    def _one_folder(cls, value: str) -> str:
        if ".." in value or value.endswith("."):
            raise ValueError("must not contain '..' or end in '.'")
        if value == TOKENIZED:
            raise ValueError("is the folder of tokenized corpora; choose another name")
        return value

    @model_validator(mode="after")
    def _name_fits(self) -> Self:
        if len(os.fsencode(self.run_id().replace("\0", ""))) > MAX_NAME_BYTES:
            raise ValueError(
                f"model: the run's folder, named by it, would have a name longer than {MAX_NAME_BYTES} bytes; give the file "
                "or folder of the model a shorter name"
            )
        return self

    @model_validator(mode="after")
    def _decay_is_possible(self) -> Self:
        by_row, decoupled = self.embedding_decay != "uniform", self.weight_decay_form == "decoupled"
        if self.frequency_exponent != 1 and self.embedding_decay != "frequency":
            raise ValueError(
                "frequency_exponent: acts with embedding_decay: frequency; set it, or leave the exponent out"
            )
        if by_row and self.sharded:
            raise ValueError("embedding_decay: needs whole rows of the embedding; set uniform or sharded: false")
        if by_row and not decoupled:
            raise ValueError("embedding_decay: is a decoupled decay; set weight_decay_form: decoupled")
        if self.optimizer == "muon" and (self.sharded or by_row or not decoupled):
            raise ValueError(
                "optimizer: muon takes whole matrices and plain decoupled decay; set sharded: false, embedding_decay: uniform "
                "and weight_decay_form: decoupled, or optimizer: adamw"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """The parameters that determine the results of a run."""
        fields = TrainingParams.model_fields
        at_default = {name for name in self.OMITTED_AT_DEFAULT if getattr(self, name) == fields[name].default}
        return self.model_dump(include=fields.keys() - self.NOT_IN_RUN_ID - at_default)

    def run_id(self) -> str:
        """Name of the run's folder: model, λ, seed and a digest of all parameters that determine its results."""
        digest = hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:8]
        return f"{Path(self.model).stem}-wd{self.weight_decay:g}-seed{self.seed}-{digest}"


class EvaluationParams(TrainingParams):
    """Parameters of `03_evaluation`."""

    eval_batch_size: int = _param(64, "blocks per batch in evaluation, without effect on the results", ge=1)
    max_evaluated_train_blocks: int = _param(
        0, "training blocks evaluated, the first of them, 0 takes all; n_v always counts all", ge=0
    )
    by_word: bool = _param(
        False, "also the loss by word, comparable across tokenizers; packed blocks, ids that give the text back"
    )

    @model_validator(mode="after")
    def _words_can_be_found(self) -> Self:
        if self.by_word and not (self.packing and self.pre_tokenizer == "byte-level"):
            raise ValueError("by_word: needs packing: true and pre_tokenizer: byte-level, or set by_word: false")
        if self.by_word and self.lowercase:
            raise ValueError("by_word: needs the text as it is; set lowercase: false, or by_word: false")
        return self


class FiguresParams(Parameters):
    """Parameters of `04_figures`."""

    results: GivenPath = _param("results/ladder-1029", "folder of result tables, or runs/EXPERIMENT with finished runs")
    confidence: float = _param(0.95, "level of the intervals over seeds, Student t", gt=0, lt=1)


class TheoryParams(FiguresParams):
    """Parameters of `05_theory`."""

    theory_counts: list[int] = _param(
        [100, 50, 20, 10, 4, 1], "samples n_k of each class of the checked problem", min_length=2
    )
    theory_weight_decay: float = _param(1e-3, "λ_W and λ_H of the checked problem", gt=0)
    theory_dim: int = _param(8, "feature dimension d of the checked problem, at least the number of classes", ge=2)
    compared_results: PathNames = _param(
        ["results/ladder-4101", "results/ladder-8197", "results/imdb-small", "results/lambda-memorising"],
        "other experiments that the curve is fitted to",
    )


class GeneralizationParams(Parameters):
    """Parameters of `06_generalization`."""

    map_table: GivenPath = _param(
        "results/map/map.csv", "losses of every run of the map, see fairlm_utils.analysis.forgone"
    )
    drawn_table: GivenPath = _param(
        "results/map/drawn.csv", "losses of some runs on blocks drawn from all held-out text"
    )
    best_results: GivenPath = _param("results/map", "results of the best setting of those run at every λ")
    best_cell: str = _param("400k targets, 10 epochs", "the cell of the map that they lie in")
    language_results: GivenPath = _param("results/languages", "results by language")
    tokenizer_results: GivenPath = _param("results/tokenizers", "results by tokenizer")
    memorising: GivenPath = _param("results/lambda-memorising", "results of runs that see each block many times")
    onepass: GivenPath = _param("results/lambda-onepass", "results of runs that see each block once")
    confidence: float = _param(0.95, "level of the intervals over seeds, Student t", gt=0, lt=1)


class RemediesParams(Parameters):
    """Parameters of `07_remedies`."""

    remedy_results: PathNames = _param(
        ["results/remedies-regime", "results/remedies-memorising", "results/remedies-onepass"],
        "results of experiments with variants, one per regime",
    )
    elsewhere_table: GivenPath = _param(
        "results/remedies-regime/no_embedding.csv", "losses of one remedy and of plain decay in other cells"
    )
    confidence: float = _param(0.95, "level of the intervals over seeds, Student t", gt=0, lt=1)


class AuditParams(CorpusParams):
    """Parameters of `08_audit`."""

    audited_model: PathName = _param(
        "", "Hub id or local folder of a causal LM; empty audits two models of 02_training"
    )
    reference_model: PathName = _param("", "a second model to compare with, empty for none")
    counts_file: PathName = _param(
        "", "CSV or Parquet with columns token_id and count; empty counts the training documents"
    )
    tables_folder: PathName = _param("", "tables of an earlier audit to show; empty makes the audit")
    map_gains: GivenPath = _param("results/map/gains.csv", "gains of models of known regimes, to show a model beside")
    bos: Bos = _param("auto", "documents begin with the BOS token, auto as the tokenizer's own rule has it")
    context: int = _param(64, "tokens per block", ge=2)
    max_heldout_blocks: int = _param(192, "held-out blocks evaluated, at even distances, 0 takes all", ge=0)
    low_frequency_percentile: float = _param(
        95.0, "types at or below this percentile of the counts are low-frequency", gt=0, lt=100
    )
    eval_batch_size: int = _param(8, "blocks per batch; memory grows with this times context times vocabulary", ge=1)
    dtype: Literal["float32", "bfloat16"] = _param("float32", "bfloat16 is autocast over float32 parameters")
    device: Literal["auto", "cpu", "cuda"] = _param("auto", "auto takes a GPU if there is one")
    n_threads: int = _param(1, "CPU threads", ge=1, le=4096)
    runs_dir: GivenPath = _param("runs", "folder of everything generated")


class ScaleParams(Parameters):
    """Parameters of `09_scale`."""

    layout: GivenPath = _param("results/paper-layout", "tables of the paper's tokenizer, sequences and counts")
    ladder: PathNames = _param(
        [
            "results/ladder-1029",
            "results/ladder-4101",
            "results/ladder-8197",
            "results/ladder-8197-124k",
            "results/lambda-memorising",
            "results/imdb-small",
        ],
        "results at several sizes, of which those predict that were memorised",
    )
    effects: GivenPath = _param("results/effects", "results of variants from far above the floor to near it")
    memorised: GivenPath = _param(
        "results/ladder-1029", "results on the same counts, memorised, where all parameters decay"
    )
    variations: GivenPath = _param(
        "results/ladder-1029-variants",
        "results of variants on the same counts: architecture, width, depth, epochs; matrices, what today's Trainer decays",
    )
    effects_weight_decay: float = _param(0.3, "λ compared with none where effects are told apart", gt=0)
    confidence: float = _param(0.95, "level of the intervals over seeds, Student t", gt=0, lt=1)


#: Notebook (its file's stem) and the class of its parameters.
NOTEBOOKS: dict[str, type[Parameters]] = {
    "01_tokenization": TokenizationParams,
    "02_training": TrainingParams,
    "03_evaluation": EvaluationParams,
    "04_figures": FiguresParams,
    "05_theory": TheoryParams,
    "06_generalization": GeneralizationParams,
    "07_remedies": RemediesParams,
    "08_audit": AuditParams,
    "09_scale": ScaleParams,
}
#: Key of an experiment file that maps names of variants to the parameters each sets.
VARIANTS = "variants"
ALL_FIELDS = {name: field for cls in NOTEBOOKS.values() for name, field in cls.model_fields.items()}


def is_grid(name: str, value: Any) -> bool:
    """Whether `value` is a list given for a parameter that takes one value."""
    return isinstance(value, list) and name in ALL_FIELDS and get_origin(ALL_FIELDS[name].annotation) is not list


def read(path: str | Path, overrides: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
    """The values set by an experiment file and then by `overrides` (name, value as YAML), every one checked.

    Raises ParameterError if the file is missing, is not a flat YAML mapping, means another thing to papermill's `-f`, or sets
    an unknown or impossible value.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ParameterError(f"{path}: is larger than {MAX_FILE_BYTES:,} bytes; name an experiment file")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ParameterError(
            f"{path}: cannot be read ({error}); name an experiment file such as params/quick.yaml"
        ) from error
    values = parse(text, str(path))
    if not isinstance(values, dict):
        raise ParameterError(f"{path}: must be a flat mapping `parameter: value`")
    _check_both_read(values, text, str(path))
    values |= overridden(overrides)
    expand(values, source=str(path))
    return values


def overridden(overrides: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """What `-p NAME VALUE` on a command line set. Raises ParameterError for a name given twice and what is not YAML."""
    given = Counter(name for name, _ in overrides)
    if repeated := sorted(name for name, n in given.items() if n > 1):
        raise ParameterError(f"-p {repeated[0]}: is given {given[repeated[0]]} times; keep one")
    return {name: _override(name, value) for name, value in overrides}


def _override(name: str, text: str) -> Any:
    """The value of `-p`, as YAML. Raises ParameterError where a part of it would be a comment of YAML."""
    value = parse(text, f"-p {name}")
    if isinstance(value, str | None) and re.search(r"(^|\s)#", text) and text.strip()[:1] not in ("'", '"'):
        raise ParameterError(f"-p {name}: {text!r} is {value!r} in YAML, where # begins a comment; write '\"{text}\"'")
    return value


class _Composer(Composer):
    """Refuses aliases, which let a few bytes stand for gigabytes."""

    def return_alias(self, node: Any) -> Any:
        raise ComposerError(problem="aliases (*name) are refused; write the value out", problem_mark=node.start_mark)


def parse(text: str, source: str) -> Any:
    """The value that `text` is in YAML 1.2, without aliases, repeated keys, keys that are not text, or other tags.

    Raises ParameterError naming `source`.
    """
    loader = YAML(typ="safe", pure=True)  # the other one, in C, reads YAML 1.1
    loader.Composer, loader.max_depth = _Composer, MAX_DEPTH
    try:
        value = loader.load(text)
    except MaxDepthExceededError as error:
        raise ParameterError(f"{source}: is not YAML of parameters: nested more than {MAX_DEPTH} deep") from error
    except DuplicateKeyError as error:
        name = re.search(r'found duplicate key "(.*?)" with', str(error))
        raise ParameterError(
            f"{source}: the key {name[1] if name else ''!r} stands twice (line {error.problem_mark.line + 1}); keep one"
        ) from error
    except (YAMLError, ValueError, LookupError, AttributeError) as error:  # its constructors raise the last three
        raise ParameterError(f"{source}: is not YAML: {error}") from error
    _check_values(value, source)
    return value


def _check_both_read(value: Any, text: str, source: str) -> None:
    """Raise ParameterError if papermill's `-f`, which is of YAML 1.1, would read another value from a file.

    `value` has been read by `parse`, so that `text` holds nothing that expands.
    """
    try:
        other = pyyaml.safe_load(text)
    except (pyyaml.YAMLError, ValueError, LookupError, AttributeError) as error:
        raise ParameterError(f"{source}: is not YAML 1.1, which papermill reads: {error}") from error
    if not isinstance(value, dict) or repr(value) == repr(other):  # 1, 1.0 and True are equal
        return
    name = next((k for k in value if repr(value[k]) != repr(other.get(k))), "")
    raise ParameterError(
        f"{source}: {name}: is {value.get(name)!r:.100} in YAML 1.2 and {other.get(name)!r:.100} in YAML 1.1, which papermill "
        "reads: write 0.1 for 1e-1, 10 for 010, true for yes, and put text in quotes"
    )


def _check_values(value: Any, source: str) -> None:
    """Raise ParameterError for a key that is not text, and a whole number so large that Python refuses to print it."""
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ParameterError(f"{source}: holds a whole number beyond 64 bits")
    for key in value if isinstance(value, dict) else ():
        if not isinstance(key, str):
            raise ParameterError(
                f"{source}: is not YAML of a flat mapping `parameter: value`, whose keys are text: put {key!r} in quotes"
            )
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple | set) else ():
        _check_values(inner, source)


def expand(values: Mapping[str, Any], source: str = "parameters") -> list[EvaluationParams]:
    """One checked run of notebooks 02 and 03 for each variant and point of the grid in `values`, in the file's order.

    `values["variants"]` maps names to parameters that each variant sets over the others. Raises ParameterError listing
    every problem of every point once, an empty grid and a repeated run among them.
    """
    values = dict(values)
    label, are_named = values.get("variant", ""), VARIANTS in values
    variants = values.pop(VARIANTS, {label if isinstance(label, str) else "": {}})
    if not isinstance(variants, Mapping) or not all(isinstance(v, Mapping) for v in variants.values()) or not variants:
        raise ParameterError(f"{source}: 1 problem(s)\n  - variants: must map names to parameters and their values")
    if are_named and not all(str(name).strip() for name in variants):
        raise ParameterError(f"{source}: 1 problem(s)\n  - variants: one has no name; give it one")
    named = itertools.chain(values, *variants.values())
    problems = [f"  - {_unknown(name)}" for name in named if name not in ALL_FIELDS]
    problems += [
        f"  - variants: {name!r} sets {key}, which all runs of an experiment share; set it outside of variants"
        for name, own in variants.items() for key in ("experiment", "runs_dir") if key in own
    ]  # fmt: skip
    for cls in NOTEBOOKS.values():
        if not issubclass(cls, TokenizationParams):
            problems += _problems(
                cls, {k: v for k, v in values.items() if k in cls.model_fields and not is_grid(k, v)}, source
            )
    known = _known(values)
    axes = {name: value for name, value in known.items() if is_grid(name, value)}
    problems += [f"  - {name}: the grid is empty; list at least one value" for name, axis in axes.items() if not axis]
    points = [
        {**known, **dict(zip(axes, point, strict=True)), **_known(variant), "variant": str(name)}
        for point in itertools.product(*axes.values())
        for name, variant in variants.items()
    ]
    for point in points:
        problems += _problems(EvaluationParams, point, source)
    if problems:
        unique = list(dict.fromkeys(problems))
        raise ParameterError(f"{source}: {len(unique)} problem(s)\n" + "\n".join(unique))
    runs = [EvaluationParams.check(point, source) for point in points]
    counts = Counter(run.run_id() for run in runs)
    if repeated := sorted(i for i, n in counts.items() if n > 1):
        raise ParameterError(f"{source}: the grid repeats {', '.join(repeated)}; list every value once")
    return runs


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in values.items() if k in EvaluationParams.model_fields}


def _problems(cls: type[Parameters], values: Mapping[str, Any], source: str) -> list[str]:
    try:
        cls.check(values, source)
    except ParameterError as error:
        return str(error).splitlines()[1:]
    return []


def _unknown(name: str) -> str:
    nearest = difflib.get_close_matches(name, ALL_FIELDS, n=1)
    return f"{name}: unknown parameter" + (f"; did you mean {nearest[0]}?" if nearest else "")


def _describe(error: Mapping[str, Any], cls: type[Parameters]) -> str:
    name = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return f"{name}: is a parameter of other notebooks" if name in ALL_FIELDS else _unknown(name)
    message = str(error["msg"]).removeprefix("Value error, ")
    if not name:
        return message
    hint = ""
    if isinstance(error["input"], str) and error["type"] in ("float_type", "int_type"):
        hint = " (it is text: write 0.1, without quotes, and not 1e-1, which is text in YAML 1.1)"
    if error["type"] == "string_type" and isinstance(error["input"], int | float | None):
        text = "" if error["input"] is None else error["input"]
        hint = f" (which is no text in YAML: write '\"{text}\"')"
    return f"{name}: {message}, not {error['input']!r}{hint}"


def epochs(p: TrainingParams, n_blocks: float) -> float:
    """How often a run sees each of its `n_blocks` training blocks.

    An epoch ends with a step of fewer blocks where batch_size × gradient_accumulation_steps does not divide them.
    """
    return p.steps / math.ceil(n_blocks / (p.batch_size * p.gradient_accumulation_steps))


def time_scale(p: TrainingParams, epochs: float) -> float:
    """AdamW's time scale τ = 1 / (lr λ) at the peak learning rate, in epochs of a run that takes `epochs`.

    Decay alone multiplies a weight by 1/e in τ, the span over which AdamW's weights average its updates (Wang & Aitchison
    2024, arXiv 2405.13698). Wherever the rate is below its peak it is longer. Infinite at λ = 0, NaN if the decay is a term
    of the loss, which Adam scales, or cautious, which acts in some of the steps.
    """
    if p.weight_decay_form != "decoupled":
        return float("nan")
    return epochs / (p.steps * p.learning_rate * p.weight_decay) if p.weight_decay else float("inf")


#: Folder of each language below /usr/share/man. The first has the largest share of the training bytes, the k-th 1/k of that;
#: scripts and ways of inflection alternate, so that a small share does not stand for one of them.
LANGUAGES = {
    **{"German": "de", "Russian": "ru", "French": "fr", "Japanese": "ja", "Polish": "pl"},
    **{"Spanish": "es", "Ukrainian": "uk", "Turkish": "tr", "Chinese": "zh_CN", "Italian": "it"},
}


#: s of each mixture, in which a language's share is its bytes^(1 − s): 0 is natural, ½ samples at temperature 2.
MIXTURES = {"natural": 0.0, "temperature": 0.5}
