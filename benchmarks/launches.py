"""How many kernels the steps of training ask a GPU for, counted without one.

    python benchmarks/launches.py --output launches.json
    python benchmarks/launches.py --network wrn28x4 --form joint --kind tdiv_sdiv

A step runs on tensors without memory ("meta"), and every operator that torch dispatches is counted: those that compute
(each asks a GPU for one kernel, or for a few), and those that only name memory otherwise (views, allocations), which
cost the host alone. The count of a GPU may differ by what its libraries do within one operator. The optimizer is the
one that a GPU gets, for all parameters at once. With bf16 the step runs on the CPU, whose rules of autocast differ
from a GPU's in a few operators, on few and small images; the count does not depend on them.
"""

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from gpu_steps import stepper
from torch.utils._python_dispatch import TorchDispatchMode

KINDS = ("teacher", "kd", "latent_be", "tdiv_sdiv")
ALLOCATES = ("aten::empty", "aten::empty_like", "aten::new_empty", "aten::empty_strided", "aten::detach", "aten::alias",
             "aten::new_empty_strided", "aten::lift_fresh", "aten::_unsafe_view")  # fmt: skip


class Counting(TorchDispatchMode):
    """Counts operators by name, in two kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels, self.host_only = Counter[str](), Counter[str]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, result = function.name().split(".")[0], function(*args, **(kwargs or {}))
        if name.startswith("profiler::"):  # marks of edc's own, which compute nothing
            return result
        casts = name == "aten::to" and result.dtype != args[0].dtype  # in inference mode, in place of a copy
        (self.kernels if casts or not (function.is_view or name in ALLOCATES) else self.host_only)[name] += 1
        return result


def counted(network: str, form: str, kind: str, precision: str) -> Counting:
    """Returns the operators of one step, after one that sets up what is set up once."""
    autocast, device = (None, "meta") if precision == "fp32" else (torch.bfloat16, "cpu")
    take = stepper(device, form, kind, autocast, small=precision != "fp32", network=network, ensemble_size=4)
    take()
    counting = Counting()
    with counting:
        take()
    return counting


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="wrn28x4")
    parser.add_argument("--form", default="joint,sequential")
    parser.add_argument("--kind", default=",".join(KINDS))
    parser.add_argument("--precision", default="fp32,bf16")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    rows = []
    print("| step | form | precision | kernels | views and allocations |\n|---|---|---|---|---|")
    for kind in arguments.kind.split(","):
        for form in arguments.form.split(",") if kind in ("latent_be", "tdiv_sdiv") else ["joint"]:
            for precision in arguments.precision.split(","):
                found = counted(arguments.network, form, kind, precision)
                kernels, host_only = found.kernels.total(), found.host_only.total()
                print(f"| {kind} | {form} | {precision} | {kernels} | {host_only} |", flush=True)
                row = {"step": kind, "form": form, "precision": precision, "kernels": kernels, "host_only": host_only}
                rows.append(row | {"most_frequent": dict(found.kernels.most_common(12))})
    document = {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "network": arguments.network,
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "rows": rows,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
