"""What the records of a bundle are made of: strict models, plain names, paths that stay inside, tensors."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _inside(path: str) -> str:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\\" in path or ":" in path or str(pure) != path:
        raise ValueError(f"{path!r} is not a plain path inside the bundle")
    return path


BundlePath = Annotated[str, AfterValidator(_inside)]
StageName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
"""A plain identifier: it names files and folders."""
Dtype = Literal["float32", "float16", "int64", "int32", "uint8", "bool"]
"""As NumPy names them: the runtime holds what NumPy does, so there is no bfloat16."""


class Record(BaseModel):
    """Strict, unchangeable, with no fields of unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Tensor(Record):
    """One input or output of a stage. A dim is a number, or the name of a dim that varies."""

    name: str
    dtype: Dtype
    dims: list[int | str]
