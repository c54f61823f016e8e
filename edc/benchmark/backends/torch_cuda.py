"""torch without a compiler, on the GPU, in float32 that is float32."""

import torch

from edc.benchmark.backends.contract import Loaded, Source, WhatRan
from edc.benchmark.backends.on_cuda import CudaLoaded, require_cuda
from edc.benchmark.backends.torch_eager import Members, TorchEager

__all__ = ["TorchCuda"]


class TorchCuda(TorchEager):
    """Eager torch on the current GPU. By default its convolutions would compute in TF32, ten bits of mantissa."""

    def __init__(self, *, threads: int) -> None:
        super().__init__(threads=threads)
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]

    def load(self, source: Source) -> Loaded:
        require_cuda("torch-cuda")
        members = Members(self.networks(source), device="cuda")
        what_ran = WhatRan(
            provider=f"torch eager on {torch.cuda.get_device_name()}",
            precision="fp32",
            version=torch.__version__,
            threads=torch.get_num_threads(),
            notes=("channels_last", "TF32 off", "pinned buffers"),
        )
        return CudaLoaded(lambda images: lambda: members.outputs(images), what_ran, file_bytes=members.num_bytes)
