"""OpenVINO in bfloat16, which is what it makes of float32 files by itself on CPUs that have it."""

from edc.benchmark.backends.openvino_cpu import OpenVinoCpu

__all__ = ["OpenVinoBf16"]


class OpenVinoBf16(OpenVinoCpu):
    """OpenVINO pinned to bfloat16: a row of its own, because its outputs differ from float32's by a hundredth."""

    def __init__(self, *, threads: int) -> None:
        super().__init__(threads=threads, precision="bf16")
