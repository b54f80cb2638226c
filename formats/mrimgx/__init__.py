"""The Macrium Reflect X container (.mrimgx, .mrbakx). FORMAT.md tells its layout."""

from formats.mrimgx.image_file import probe
from formats.mrimgx.points import MrimgxPoint, MrimgxSet, open_file, open_folder

__all__ = ["MrimgxPoint", "MrimgxSet", "open_file", "open_folder", "probe"]
