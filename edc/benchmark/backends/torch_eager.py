"""torch without a compiler, on the CPU: the networks of a run as they are."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from edc.benchmark.backends.contract import Backend, Floats, Loaded, Source, TorchSource, WhatRan
from edc.deploy.ensemble import ensemble_log_probs
from edc.errors import FailedError, first_line
from edc.runs.networks import SubjectNetworks, load_subject, prepare_run

__all__ = ["Members", "TorchEager", "TorchLoaded"]


class TorchEager(Backend):
    """Eager torch in float32, all networks in channels_last.

    On an AVX-512 CPU channels_last was 14 to 20 % faster than the default layout on every network tried (two wide
    ResNets and ResNet-18), so it is the fair form for teachers and students alike, whatever they were trained in.
    """

    def __init__(self, *, threads: int) -> None:
        self.threads = threads
        torch.set_num_threads(threads)

    def prepare(self, source: Source) -> None:
        wanted = _checked(source)
        prepare_run(wanted.run, data_root=wanted.data_root)

    def load(self, source: Source) -> Loaded:
        return TorchLoaded(self.networks(source))

    def networks(self, source: Source) -> SubjectNetworks:
        """Returns the networks of a source, on the CPU."""
        wanted = _checked(source)
        return load_subject(wanted.run, wanted.subject, data_root=wanted.data_root)


class TorchLoaded(Loaded):
    """One network, the members of an ensemble in turn, or a student whose members share one pass."""

    def __init__(
        self, networks: SubjectNetworks, *, provider: str = "torch eager", notes: tuple[str, ...] = ()
    ) -> None:
        self.members = Members(networks)
        self.file_bytes = self.members.num_bytes
        first = next(self.members.networks[0].parameters())
        self.what_ran = WhatRan(
            provider=f"{provider} on {first.device.type}",
            precision={torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[first.dtype],
            version=torch.__version__,
            threads=torch.get_num_threads(),
            notes=("channels_last", *notes),
        )
        self._run: Callable[[Tensor], Tensor] = self.members.outputs

    def infer(self, batch: Floats, /) -> Floats:
        try:
            with torch.inference_mode():
                result: Floats = self._run(torch.from_numpy(batch)).numpy()
        except (RuntimeError, MemoryError) as error:
            raise FailedError(f"torch cannot run batch {len(batch)}: {first_line(error)}") from error
        return result


class Members:
    """The networks to average, in eval mode and channels_last; the two kinds differ in how they share an input."""

    def __init__(self, networks: SubjectNetworks, *, device: str = "cpu") -> None:
        self.networks = [_ready(network, device) for network in networks.networks]
        self.members_per_network = networks.members_per_network
        self.member_temperature = networks.member_temperature
        self.num_members = len(self.networks) * self.members_per_network

    @property
    def num_bytes(self) -> int:
        """Bytes of all parameters and buffers, shared ones once."""
        tensors = {id(t): t for network in self.networks for t in (*network.parameters(), *network.buffers())}
        return sum(tensor.nbytes for tensor in tensors.values())

    def outputs(self, images: Tensor) -> Tensor:
        """Returns logits, or the log of the mean of the members' probabilities, (N, K) of images (N, C, H, W)."""
        if self.num_members == 1:
            logits: Tensor = self.networks[0](images)
            return logits
        if self.members_per_network == 1:
            logits = torch.stack([network(images) for network in self.networks])
        else:  # member-major rows: m * N + n
            rows = images.repeat(self.members_per_network, 1, 1, 1)
            logits = self.networks[0](rows).view(self.members_per_network, len(images), -1)
        return ensemble_log_probs(logits, temperature=self.member_temperature)


def _ready(network: nn.Module, device: str) -> nn.Module:
    return network.eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last)


def _checked(source: Source) -> TorchSource:
    if not isinstance(source, TorchSource):
        raise FailedError(f"torch: runs networks of a run, not {source}")
    return source
