"""What a step on a GPU would gain by another memory format, another form of member layers, or a CUDA graph.

    python benchmarks/gpu_forms.py --parts formats,forms,graphs

Formats: an ordinary training step, channels last or contiguous, in IEEE float32 and TF32. Forms: LatentBE and TDiv-SDiv
in bf16 with members in weight form, as edc trains, or in activation form. Graphs: a step in bf16, launched kernel by
kernel or replayed as one CUDA graph. Each figure is the mean of eight steps without a wait between them.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from gpu_steps import stepper

import edc.method.batch_ensemble
from edc.train.placement import convolutions_tuned, float32_as

NETWORKS: dict[str, dict[str, Any]] = {
    "wrn28x4": {},
    "torchvision/resnet18": {"image_size": 224, "rows": 128, "num_classes": 1000},
}


def milliseconds(take: Callable[[], Any], *, num_steps: int = 8) -> str:
    """Returns the time of a step, and that of the host to ask for it."""
    for _ in range(4):
        take()
    torch.cuda.synchronize()
    before = time.perf_counter()
    for _ in range(num_steps):
        take()
    asked = time.perf_counter() - before
    torch.cuda.synchronize()
    whole = time.perf_counter() - before
    return f"{whole / num_steps * 1e3:.1f} ms, host {asked / num_steps * 1e3:.1f} ms"


def replayed(take: Callable[[], Any]) -> Callable[[], None]:
    """Returns what replays a step as one CUDA graph; its images, labels and learning rate stay as they are."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            take()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        take()
    return graph.replay


@contextmanager
def members_in(form: str) -> Iterator[None]:
    """Within the block, networks get member layers of this form."""
    convert = edc.method.batch_ensemble.to_batch_ensemble
    changed = mock.patch.object(
        edc.method.batch_ensemble,
        "to_batch_ensemble",
        lambda network, num_members: convert(network, num_members, form=form),  # type: ignore[arg-type]
    )
    with changed:
        yield


def step_of(network: str, kind: str, autocast: torch.dtype | None = torch.bfloat16) -> Callable[[], Any]:
    return stepper("cuda", "joint", kind, autocast, small=False, network=network, ensemble_size=4, **NETWORKS[network])


def formats(network: str) -> None:
    for name in ("channels_last", "contiguous_format"):
        for kind in ("ieee", "tf32"):
            with float32_as(kind), mock.patch.object(torch, "channels_last", getattr(torch, name)):  # type: ignore[arg-type]
                print(
                    f"{network}, teacher, {kind}, {name}: {milliseconds(step_of(network, 'teacher', None))}", flush=True
                )


def forms(network: str) -> None:
    for form in ("weight", "activation"):
        for kind in ("latent_be", "tdiv_sdiv"):
            with members_in(form):
                print(f"{network}, {kind}, bf16, {form} form: {milliseconds(step_of(network, kind))}", flush=True)


def graphs(network: str) -> None:
    for kind in ("teacher", "kd", "latent_be"):
        take = step_of(network, kind)
        eager = milliseconds(take)
        print(f"{network}, {kind}, bf16: {eager}; as one graph {milliseconds(replayed(take))}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="formats,forms,graphs")
    parser.add_argument("--networks", default=",".join(NETWORKS))
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch sees no GPU here, and nothing of this can be known without one")
    print(torch.cuda.get_device_name(), torch.__version__)
    parts = {"formats": formats, "forms": forms, "graphs": graphs}
    with convolutions_tuned(torch.device("cuda"), shapes_stay=True), float32_as("tf32"):
        for part in arguments.parts.split(","):
            for network in arguments.networks.split(","):
                parts[part](network)


if __name__ == "__main__":
    main()
