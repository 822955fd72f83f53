"""A run's state: what it is, the files that hold it, when they are written, how a run goes on."""

from .file import (
    CONTENTS,
    FORMAT,
    Written,
    decode,
    judged_weights,
    load,
    load_state,
    load_weights,
    manifest_of,
    read,
    restoring,
    save,
    save_manifest,
    write_whole,
)

__all__ = [
    "CONTENTS",
    "FORMAT",
    "Written",
    "decode",
    "judged_weights",
    "load",
    "load_state",
    "load_weights",
    "manifest_of",
    "read",
    "restoring",
    "save",
    "save_manifest",
    "write_whole",
]
