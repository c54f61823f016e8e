"""Views: images mixed with others of their batch, the same for teachers and student.

    mixup     x' = l x + (1 - l) x_partner                        (Zhang et al. 2018, arXiv 1710.09412)
    cutmix    x' = x, with a rectangle of x_partner's pixels     (Yun et al. 2019, arXiv 1905.04899)

l ~ Beta(1, 1), uniform in [0, 1], is drawn per image. The rectangle has 1 - l of the image's area; the part of it
beyond the image's edge is cut off. Both follow one formula, where s is the share of each pixel that the image keeps:

    x' = s * x + (1 - s) * x_partner        y' = mean(s) * y + (1 - mean(s)) * y_partner

Rows 2k and 2k + 1 are partners. Batches must be in random order, so that a partner is a random image; edc's are
(`edc.data.extra` shuffles extra rows among the others). No image of another process or micro-batch is needed if each
has an even number of rows, so that the pairs do not depend on how a batch is divided; partners that are drawn
within each part would.

The student learns the teachers' answers to x', so distillation needs no label: function matching (Beyer et al. 2022,
arXiv 2106.05237).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from edc.method.kinds import MixedView
from edc.method.perturb import sent_to

__all__ = ["mixed", "own_share"]


def mixed(
    images: Tensor,
    labels: Tensor,
    views: Sequence[MixedView],
    *,
    generator: torch.Generator,
    rows: slice = slice(None),
    num_rows: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns images and labels after each of `views`, in order.

    Args:
        images: (N, C, H, W); N is even.
        labels: class probabilities (N, K) are mixed as the images are; class numbers (N,) stay unchanged.
        generator: a CPU generator; the same state gives every process the same draws.
        rows, num_rows: the rows of these images in the global batch, from an even one on; draws are made for all rows.
    """
    if len(images) % 2 or (rows.start or 0) % 2:
        raise ValueError(f"mixed: rows are mixed in pairs; found {len(images)} from row {rows.start or 0} on")
    partners = torch.arange(len(images), device=images.device) ^ 1
    for view in views:
        draws = torch.rand((num_rows or len(images), 3), generator=generator)[rows]
        share = own_share(view, draws, *images.shape[-2:])
        share = sent_to(share, images.device).to(images.dtype)
        images = share * images + (1 - share) * images[partners]
        if labels.ndim == 2:
            kept = share.mean((1, 2, 3))[:, None].to(labels.dtype)
            labels = kept * labels + (1 - kept) * labels[partners]
    return images, labels


def own_share(view: MixedView, draws: Tensor, height: int, width: int) -> Tensor:
    """Returns the share of each pixel that the image keeps: (N, 1, 1, 1) for mixup; 0 or 1 (N, 1, H, W) for cutmix.

    Args:
        draws: (N, 3), uniform in [0, 1): l, and the rectangle's centre (vertical, horizontal).
    """
    own = draws[:, 0].view(-1, 1, 1, 1)
    if view == "mixup":
        return own
    inside = []
    for side, centre in zip((height, width), draws[:, 1:].unbind(1), strict=True):
        half = (0.5 * (1 - draws[:, 0]).sqrt() * side).floor()
        from_centre = torch.arange(side) - (centre * side).floor()[:, None]
        inside.append((from_centre >= -half[:, None]) & (from_centre < half[:, None]))
    return 1 - (inside[0][:, None, :, None] & inside[1][:, None, None, :]).to(draws.dtype)
