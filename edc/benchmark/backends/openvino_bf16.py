"""OpenVINO in bfloat16, its own default for float32 files on CPUs that support it."""

from edc.benchmark.backends.openvino_cpu import OpenVinoCpu

__all__ = ["OpenVinoBf16"]


class OpenVinoBf16(OpenVinoCpu):
    """OpenVINO pinned to bfloat16: a separate row, because its outputs differ from float32's by a hundredth."""

    def __init__(self, *, threads: int) -> None:
        super().__init__(threads=threads, precision="bf16")
