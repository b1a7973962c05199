"""Files below a data set's folder that are left out, by reason: counted by the sources, reported by log and audit."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby

NAMES_SHOWN = 5

log = logging.getLogger(__name__)


class Reason(StrEnum):
    """Why a file is left out."""

    LOOSE = "images beside the class folders"
    EXTENSION = "the extension is not an image's"
    BROKEN_LINK = "links that lead nowhere"
    BESIDE_SPLITS = "folders beside the splits"
    NOT_USED = "data.use_given_test=false"
    HIDDEN = "hidden"
    THUMBNAILS = "thumbnails"
    TRASH = "trash"
    SYSTEM = "files of the operating system"


# What software leaves behind, and nobody's images. The rest may be a mistake, and is worth a warning.
EXPECTED = frozenset({Reason.NOT_USED, Reason.HIDDEN, Reason.THUMBNAILS, Reason.TRASH, Reason.SYSTEM})

# Folders and files of other software, in lower case. A name in here is never a class.
CLUTTER = {
    "@eadir": Reason.THUMBNAILS,  # Synology
    ".@__thumb": Reason.THUMBNAILS,  # QNAP
    ".thumbnails": Reason.THUMBNAILS,  # Android, freedesktop.org
    ".thumbs": Reason.THUMBNAILS,
    ".picasaoriginals": Reason.THUMBNAILS,  # Picasa: each edited photo as it was before
    "thumbs.db": Reason.THUMBNAILS,  # Windows
    "ehthumbs.db": Reason.THUMBNAILS,  # Windows Media Center
    "ehthumbs_vista.db": Reason.THUMBNAILS,
    "#recycle": Reason.TRASH,  # Synology
    "@recycle": Reason.TRASH,  # QNAP
    "$recycle.bin": Reason.TRASH,  # Windows
    "recycler": Reason.TRASH,  # Windows XP
    ".trash": Reason.TRASH,
    ".trashes": Reason.TRASH,  # macOS
    ".dtrash": Reason.TRASH,  # digiKam
    "network trash folder": Reason.TRASH,  # Netatalk
    "#snapshot": Reason.SYSTEM,  # Synology: the whole share as it was before
    "@recently-snapshot": Reason.SYSTEM,  # QNAP
    "@tmp": Reason.SYSTEM,  # Synology
    "__macosx": Reason.SYSTEM,  # macOS: what its zip files carry besides the files
    ".appledouble": Reason.SYSTEM,  # Netatalk: resource forks
    "lost+found": Reason.SYSTEM,  # ext4: what fsck found
    "system volume information": Reason.SYSTEM,  # Windows
    "desktop.ini": Reason.SYSTEM,  # Windows
    "picasa.ini": Reason.SYSTEM,
    ".picasa.ini": Reason.SYSTEM,
    "icon\r": Reason.SYSTEM,  # macOS: a folder's icon
    ".ds_store": Reason.SYSTEM,  # macOS
    ".ipynb_checkpoints": Reason.SYSTEM,  # Jupyter
    "__pycache__": Reason.SYSTEM,  # Python
}


@dataclass(frozen=True)
class LeftOut:
    """What was left out for one reason under one name.

    Attributes:
        reason: why.
        name: what they have in common: an extension (".heic"), a file ("Thumbs.db"), or a folder ("@eaDir/").
        count: files. A folder counts its files if it holds thumbnails, and is not looked into and counts as
            one otherwise.
        example: the path of one of them.
    """

    reason: Reason
    name: str
    count: int
    example: str


class LeftOutFiles:
    """Counts what a source leaves out."""

    def __init__(self) -> None:
        self._found: dict[tuple[Reason, str], tuple[int, str]] = {}

    def add(self, reason: Reason, name: str, example: str, count: int = 1) -> None:
        """Count `count` more under this reason and name; the first example is kept."""
        before, first = self._found.get((reason, name), (0, example))
        self._found[reason, name] = before + count, first

    def as_list(self) -> list[LeftOut]:
        """Return what was counted, in the order of the reasons, the most frequent names first."""
        order = list(Reason)
        found = [LeftOut(reason, name, *counted) for (reason, name), counted in self._found.items()]
        return sorted(found, key=lambda one: (order.index(one.reason), -one.count, one.name))


def clutter(name: str) -> Reason | None:
    """Return why a file or folder of this name is none of the user's images, or None."""
    reason = CLUTTER.get(name.lower())
    if reason is None and name.startswith("."):
        # "._x.jpg" is the resource fork that macOS keeps beside x.jpg on other systems' disks.
        return Reason.SYSTEM if name.startswith("._") else Reason.HIDDEN
    return reason


def describe_left_out(left_out: Sequence[LeftOut]) -> list[str]:
    """Return one phrase for each reason: how many, under which names, and an example."""
    phrases = []
    for reason, group in groupby(left_out, key=lambda one: one.reason):
        found = list(group)
        names = [f"{one.name} ({one.count:,})" for one in found[:NAMES_SHOWN]]
        if len(found) > NAMES_SHOWN:
            names.append(f"{len(found) - NAMES_SHOWN} other names")
        phrases.append(f"{reason}: {sum(one.count for one in found):,}: {', '.join(names)}, e.g. {found[0].example}")
    return phrases


def log_left_out(root: str, left_out: Iterable[LeftOut]) -> None:
    """Say what was left out: a warning if it may be a mistake, else for information."""
    files = []
    for one in left_out:
        if one.reason is Reason.BESIDE_SPLITS:
            log.warning("%s: left out %s, which lies beside the splits", root, one.name.rstrip("/"))
        else:
            files.append(one)
    if files:
        level = logging.INFO if all(one.reason in EXPECTED for one in files) else logging.WARNING
        total = sum(one.count for one in files)
        log.log(level, "%s: left out %s files: %s", root, f"{total:,}", "; ".join(describe_left_out(files)))
