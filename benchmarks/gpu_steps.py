"""Training steps on random images, as gpu_parts.py compares and times them."""

import time
from collections.abc import Callable
from typing import Any

__all__ = ["losses_of", "stepper", "timed"]


def stepper(
    device: str,
    form: str,
    kind: str,
    autocast: Any,
    *,
    small: bool,
    network: str | None = None,
    ensemble_size: int = 0,
    image_size: int = 0,
    rows: int = 0,
    num_classes: int = 10,
) -> Callable[[], Any]:
    """Returns what takes one training step (`kind`: teacher, kd, latent_be, tdiv_sdiv) and returns its loss.

    Args:
        small: few and small images, and, unless the others say so, two members and a small network.
        image_size: pixels of a side; 0: 16 if `small`, else 32.
        rows: images of a batch; 0: 8 if `small`, else 128.
    """
    import torch

    from edc.method.batch_ensemble import to_batch_ensemble
    from edc.method.step import Batch, LabelStep, StudentStep
    from edc.networks import build_network
    from edc.recipe import NetworkSection
    from edc.train.placement import casts_kept

    size, rows = image_size or (16 if small else 32), rows or (8 if small else 128)
    ensemble_size = ensemble_size or (2 if small else 4)
    torch.manual_seed(0)

    name = network or ("wrn10x1" if small else "wrn28x4")

    def new_network() -> Any:
        built = build_network(
            NetworkSection(name=name),
            num_classes=num_classes,
            image_shape=(3, size, size),
            mean=(0.5, 0.5, 0.5),
            std=(0.25, 0.25, 0.25),
        )
        return built.to(device).to(memory_format=torch.channels_last)

    teachers = [new_network().eval().requires_grad_(False) for _ in range(ensemble_size)] if kind != "teacher" else []
    student = new_network() if kind in ("teacher", "kd") else to_batch_ensemble(new_network(), ensemble_size)
    student.train()
    step: Any = LabelStep(autocast=autocast)
    if teachers:
        perturbation = "tdiv_sdiv" if kind == "tdiv_sdiv" else "none"
        method = "kd" if kind == "kd" else "latent_be"
        asked = [casts_kept(teacher, autocast, (3, size, size)) for teacher in teachers]
        step = StudentStep(asked, method=method, perturbation=perturbation, form=form, autocast=autocast)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9, foreach=True)
    draws = torch.Generator().manual_seed(1)
    images = torch.rand(rows, 3, size, size, generator=draws).to(device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(num_classes, (rows,), generator=draws).to(device)

    def take() -> Any:
        optimizer.zero_grad(set_to_none=True)
        batch = Batch(images, labels, draws, slice(0, rows), rows)
        total = torch.zeros((), device=device)
        for loss in step.losses(student, student, batch):
            loss.backward()
            total += loss.detach()
        optimizer.step()
        return total

    return take


def losses_of(device: str, form: str, autocast: Any, *, num_steps: int) -> list[float]:
    """Returns the losses of the first steps of LatentBE, small, always from the same start."""
    take = stepper(device, form, "latent_be", autocast, small=True)
    return [float(take()) for _ in range(num_steps)]


def timed(take: Callable[[], Any], *, on_gpu: bool) -> str:
    """Returns the figures of a step in words: medians of a few."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    num_steps = 10 if on_gpu else 2
    for _ in range(3 if on_gpu else 1):
        take()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    device_ms, host_ms = [], []
    for _ in range(num_steps):
        before = time.perf_counter()
        if on_gpu:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
        take()
        host_ms.append((time.perf_counter() - before) * 1e3)
        if on_gpu:
            end.record()
            torch.cuda.synchronize()
            device_ms.append(start.elapsed_time(end))
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiled:
        take()
    wanted = ("cudaLaunchKernel", "cuLaunchKernel") if on_gpu else ("aten::",)
    launches = sum(event.count for event in profiled.key_averages() if event.key.startswith(wanted))
    middle = sorted(host_ms)[num_steps // 2]
    if not on_gpu:
        return f"{middle:.1f} ms, {launches} operators"
    memory = torch.cuda.max_memory_allocated() / 2**20
    of_device = sorted(device_ms)[num_steps // 2]
    return f"{of_device:.1f} ms, host {middle:.1f} ms, {launches} launches, {memory:.0f} MiB at most"
