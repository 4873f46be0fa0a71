"""Token-level measurement of language models: the utilities behind the fairlm notebooks (arXiv 2410.11985)."""

__version__ = "0.1.0"
