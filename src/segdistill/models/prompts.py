"""Text prompts of a detector: phrases between delimiters, and the tokens of each.

A phrase is found again by the positions of its tokens, never by its text: "train" and "training" stay apart. Legend:
T tokens, P phrases, Q boxes of a chunk, C classes, B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from segdistill.config import UserError, nearest, short

Words = Mapping[str, str | Sequence[str]]
"""Class name -> the words that stand for it in the prompt, or several alternatives."""

SEPARATOR = "."


@dataclass(frozen=True)
class Phrase:
    """Words of the prompt that stand for class ``kind``, and their tokens."""

    words: str
    kind: int
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Chunk:
    """A part of the prompt that fits into the text encoder.

    ``ids``: the token ids, with the first and last special token. ``phrases``: numbers of the phrases in it;
    ``spans``: (first, end) token positions of each.
    """

    ids: tuple[int, ...]
    phrases: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]

    def scores(self, logits: Float[Tensor, "b q _t"]) -> Float[Tensor, "b q _p"]:
        """Score of every phrase for every box: the mean probability of its tokens, as in MMDetection."""
        chances = logits.float().sigmoid()
        return torch.stack([chances[..., first:end].mean(dim=-1) for first, end in self.spans], dim=-1)


@dataclass(frozen=True)
class Prompt:
    """All phrases, in as many chunks as the text encoder needs."""

    classes: tuple[str, ...]
    phrases: tuple[Phrase, ...]
    chunks: tuple[Chunk, ...]

    @property
    def text(self) -> str:
        """The phrases, joined as the authors join them."""
        return f" {SEPARATOR} ".join(phrase.words for phrase in self.phrases)

    def phrase_of(self, kind: int) -> int:
        """The first phrase of a class: the one that a class is trained on."""
        return next(number for number, phrase in enumerate(self.phrases) if phrase.kind == kind)

    def best(self, scores: Float[Tensor, "b q p"]) -> tuple[Float[Tensor, "b q _c"], Tensor]:
        """Score of every class, that of its best phrase, and the number of this phrase (B, Q, C)."""
        values, numbers = [], []
        for kind in range(len(self.classes)):
            own = [number for number, phrase in enumerate(self.phrases) if phrase.kind == kind]
            value, place = scores[..., own].max(dim=-1)
            values.append(value)
            numbers.append(torch.tensor(own, device=scores.device)[place])
        return torch.stack(values, dim=-1), torch.stack(numbers, dim=-1)


def build_prompt(classes: Sequence[str], words: Words | None, tokenizer: Any, *, limit: int) -> Prompt:
    """The prompt for ``classes`` with at most ``limit`` tokens per chunk, for a detector that splits at delimiters."""
    splitting = {token: text for text, token in _delimiters(tokenizer).items()}

    def tokens(words: str) -> tuple[int, ...]:
        found = tuple(tokenizer(words, add_special_tokens=False)["input_ids"])
        if inside := [splitting[token] for token in found if token in splitting]:
            raise UserError(f"prompt: '{words}' contains '{inside[0]}', which separates phrases; remove it")
        if all(token == tokenizer.unk_token_id for token in found):
            raise UserError(f"prompt: the detector's tokenizer does not know '{words}'; use other words")
        return found

    phrases = build_phrases(classes, words, tokens, limit=limit - 3)  # a delimiter and two special tokens
    return Prompt(tuple(classes), phrases, _chunks(phrases, tokenizer, limit))


def build_phrases(
    classes: Sequence[str], words: Words | None, tokens: Callable[[str], tuple[int, ...]], *, limit: int
) -> tuple[Phrase, ...]:
    """The phrases for ``classes``, each with at most ``limit`` tokens.

    ``words`` may give other words for some classes; the others stand for themselves.
    """
    words = words or {}
    if not classes:
        raise UserError("prompt: there is no class to look for; name at least one")
    if unknown := [name for name in words if name not in classes]:
        raise UserError(f"prompt: there is no class '{unknown[0]}': {nearest(unknown[0], classes)}"
                        f"allowed: {short(', '.join(classes), 300)}")  # fmt: skip
    phrases: list[Phrase] = []
    seen: dict[tuple[int, ...], Phrase] = {}
    for kind, name in enumerate(classes):
        own = words.get(name, name)
        alternatives = [" ".join(each.lower().split()) for each in ([own] if isinstance(own, str) else own)]
        if not alternatives or not all(alternatives):
            raise UserError(f"prompt: class '{name}' has no words to look for; give some")
        for each in alternatives:
            phrase = Phrase(each, kind, tokens(each))
            if len(phrase.tokens) > limit:
                raise UserError(f"prompt: '{short(each)}' has {len(phrase.tokens)} tokens; the detector reads {limit}: "
                                "use fewer words")  # fmt: skip
            if (other := seen.setdefault(phrase.tokens, phrase)) is not phrase:
                names = " and ".join(f"'{classes[one.kind]}'" for one in (other, phrase))
                raise UserError(f"prompt: '{each}' appears twice, for {names}; use other words for one of them")
            phrases.append(phrase)
    return tuple(phrases)


def _delimiters(tokenizer: Any) -> dict[str, int]:
    """Tokens at which these detectors split the text."""
    texts = (tokenizer.cls_token, tokenizer.sep_token, SEPARATOR, "?")
    return dict(zip(texts, tokenizer.convert_tokens_to_ids(list(texts)), strict=True))


def check_delimiters(tokenizer: Any, expected: Sequence[int]) -> None:
    """The detector splits at fixed token ids: a tokenizer with others would merge all phrases into one."""
    found = list(_delimiters(tokenizer).values())
    if sorted(found) != sorted(expected):
        raise UserError(f"the tokenizer has the ids {found} for its delimiters and the detector splits at "
                        f"{sorted(expected)}: use the tokenizer that belongs to the detector")  # fmt: skip


def _chunks(phrases: Sequence[Phrase], tokenizer: Any, limit: int) -> tuple[Chunk, ...]:
    """As few chunks as in order of the phrases; a delimiter follows every phrase."""
    delimiter = tokenizer.convert_tokens_to_ids(SEPARATOR)
    groups: list[list[int]] = [[]]
    length = 2
    for number, phrase in enumerate(phrases):
        own = len(phrase.tokens) + 1
        if length + own > limit:
            groups.append([])
            length = 2
        groups[-1].append(number)
        length += own
    chunks = []
    for group in groups:
        ids, spans = [tokenizer.cls_token_id], []
        for number in group:
            spans.append((len(ids), len(ids) + len(phrases[number].tokens)))
            ids += [*phrases[number].tokens, delimiter]
        chunks.append(Chunk((*ids, tokenizer.sep_token_id), tuple(group), tuple(spans)))
    return tuple(chunks)
