"""torch.compile with Inductor, on the CPU: the same networks as torch eager, the members of an ensemble in one graph.

It compiles at the first batch of a shape: once for batch 1, then for a free batch size, and again only if a library
below it chooses another algorithm. (Measured on ResNet-18 and WRN: three graphs for all batch sizes from 1 to 256;
pinned batch sizes took one graph each and were no faster.) Nothing of that is hidden: the first inference includes a
compilation without any cache, and a timed round in which something was compiled fails.
"""

import atexit
import os
import shutil
import tempfile
import types
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edc.benchmark.backends.contract import Floats, Loaded, Source
from edc.benchmark.backends.torch_eager import TorchEager, TorchLoaded
from edc.errors import FailedError
from edc.runs.networks import SubjectNetworks

__all__ = ["TorchCompiled", "TorchCompiledLoaded"]


class TorchCompiled(TorchEager):
    """Compiles on as many threads as it computes with, each source into its own cache folder."""

    def __init__(self, *, threads: int) -> None:
        super().__init__(threads=threads)
        import torch._dynamo
        import torch._inductor.config as inductor

        inductor.compile_threads = threads
        # By default it would run code that it has compiled too often as eager torch, and only log that.
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        self.folder = Path(tempfile.mkdtemp(prefix="edc-torch-compile-"))
        atexit.register(shutil.rmtree, self.folder, ignore_errors=True)
        self.folders: dict[Source, Path] = {}

    def prepare(self, source: Source) -> None:
        """Reads the data set; the first time also compiles something small: Inductor's own import takes seconds."""
        super().prepare(source)
        if not self.is_warm:
            self.is_warm = True
            self._compile_into(self.folder / "warm")
            with suppress(RuntimeError), torch.inference_mode():  # the source itself will say what is wrong
                _compiled(torch.nn.Conv2d(3, 4, 3), _Counter())(torch.rand(1, 3, 8, 8))

    def load(self, source: Source) -> Loaded:
        self._compile_into(self.folders.setdefault(source, self.folder / str(len(self.folders))))
        return TorchCompiledLoaded(self.networks(source))

    def _compile_into(self, folder: Path) -> None:
        """Sets the cache folder: empty for a new source, so that its compile time owes nothing to other sources."""
        from torch._inductor.utils import clear_caches

        folder.mkdir(exist_ok=True)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
        clear_caches()


class TorchCompiledLoaded(TorchLoaded):
    """Compiled at the first inference of a shape, which therefore takes seconds."""

    def __init__(self, networks: SubjectNetworks) -> None:
        notes = ("Inductor", "compiled cold at the first inference, and once more for other batch sizes")
        super().__init__(networks, provider="torch.compile", notes=notes)
        self._counter = _Counter()
        self._run = _compiled(self.members.outputs, self._counter)

    def infer(self, batch: Floats, /) -> Floats:
        result = super().infer(batch)
        if not self._counter.count:  # TORCHDYNAMO_DISABLE and the like silently leave eager torch
            raise FailedError("torch.compile compiled nothing and ran eager torch: is TORCH_COMPILE_DISABLE set?")
        return result

    def num_compilations(self) -> int:
        return self._counter.count


class _Counter:
    """Inductor, counting what it is given."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        from torch._inductor.compile_fx import compile_fx

        self.count += 1
        return compile_fx(graph, inputs)


def _compiled(function: Callable[[Tensor], Tensor], counter: _Counter) -> Callable[[Tensor], Tensor]:
    """Returns `function` compiled, with its own code object.

    torch keeps compiled graphs with the code object. Networks of one class would share one limit, and search each
    other's graphs at each call. fullgraph: a part left to eager torch is an error.
    """

    def run(images: Tensor) -> Tensor:
        return function(images)

    own = types.FunctionType(run.__code__.replace(), run.__globals__, closure=run.__closure__)
    compiled: Callable[[Tensor], Tensor] = torch.compile(own, backend=counter, fullgraph=True)
    return compiled
