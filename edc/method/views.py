"""Views: images mixed with others of their batch, before teachers and student see them, the same for all.

    mixup     x' = l x + (1 - l) x_partner                        (Zhang et al. 2018, arXiv 1710.09412)
    cutmix    x' = x, but for a rectangle that is x_partner's     (Yun et al. 2019, arXiv 1905.04899)

l ~ Beta(1, 1), which is uniform in [0, 1], for each image; the rectangle takes 1 - l of the image, before what is
beyond the image's edge is cut off. Both are one formula, with a share s of each pixel that stays the image's own:

    x' = s * x + (1 - s) * x_partner        y' = mean(s) * y + (1 - mean(s)) * y_partner

The partner of row 2k is row 2k + 1 and the other way round. Batches are in random order already, so that a partner is a
random image; and no image of another process or micro-batch is needed, where these have even numbers of rows.

Distillation learns whatever the teachers say of x', and needs no label: function matching (Beyer et al. 2022,
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
        labels: probabilities of classes (N, K), mixed as the images are; class numbers (N,) are left as they are.
        generator: a CPU generator; the same one on every process gives every process the same draws.
        rows, num_rows: which rows of the global batch these are, from an even one on; the draws are made for all.
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
    """Returns how much of each pixel stays the image's own: (N, 1, 1, 1) for mixup, (N, 1, H, W), 0 or 1, for cutmix.

    Args:
        draws: (N, 3), uniform in [0, 1): l, and the centre of the rectangle, down and across.
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
