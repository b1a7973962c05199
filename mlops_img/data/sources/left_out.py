"""Count the files in the folder of a data set that are left out, by reason, for the log and the audit."""

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

    LOOSE = "images outside the class folders"
    EXTENSION = "not an image extension"
    BROKEN_LINK = "broken links"
    BESIDE_SPLITS = "folders next to the splits"
    NOT_USED = "data.use_given_test=false"
    HIDDEN = "hidden"
    THUMBNAILS = "thumbnails"
    TRASH = "trash"
    SYSTEM = "files of the operating system"


# Files of other software and deliberate choices. Other reasons may be a mistake of the user and cause a warning.
EXPECTED = frozenset({Reason.NOT_USED, Reason.HIDDEN, Reason.THUMBNAILS, Reason.TRASH, Reason.SYSTEM})

# Folders and files of other software, in lower case. These names are never classes.
CLUTTER = {
    "@eadir": Reason.THUMBNAILS,  # Synology
    ".@__thumb": Reason.THUMBNAILS,  # QNAP
    ".thumbnails": Reason.THUMBNAILS,  # Android, freedesktop.org
    ".thumbs": Reason.THUMBNAILS,
    ".picasaoriginals": Reason.THUMBNAILS,  # Picasa: originals of edited photos
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
    "#snapshot": Reason.SYSTEM,  # Synology: earlier versions of the whole share
    "@recently-snapshot": Reason.SYSTEM,  # QNAP
    "@tmp": Reason.SYSTEM,  # Synology
    "__macosx": Reason.SYSTEM,  # macOS: metadata in zip files
    ".appledouble": Reason.SYSTEM,  # Netatalk: resource forks
    "lost+found": Reason.SYSTEM,  # ext4: files recovered by fsck
    "system volume information": Reason.SYSTEM,  # Windows
    "desktop.ini": Reason.SYSTEM,  # Windows
    "picasa.ini": Reason.SYSTEM,
    ".picasa.ini": Reason.SYSTEM,
    "icon\r": Reason.SYSTEM,  # macOS: icon of a folder
    ".ds_store": Reason.SYSTEM,  # macOS
    ".ipynb_checkpoints": Reason.SYSTEM,  # Jupyter
    "__pycache__": Reason.SYSTEM,  # Python
}


@dataclass(frozen=True)
class LeftOut:
    """Files that were left out for the same reason and have a common name.

    Attributes:
        reason: why the files were left out.
        name: their common name: an extension (".heic"), a file name ("Thumbs.db"), or a folder ("@eaDir/").
        count: number of files. The files in a folder of thumbnails are counted; any other folder counts as one.
        example: the path of one of the files.
    """

    reason: Reason
    name: str
    count: int
    example: str


class LeftOutFiles:
    """A counter of the files that a source leaves out."""

    def __init__(self) -> None:
        self._found: dict[tuple[Reason, str], tuple[int, str]] = {}

    def add(self, reason: Reason, name: str, example: str, count: int = 1) -> None:
        """Add `count` files with this reason and name; the first example is kept."""
        before, first = self._found.get((reason, name), (0, example))
        self._found[reason, name] = before + count, first

    def as_list(self) -> list[LeftOut]:
        """Return the counts in the order of the reasons, the most frequent names first."""
        order = list(Reason)
        found = [LeftOut(reason, name, *counted) for (reason, name), counted in self._found.items()]
        return sorted(found, key=lambda one: (order.index(one.reason), -one.count, one.name))


def clutter(name: str) -> Reason | None:
    """Return the reason to leave out a file or folder because of its name; None if there is none."""
    reason = CLUTTER.get(name.lower())
    if reason is None and name.startswith("."):
        # "._x.jpg" is the resource fork of x.jpg, which macOS writes on file systems of other operating systems.
        return Reason.SYSTEM if name.startswith("._") else Reason.HIDDEN
    return reason


def describe_left_out(left_out: Sequence[LeftOut]) -> list[str]:
    """Return one phrase for each reason: the number of files, their names and an example."""
    phrases = []
    for reason, group in groupby(left_out, key=lambda one: one.reason):
        found = list(group)
        names = [f"{one.name} ({one.count:,})" for one in found[:NAMES_SHOWN]]
        if len(found) > NAMES_SHOWN:
            names.append(f"{len(found) - NAMES_SHOWN} other names")
        phrases.append(f"{reason}: {sum(one.count for one in found):,}: {', '.join(names)}, e.g. {found[0].example}")
    return phrases


def log_left_out(root: str, left_out: Iterable[LeftOut]) -> None:
    """Log what was left out, as a warning if it may be a mistake of the user."""
    files = []
    for one in left_out:
        if one.reason is Reason.BESIDE_SPLITS:
            log.warning("%s: left out %s, which is next to the splits", root, one.name.rstrip("/"))
        else:
            files.append(one)
    if files:
        level = logging.INFO if all(one.reason in EXPECTED for one in files) else logging.WARNING
        total = sum(one.count for one in files)
        log.log(level, "%s: left out %s files: %s", root, f"{total:,}", "; ".join(describe_left_out(files)))
