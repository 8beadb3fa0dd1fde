"""Files that vouch for files: hides how a changed byte shows in a JSON file itself, and in a folder that one lists.

The last entry of a sealed file is the sha256 of all that stands before it. That tells damage, and edits by hand, from
what was written; it keeps out nobody who can compute a sha256.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from latent_prm import files
from latent_prm.files import BadFile

SEAL = "seal"
MANIFEST = "manifest.json"
"""Lists the files of its folder, itself not among them."""
_ENTRY = re.compile(rb',\n  "([^"\n]*)": "([^"\n]*)"\n}\n')


def save_sealed(content: Mapping[str, Any], path: str | Path) -> str:
    """Save as ``files.save_json`` does, with a seal as the last entry, and return the sha256 of the file."""
    content = {name: value for name, value in content.items() if name != SEAL}
    before = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False).removesuffix("\n}")
    return files.save_json(content | {SEAL: hashlib.sha256(before.encode()).hexdigest()}, path)


def load_sealed(path: str | Path) -> Any:
    """The content of a JSON file without its seal; one that has none, of a time before there were seals, is believed.

    Raises:
        BadFile: as ``files.load_json``; or the file has changed since it was sealed.
    """
    content = files.load_json(path)
    if not isinstance(content, dict):
        return content
    seal = content.pop(SEAL, None)
    before, entry = _last_entry(Path(path).read_bytes())
    named = entry is not None and (entry[1] == SEAL.encode() or re.fullmatch(rb"[0-9a-f]{64}", entry[2]))
    if seal is None and not named:
        return content
    if entry is None or entry[1] != SEAL.encode() or entry[2].decode() != hashlib.sha256(before).hexdigest():
        way_out = f'If that was you, take its last line ("{SEAL}") out, and the comma before it.'
        raise BadFile(f"{path}: changed since it was written: its seal is not that of its content. {way_out}")
    return content


def _last_entry(raw: bytes) -> tuple[bytes, re.Match[bytes] | None]:
    """What stands before the last entry, and that entry where it is a text on a line of its own."""
    start = max(raw.rfind(b',\n  "'), 0)
    return raw[:start], _ENTRY.fullmatch(raw, start)


def listed(manifest: str | Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What a manifest says, and of it the files: by name the size and sha256 of each.

    Raises:
        BadFile: it is damaged, no manifest, or lists what is not simply a file of its own folder.
    """
    said = load_sealed(manifest)
    found = said.get("files") if isinstance(said, dict) else None
    if not isinstance(found, dict):
        raise BadFile(f"{manifest}: not a manifest: it lists no files.")
    for name, file in found.items():
        plain = Path(name).name == name and isinstance(file, dict) and set(file) == {"size", "sha256"}
        if not plain or type(file["size"]) is not int or type(file["sha256"]) is not str:
            raise BadFile(f"{manifest}: {name!r} is not described as a file of this folder.")
    return said, found


def check_files(folder: str | Path, found: Mapping[str, Mapping[str, Any]], but: Collection[str] = ()) -> None:
    """Nothing, if the files that `listed` found are there, ``but`` for some, with the bytes that were written.

    Raises:
        BadFile: it names the first that is missing or has changed.
    """
    for name, file in found.items():
        if name in but:
            continue
        path = Path(folder, name)
        files.verify(path, file["sha256"])
        if (size := path.stat().st_size) != file["size"]:
            raise BadFile(f"{path}: it has {size} bytes, but its manifest says {file['size']}.")
