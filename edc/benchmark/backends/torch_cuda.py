"""torch without a compiler, on the GPU: in float32 that is float32, or, as a backend of its own, in TF32."""

import torch

from edc.benchmark.backends.contract import Loaded, Source, WhatRan
from edc.benchmark.backends.on_cuda import CudaLoaded, device_is_lost, require_cuda
from edc.benchmark.backends.torch_eager import Members, TorchEager
from edc.train.placement import Float32, set_float32

__all__ = ["TorchCuda"]


class TorchCuda(TorchEager):
    """Eager torch on the current GPU. By default its convolutions would compute in TF32, ten bits of mantissa."""

    def __init__(self, *, threads: int, float32: Float32 = "ieee") -> None:
        super().__init__(threads=threads)
        self.float32: Float32 = float32
        set_float32(float32)  # for good: the worker's process has no other backend

    def is_lost(self) -> bool:
        return device_is_lost()

    def load(self, source: Source) -> Loaded:
        require_cuda("torch-cuda")
        members = Members(self.networks(source), device="cuda")
        what_ran = WhatRan(
            provider=f"torch eager on {torch.cuda.get_device_name()}",
            precision="fp32" if self.float32 == "ieee" else "tf32",
            version=torch.__version__,
            threads=torch.get_num_threads(),
            notes=("channels_last", "TF32 off" if self.float32 == "ieee" else "TF32 on", "pinned buffers"),
        )
        return CudaLoaded(lambda images: lambda: members.outputs(images), what_ran, file_bytes=members.num_bytes)
