"""Write a trained model as a Hugging Face checkpoint: bf16 safetensors, configuration, tokenizer.

python export.py --weights storyteller.pt --tokenizer data/tokenizer --out storyteller
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from model import Llama
from safetensors.torch import save_file
from train import load

END_OF_TEXT, END = 0, 2  # ids in the tokenizer: the end of a text, and of a chat message


def config(model: Llama) -> dict:
    """Return config.json. Names of older and newer transformers stand side by side where they differ."""
    shape = model.shape
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": shape.context,
        "hidden_act": "silu",
        "rms_norm_eps": shape.epsilon,
        "rope_theta": shape.theta,
        "rope_scaling": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.theta},
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "pretraining_tp": 1,
        "use_cache": True,
        "bos_token_id": END_OF_TEXT,
        "eos_token_id": [END_OF_TEXT, END],
        "pad_token_id": END_OF_TEXT,
        "torch_dtype": "bfloat16",
        "dtype": "bfloat16",
    }


def main() -> None:
    """Parse the command line and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, type=Path)
    parser.add_argument("--tokenizer", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    model = load(options.weights, "cpu")
    weights = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, options.out / "model.safetensors", metadata={"format": "pt"})
    (options.out / "config.json").write_text(json.dumps(config(model), indent=2) + "\n")
    ends = {"bos_token_id": END_OF_TEXT, "eos_token_id": [END_OF_TEXT, END], "pad_token_id": END_OF_TEXT}
    (options.out / "generation_config.json").write_text(json.dumps(ends, indent=2) + "\n")
    for file in options.tokenizer.iterdir():
        shutil.copy(file, options.out)
    size = (options.out / "model.safetensors").stat().st_size
    print(f"{options.out}: {sum(t.numel() for t in weights.values())} parameters, {size} bytes", flush=True)


if __name__ == "__main__":
    main()
