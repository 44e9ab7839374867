"""What a page shows of a scene, by task. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from segdistill.pictures import Colors, Panel, Views, scene_views

VIEWS: dict[str, Callable[[Sequence[Panel], Colors], list[tuple[Panel, Views]]]] = {"semantic": scene_views}
"""A scene's panels (image, ground truth, every prediction) and the classes' colours -> the panels' pictures."""
