"""Training stages: each reads networks from disk, trains, and writes its result to its folder. A table of all kinds."""

from segdistill.stages.base import StageConfig, StageContext, StageResult
from segdistill.stages.distill import DistillConfig
from segdistill.stages.inherit import InheritConfig
from segdistill.stages.open_vocabulary import OpenVocabularyStageConfig
from segdistill.stages.pseudo_label import PseudoLabelConfig
from segdistill.stages.semi import SemiConfig
from segdistill.stages.task import TaskConfig

STAGES: dict[str, type[StageConfig]] = {
    "distill": DistillConfig,
    "task": TaskConfig,
    "inherit": InheritConfig,
    "semi": SemiConfig,
    "pseudo_label": PseudoLabelConfig,
    "open_vocabulary": OpenVocabularyStageConfig,
}

__all__ = ["STAGES", "StageConfig", "StageContext", "StageResult"]
