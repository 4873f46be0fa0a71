"""Token-level measurement of language models: the utilities behind the fairlm notebooks (arXiv 2410.11985).

What practitioners import stands here, and is loaded when it is first used:

    from fairlm_utils import Objective, TokenFrequencyCallback, frequency_aware_adamw, loss_weights
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fairlm_utils.lm.callback import TokenFrequencyCallback
    from fairlm_utils.lm.remedies import frequency_aware_adamw, loss_weights
    from fairlm_utils.lm.token_loss import Objective

__version__ = "1.0.0"
__all__ = ["Objective", "TokenFrequencyCallback", "frequency_aware_adamw", "loss_weights"]
_HOMES = {
    "TokenFrequencyCallback": "callback",
    "frequency_aware_adamw": "remedies",
    "loss_weights": "remedies",
    "Objective": "token_loss",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"fairlm_utils.lm.{_HOMES[name]}"), name)
