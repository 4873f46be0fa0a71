"""Where a run computes: its device, threads and place among the processes of torchrun."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fairlm_utils import files
from fairlm_utils.params import AuditParams, TrainingParams


def n_processes() -> int:
    """Number of processes that train one model together (torchrun's WORLD_SIZE)."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this process writes what several train together."""
    return os.environ.get("RANK", "0") == "0"


def device(p: TrainingParams | AuditParams) -> str:
    """The device a run uses: cuda if asked for or found, else cpu. RunError if cuda is asked for and absent."""
    if p.device == "cuda" and not torch.cuda.is_available():
        raise files.RunError("device: cuda is asked for and no GPU is visible; set device to auto or cpu")
    return "cpu" if p.device == "cpu" or not torch.cuda.is_available() else "cuda"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of a GPU or the machine, did not suffice."""
    said = re.search("out of memory|can't allocate memory", str(error))
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or bool(said)


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Use `n` CPU threads within the context: the number changes the order of sums, and so the last bits of results."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
