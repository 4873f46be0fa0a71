"""Experiments: files, processes and commands that run `fairlm_utils.lm` and hand its tables to `fairlm_utils.analysis`."""
