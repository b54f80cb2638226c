"""Patterns of files to leave out, held against paths."""

import re
from collections.abc import Iterable


class Patterns:
    """Patterns as ``used_space`` takes them; case does not matter, also beyond ASCII."""

    def __init__(self, patterns: Iterable[str]) -> None:
        names: list[str] = []
        paths: list[str] = []
        for pattern in patterns:
            folded = fold(pattern.replace("\\", "/"))
            expression = _translate(folded.strip("/"))
            if expression:
                (paths if "/" in folded.rstrip("/") else names).append(expression)
        self._name = re.compile("|".join(names) or "(?!)", re.DOTALL)
        self._path = re.compile("|".join(paths) or "(?!)", re.DOTALL)

    def match(self, path: str) -> bool:
        """Whether a pattern matches a file or directory; ``path`` has no "/" at its start.

        What lies below a directory that matches has to be taken along by the caller.
        """
        folded = fold(path)
        name = folded.rpartition("/")[2]
        return bool(self._name.fullmatch(name) or self._path.fullmatch(folded))


def fold(text: str) -> str:
    """Return text with its letters made upper where there is one letter for it, and back.

    What Unicode only calls similar, like "ß" and "SS", or the sign for Kelvin and "K", stays different: the
    file systems take them for different names.
    """
    return "".join(map(_upper, text)) if not text.isascii() else text.upper()


def _upper(letter: str) -> str:
    upper = letter.upper()
    return upper if len(upper) == 1 and upper.lower() == letter else letter


def _translate(pattern: str) -> str:
    """Return a pattern as a regular expression."""
    out = []
    at = 0
    while at < len(pattern):
        if pattern.startswith("**/", at) and (not at or pattern[at - 1] == "/"):
            out.append("(?:.*/)?")
            at += 3
            continue
        if pattern.startswith("**", at):
            out.append(".*")
            at += 2
            continue
        letter = pattern[at]
        at += 1
        if letter == "*":
            out.append("[^/]*")
        elif letter == "?":
            out.append("[^/]")
        elif letter == "[" and (end := pattern.find("]", at + 1 + (pattern[at : at + 1] == "!"))) > 0:
            inside = re.sub(r"([\\\[\]&~|^])", r"\\\1", pattern[at:end].removeprefix("!"))
            out.append(f"(?!/)[{'^' if pattern[at] == '!' else ''}{inside}]")
            at = end + 1
        else:
            out.append(re.escape(letter))
    return "".join(out)
