"""What all pages have in common: one HTML file that needs nothing else, its style, its policy, its navigation."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape as e
from importlib import resources

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

Section = tuple[str, str, str]
"""(key, title, body); a section without a body is left out."""


def frame(title: str, hero: str, sections: Sequence[Section]) -> str:
    """The page as text; ``title`` and the sections' titles are plain text, ``hero`` and the bodies are HTML."""
    bodies = [(key, e(name), body) for key, name, body in sections if body]
    nav = "".join(f'<a href="#{key}">{name}</a>' for key, name, _ in bodies)
    main = "".join(f'<section id="{key}"><h2>{name}</h2>{body}</section>' for key, name, body in bodies)
    style = resources.files("segdistill.report").joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{e(title)}</title>\n<style>\n{style}</style></head>\n<body>"
        f'<header><a class="brand" href="#top">segdistill</a><nav>{nav}</nav></header>\n'
        f'<main id="top">{hero}\n{main}</main></body></html>\n'
    )


def hero_section(eyebrow: str, answer: str, tiles: str, remarks: Sequence[str]) -> str:
    """The top of a page: plain text, but for the tiles' HTML."""
    notes = "".join(f"<li>{e(line)}</li>" for line in remarks)
    return (
        f'<section class="hero"><p class="eyebrow">{e(eyebrow)}</p><h1>{unbroken(e(answer))}</h1>'
        f"{tiles}{f'<ul class=remarks>{notes}</ul>' if notes else ''}</section>"
    )


def tile(label: str, value: str, unit: str, note: str) -> str:
    """One number with what it is and a note, all HTML."""
    return f'<div class="tile"><h3>{label}</h3><p>{value}<small>{unit}</small></p><div class="note">{note}</div></div>'


def meter(share: float) -> str:
    """A thin bar that is full at 1."""
    return f'<div class="meter"><i style="width:{min(100 * share, 100):.1f}%"></i></div>'


def unbroken(text: str) -> str:
    """``text`` whose numbers keep their units, and names such as ``+ GKD`` their sign, on the same line."""
    for unit in ("mIoU", "%", "M"):
        text = text.replace(f" {unit}", f"&nbsp;{unit}")
    return text.replace("+ ", "+&nbsp;")
