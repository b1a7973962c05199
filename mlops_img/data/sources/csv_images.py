"""Find the image files that a table names."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from itertools import product

COMMON_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG", ".webp", ".bmp", ".tif", ".tiff", ".gif")
SEARCHED_FOLDERS = 100


@dataclass(frozen=True)
class ImageFiles:
    """The image files of a table.

    Each folder is listed once instead of checking each file. This takes half the time on a local disk, and a single
    request instead of thousands on a network file system.

    Attributes:
        root: the folder that names are relative to.
        prefix, suffix: text to add before and after each name.
    """

    root: str
    prefix: str = ""
    suffix: str = ""
    _listings: dict[str, set[str]] = field(default_factory=dict, repr=False)

    def find(self, name: str) -> str | None:
        """Return the path of the file of this name, or None if there is none.

        If no file has the exact name, the name is also tried without surrounding blanks and with backslashes as folder
        separators.
        """
        path = self._path(f"{self.prefix}{name}{self.suffix}")
        if self._exists(path):
            return path
        stripped = f"{self.prefix}{name.strip()}{self.suffix}"
        others = (self._path(spelling) for spelling in (stripped, stripped.replace("\\", "/")))
        return next((other for other in others if other != path and self._exists(other)), None)

    def why_missing(self, name: str) -> tuple[str, str]:
        """Return why `find` finds no file of this name, and how to fix it."""
        path = self._path(f"{self.prefix}{name}{self.suffix}")
        try:
            os.stat(path)
        except FileNotFoundError:
            reason = "does not exist"
        except (OSError, ValueError) as error:
            return (
                f"{path} cannot be read: {getattr(error, 'strerror', error)}",
                "Fix the line or the permissions of the file",
            )
        else:
            reason = "is a folder, not a file"
        fix = self._other_case(name) or self._other_settings(name)
        return f"{path} {reason}", fix or "Fix or delete the line, or set data.file_prefix and data.file_suffix"

    def _other_case(self, name: str) -> str | None:
        folder, file = os.path.split(self._path(f"{self.prefix}{name.strip()}{self.suffix}".replace("\\", "/")))
        similar = next((other for other in sorted(self._listing(folder)) if other.lower() == file.lower()), None)
        return similar and f"There is {os.path.join(folder, similar)}, which differs in letter case"

    def _other_settings(self, name: str) -> str | None:
        """Search for the file with common suffixes and in the folders of `root`."""
        with os.scandir(self.root) as entries:
            folders = sorted(f"{entry.name}/" for entry in entries if entry.is_dir())[:SEARCHED_FOLDERS]
        prefixes = dict.fromkeys((self.prefix, "", *folders))
        suffixes = dict.fromkeys((self.suffix, "", *COMMON_SUFFIXES))
        for prefix, suffix in product(prefixes, suffixes):
            if os.path.isfile(self._path(f"{prefix}{name.strip()}{suffix}".replace("\\", "/"))):
                given = (("data.file_prefix", prefix, self.prefix), ("data.file_suffix", suffix, self.suffix))
                changes = " ".join(f"{key}={value}" for key, value, now in given if value != now)
                return f"It would be found with {changes}"
        return None

    def _path(self, name: str) -> str:
        path = os.path.join(self.root, name)
        # "link/../x" is not "x" if link is a symbolic link.
        return path if ".." in path else os.path.normpath(path)

    def _exists(self, path: str) -> bool:
        folder, name = os.path.split(path)
        # Check files that are not listed: some file systems ignore letter case, and some folders cannot be listed.
        return name in self._listing(folder) or os.path.isfile(path)

    def _listing(self, folder: str) -> set[str]:
        """Return the names of the files in a folder; an empty set if it cannot be listed."""
        if folder not in self._listings:
            try:
                with os.scandir(folder) as entries:
                    self._listings[folder] = {entry.name for entry in entries if entry.is_file()}
            except (OSError, ValueError):
                self._listings[folder] = set()
        return self._listings[folder]
