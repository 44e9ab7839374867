"""Small random networks of the open-vocabulary teacher, saved as real folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from segdistill.config import parse
from segdistill.models.open_vocabulary import OpenVocabularyConfig

WORDS = ("person", "rider", "car", "truck", "bus", "train", "##ing", "motorcycle", "bicycle", "traffic", "light", "red")
SIDE = 64
"""Side of the segmenter's input."""
LOW = 0.02
"""Threshold: random networks are unsure."""


def vocabulary(words: Sequence[str] = WORDS) -> list[str]:
    """Words at the end; the delimiters have BERT's ids, at which the detectors split."""
    places = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}
    return [places.get(number, f"[unused{number}]") for number in range(1030)] + list(words)


def tokenizer(folder: Path, words: Sequence[str] = WORDS) -> Any:
    from transformers import BertTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary(words)) + "\n")
    found = BertTokenizer(str(folder / "vocab.txt"), do_lower_case=True)
    found.save_pretrained(folder)
    return found


def detector(
    folder: Path,
    kind: str = "mm-grounding-dino",
    *,
    text: int = 64,
    queries: int = 20,
    words: Sequence[str] = WORDS,
) -> Path:
    """A Swin with four layers and a text encoder with one."""
    import transformers as t

    swin = t.SwinConfig(
        image_size=64, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
        out_indices=[2, 3, 4], drop_path_rate=0.0,
    )  # fmt: skip
    bert = t.BertConfig(
        vocab_size=len(vocabulary(words)),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    config, network = {
        "mm-grounding-dino": (t.MMGroundingDinoConfig, t.MMGroundingDinoForObjectDetection),
        "grounding-dino": (t.GroundingDinoConfig, t.GroundingDinoForObjectDetection),
    }[kind]
    torch.manual_seed(0)
    built = network(
        config(
            backbone_config=swin, text_config=bert, d_model=32, encoder_layers=1, decoder_layers=2, num_queries=queries,
            encoder_ffn_dim=32, decoder_ffn_dim=32, encoder_attention_heads=4, decoder_attention_heads=4,
            max_text_len=text, dropout=0.0, fusion_droppath=0.0,
        )
    )  # fmt: skip
    built.save_pretrained(folder)
    tokenizer(folder, words)
    t.GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 128}).save_pretrained(folder)
    return folder


def segmenter(folder: Path) -> Path:
    """A Hiera with five blocks; input of 64 x 64."""
    import transformers as t

    hiera = t.Sam2HieraDetConfig(
        hidden_size=8, image_size=[SIDE, SIDE], blocks_per_stage=[1, 1, 2, 1], embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2], window_size_per_stage=[4, 4, 4, 2], global_attention_blocks=[3],
        window_positional_embedding_background_size=[4, 4],
    )  # fmt: skip
    vision = t.Sam2VisionConfig(
        backbone_config=hiera, backbone_channel_list=[64, 32, 16, 8], fpn_hidden_size=32,
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
    )  # fmt: skip
    prompts = t.Sam2PromptEncoderConfig(hidden_size=32, image_size=SIDE, patch_size=16)
    decoder = t.Sam2MaskDecoderConfig(
        hidden_size=32, mlp_dim=32, num_hidden_layers=2, num_attention_heads=2, iou_head_hidden_dim=32
    )
    torch.manual_seed(0)
    config = t.Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    t.Sam2Model(config).save_pretrained(folder)
    t.Sam2ImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


def concepts(folder: Path) -> Path:
    """A SAM 3 with one layer of everything; input of 56 x 56; a tokenizer of letters."""
    import transformers as t

    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(number) for number in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocab = {word: number for number, word in enumerate(words)}
    t.CLIPTokenizer(vocab=vocab, merges=[]).save_pretrained(folder)
    vit = t.Sam3ViTConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=56, window_size=2,
        global_attn_indexes=[0], pretrain_image_size=28,
    )  # fmt: skip
    vision = t.Sam3VisionConfig(
        backbone_config=vit, fpn_hidden_size=32, backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]]
    )
    text = t.CLIPTextConfig(
        vocab_size=len(vocab), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        projection_dim=16, max_position_embeddings=32, bos_token_id=len(vocab) - 2, eos_token_id=len(vocab) - 1,
    )  # fmt: skip
    small = {"hidden_size": 32, "num_attention_heads": 2}
    layers = {**small, "num_layers": 1, "intermediate_size": 16}
    config = t.Sam3Config(
        vision_config=vision,
        text_config=text,
        geometry_encoder_config=t.Sam3GeometryEncoderConfig(**layers),
        detr_encoder_config=t.Sam3DETREncoderConfig(**layers),
        detr_decoder_config=t.Sam3DETRDecoderConfig(**layers, num_queries=7),
        mask_decoder_config=t.Sam3MaskDecoderConfig(**small),
    )
    torch.manual_seed(0)
    t.Sam3Model(config).save_pretrained(folder)
    t.Sam3ImageProcessor(size={"height": 56, "width": 56}).save_pretrained(folder)
    return folder


def networks(folder: Path) -> dict[str, Path]:
    """All of them, by kind."""
    made = {kind: detector(folder / kind, kind) for kind in ("mm-grounding-dino", "grounding-dino")}
    return made | {"segmenter": segmenter(folder / "segmenter"), "concepts": concepts(folder / "concepts")}


def config(folders: dict[str, Path], detector: str = "mm-grounding-dino", **settings: Any) -> OpenVocabularyConfig:
    base = {"detector": str(folders[detector]), "segmenter": str(folders["segmenter"]), "threshold": LOW}
    return parse(OpenVocabularyConfig, base | settings)


def concepts_config(folders: dict[str, Path], **settings: Any) -> OpenVocabularyConfig:
    own = {"detector": "concepts", "segmenter": None, "licence_accepted": "SAM License", "threshold": 0.1}
    return config(folders, **(own | settings))


def images(folder: Path, size: tuple[int, int], count: int = 2) -> torch.Tensor:
    """Images (B, 3, H, W) in [0, 1], read from files."""
    random = np.random.default_rng(0)
    read = []
    for number in range(count):
        path = folder / f"{number}.png"
        Image.fromarray(random.integers(0, 256, (*size, 3)).astype(np.uint8)).save(path)
        with Image.open(path) as picture:
            read.append(torch.tensor(np.asarray(picture)).permute(2, 0, 1) / 255)
    return torch.stack(read)
