"""Feature reallocation: features of a point set rebuilt as weighted sums of a (partner's or its own) point set.

One mechanism, `softmax(T W Sᵀ) S` for target features T and source features S, is both modules of the paper. It is
scaled-dot-product attention with query `T W`, key and value `S` and scale 1, so PyTorch's fused kernels compute it,
and its gradients, without ever forming the `[M_target, M_source]` affinity matrix. (Float64 on a GPU has no fused
kernel: it is for checks, on small sets.)
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from .ragged import Ragged


def reallocate(tap: Ragged, sources: list[int], weights: list[Tensor]) -> Ragged:
    """`R_b = softmax(T_b W_b S_bᵀ) S_b` for every sample b of a batch, softmax over the source points.

    Args:
        tap: M points with K features; sample b is the target T_b.
        sources: sample b attends to sample `sources[b]`, S_b, and to nothing else.
        weights: W_b, `[K, K]`, one a sample.

    Returns:
        The same M points with reallocated features `[M, K]`. A target whose source is empty gets zeros, the empty sum.
    """
    samples = tap.feat.split(tap.lengths)
    targets = zip(samples, sources, weights, strict=True)
    return tap.with_feat(torch.cat([_attend(target @ weight, samples[source]) for target, source, weight in targets]))


def _attend(query: Tensor, source: Tensor) -> Tensor:
    if query.numel() == 0 or source.numel() == 0:
        return query @ source.T @ source  # the affinity has no element: zeros that stay in the autograd graph
    source = source.to(query.dtype)  # under autocast the query is already in the lower precision
    return scaled_dot_product_attention(query[None, None], source[None, None], source[None, None], scale=1.0)[0, 0]


class _Reallocation(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels}")
        self.weight = nn.Parameter(torch.eye(channels) / channels**0.5)

    def _check(self, tap: Ragged) -> None:
        if tap.feat.shape[1] != len(self.weight):
            raise ValueError(f"tap must have {len(self.weight)} features a point, got {tap.feat.shape[1]}")

    def _rows(self, tap: Ragged, points: Tensor, sources: list[int], weights: list[Tensor]) -> list[Tensor]:
        samples = tap.feat.split(tap.lengths)
        owners = (torch.searchsorted(tap.offsets, points, right=True) - 1).tolist()
        return [
            torch.softmax(tap.feat[point] @ weights[owner] @ samples[sources[owner]].T, dim=0)
            for point, owner in zip(points.tolist(), owners, strict=True)
        ]


class CSFR(_Reallocation):
    """Cross-sample feature reallocation (paper Eq. 2-4): each sample is rebuilt from the points of its partner.

    For a pair (i, j), i before j in the batch, both directions share one affinity `A = F_i W F_jᵀ`: sample i gets
    `softmax(A) F_j`, sample j gets `softmax(Aᵀ) F_i`, that is, W is used for i and Wᵀ for j.

    W starts as `I / √K`: scaled-dot-product similarity, so that from the first step points attend, softly, to points
    with similar features. Features at the tap are large: measured `‖f‖²` is 130 to 510 on untrained backbones of
    K = 256 and 1024 and two 2 m balls. There `I` or a Xavier-uniform W puts the softmax on 1 to 3.4 effective sources
    (exponential of the entropy, median), where the gradient of W vanishes; `I / K` spreads it almost evenly over all
    150 to 215 points; `I / √K` gives 3 to 180.

    Args:
        channels: features a tap point, K.
    """

    def forward(self, tap: Ragged, partner: Tensor) -> Ragged:
        """Reallocate between partners.

        Args:
            tap: M points of B samples, with K features.
            partner: `[B]` int64; sample b is rebuilt from sample `partner[b]`, and `partner[b]` from b.

        Returns:
            The same points with features `[M, K]`; a sample whose partner is empty gets zeros.

        Raises:
            ValueError: another number of features than K, or `partner` does not pair the samples up.
        """
        return reallocate(tap, *self._directions(tap, partner))

    def affinity_rows(self, tap: Ragged, points: Tensor, partner: Tensor) -> list[Tensor]:
        """What each of the tap rows `points` `[Q]` int64 gathers: Q probability vectors over its partner's points."""
        return self._rows(tap, points, *self._directions(tap, partner))

    def _directions(self, tap: Ragged, partner: Tensor) -> tuple[list[int], list[Tensor]]:
        self._check(tap)
        others = partner.tolist()
        paired = sorted(others) == list(range(tap.batch_size)) and all(
            other != sample and others[other] == sample for sample, other in enumerate(others)
        )
        if not paired:
            raise ValueError(f"partner must pair up the {tap.batch_size} samples (such as [1, 0, 3, 2]), got {others}")
        return others, [self.weight if sample < other else self.weight.T for sample, other in enumerate(others)]


class ISFR(_Reallocation):
    """Intra-sample feature reallocation (paper Eq. 6-8): each sample is rebuilt from its own points, no residual.

    `F_i` becomes `softmax(F_i W F_iᵀ) F_i`. W starts as in `CSFR`.

    Args:
        channels: features a tap point, K.
    """

    def forward(self, tap: Ragged) -> Ragged:
        """The same points with reallocated features `[M, K]`. ValueError: another number of features than K."""
        return reallocate(tap, *self._directions(tap))

    def affinity_rows(self, tap: Ragged, points: Tensor) -> list[Tensor]:
        """What each of the tap rows `points` `[Q]` int64 gathers: Q probability vectors over its sample's points."""
        return self._rows(tap, points, *self._directions(tap))

    def _directions(self, tap: Ragged) -> tuple[list[int], list[Tensor]]:
        self._check(tap)
        return list(range(tap.batch_size)), [self.weight] * tap.batch_size


MODULES = {"csfr": CSFR, "isfr": ISFR}
