"""The choices that the method leaves open, by name. Importable without torch, because recipes name them too."""

from typing import Literal

__all__ = ["Answers", "FoldKind", "MemberForm", "Method", "MixedView", "Pair", "Perturbation", "View"]

Method = Literal["kd", "latent_be"]
"""`kd`: one plain student learns from the mean of the teachers' answers. `latent_be`: M members share weights. Each
learns from its own teacher; they are then folded into one network."""

Answers = Literal["all", "split"]
"""`all`: every teacher answers every image, and every member learns it. `split`: each image goes to one teacher,
drawn anew in each step, and to its member. Cross-entropy is linear in its target, so the expected gradient is the
same, at 4 forward passes per step; `all` costs 16 (or 7 with `kd`) at M = 4."""

Perturbation = Literal["none", "gaussian", "ods", "tdiv", "tdiv_sdiv"]
"""The direction in which images are moved: see `perturb`."""

Pair = Literal["step", "row"]
"""Which two teachers (and members) a perturbation sets against each other. `step`: one pair for all images of a step.
`row`: the teacher that answers the image (`answers: split`), and another one, drawn for each image."""

MixedView = Literal["mixup", "cutmix"]
"""How images of a batch are mixed before they are perturbed, the same for teachers and student: see `mixed`."""

View = Literal["mixup", "cutmix", "randaugment"]
"""`randaugment` changes the pixels of single images when they are read: see `rand_augmented`."""

MemberForm = Literal["joint", "sequential"]
"""`joint`: all members in one batch of M * N rows. `sequential`: one member after another, each with its own backward
pass, so memory does not depend on M. BatchNorm's statistics are those of one member's rows at a time."""

FoldKind = Literal["mean_weights", "mean_factors"]
"""`mean_weights`: W * mean_m outer(s_m, r_m). `mean_factors`: W * outer(mean s, mean r), as the official code."""
