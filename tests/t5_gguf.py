"""A T5 in a GGUF file, as llama.cpp's converter writes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import torch
from checkpoints import NANO
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

from flux_trt.exporter.checkpoints.quantised.t5_names import IN_BLOCK, OUTSIDE

ONE = {"enc.blk.0.attn_q.weight": np.ones((2, 2), np.float32)}


def nano_vocabulary(folder: Path) -> Path:
    """flux-nano's tokenizer_2 as spiece.model."""
    model = sentencepiece_model_pb2.ModelProto()
    model.trainer_spec.model_type = model.trainer_spec.UNIGRAM
    kinds = {"<pad>": "CONTROL", "</s>": "CONTROL", "<unk>": "UNKNOWN"}
    for piece, score in json.loads((NANO / "tokenizer_2" / "tokenizer.json").read_text())["model"]["vocab"]:
        kind = getattr(model.SentencePiece, kinds.get(piece, "NORMAL"))
        model.pieces.add(piece=piece, score=score, type=kind)
    (folder / "spiece.model").write_bytes(model.SerializeToString())
    return folder


def llama_names(tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """The tensors of transformers' T5 in float32 under llama.cpp's names; the embedding once."""
    outside, inside = ({new: old for old, new in each.items()} for each in (OUTSIDE, IN_BLOCK))
    made = {}
    for name, tensor in tensors.items():
        if name != "encoder.embed_tokens.weight":
            number, _, inner = name.removeprefix("encoder.block.").removesuffix(".weight").partition(".")
            made[outside.get(name) or f"enc.blk.{number}.{inside[inner]}.weight"] = tensor.float().numpy()
    return made


def write(
    path: Path, folder: Path, rows: int = 0, tensors: Mapping[str, np.ndarray] = ONE, **changed: object
) -> Path:
    """With the vocabulary of a folder with spiece.model, filled up to `rows`; None leaves a value out.

    As conversion/t5.py of llama.cpp does, T5EncoderModel.set_vocab.
    """
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString((folder / "spiece.model").read_bytes())
    pieces = SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    kinds = {"IsUnknown": 2, "IsControl": 3, "IsUnused": 5, "IsByte": 6}
    fill = range(pieces.vocab_size(), rows)
    spec, ids = proto.normalizer_spec, range(pieces.vocab_size())
    said = {
        "model": "t5",
        "tokens": [pieces.IdToPiece(n) for n in ids] + [f"[PAD{n}]" for n in fill],
        "scores": [pieces.GetScore(n) for n in ids] + [-10000.0 for _ in fill],
        "token_type": [next((k for name, k in kinds.items() if getattr(pieces, name)(n)), 1) for n in ids]
        + [5 for _ in fill],
        "add_space_prefix": spec.add_dummy_prefix,
        "remove_extra_whitespaces": spec.remove_extra_whitespaces,
        "precompiled_charsmap": spec.precompiled_charsmap or None,
        "eos_token_id": 1,
        "unknown_token_id": 2,
        "padding_token_id": 0,
    } | changed
    writer = gguf.GGUFWriter(path, "t5encoder")
    adders = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32}
    for name, value in said.items():
        if value is not None:
            adders.get(type(value), writer.add_array)(f"tokenizer.ggml.{name}", value)
    for name, data in tensors.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
