"""What every stage is given, and what it leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lightning.fabric import Fabric
from pydantic import Field
from torch import Tensor, nn

from segdistill.config import SLUG, Config, Part, UserError, part_of
from segdistill.data.dataset import DataSelection, Dataset, DataSource, Progress
from segdistill.encoders import Encoder, EncoderConfig, build_encoder
from segdistill.files import write_atomic
from segdistill.heads import HEADS, Head
from segdistill.methods import METHODS
from segdistill.ops import derive_seed
from segdistill.train.loop import Log, LoopSettings, Objective, train
from segdistill.train.optim import CosineConfig, PolyConfig, build_optimizer, parameter_groups
from segdistill.types import Needs


class ModelConfig(Config):
    """One network: an encoder, where its weights come from, and (for tasks) a head."""

    encoder: EncoderConfig
    title: str = ""
    head: part_of("head", HEADS) | None = None  # type: ignore[valid-type]

    @property
    def head_weights(self) -> str | None:
        """The file that the head starts with; None: there is no head, or it starts fresh."""
        settings: Any = None if self.head is None else self.head.settings  # a HeadConfig
        return settings and settings.weights

    def filled(self, *, encoder: Path | None = None, head: Path | None = None) -> ModelConfig:
        """The same network with the weights in these files, where one is named."""
        changes: dict[str, Any] = {}
        if encoder is not None:
            changes["encoder"] = self.encoder.model_copy(update={"weights": str(encoder)})
        if head is not None:
            assert self.head is not None, "it is its head's file"
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
    """What all stages have."""

    name: str = Field(pattern=SLUG, max_length=64, description="lower-case name, unique in the recipe")
    data: DataSelection
    steps: int = Field(ge=1, le=10**8)
    batch: int = Field(16, ge=1, le=2**16, description="images per step over all processes")
    seed: int | None = Field(
        None,
        ge=0,
        lt=2**63,
        description="None: the recipe's; a number: runs of all seeds share this stage (a long proxy stage)",
    )

    hands_over: tuple[Literal["encoder", "head"], ...] | None = Field(
        None, description="what later stages of this network start with; None: the encoder, where it is trained here"
    )

    # What a kind of stage says of itself; everything else about it is its own.

    method: Any = None  # the part of METHODS that compares student and teacher, where the stage has one
    cache: Any = None  # the settings of a cache of the teacher's tokens, where the stage has one

    @property
    def kind(self) -> str:
        """Its type: the name in the table of stages."""
        return str(getattr(self, "type", ""))

    @property
    def roles(self) -> tuple[str, ...]:
        """The networks that it reads, the one that it trains first."""
        return ("student",) if self.method is None else ("student", "teacher")

    @property
    def learner(self) -> str | None:
        """The network whose head learns the task here; None: no head does."""
        return None

    @property
    def trains(self) -> tuple[str, ...]:
        """The parts of its first network that it trains and leaves in its folder: encoder, head."""
        return ("encoder",)

    @property
    def gives(self) -> tuple[str, ...]:
        """The parts that later stages of its first network start with."""
        return tuple(part for part in self.trains if part == "encoder") if self.hands_over is None else self.hands_over

    @property
    def reads_logits(self) -> bool:
        """Whether its method compares class scores, and so needs the teacher's head."""
        return self.method is not None and needs_of(self.method).logits

    @property
    def images_per_step(self) -> int:
        """Over all processes."""
        return self.batch

    def reads(self) -> tuple[tuple[str, DataSelection, bool], ...]:
        """Everything that it reads: a name for messages, the images, and whether they must have labels."""
        return (("", self.data, False),)

    def crop(self, default: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of its crops where the data's are ``default``."""
        return default

    def fit(self, encoder: EncoderConfig, *, teacher: bool = False) -> EncoderConfig:
        """The encoder's settings in this stage."""
        del teacher
        return encoder

    def faults(self) -> list[str]:
        """One line for each pair of its settings that cannot work together."""
        return [
            f"hands_over: the {part} is not trained here; allowed: {', '.join(self.trains)}"
            for part in self.hands_over or ()
            if part not in self.trains
        ]

    def run(self, context: StageContext) -> StageResult:
        """Train, and leave what was made in the stage's folder."""
        raise NotImplementedError


def needs_of(part: Part) -> Needs:
    """What the method of ``part`` wants to be given with its settings."""
    method: Any = METHODS[part.type]
    return method.needs_for(part.settings)


@dataclass(frozen=True)
class StageContext:
    """What a stage is given.

    ``student_weights``: the encoder file that an earlier stage handed over, if any; ``start_head``: the head file that
    one handed over to the network that learns here. ``teacher_head``: the head file of the last earlier task stage of
    the teacher, if any; for methods that read its logits. None: the recipe's own.
    """

    fabric: Fabric
    source: DataSource
    seed: int
    folder: Path
    label: str  # "01-domain_agnostic": the folder's name and the name in the log
    fingerprint: str  # of everything that the stage's outcome depends on
    student: ModelConfig | None
    teacher: ModelConfig | None
    student_weights: Path | None
    start_head: Path | None
    teacher_head: Path | None
    log: Log
    progress: Progress
    log_every: int
    checkpoint_every: int
    workers: int

    def train(
        self,
        config: StageConfig,
        optimizer: CosineConfig | PolyConfig,
        objective: Objective,
        modules: Sequence[tuple[nn.Module, float]],
        batches: Callable[[Sequence[int]], Iterator[dict[str, Tensor]]],
    ) -> float:
        """Run the loop for this stage on (module, learning-rate scale) pairs; returns the seconds it took."""
        return train(
            self.fabric,
            objective,
            parameter_groups(modules, optimizer.weight_decay, optimizer.spared),
            batches,
            schedule=optimizer.schedule(config.batch),
            optimizer=partial(build_optimizer, optimizer.algorithm),
            settings=LoopSettings(
                stage=self.label,
                steps=config.steps,
                seed=(self.seed, config.name),
                fingerprint=self.fingerprint,
                clip=optimizer.clip,
                log_every=self.log_every,
                checkpoint_every=self.checkpoint_every,
            ),
            folder=self.folder / "checkpoint",
            log=self.log,
        )

    def open(self, selection: DataSelection, listing: str = "images.txt") -> Dataset:
        """The images that ``selection`` names; the first process prepares them, the others wait.

        What is read stands in the stage's folder in the file ``listing``, one ``domain/name`` per line.
        """
        if self.fabric.is_global_zero:
            dataset = self.source.open(selection, self.progress)
            text = "".join(f"{name}\n" for name in dataset.listing())
            write_atomic(self.folder / listing, lambda file: file.write(text.encode()))
        self.fabric.barrier()
        return self.source.open(selection)

    def build_student(self, fit: Callable[[EncoderConfig], EncoderConfig] | None = None) -> Encoder:
        """The student's encoder with the weights of the last stage, or with its first ones.

        ``fit`` changes its settings for this stage alone: another size or patch.
        """
        config = need(self.student, "student", self.label).encoder
        config = fit(config) if fit else config
        if self.student_weights is not None:
            config = config.model_copy(update={"weights": str(self.student_weights)})
        return build_encoder(config, seed=derive_seed(self.seed, "student"))

    def build_teacher(self, fit: Callable[[EncoderConfig], EncoderConfig] | None = None) -> Encoder:
        """The frozen teacher's encoder: evaluation mode, no gradients."""
        config = need(self.teacher, "teacher", self.label).encoder
        encoder = build_encoder(fit(config) if fit else config, seed=derive_seed(self.seed, "teacher"))
        return encoder.eval().requires_grad_(False)


@dataclass
class StageResult:
    """What goes into the stage's manifest; the files are already in its folder."""

    seconds: float
    parameters: dict[str, int] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    weights: dict[str, str] = field(default_factory=dict)  # role -> what its start weights were and what became of them


def need(model: ModelConfig | None, role: str, stage: str) -> ModelConfig:
    """``model``, or one line that says that the recipe lacks it."""
    if model is None:
        raise UserError(f"stage {stage} needs a {role}, and the recipe has none; add '{role}: {{encoder: ...}}'")
    return model


def need_head(model: ModelConfig, role: str, stage: str) -> Part:
    """The model's head, or one line that says that the recipe lacks it."""
    if model.head is None:
        raise UserError(f"stage {stage} needs a head for the {role}; add 'head: {{type: semfpn}}' to it")
    return model.head


def weights_read(**networks: Encoder | Head | None) -> dict[str, str]:
    """One line for each network that was read from a file: every key accounted for."""
    return {
        name: network.loaded.summary()
        for name, network in networks.items()
        if network is not None and network.loaded is not None
    }


def count(module: Any) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())
