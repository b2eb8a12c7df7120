"""Environment variables that a spec may read: those for paths, ranks, sizes and jobs.

The values of a spec are written to results and checkpoints, so only known kinds of variables are allowed. Names that
contain a word for a secret are always refused.
"""

from __future__ import annotations

import os
import re

from rtdetr_tool.redaction import names_secret

OWN_PREFIX = "RTDETR_"
KNOWN = (
    "HOME", "USER", "LOGNAME", "HOSTNAME", "PWD", "TMPDIR", "TMP", "TEMP", "SCRATCH", "WORK", "RANK", "LOCAL_RANK",
    "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "CUDA_VISIBLE_DEVICES", "SEED",
)  # fmt: skip
PREFIXES = (OWN_PREFIX, "SLURM_", "PBS_", "LSB_", "SM_CHANNEL_")  # ours, schedulers, SageMaker's data folders
# The end of a name: a word for a path, with or without `_` before it, or a last word for a number or a name.
_PLACE = re.compile(
    r"(?:DIR|DIRS|DIRECTORY|FOLDER|ROOT|PATH|HOME|FILE|SPEC|DATA|DATASET|DATASETS|IMAGES|LABELS|ANNOTATIONS|RESULTS|"
    r"OUTPUT|OUTPUTS|CHECKPOINT|CHECKPOINTS|WEIGHTS|MODELS|SCRATCH|STORAGE|WORKSPACE|PREFIX)$",
    re.I,
)
_NUMBER_OR_NAME = re.compile(
    r"(?:^|_)(?:RANK|SIZE|COUNT|NUM|GPUS|GPU|NODES|WORKERS|THREADS|EPOCHS|EPOCH|SEED|LR|HEIGHT|WIDTH|VERSION|NAME|"
    r"JOB_?ID|RUN_?ID|TASK_?ID|EXPERIMENT|RUN|JOB|SPLIT|FOLD)$",
    re.I,
)
RULE = (
    f"variables that begin with {OWN_PREFIX}, that end in a word for a path (..._DIR, ..._ROOT, ..._PATH, ..._DATA) or "
    "for a number or name (..._RANK, ..._SIZE, ..._SEED, ..._NAME), those of SLURM, and HOME, USER, HOSTNAME, TMPDIR, "
    "SCRATCH"
)


def may_be_read(name: str) -> bool:
    if name in KNOWN:
        return True
    known = name.startswith(PREFIXES) or _PLACE.search(name) or _NUMBER_OR_NAME.search(name)
    return bool(known) and not names_secret(name)


def variable(name: str, otherwise: str | None) -> str | None:
    """The value of `${oc.env:NAME,otherwise}`; ValueError with the reason if there is none."""
    if not may_be_read(name):
        raise ValueError(_refusal(name))
    if name in os.environ:
        return os.environ[name]
    if otherwise is None:
        raise ValueError(f"the environment variable {name} is not set")
    otherwise = otherwise.strip()
    if len(otherwise) > 1 and otherwise[0] in "'\"" and otherwise[-1] == otherwise[0]:
        return otherwise[1:-1]
    return None if otherwise == "null" else otherwise


def _refusal(name: str) -> str:
    if names_secret(name):
        return f"{name} names a secret, and the values of a spec are written to results and checkpoints"
    return (
        f"a spec may not read the environment variable {name}, because its values are written to results and "
        f"checkpoints. It may read {RULE}. Rename it to {OWN_PREFIX}{name} if it is not a secret"
    )
