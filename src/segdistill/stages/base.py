"""The interface of a stage: its settings, its inputs, and its result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field
from torch import Tensor, nn

from segdistill.config import SLUG, Absent, Config, Part, UserError, part_of
from segdistill.data.dataset import DataSelection, Dataset, DataSource, Progress
from segdistill.encoders import Encoder, EncoderConfig, build_encoder
from segdistill.files import write_bytes
from segdistill.heads import HEADS, Head
from segdistill.ops import derive_seed
from segdistill.stages.fitting import check_method, needs_of
from segdistill.train.blocks import shard
from segdistill.train.loop import Log, LoopSettings, Objective, train
from segdistill.train.optim import CosineConfig, PolyConfig, build_optimizer, parameter_groups

if TYPE_CHECKING:  # importing lightning takes seconds
    from lightning.fabric import Fabric

CHECKPOINT = "checkpoint"
"""Folder of a stage that is not finished, inside its folder."""


class ModelConfig(Config):
    """One network: an encoder with its weights, and (for tasks) a head."""

    encoder: EncoderConfig
    title: str = ""
    head: part_of("head", HEADS) | None = None  # type: ignore[valid-type]

    @property
    def head_weights(self) -> str | None:
        """The file that the head starts from; None: no head, or a fresh one."""
        settings: Any = None if self.head is None else self.head.settings  # a HeadConfig
        return settings and settings.weights

    def filled(self, *, encoder: Path | None = None, head: Path | None = None) -> ModelConfig:
        """The same network with weights from the given files."""
        changes: dict[str, Any] = {}
        if encoder is not None:
            changes["encoder"] = self.encoder.model_copy(update={"weights": str(encoder)})
        if head is not None:
            assert self.head is not None, "a head file needs a head"
            changes["head"] = _with_weights(self.head, str(head))
        return self.model_copy(update=changes)

    def bare(self) -> ModelConfig:
        """The same network with random weights."""
        encoder = self.encoder.model_copy(update={"weights": "random"})
        head = None if self.head is None else _with_weights(self.head, None)
        return self.model_copy(update={"encoder": encoder, "head": head})


def _with_weights(head: Part, weights: str | None) -> Part:
    return head.model_copy(update={"settings": head.settings.model_copy(update={"weights": weights})})


class StageConfig(Config):
    """Settings that all stages share."""

    name: str = Field(pattern=SLUG, max_length=64, description="lower-case name, unique in the recipe")
    data: DataSelection
    steps: int = Field(ge=1, le=10**8)
    batch: int = Field(16, ge=1, le=2**16, description="images per step, all processes together")
    accumulate: int = Field(
        1, ge=1, le=2**16, description="micro-batches per step, one after the other: less memory, the same batch"
    )
    seed: int | None = Field(
        None,
        ge=0,
        lt=2**63,
        description="None: the recipe's seed; a number: runs with any seed share this stage (a long proxy stage)",
    )

    hands_over: tuple[Literal["encoder", "head"], ...] | None = Field(
        None, description="parts that later stages of this network start from; None: the encoder, if it is trained here"
    )

    # The interface of a kind of stage; everything else about it is internal.

    method: Absent = Field(None, exclude=True)  # the part of METHODS that compares student and teacher, if any
    cache: Absent = Field(None, exclude=True)  # the settings of a cache of the teacher's tokens, if any

    @property
    def caches(self) -> tuple[tuple[DataSelection, Any, bool], ...]:
        """Its caches of the teacher's tokens: the images, the settings, and whether labels are kept."""
        return () if self.cache is None else ((self.data, self.cache, False),)

    @property
    def kind(self) -> str:
        """Its type, the key in the table of stages."""
        return str(getattr(self, "type", ""))

    @property
    def roles(self) -> tuple[str, ...]:
        """The recipe's networks that it reads, none if it has networks of its own; the first is what it trains."""
        return ("student",) if self.method is None else ("student", "teacher")

    @property
    def first(self) -> str | None:
        """The network whose parts it trains and hands over; None: none of the recipe's."""
        return next(iter(self.roles), None)

    @property
    def learner(self) -> str | None:
        """The network whose head this stage trains; None: no head."""
        return None

    @property
    def trains(self) -> tuple[str, ...]:
        """The parts of its first network that it trains and saves in its folder: encoder, head."""
        return ("encoder",)

    @property
    def gives(self) -> tuple[str, ...]:
        """The parts that later stages of its first network start from."""
        return tuple(part for part in self.trains if part == "encoder") if self.hands_over is None else self.hands_over

    @property
    def predicts(self) -> str | None:
        """The network whose predictions it reads or writes, as trained by the last stage before; None: none."""
        return None

    @property
    def needs_gpu(self) -> bool:
        """Whether it cannot run on a CPU."""
        return False

    @property
    def gives_labels(self) -> bool:
        """Whether it writes pseudo-labels."""
        return False

    @property
    def earlier(self) -> tuple[str, ...]:
        """The names of the earlier stages whose files it reads."""
        return ()

    def earlier_faults(self, stages: Mapping[str, StageConfig]) -> list[str]:
        """One line for each of the ``earlier`` stages, by name, that does not give what this one reads."""
        return []

    def pseudo_labelled(self) -> tuple[tuple[DataSelection, str], ...]:
        """Images that it learns from pseudo-labels, and the name of the stage that writes these."""
        return ()

    def own_digests(self) -> dict[str, str]:
        """Name -> SHA-256 of weights that are its own, not the recipe's; a :class:`UserError` if some are missing."""
        return {}

    def own_licences(self) -> dict[str, str]:
        """Name -> licence of weights that are its own; opens none of them."""
        return {}

    def passes(self, classes: Sequence[str], size: tuple[int, int]) -> list[Pass]:
        """What networks of its own compute on images of ``size`` (h, w), to estimate its cost."""
        del classes, size
        return []

    @property
    def measured(self) -> int:
        """Images that its last network runs on once, if it trains nothing and only reads that network."""
        return 0

    @property
    def reads_logits(self) -> bool:
        """Whether its method compares class scores, which needs the teacher's head."""
        return self.method is not None and needs_of(self.method).logits

    @property
    def batches(self) -> tuple[int, ...]:
        """Images per step of each kind that it reads, all processes together."""
        return (self.batch,)

    @property
    def images_per_step(self) -> int:
        """Images per step of all kinds, all processes together."""
        return sum(self.batches)

    @property
    def learned_per_step(self) -> int:
        """Images per step that its head learns from, all processes together."""
        return self.batch

    @property
    def compares_start(self) -> bool:
        """Whether a frozen copy of its first network's encoder runs on its labelled images."""
        return False

    def reads(self) -> tuple[tuple[str, DataSelection, bool], ...]:
        """Everything that it reads: a name for messages, the images, and whether they need labels."""
        return (("", self.data, False),)

    def crop(self, default: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of its crops; ``default`` is the data's size."""
        return default

    def fit(self, encoder: EncoderConfig, *, teacher: bool = False) -> EncoderConfig:
        """The encoder's settings, adapted to this stage."""
        del teacher
        return encoder

    def faults(self) -> list[str]:
        """One line for each combination of its settings that cannot work."""
        lines = [
            f"hands_over: the {part} is not trained here; allowed: {', '.join(self.trains)}"
            for part in self.hands_over or ()
            if part not in self.trains
        ]
        uneven = [batch for batch in self.batches if batch % self.accumulate]
        lines += [f"accumulate {self.accumulate} does not divide the batch {each}; choose a divisor" for each in uneven]
        return lines

    def misfits(self, models: Mapping[str, ModelConfig], classes: Sequence[str]) -> None:
        """Raise a :class:`UserError` for settings that do not fit its networks, by role, or the classes."""
        del classes
        if self.method is not None:
            student, teacher = (
                self.fit(models[role].encoder, teacher=role == "teacher") for role in ("student", "teacher")
            )
            check_method(self.method, student, teacher)

    def run(self, context: StageContext) -> StageResult:
        """Train, and save the result in the stage's folder."""
        raise NotImplementedError


@dataclass(frozen=True)
class Pass:
    """A forward pass of one image: ``images`` of them per step in ``steps`` steps (None: once per image of the data).

    Of its ``parameters``, ``trained`` are updated by a backward pass, and ``written`` are saved.
    """

    call: Callable[[], object]
    parameters: int
    trained: int = 0
    written: int = 0
    images: int = 1
    steps: int | None = None


@dataclass(frozen=True)
class StageContext:
    """The inputs of a stage.

    ``handed`` and ``start_head``: the encoder files handed over by earlier stages, by role, and the head file handed
    over to the network that learns here. ``teacher_head``: the head file of the teacher's last earlier task stage, for
    methods that read its logits. None: the files that the recipe names, if any. ``finished``: the network that the
    stage ``predicts`` with. ``earlier``: the folders of the earlier stages, by name.
    """

    fabric: Fabric
    source: DataSource
    seed: int
    folder: Path
    label: str  # such as "01-domain_agnostic": name of the folder and in the log
    fingerprint: str  # of everything that the stage's result depends on
    student: ModelConfig | None
    teacher: ModelConfig | None
    handed: Mapping[str, Path]
    start_head: Path | None
    teacher_head: Path | None
    finished: ModelConfig | None
    earlier: Mapping[str, Path]
    log: Log
    progress: Progress
    log_every: int
    checkpoint_every: int
    workers: int
    classes: Callable[[], tuple[str, ...]]  # those that a head predicts
    compiles: bool = False  # the blocks of encoders
    shards: bool = False  # frozen teachers, over the processes

    @property
    def share(self) -> dict[str, Any]:
        """This process's share of the batches, for :class:`segdistill.data.loader.StepBatches`."""
        return {"rank": self.fabric.global_rank, "world_size": self.fabric.world_size}

    def train(
        self,
        config: StageConfig,
        optimizer: CosineConfig | PolyConfig,
        objective: Objective,
        modules: Sequence[tuple[nn.Module, float]],
        batches: Callable[[Sequence[int]], Iterator[dict[str, Tensor]]],
    ) -> float:
        """Run the loop for this stage on (module, learning-rate scale) pairs; returns the seconds it took."""
        groups = parameter_groups(modules, optimizer.weight_decay, optimizer.spared)
        rate, algorithm = optimizer.schedule(config.batch), partial(build_optimizer, optimizer.algorithm)
        return train(
            self.fabric,
            objective,
            groups,
            batches,
            schedule=rate,
            optimizer=algorithm,
            settings=self.loop(config, steps=config.steps, clip=optimizer.clip),
            folder=self.folder / CHECKPOINT,
            log=self.log,
        )

    def loop(self, config: StageConfig, *, steps: int, clip: float | None, part: str = "") -> LoopSettings:
        """How the loop runs; ``part``: of a stage that trains several networks one after the other."""
        return LoopSettings(
            stage=f"{self.label}-{part}" if part else self.label,
            steps=steps,
            seed=(self.seed, config.name, part) if part else (self.seed, config.name),
            fingerprint=self.fingerprint,
            clip=clip,
            log_every=self.log_every,
            checkpoint_every=self.checkpoint_every,
            accumulate=config.accumulate,
            compiles=self.compiles,
        )

    def open(self, selection: DataSelection, listing: str = "images.txt") -> Dataset:
        """The images that ``selection`` names; the first process prepares them while the others wait.

        The file ``listing`` in the stage's folder lists the images, one ``domain/name`` per line.
        """
        if self.fabric.is_global_zero:
            dataset = self.source.open(selection, self.progress)
            text = "".join(f"{name}\n" for name in dataset.listing())
            write_bytes(self.folder / listing, text.encode())
        self.fabric.barrier()
        return self.source.open(selection)

    def build_student(self, fit: Callable[[EncoderConfig], EncoderConfig] | None = None) -> Encoder:
        """The student's encoder; see :meth:`build`."""
        return self.build("student", fit)

    def build_teacher(self, fit: Callable[[EncoderConfig], EncoderConfig] | None = None) -> Encoder:
        """The teacher's encoder, frozen: evaluation mode, no gradients."""
        return self.build("teacher", fit).eval().requires_grad_(False)

    def shard(self, network: Encoder) -> None:
        """Shard a frozen network over the processes, if the recipe says so."""
        if self.shards:
            shard(network, self.fabric.device)

    def build(self, role: str, fit: Callable[[EncoderConfig], EncoderConfig] | None = None) -> Encoder:
        """A network's encoder with the weights that the last stage handed over, or its start weights.

        ``fit`` adapts its settings to this stage, for example to another size or patch.
        """
        config = need(getattr(self, role), role, self.label).encoder
        config = fit(config) if fit else config
        if role in self.handed:
            config = config.model_copy(update={"weights": str(self.handed[role])})
        return build_encoder(config, seed=derive_seed(self.seed, role))


@dataclass
class StageResult:
    """Entries for the stage's manifest; the files are already in its folder."""

    seconds: float
    parameters: dict[str, int] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    weights: dict[str, str] = field(default_factory=dict)  # role -> its start weights and how they were loaded
    facts: dict[str, Any] = field(default_factory=dict)  # what it measured, for the results
    folders: tuple[str, ...] = ()  # inside its folder, with files that are results too


def need(model: ModelConfig | None, role: str, stage: str) -> ModelConfig:
    """``model``, or a :class:`UserError` if the recipe has none."""
    if model is None:
        raise UserError(f"stage {stage} needs a {role}, but the recipe has none; add '{role}: {{encoder: ...}}'")
    return model


def need_head(model: ModelConfig, role: str, stage: str) -> Part:
    """The model's head, or a :class:`UserError` if it has none."""
    if model.head is None:
        raise UserError(f"stage {stage} needs a head for the {role}; add 'head: {{type: semfpn}}' to it")
    return model.head


def weights_read(**networks: Encoder | Head | None) -> dict[str, str]:
    """One line for each network loaded from a file, which accounts for every key."""
    return {
        name: network.loaded.summary()
        for name, network in networks.items()
        if network is not None and network.loaded is not None
    }


def count(module: Any) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())
