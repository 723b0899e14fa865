"""Typed settings of a training run. YAML files and command-line flags fill the same frozen dataclasses."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from .backbones.kpfcnn import KPFCNNConfig
from .backbones.minkunet import MinkUNetConfig
from .errors import UserError

Backbone = Literal["kpfcnn", "minkunet"]
Method = Literal["baseline", "csfr", "isfr", "joint", "csfr-isfr", "isfr-csfr"]
Branch = Literal["basic", "cross", "intra"]
LabelledBy = Literal["class", "cloud"]
Precision = Literal["float32", "bfloat16", "float16"]


# What torch takes.
SEED = "0 to 2^63 - 1"


def _is_seed(number: int) -> bool:
    return 0 <= number < 2**63


def _require(settings: object, **expected: tuple[bool, str]) -> None:
    """Raise a UserError for the first setting whose condition does not hold; `settings.build` adds its section."""
    for name, (holds, what) in expected.items():
        if not holds:
            raise UserError(f"{name} must be {what}, got {getattr(settings, name)}")


@dataclass(frozen=True, kw_only=True)
class Labelling:
    """Which points carry a label in training: a share of them, so many a cloud, or those of a mask.

    Args:
        rate: share of the points, in (0, 1]; 1 is full supervision.
        by: what the rate is a share of. `class`: the points of each class of a cloud, at least one; `cloud`: all points
            of a cloud that have a label.
        points: so many points a cloud, whatever their class, instead of a share (ScanNet's data-efficient benchmark).
        mask: folder of masks of the original points instead, in the order of the source files: `<cloud>.npy`, bool, or
            `<cloud>.ply` with a field that is not 0 where a point is labelled.
        mask_field: that field.
        seed: seed of the draw; the same settings with the same seed label the same points.

    Raises:
        UserError: a setting out of its range, or both `points` and `mask`.
    """

    rate: float = 0.1
    by: LabelledBy = "class"
    points: int | None = None
    mask: str | Path | None = None
    mask_field: str = "labelled"
    seed: int = 0

    def __post_init__(self):
        _require(
            self,
            rate=(0 < self.rate <= 1, "in (0, 1]"),
            by=(self.by in get_args(LabelledBy), f"one of {', '.join(get_args(LabelledBy))}"),
            points=(self.points is None or self.points >= 1, "at least 1 or null"),
            mask=(self.mask is None or self.points is None, "null where points are given"),
            seed=(_is_seed(self.seed), SEED),
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is trained on.

    Args:
        store: folder of the scene store that `dsp-sparse prepare` wrote.
        train_groups: scene groups to train on (S3DIS: areas; ScanNet: the split file's name; clouds of your own: the
            YAML's groups). None: every group with labels that is not tested.
        test_groups: scene groups to evaluate on, none of those to train on.
        label_rate: share of the points that carry a label, in (0, 1]; 1 is full supervision.
        label_by: what the rate is a share of: the points of each `class` of a cloud, at least one, or of the `cloud`.
        label_points: so many labelled points a cloud, whatever their class, instead of a share.
        label_mask: folder of masks that say which original points are labelled, instead: `<cloud>.npy` (bool) or
            `<cloud>.ply`, in the order of the source files.
        label_mask_field: field of a PLY mask, not 0 where a point is labelled.
        label_seed: seed of the draw of weak labels; runs with the same label settings see the same labels.
        radius: radius of the balls that are the network's samples, in metres.
        max_points: most points a sample; the points nearest to the centre are kept. None: no limit.
        batch_size: samples a batch and process; even, because the csfr and joint stages take them as pairs.
        workers: processes that cut balls beside the training process.
    """

    store: str
    test_groups: list[str]
    train_groups: list[str] | None = None
    label_rate: float = 0.1
    label_by: LabelledBy = "class"
    label_points: int | None = None
    label_mask: str | None = None
    label_mask_field: str = "labelled"
    label_seed: int = 0
    radius: float = 2.0
    max_points: int | None = None
    batch_size: int = 6
    workers: int = 0

    def __post_init__(self):
        both = set(self.test_groups) & set(self.train_groups or ())
        _require(
            self,
            store=(self.store != "", "a folder"),
            test_groups=(not both, "groups that train_groups does not list"),
            radius=(self.radius > 0, "positive"),
            max_points=(self.max_points is None or self.max_points >= 1, "at least 1 or null"),
            batch_size=(self.batch_size >= 1, "at least 1"),
            workers=(self.workers >= 0, "at least 0"),
        )
        try:
            self.labelling  # noqa: B018
        except UserError as error:
            raise UserError(f"label_{error}") from None

    @property
    def labelling(self) -> Labelling:
        """Which points carry a label."""
        return Labelling(
            rate=self.label_rate,
            by=self.label_by,
            points=self.label_points,
            mask=self.label_mask,
            mask_field=self.label_mask_field,
            seed=self.label_seed,
        )


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Augmentation of a sample, KPConv's S3DIS recipe.

    Args:
        rotate: rotate about the vertical axis by a uniformly random angle.
        scale_min: smallest factor of the anisotropic scaling.
        scale_max: largest factor of the anisotropic scaling.
        mirror: mirror along x with probability one half.
        jitter: standard deviation of the normal noise added to coordinates, in metres.
        feature_drop: probability that all measured features (colours) of a sample are set to zero.
    """

    rotate: bool = True
    scale_min: float = 0.9
    scale_max: float = 1.1
    mirror: bool = True
    jitter: float = 0.001
    feature_drop: float = 0.2

    def __post_init__(self):
        _require(
            self,
            scale_min=(self.scale_min > 0, "positive"),
            scale_max=(self.scale_max >= self.scale_min, f"at least scale_min, {self.scale_min}"),
            jitter=(self.jitter >= 0, "at least 0"),
            feature_drop=(0 <= self.feature_drop <= 1, "in [0, 1]"),
        )


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights and switches of the objectives (paper Eq. 11 and 12, ablations of Table 2).

    Args:
        lambda_cr: weight of the cross consistency loss (Eq. 5).
        lambda_sr: weight of the self consistency loss (Eq. 9).
        lambda_reg: weight of the regularisation that a deformable KPFCNN has: 2 · fitting + repulsive (KPConv).
        consistency_reduction: "mean" over points, or the paper's "sum" (the squared Frobenius norm).
        seg_c: segmentation loss on the cross branch too (Table 2a; not part of the method).
        seg_s: segmentation loss on the intra branch too (Eq. 10; Table 2b leaves it out).
    """

    lambda_cr: float = 1.0
    lambda_sr: float = 1.0
    lambda_reg: float = 1.0
    consistency_reduction: Literal["mean", "sum"] = "mean"
    seg_c: bool = False
    seg_s: bool = True

    def __post_init__(self):
        _require(
            self,
            lambda_cr=(self.lambda_cr >= 0, "at least 0"),
            lambda_sr=(self.lambda_sr >= 0, "at least 0"),
            lambda_reg=(self.lambda_reg >= 0, "at least 0"),
        )


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimisation of one stage; every stage starts a new optimiser and schedule.

    Args:
        epochs: epochs a stage.
        steps_per_epoch: optimiser steps an epoch.
        accumulate: batches a step, whose gradients are summed before the optimiser moves: the step of a batch as many
            times as large, in the memory of one.
        lr: learning rate at the start of a stage.
        offset_lr_factor: learning rate of what moves kernel points (deformable KPFCNN) as a share of that of the rest.
        lr_decay: learning rate at the end of a stage as a share of `lr`, reached exponentially, epoch by epoch.
        momentum: momentum of SGD.
        weight_decay: L2 penalty.
        clip_value: gradients are clipped to ±clip_value, element by element.
        checkpoint_every: epochs between checkpoints.
    """

    epochs: int = 600
    steps_per_epoch: int = 500
    accumulate: int = 1
    lr: float = 0.01
    offset_lr_factor: float = 0.1
    lr_decay: float = 1e-4
    momentum: float = 0.98
    weight_decay: float = 1e-3
    clip_value: float = 100.0
    checkpoint_every: int = 1

    def __post_init__(self):
        _require(
            self,
            epochs=(self.epochs >= 1, "at least 1"),
            steps_per_epoch=(self.steps_per_epoch >= 1, "at least 1"),
            accumulate=(self.accumulate >= 1, "at least 1"),
            lr=(self.lr > 0, "positive"),
            offset_lr_factor=(self.offset_lr_factor >= 0, "at least 0"),
            lr_decay=(0 < self.lr_decay <= 1, "in (0, 1]"),
            momentum=(0 <= self.momentum < 1, "in [0, 1)"),
            weight_decay=(self.weight_decay >= 0, "at least 0"),
            clip_value=(self.clip_value > 0, "positive"),
            checkpoint_every=(self.checkpoint_every >= 1, "at least 1"),
        )


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Evaluation by voting over balls.

    Args:
        votes: balls are drawn until every point was seen at least this often; probabilities are averaged.
        rotations: every ball is shown at this many evenly spaced angles about the vertical axis, which takes as many
            times as long; probabilities are averaged.
        batch_size: balls a forward pass.
    """

    votes: int = 3
    rotations: int = 1
    batch_size: int = 4

    def __post_init__(self):
        _require(
            self,
            votes=(self.votes >= 1, "at least 1"),
            rotations=(self.rotations >= 1, "at least 1"),
            batch_size=(self.batch_size >= 1, "at least 1"),
        )


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How a training is computed; what is trained does not depend on it but for rounding and batch statistics.

    Args:
        precision: of forward and backward passes; weights, batch statistics, losses and the optimiser stay float32.
            float16 scales the loss, so that small gradients do not vanish.
        sync_batchnorm: under torchrun, batch statistics of all processes together instead of each one's own.
    """

    precision: Precision = "float32"
    sync_batchnorm: bool = False


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run.

    Args:
        data: what is trained on.
        backbone: which backbone is trained.
        method: losses and stages; `csfr-isfr` is dense supervision propagation, the others are its ablations.
        seed: seed of initial weights, sampling and augmentation.
        device: torch device; auto takes the GPU when there is one.
        init: weights to start from: a run folder or model.pt, or a checkpoint of KPConv-PyTorch or MinkowskiEngine (see
            `load_pretrained`). The last layer starts anew if the number of classes differs. None: random weights.
        kpfcnn: settings of the KPFCNN backbone, used when `backbone` is kpfcnn.
        minkunet: settings of the MinkUNet backbone, used when `backbone` is minkunet.
        augment: augmentation.
        loss: weights and switches of the losses.
        optim: optimisation.
        compute: precision, and what several processes share.
        eval: evaluation at the end of the run.
        tensorboard: write the metrics as TensorBoard events, too (extra `tensorboard`).
    """

    data: DataConfig
    backbone: Backbone = "kpfcnn"
    method: Method = "csfr-isfr"
    seed: int = 0
    device: str = "auto"
    init: str | None = None
    kpfcnn: KPFCNNConfig = field(default_factory=KPFCNNConfig)
    minkunet: MinkUNetConfig = field(default_factory=MinkUNetConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    tensorboard: bool = False

    def __post_init__(self):
        _require(
            self,
            seed=(_is_seed(self.seed), SEED),
        )


# Settings of a training that a comparison sets itself, and the list that says to what.
LISTED = {
    "backbone": "backbones",
    "method": "methods",
    "seed": "seeds",
    "data.label_rate": "label_rates",
    "data.label_seed": "seeds",
}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A method with other settings, compared beside the methods.

    Args:
        name: what tables call it; part of the name of its run folders.
        method: its losses and stages.
        settings: settings of `TrainConfig` in which it differs from `train`, by dotted name, such as `loss.seg_c`.
    """

    name: str
    method: Method
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        plain = re.fullmatch(r"[\w.+-]+", self.name) is not None and self.name not in get_args(Method)
        _require(self, name=(plain, "letters, digits and _ . + - and no method's name"))
        own = LISTED.keys() & self.settings
        if own:
            raise UserError(f"{self.name} sets {min(own)}, which a comparison sets itself")


@dataclass(frozen=True, kw_only=True)
class PaperScore:
    """A score that the paper printed, to stand beside one's own.

    Args:
        method: a method, or the name of a variant.
        label_rate: share of labelled points; 1 is full supervision.
        miou: mIoU in percent.
        backbone: backbone it was reached with.
        branch: which output of the network was scored.
        iou: IoU of the classes in percent.
    """

    method: str
    label_rate: float
    miou: float
    backbone: Backbone = "kpfcnn"
    branch: Branch = "basic"
    iou: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        _require(
            self,
            label_rate=(0 < self.label_rate <= 1, "in (0, 1]"),
            miou=(0 <= self.miou <= 100, "in percent, 0 to 100"),
            iou=(all(0 <= score <= 100 for score in self.iou.values()), "in percent, 0 to 100"),
        )

    @property
    def scored(self) -> tuple[str, str, float, str]:
        """What it is the score of: backbone, method, label rate, branch."""
        return self.backbone, self.method, self.label_rate, self.branch


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """A comparison: every combination of the listed backbones, methods, label rates and seeds is one run.

    With `engines` a minkunet run becomes one for each engine, and the weights that the first engine's run ends with are
    evaluated under every engine: engines that do the same give them the same scores.

    Args:
        train: what all runs share; backbone, method, label rate and seeds come from the lists below.
        backbones: backbones to compare.
        methods: methods to compare; differences are reported against `baseline` where it is listed.
        label_rates: shares of labelled points; empty where `train.data` says which points are labelled, by
            `label_points` or `label_mask`.
        seeds: one run each; runs with the same seed and rate see the same weak labels and are compared in pairs.
        variants: methods with other settings, compared beside `methods`.
        full_supervision: methods that are trained with all labels, too.
        branches: outputs to score beside the basic one, of runs that trained the module of the branch (paper Table 3).
        equal_updates: train methods of one stage for twice the epochs, so that every run takes as many optimiser steps
            as a method of two stages; false is the paper's protocol (the same epochs a stage).
        engines: engines of minkunet to compare; empty: the one of `train.minkunet.engine`.
        runs: folder of the run folders, from where the command is typed; `runs` in the comparison's folder by default.
            Comparisons with the same folder share the runs that they have in common.
        title: heading of the report.
        paper: scores to print beside one's own.
    """

    train: TrainConfig
    backbones: list[Backbone]
    methods: list[Method]
    label_rates: list[float]
    seeds: list[int]
    variants: list[Variant] = field(default_factory=list)
    full_supervision: list[Method] = field(default_factory=list)
    branches: list[Literal["cross", "intra"]] = field(default_factory=list)
    equal_updates: bool = True
    engines: tuple[str, ...] = ()
    runs: str | None = None
    title: str = ""
    paper: list[PaperScore] = field(default_factory=list)

    def __post_init__(self):
        for name in ("backbones", "methods", "label_rates", "seeds", "engines", "full_supervision", "branches"):
            _require_distinct(name, getattr(self, name))
            if not getattr(self, name) and name in ("backbones", "methods", "seeds"):
                raise UserError(f"{name} must list at least one value")
        _require(
            self,
            label_rates=(all(0 < rate <= 1 for rate in self.label_rates), "in (0, 1]"),
            seeds=(all(map(_is_seed, self.seeds)), SEED),
            runs=(self.runs != "", "a folder or null"),
        )
        _require_distinct("variants", [variant.name for variant in self.variants])
        data = self.train.data
        for name, own in LISTED.items():
            section, key = (data, name.removeprefix("data.")) if name.startswith("data.") else (self.train, name)
            if getattr(section, key) != getattr(type(section), key):  # another value than the default
                raise UserError(f"train.{name} has no effect, {own} says it; got {getattr(section, key)}")
        if bool(self.label_rates) == (data.label_points is not None or data.label_mask is not None):
            raise UserError(
                f"label_rates must list at least one value, or none where train.data.label_points or label_mask is "
                f"given, got {list(self.label_rates)}"
            )
        if 1.0 in self.label_rates and self.full_supervision:
            raise UserError(f"full_supervision adds the label rate 1, which label_rates {self.label_rates} has already")
        if self.engines and "minkunet" not in self.backbones:
            raise UserError(f"engines are those of minkunet, which backbones {self.backbones} leave out")
        # A method that is left out of `methods` may be one for another day; one that nobody knows is a mistake.
        names = [*get_args(Method), *(variant.name for variant in self.variants)]
        numbers: dict[tuple, int] = {}
        for number, score in enumerate(self.paper, 1):
            if score.method not in names:
                raise UserError(f"paper.{number} is a score of {score.method}, expected one of {', '.join(names)}")
            if (first := numbers.setdefault(score.scored, number)) != number:
                raise UserError(f"paper.{number} is of {' '.join(map(str, score.scored))}, as is paper.{first}")


def _require_distinct(name: str, values: Iterable) -> None:
    """Raise a UserError unless a setting is a list without repetitions."""
    if not isinstance(values, list | tuple):
        raise UserError(f"{name} must be a list, got {values!r}")
    if len(set(values)) != len(values):
        raise UserError(f"{name} must list no value twice, got {list(values)}")
