"""The choices that the method leaves open, by name. Importable without torch, because recipes name them too."""

from typing import Literal

__all__ = ["Answers", "FoldKind", "MemberForm", "Method", "Perturbation"]

Method = Literal["kd", "latent_be"]
"""`kd`: one plain student learns from the mean of the teachers' answers. `latent_be`: M members share weights, each
learns from its own teacher, and they are folded into one network."""

Answers = Literal["all", "split"]
"""`all`: every image is answered by every teacher and learned by every member. `split`: each image goes to one teacher,
drawn anew in each step, and to its member. Cross-entropy is linear in its target, so the expected gradient is the
same, at 4 forward passes per step where `all` costs 16 (or 7 with `kd`) at M = 4."""

Perturbation = Literal["none", "gaussian", "ods", "tdiv", "tdiv_sdiv"]
"""In which direction images are moved, see `perturb`."""

MemberForm = Literal["joint", "sequential"]
"""`joint`: all members in one batch of M * N rows. `sequential`: one member after another, each with its own backward
pass, so that memory does not depend on M; and BatchNorm's statistics are those of one member's rows at a time."""

FoldKind = Literal["mean_weights", "mean_factors"]
"""`mean_weights`: W * mean_m outer(s_m, r_m). `mean_factors`: W * outer(mean s, mean r), as the official code."""
