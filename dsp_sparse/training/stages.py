"""What a stage optimises: one backbone, decoded plainly and through the stage's reallocation modules."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..backbones.base import TapBackbone
from ..config import LossConfig
from ..data.batch import Batch
from ..losses import consistency_loss, segmentation_loss
from ..reallocation import MODULES

# A stage is named by what it adds to the segmentation loss: the reallocation modules it trains.
STAGES = {"baseline": (), "csfr": ("csfr",), "isfr": ("isfr",), "joint": ("csfr", "isfr")}

METHODS = {
    "baseline": ("baseline",),
    "csfr": ("csfr",),
    "isfr": ("isfr",),
    "joint": ("joint",),
    "csfr-isfr": ("csfr", "isfr"),  # dense supervision propagation
    "isfr-csfr": ("isfr", "csfr"),
}


def takes_pairs(stage: str) -> bool:
    """Whether the batches of a stage must be pairs with a common class."""
    return "csfr" in STAGES[stage]


class Objective(nn.Module):
    """The losses of one stage (paper Eq. 11 and 12, and the ablations of Tables 1 and 2).

    Args:
        net: the backbone, carried over from stage to stage.
        stage: a key of `STAGES`; its reallocation modules start fresh.
        config: weights and switches of the losses.

    Attributes:
        branches: the stage's reallocation modules by name, `csfr` and/or `isfr`.
    """

    def __init__(self, net: TapBackbone, stage: str, config: LossConfig):
        super().__init__()
        self.net = net
        self.config = config
        self.branches = nn.ModuleDict({name: MODULES[name](net.tap.channels) for name in STAGES[stage]})

    def forward(self, batch: Batch, geometry: Any = None) -> dict[str, Tensor]:
        """The losses of a batch, as scalars.

        Args:
            batch: N points; needs `partner` where the stage has csfr.
            geometry: `net.geometry(batch.input)`, computed here when omitted.

        Returns:
            The plain losses `seg`, `reg` (of a backbone that has a regularisation), `cr`, `seg_c`, `sr`, `seg_s` as far
            as the stage has them, and their weighted sum `total`, which is what to minimise.
        """
        config, net = self.config, self.net
        tap, state = net.encode(batch.input, geometry)
        logits = net.decode(tap.feat, state)

        def agreement(other: Tensor) -> Tensor:
            return consistency_loss(logits, other, batch.input.offsets, config.consistency_reduction)

        losses = {"seg": segmentation_loss(logits, batch.labels)}
        total = losses["seg"]
        if (regularization := net.regularization(state)) is not None:
            losses["reg"] = regularization
            total = total + config.lambda_reg * regularization
        with running_statistics_kept(net):
            if "csfr" in self.branches:
                cross = net.decode(self.branches["csfr"](tap, batch.partner).feat, state)
                losses["cr"] = agreement(cross)
                total = total + config.lambda_cr * losses["cr"]
                if config.seg_c:
                    losses["seg_c"] = segmentation_loss(cross, batch.labels)
                    total = total + losses["seg_c"]
            if "isfr" in self.branches:
                intra = net.decode(self.branches["isfr"](tap).feat, state)
                losses["sr"] = agreement(intra)
                total = total + config.lambda_sr * losses["sr"]
                if config.seg_s:
                    losses["seg_s"] = segmentation_loss(intra, batch.labels)
                    total = total + losses["seg_s"]
        return {**losses, "total": total}


@contextmanager
def running_statistics_kept(net: nn.Module) -> Iterator[None]:
    """Inside, batch normalisation normalises with the batch as always, but its running statistics stand still.

    The running statistics are what the basic branch sees at inference; reallocated features are averages over many
    points and have other statistics, which must not blend in.
    """
    norms = [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
