"""A promptable segmenter: SAM 2.1 of transformers, from boxes to masks.

Ravi et al., SAM 2: Segment Anything in Images and Videos (arXiv 2408.00714). Legend: B batch, N boxes, h w the grid of
the masks (stride 4 of the segmenter's own input).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from segdistill.models.open_vocabulary_parts import PROCESSOR, PartFolder, load_network, load_processor, quiet

ROLE = "segmenter"
FILES = (PROCESSOR,)


class BoxSegmenter(nn.Module):
    """Images (B, 3, H, W) in [0, 1] and boxes -> one mask per box, with the predicted IoU.

    In evaluation mode, as in SAM's own predictor, an unstable mask is replaced by the best of the network's three
    alternatives; adaptation trains the single mask only.
    """

    def __init__(self, folder: PartFolder) -> None:
        super().__init__()
        self.processor = load_processor(folder, ROLE, "Sam2ImageProcessor")
        self.network: Any = load_network(folder, ROLE)

    @property
    def side(self) -> int:
        """Height and width of the segmenter's input in pixels; the aspect of the image is not kept."""
        return self.network.prompt_encoder.input_image_size

    def embed(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Image embeddings of three levels, fine to coarse, without gradient in the image encoder."""
        found = self.processor(
            images=list(images), do_rescale=False, input_data_format="channels_first", return_tensors="pt",
            size={"height": self.side, "width": self.side},
        )  # fmt: skip
        network = self.network
        levels = network.get_image_features(found["pixel_values"].to(images.device), return_dict=True).fpn_hidden_states
        levels = [*levels[:-1], levels[-1] + network.no_memory_embedding]
        return [
            level.permute(1, 2, 0).reshape(len(images), -1, *size)
            for level, size in zip(levels, network.backbone_feature_sizes, strict=True)
        ]

    def masks(
        self, levels: list[Tensor], row: int, boxes: Float[Tensor, "n 4"]
    ) -> tuple[Float[Tensor, "n _h _w"], Float[Tensor, " n"]]:
        """Mask logits and predicted IoU for boxes (shares of the image's sides, one or more) of image ``row``."""
        output = self.network(
            image_embeddings=[level[row : row + 1] for level in levels],
            input_boxes=(boxes * self.side)[None],
            multimask_output=False,
        )
        return output.pred_masks[0, :, 0], output.iou_scores[0, :, 0]

    def save(self, folder: Path) -> None:
        """Write network and image processor in the form that they were loaded from."""
        with quiet():
            self.network.save_pretrained(folder)
            self.processor.save_pretrained(folder)
