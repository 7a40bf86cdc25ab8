"""One LoRA file, read into terms: told by what is inside, every key accounted for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flux_trt.runtime.errors import CheckpointError
from flux_trt.runtime.lora import keys, scale
from flux_trt.runtime.lora.foreign import foreign_lora
from flux_trt.runtime.lora.forms import Found, Modules
from flux_trt.runtime.lora.scale import Settings
from flux_trt.runtime.lora.stored import AGAIN, FLOATS, Stored, read_header, read_metadata
from flux_trt.runtime.lora.term import Asked, Kind, Lora, Term, strength_of

HINT = "--lora-partial leaves them out"
OUTSIDE = ("text_projection", "position_embedding", "logit_scale")
"""Modules of text encoders that some trainers write and whose output no picture sees."""
NAMES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
"""Of the file in a folder, as diffusers and PEFT save one."""
NEEDED: tuple[tuple[Kind, tuple[tuple[str, ...], ...]], ...] = (
    ("LoRA", (("down", "up"),)),
    ("LoHa", (("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),)),
    (
        "LoKr",
        (
            ("lokr_w1", "lokr_w2"),
            ("lokr_w1", "lokr_w2_a", "lokr_w2_b"),
            ("lokr_w1_a", "lokr_w1_b", "lokr_w2"),
            ("lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"),
        ),
    ),
    ("diff", (("diff",),)),
    ("set", (("set",),)),
)
"""Kind -> the roles that make one."""


@dataclass
class _Module:
    """All tensors of one module."""

    name: str
    tensors: dict[str, Stored] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    found: Found | None = None


def asked(text: str, whole: bool = False) -> Asked:
    """`FILE` or `FILE:STRENGTH`; a name that is there as it stands, or is to be taken `whole`, is the file.

    Raises:
        CheckpointError: no file there, or a strength that is no number.
    """
    path, strength = Path(text).expanduser(), 1.0
    name, _, number = text.rpartition(":")
    if name and not path.exists() and not whole:
        try:
            path, strength = Path(name).expanduser(), float(number)
        except ValueError:
            if Path(name).exists():
                raise CheckpointError(
                    f"{number!r} is no strength of {name}; give a number such as 0.8"
                ) from None
    strength = strength_of(strength, path)
    if path.is_dir():
        there = [path / name for name in NAMES if (path / name).is_file()]
        if not there:
            raise CheckpointError(f"{path} has neither {' nor '.join(NAMES)}; give the LoRA's file")
        path = there[0]
    if not path.is_file():
        raise CheckpointError(
            f"no LoRA at {path}; give a .safetensors file, with :STRENGTH behind it if not 1"
        )
    return Asked(path, strength)


def read_lora(wanted: Asked, modules: Modules, family: str, partial: bool = False, hint: str = HINT) -> Lora:
    """What a file changes of a family's models.

    Args:
        wanted: which file.
        modules: all that may be changed.
        family: for people.
        hint: what to do about keys without a place.
        partial: use what is understood of a file that is not understood as a whole.

    Raises:
        CheckpointError: no LoRA, one of another model or of a kind that is not read, or keys without a place.
    """
    path = wanted.path
    if _begins(path, b"GGUF"):
        raise CheckpointError(f"{path} is a GGUF file; LoRAs are read from safetensors")
    tensors, metadata = read_header(path), read_metadata(path)
    grouped, strange = _grouped(path, tensors, modules)
    notes: list[str] = []
    placed = _once([each for each in grouped if each.found is not None], notes)
    unplaced = [each for each in grouped if each.found is None]
    outside = [each for each in unplaced if any(word in each.name for word in OUTSIDE)]
    if outside:
        notes.append(f"{outside[0].name}{_others(outside)}: no picture depends on it, so it is not used")
    unplaced = [each for each in unplaced if each not in outside]
    idle = [each for each in unplaced if _nothing(each)]
    if idle:
        notes.append(f"{idle[0].name}{_others(idle)}: it is all zeros, so it is not used")
    unknown = sorted([name for each in unplaced if each not in idle for name in each.names] + strange)
    model = foreign_lora(tensors)
    if not placed:
        what = f"a LoRA for {model}" if model else f"no LoRA for {family} that is known here"
        few = ", ".join(sorted(tensors)[:3])
        raise CheckpointError(f"{path} is {what} (it has {few}, ...); give one for {family}")
    if unknown and model and model != family:
        raise CheckpointError(f"{path} is a LoRA for {model} (it has {unknown[0]}); give one for {family}")
    if unknown and not partial:
        raise CheckpointError(
            f"{path}: {len(unknown)} of {len(tensors)} keys find no place in {family}: "
            f"{', '.join(unknown[:3])}{', ...' if len(unknown) > 3 else ''}; {hint}"
        )
    if unknown:
        few = ", ".join(unknown[:3]) + (", ..." if len(unknown) > 3 else "")
        notes.append(f"{len(unknown)} keys find no place and are left out: {few}")
    said = scale.settings(path, metadata, modules.owners)
    terms = [term for each in placed for term in _terms(path, each, said, notes)]
    by = "metadata" if said else "alpha" if any("alpha" in each.tensors for each in placed) else "nothing"
    return Lora(path, _form(placed), tuple(terms), wanted.strength, tuple(notes), by, tuple(unknown))


def _begins(path: Path, magic: bytes) -> bool:
    """False for a file that cannot be read: what reads it next says so."""
    try:
        with path.open("rb") as file:
            return file.read(len(magic)) == magic
    except OSError:
        return False


def _grouped(path: Path, tensors: Mapping[str, Stored], modules: Modules) -> tuple[list[_Module], list[str]]:
    """The tensors by module, with where each belongs; and names that are no part of any update."""
    found: dict[str, _Module] = {}
    strange = []
    lora = keys.is_lora(list(tensors))
    for name, info in tensors.items():
        if (kind := keys.other_kind(name)) is not None:
            raise CheckpointError(
                f"{path} is {kind} ({name}), which is not read; merge it into the model first"
            )
        at = keys.split(name)
        if at is None and lora and (norm := name.rpartition(".")[0]):
            whole = modules.find(norm)
            at = keys.Split(norm, "set") if whole and whole.place.norm else None
        if at is None:
            strange.append(name)
            continue
        module = found.setdefault(at.module, _Module(at.module, found=modules.find(at.module)))
        if at.role in module.tensors:
            raise CheckpointError(f"{path}: {name} stands there twice, under another spelling; {AGAIN}")
        module.tensors[at.role] = info
        module.names.append(name)
    return list(found.values()), strange


def _others(modules: list[_Module]) -> str:
    return f" and {len(modules) - 1} others" if len(modules) > 1 else ""


def _once(placed: list[_Module], notes: list[str]) -> list[_Module]:
    """Each place once: where a file has the same update under several prefixes, the most frequent counts."""
    often = Counter(each.found.prefix for each in placed if each.found)
    taken: dict[tuple[object, ...], _Module] = {}
    twice: list[_Module] = []
    for each in sorted(placed, key=lambda each: -often[each.found.prefix] if each.found else 0):
        assert each.found is not None
        place = each.found.place
        if taken.setdefault((place.part, place.weight, place.rows), each) is not each:
            twice.append(each)
    if twice:
        notes.append(
            f"{twice[0].name}{_others(twice)}: stands there under another name, too, and is used once"
        )
    return [each for each in placed if each not in twice]


def _nothing(module: _Module) -> bool:
    """Whether an update is zero whatever it is for."""
    return any(
        info.is_zero
        for role, info in module.tensors.items()
        if role in ("up", "diff", "bias", "hada_w1_a", "hada_w2_a", "lokr_w1", "lokr_w2", "lokr_w2_a")
    ) and not {"set", "magnitude"} & set(module.tensors)


def _terms(path: Path, module: _Module, said: Mapping[str, Settings], notes: list[str]) -> Iterable[Term]:
    """What a module's tensors do: to its weight, and to its bias."""
    assert module.found is not None
    place, tensors = module.found.place, dict(module.tensors)
    for role, info in tensors.items():
        if role not in ("alpha", "reshape") and info.dtype not in FLOATS:
            raise CheckpointError(
                f"{path}: {module.name} is {info.dtype}: a quantised LoRA is not read; give the bf16 one"
            )
    alpha, bias = tensors.pop("alpha", None), tensors.pop("bias", None)
    tensors.pop("reshape", None)  # the columns that `down` has say the same
    if bias is not None:
        if place.bias is None:
            raise CheckpointError(
                f"{path}: {module.name} has no bias in this model, and the LoRA changes it; {AGAIN}"
            )
        yield Term(place, place.bias, "diff", {"diff": bias}, 1.0, module.name)
    if not tensors:
        if bias is None:
            raise CheckpointError(f"{path}: {module.name} has an alpha and nothing else; {AGAIN}")
        return
    kind = _kind(path, module, tensors)
    factor = _scale(path, module, kind, tensors, alpha, said)
    if factor == 0:
        notes.append(f"{module.name}: its alpha is 0, so it changes nothing")
    yield Term(place, place.weight, kind, tensors, factor, module.name)


def _kind(path: Path, module: _Module, tensors: Mapping[str, Stored]) -> Kind:
    has = set(tensors) - {"magnitude"}
    for kind, ways in NEEDED:
        if any(has == set(way) for way in ways):
            if "magnitude" in tensors and kind in ("set", "diff"):
                break
            return kind
    raise CheckpointError(
        f"{path}: {module.name} has {', '.join(sorted(tensors))}, which is no whole update; {AGAIN}"
    )


def _scale(
    path: Path,
    module: _Module,
    kind: Kind,
    tensors: Mapping[str, Stored],
    alpha: Stored | None,
    said: Mapping[str, Settings],
) -> float:
    assert module.found is not None
    if kind in ("diff", "set"):
        return 1.0
    rank = _rank(kind, tensors)
    if rank is not None and rank < 1:
        raise CheckpointError(f"{path}: {module.name} has a rank of 0; {AGAIN}")
    settings = said.get(module.found.place.part)
    if settings and rank is not None:
        bare = module.name.removeprefix(module.found.prefix)
        found = scale.peft_scale(settings, bare, rank, path)
        if alpha is not None and not math.isclose(scale.alpha_of(alpha, module.name) / rank, found):
            raise CheckpointError(
                f"{path}: {module.name} has an alpha, and the settings say another; {AGAIN}"
            )
        return found
    if alpha is None or rank is None:
        return 1.0  # of LoKr without a decomposed factor alpha has no meaning
    return scale.alpha_of(alpha, module.name) / rank


def _rank(kind: Kind, tensors: Mapping[str, Stored]) -> int | None:
    """What alpha is divided by; None: nothing is."""
    names = {"LoRA": ("down",), "LoHa": ("hada_w1_b",), "LoKr": ("lokr_w2_b", "lokr_w1_b")}[kind]
    shapes = [tensors[name].shape for name in names if name in tensors]
    return (shapes[0][0] if shapes[0] else 0) if shapes else None


def _form(placed: list[_Module]) -> str:
    """Whose names the transformer's modules have, or where there are none, those that there are."""
    placed = [each for each in placed if each.found and each.found.place.part == "transformer"] or placed
    return ", ".join(
        form for form, _ in Counter(each.found.form for each in placed if each.found).most_common()
    )
