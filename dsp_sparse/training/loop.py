"""The training program: every method is a sequence of stages over one backbone."""

import json
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..backbones import build_backbone, load_pretrained
from ..backbones.base import TapBackbone
from ..backbones.norm import synchronise
from ..config import TrainConfig
from ..data import Batch, Scene, SceneStore, fetched, split, train_loader, weak_labels
from ..data.store import require_labels
from ..distributed import follow_first_rank, pick_device, rank, reaching_others, together, world
from ..errors import UserError
from ..files import locked
from ..inference import BasicBranch, Voting, evaluate
from .checkpoint import Model, TrainingState, load_weights, save_model, save_modules
from .epoch import Progress, train_epoch
from .run import Run
from .stages import METHODS, Objective, takes_pairs
from .step import Stepper
from .stop import Interrupted, StopRequest, catch_stops

Batches = Callable[..., Iterable[Batch]]


def train(config: TrainConfig, folder: str | Path, resume: bool = False) -> dict:
    """Train a network, evaluate it and leave everything in the run folder (see `training.run`).

    An interrupted run resumes at its last checkpoint and ends with the same numbers, bit for bit on the CPU. A
    finished run returns at once. After `distributed.join` the ranks train one network together, each on batches of
    `data.batch_size`; rank 0 alone writes.

    Args:
        config: the settings.
        folder: the run folder.
        resume: refuse to begin a run.

    Returns:
        The results: what `inference.evaluate` returns, and `steps`, `parameters` and `train_seconds`.

    Raises:
        UserError: settings, store and folder do not fit together, or another process is training in the folder.
        FloatingPointError: the loss or the weights left the finite numbers; the last checkpoint is kept.
        Interrupted: a signal asked to stop; the state is saved.
    """
    with ExitStack() as held:
        with together():
            run = Run(folder, config, resume)
            if run.results is not None:
                return run.results
            sources = open_sources(config)
            net = first_network(config, sources.store, run).to(training_device(config.device))
            if rank() == 0:
                run.folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(locked(run.folder))
        modules = train_stages(net, config, sources, run)
        store, stages = sources.store, METHODS[config.method]
        model = Model(
            net=net,
            backbone=config.backbone,
            options=asdict(getattr(config, config.backbone)),
            in_channels=store.in_channels,
            classes=store.classes,
            features=store.features,
            coordinates=store.coordinates,
            grid=store.grid,
            radius=config.data.radius,
            max_points=config.data.max_points,
        )
        if rank() == 0:
            save_modules(run.modules, modules)
            save_model(run.model, model)
        voting = Voting(radius=config.data.radius, max_points=config.data.max_points, **asdict(config.eval))
        results = {
            **evaluate(BasicBranch(net), sources.test_scenes, store.classes, voting),
            "steps": len(stages) * config.optim.epochs * config.optim.steps_per_epoch,
            "parameters": sum(p.numel() for p in net.parameters() if p.requires_grad),
            "train_seconds": sum(line["seconds"]["total"] for line in run.metrics()),
        }
        run.finish(results)
    return results


def training_device(name: str) -> torch.device:
    """The device of a setting, made that of this process. UserError: ranks would share a GPU, or no such device."""
    device = pick_device(name)
    if device.type == "cuda":
        if world() > 1 and name not in ("auto", "cuda"):
            raise UserError(f"device must be auto, cuda or cpu for {world()} processes, got {name}")
        torch.cuda.set_device(device)
    return device


def first_network(config: TrainConfig, store: SceneStore, run: Run) -> TapBackbone:
    """The network that a run begins with; one with a checkpoint does without `config.init`.

    Raises:
        UserError: weights that cannot be read or do not fit, or an engine that is missing.
    """
    options = asdict(getattr(config, config.backbone))
    torch.manual_seed(config.seed)
    net = build_backbone(config.backbone, store.in_channels, len(store.classes), **options)
    if config.init is not None and not run.checkpoint.exists():
        load_pretrained(net, config.init, head=None)
    return net


@dataclass(frozen=True)
class Sources:
    """What a run reads.

    Args:
        store: the scene store.
        test_scenes: the scenes to evaluate on.
        batches: `batches(stage, epoch=0, step=0)` are this rank's batches of a stage, `optim.accumulate` a step, from a
            step of an epoch on to the end of the stage; a pure function of its arguments and of the number of ranks.
    """

    store: SceneStore
    test_scenes: list[Scene]
    batches: Batches


def open_sources(config: TrainConfig) -> Sources:
    """Open what a run reads. UserError: settings and store do not fit together; no stage finds that out later."""
    store = SceneStore.open(config.data.store)
    train_scenes, test_scenes = split(store, config.data)
    if config.backbone == "kpfcnn":
        store.require_grid(config.kpfcnn.grid_size)
    for setting, scenes in (("train_groups", train_scenes), ("test_groups", test_scenes)):
        require_labels(scenes, f"data.{setting} {json.dumps(getattr(config.data, setting))}")
    labels = weak_labels(store, config.data.labelling, train_scenes)
    if not any((array >= 0).any() for array in labels):
        own = (name for name in ("label_mask", "label_points") if getattr(config.data, name) is not None)
        setting = next(own, "label_rate")
        value = getattr(config.data, setting)
        raise UserError(f"data.{setting} {value} leaves no point labelled to train on, expected at least one")
    stages = METHODS[config.method]
    if any(map(takes_pairs, stages)) and config.data.batch_size % 2:
        raise UserError(f"data.batch_size must be even for the pairs of {config.method}, got {config.data.batch_size}")

    accumulate, cuda = config.optim.accumulate, pick_device(config.device).type == "cuda"

    def batches(stage: int, epoch: int = 0, step: int = 0) -> Iterable[Batch]:
        loader = train_loader(
            train_scenes,
            labels,
            config.data,
            config.augment,
            steps=accumulate * config.optim.steps_per_epoch,
            seed=derived_seed(config.seed, stage),
            epochs=range(epoch, config.optim.epochs),
            pairs=takes_pairs(stages[stage]),
            rank=rank(),
            world=world(),
            first_step=accumulate * step,
            pin_memory=cuda,
        )
        return fetched(loader)

    for stage in range(len(stages)):
        batches(stage)  # what a later stage cannot sample from shows now, before anything is written
    return Sources(store, test_scenes, batches)


def train_stages(net: TapBackbone, config: TrainConfig, sources: Sources, run: Run) -> dict[str, dict]:
    """Train `net` in place through the stages of `config.method`, from the run's checkpoint if it has one.

    Args:
        net: the backbone, on the device to train on.
        config: the settings.
        sources: what it is trained on.
        run: where checkpoints and metrics go.

    Returns:
        State dicts of the reallocation modules, each as last trained, by name.
    """
    with together():
        state = run.start() or TrainingState(net=net.state_dict(), world=world())
        load_weights(net, state.net, run.checkpoint)
    if config.compute.sync_batchnorm:
        synchronise(net)
    with catch_stops() as stop, reaching_others():
        while state.stage < len(METHODS[config.method]):
            state = _train_stage(net, config, sources, run, state, stop)
    follow_first_rank(net)
    return state.modules


def _train_stage(
    net: TapBackbone, config: TrainConfig, sources: Sources, run: Run, state: TrainingState, stop: StopRequest
) -> TrainingState:
    """Train the stage that `state` stands in, to its end; returns the start of the next stage.

    Raises:
        Interrupted: a rank was asked to stop; the state is saved.
    """
    optim, name = config.optim, METHODS[config.method][state.stage]
    objective = Objective(net, name, config.loss).train()
    groups, factors = parameter_groups(objective, optim.offset_lr_factor)
    optimizer = torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay)
    if state.optimizer is not None:
        optimizer.load_state_dict(state.optimizer)
        for branch, module in objective.branches.items():
            load_weights(module, state.modules[branch], run.checkpoint)
    stepper = Stepper(objective, optimizer, optim.clip_value, config.compute)
    if state.scaler:
        stepper.scaler.load_state_dict(state.scaler)
    steps = optim.steps_per_epoch
    batches = iter(sources.batches(state.stage, state.epoch, state.step))
    done = state.epoch * steps + state.step
    bar = tqdm(total=optim.epochs * steps, initial=done, desc=name, unit="step", mininterval=1, disable=rank() > 0)
    with bar:
        for epoch in range(state.epoch, optim.epochs):
            rate = optim.lr * optim.lr_decay ** (epoch / optim.epochs)
            for group, factor in zip(optimizer.param_groups, factors, strict=True):
                group["lr"] = factor * rate
            bar.set_description(f"{name} {epoch + 1}/{optim.epochs}")
            progress = Progress(**state.sums)
            # What a forward pass draws differs from step to step and from rank to rank.
            seeds = partial(derived_seed, config.seed, state.stage, epoch, rank())
            left = islice(batches, optim.accumulate * (steps - progress.steps))
            try:
                stopped = train_epoch(stepper, left, optim.accumulate, progress, seeds, stop, bar)
            except FloatingPointError as error:
                raise _diverged(f"{name}, epoch {epoch + 1}: {error}", run) from None
            whole = progress.steps == steps
            if whole:
                place = {"stage": state.stage, "objective": name, "epoch": epoch + 1, "lr": rate}
                run.log({**place, **progress.metrics(sources.store.classes)})
                if rank() == 0:
                    tqdm.write(f"{name} {epoch + 1}/{optim.epochs}: {progress.summary()}", file=sys.stderr)
            state = TrainingState(
                stage=state.stage,
                epoch=epoch + whole,
                net=net.state_dict(),
                modules={**state.modules, **{key: m.state_dict() for key, m in objective.branches.items()}},
                optimizer=optimizer.state_dict(),
                step=0 if whole else progress.steps,
                sums={} if whole else asdict(progress),
                scaler=stepper.scaler.state_dict(),
                world=world(),
            )
            if stopped or (state.epoch % optim.checkpoint_every == 0 and state.epoch < optim.epochs):
                save(run, state)
            if stopped:
                raise Interrupted(stop.signal)
    state = TrainingState(stage=state.stage + 1, net=state.net, modules=state.modules, world=world())
    save(run, state)
    return state


def save(run: Run, state: TrainingState) -> None:
    """Write the checkpoint; no rank goes on before it is there."""
    with together():
        run.save(state)


def _diverged(what: str, run: Run) -> BaseException:
    """What ends a run whose loss is not finite: the same on all ranks, and rank 0 tells it."""
    if rank() > 0:
        return SystemExit(1)
    kept = f"; the last checkpoint in {run.folder} is kept" if run.checkpoint.exists() else ""
    return FloatingPointError(f"{what}{kept}; a lower optim.lr may help")


def parameter_groups(objective: Objective, offset_lr_factor: float) -> tuple[list[dict], list[float]]:
    """The optimiser's parameter groups, and the factor on each one's learning rate.

    The first holds all parameters but those that move kernel points, which are a second one if there are any.
    """
    offsets = objective.net.offset_parameters()
    moving = set(offsets)
    groups = [{"params": [p for p in objective.parameters() if p not in moving]}]
    if not offsets:
        return groups, [1.0]
    return [*groups, {"params": offsets}], [1.0, offset_lr_factor]


def derived_seed(*numbers: int) -> int:
    """A seed that depends on all of `numbers`, none of them negative, and on how many there are."""
    return int(np.random.SeedSequence([len(numbers), *numbers]).generate_state(1)[0])
