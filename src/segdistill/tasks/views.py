"""How reports show a scene, by task. Does not import torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from segdistill.pictures import Colors, Panel, Views, object_views, scene_views

VIEWS: dict[str, Callable[[Sequence[Panel], Colors], list[tuple[Panel, Views]]]] = {
    "semantic": scene_views,
    "instance": object_views,
    "detection": object_views,
}
"""By task: a scene's panels (image, ground truth, predictions) and the class colours -> pictures per panel."""
