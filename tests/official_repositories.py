"""The official FLUX.1 repositories as they are published, at full size, as sparse files.

`official/` holds their JSON files, the names, shapes and types of their tensors and the cut into shards, with
the source of each (official/README.md). Weights are zeros that take no room. Vocabularies are made here: they
have the size, the form and the special tokens of the published ones, not their words.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from itertools import groupby, islice, product
from math import prod
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent / "official"
SIZES = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8}
REPOSITORIES = sorted(path.parent.name for path in HERE.glob("*/repository.json"))
PAINTERS = [name for name in REPOSITORIES if "Redux" not in name]

Shapes = dict[str, tuple[str, list[int]]]
"""Tensor -> (type, shape), in the order of the state dict."""


def repository(name: str) -> dict[str, Any]:
    """What is known of a repository: its files, their sizes, its shards, and where that is known from."""
    return json.loads((HERE / name / "repository.json").read_text())


def json_files(name: str) -> dict[str, Path]:
    """Published path -> where its bytes lie here; equal files of several repositories are kept once."""
    held = repository(name)["json"]
    return {path: (HERE / (name if at == "here" else at)) / path for path, at in held.items()}


def tensors(table: str, dtype: str | None = None) -> Shapes:
    """A network's tensors; `dtype` replaces the type that the table says for all."""
    found = json.loads((HERE / "tensors" / table).read_text())
    rows = [
        (name, value if isinstance(value[0], str) else (dtype or found["dtype"], value))
        for name, value in found["tensors"].items()
    ]
    return {name: (kind, list(shape)) for name, (kind, shape) in _expanded(rows)}


def _expanded(rows: list[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """`a.{19}.b` is a.0.b to a.18.b, and `a.{1-23}.b` a.1.b to a.23.b.

    Neighbours with one beginning are repeated together: block 0 whole, then block 1.
    """
    for head, several in groupby(rows, lambda row: row[0].split("}")[0] if "{" in row[0] else None):
        group = list(several)
        if head is None:
            yield from group
            continue
        stem, count = head.split("{")
        first, _, last = count.rpartition("-")
        for index in range(int(first), int(last) + 1) if first else range(int(count)):
            yield from _expanded([(f"{stem}{index}{name[len(head) + 1 :]}", value) for name, value in group])


def shards(name: str, part: str) -> dict[str, Shapes]:
    """File -> its tensors: a shard begins with its first tensor and ends before the next one's."""
    known = repository(name)["shards"][part]
    starts = {entry["first"]: file for file, entry in known["files"].items()}
    found: dict[str, Shapes] = {}
    for tensor, value in tensors(known["tensors"], known.get("dtype")).items():
        if tensor in starts:
            held = found[starts[tensor]] = {}
        held[tensor] = value
    return found


def index(name: str, part: str) -> dict[str, Any]:
    """The index file of a part in shards."""
    where = {tensor: file for file, held in shards(name, part).items() for tensor in held}
    total = repository(name)["shards"][part]["total_size"]
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}


def write_sparse(path: Path, found: Mapping[str, tuple[str, list[int]]], size: int | None = None) -> None:
    """A safetensors file of zeros that take no room, its header padded up to a size in bytes."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(found, key=lambda each: (-SIZES[found[each][0]], each)):
        kind, shape = found[name]
        start, end = end, end + SIZES[kind] * prod(shape)
        entries[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    text += b" " * (size - 8 - len(text) - end if size else 0)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def write(name: str, folder: Path) -> Path:
    """A whole repository."""
    about = repository(name)
    for path, source in json_files(name).items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, place)
    for part, known in about["shards"].items():
        (folder / part / known["index"]).write_text(json.dumps(index(name, part), indent=2) + "\n")
        for file, held in shards(name, part).items():
            write_sparse(folder / part / file, held, known["files"][file].get("bytes"))
    for path, entry in about["files"].items():
        if "tensors" in entry:
            write_sparse(folder / path, tensors(entry["tensors"], entry.get("dtype")), entry["bytes"])
        elif "shard" not in entry and "/" not in path:
            (folder / path).write_bytes(b"not looked at")
    for sub, make in (("tokenizer", write_clip_vocabulary), ("tokenizer_2", write_t5_vocabulary)):
        if (folder / sub).is_dir():
            make(folder / sub)
    return folder


def write_clip_vocabulary(folder: Path) -> None:
    """vocab.json and merges.txt as CLIP's: 256 bytes, the same at a word's end, 48894 merges, two tokens."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    pairs = list(islice(product(letters, [f"{letter}</w>" for letter in letters]), 48894))
    words = [*letters, *(f"{letter}</w>" for letter in letters), *(a + b for a, b in pairs)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: rank for rank, word in enumerate(words)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(f"{a} {b}" for a, b in pairs)]) + "\n")


def write_t5_vocabulary(folder: Path) -> None:
    """spiece.model as T5's: 32000 pieces, three of them special, and tokenizer.json, which is made of it."""
    from sentencepiece import sentencepiece_model_pb2
    from transformers import T5Tokenizer

    model = sentencepiece_model_pb2.ModelProto()
    model.trainer_spec.model_type = model.trainer_spec.UNIGRAM
    letters = [chr(code) for code in range(33, 127)]
    words = ["\N{LOWER ONE EIGHTH BLOCK}", *letters, *("".join(each) for each in product(letters, repeat=2))]
    words += ["\N{LOWER ONE EIGHTH BLOCK}" + "".join(each) for each in product(letters, repeat=3)]
    kinds = {"<pad>": "CONTROL", "</s>": "CONTROL", "<unk>": "UNKNOWN"}
    for rank, piece in enumerate([*kinds, *words][:32000]):
        kind = getattr(model.SentencePiece, kinds.get(piece, "NORMAL"))
        model.pieces.add(piece=piece, score=-0.001 * rank, type=kind)
    spiece = folder / "spiece.model"
    spiece.write_bytes(model.SerializeToString())
    T5Tokenizer.from_pretrained(folder).backend_tokenizer.save(str(folder / "tokenizer.json"))
