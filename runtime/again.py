"""How a picture was painted, read from its file, and asked for again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.bundle.manifest import Manifest
from flux_trt.runtime.errors import RequestError
from flux_trt.runtime.painted import BOXES, LORA, PICTURES
from flux_trt.runtime.pictures import picture, texts
from flux_trt.runtime.tasks.arguments import EditArguments, GenerateArguments
from flux_trt.runtime.tasks.request import Request
from flux_trt.runtime.tasks.sources import digest

EDIT = {"prompt": "target", "guidance": "target_guidance"}
"""Parameters whose option of `flux-run edit` has another name."""


@dataclass(frozen=True)
class Recorded:
    """What the file of a picture says."""

    path: Path
    parameters: Mapping[str, Any]
    """As they stand there; `docs/tasks.md` has a table."""

    @property
    def command(self) -> Literal["generate", "edit"]:
        """Of `flux-run`, or the method of `Pipeline`."""
        return "edit" if self.parameters.get("task") == "edit" else "generate"

    @property
    def options(self) -> dict[str, Any]:
        """The command's options, by their names in Python, without pictures; defaults are written out."""
        known = EditArguments if self.command == "edit" else GenerateArguments
        names = EDIT if self.command == "edit" else {}
        found = {names.get(name, name): value for name, value in self.parameters.items() if value is not None}
        wanted = {*known.__annotations__, "prompt", "source", "target", "outpaint"}
        wanted -= {*PICTURES, "canny", "strength"}
        if self.pictures.keys() & {"image"}:
            wanted.add("strength")
        options = {"solver": "euler"} | {name: value for name, value in found.items() if name in wanted}
        if not self.pictures or "content" not in self.parameters:
            options["size"] = [self.parameters["width"], self.parameters["height"]]
        if "outpaint" in options:
            options["outpaint"] = tuple(options["outpaint"])
        if "size" in options:
            options["size"] = tuple(options["size"])
        return options

    @property
    def machine(self) -> dict[str, Any]:
        """The options that say where it was painted, as far as that changes a picture."""
        found = {
            name: self.parameters[name]
            for name in ("backend", "device", "compute")
            if name in self.parameters
        }
        return found | ({"tile": self.parameters["tile"] or 0} if "tile" in self.parameters else {})

    @property
    def pictures(self) -> dict[str, list[dict[str, str]]]:
        """The pictures that were given: option -> records of `sha256` and `path`, which may be missing."""
        found: dict[str, list[dict[str, str]]] = {}
        for name in PICTURES:
            value = self.parameters.get(name)
            records = value if isinstance(value, list) else [value]
            option = "canny" if name == "control" and self.parameters.get("canny") else name
            if value and "outpaint" not in (self.parameters if name == "mask" else ()):
                found[option] = [each for each in records if isinstance(each, dict)]
        return found

    def found(self, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Every picture that was given then, where it lies now.

        Args:
            given: option -> a path, or several of references, where that is known better.

        Returns:
            option -> path, or a tuple of them for "reference".

        Raises:
            RequestError: one that is not there, or has other pixels than the one that was used.
        """
        found: dict[str, Any] = {}
        for option, records in self.pictures.items():
            asked = (given or {}).get(option)
            several = list(asked) if isinstance(asked, (list, tuple)) else [asked] if asked else []
            if several and len(several) != len(records):
                raise RequestError(
                    f"{self.path} was painted from {len(records)} pictures as {option}, not {len(several)}"
                )
            places = [
                self._place(option, record, several[index] if several else None)
                for index, record in enumerate(records)
            ]
            found[option] = tuple(places) if option == "reference" else places[0]
        return found

    def arguments(self) -> dict[str, Any]:
        """What `Pipeline.generate` takes to paint it again, or `Pipeline.edit` where `command` says so.

        Raises:
            RequestError: as `found`.
        """
        return self.options | self.found()

    def request(self, manifest: Manifest, given: Mapping[str, Any] | None = None) -> Request:
        """The request that paints it again, by any command. Errors are `found`'s and `Request.of`'s."""
        asked = self.options | self.found(given)
        if self.command == "edit":
            return Request.of_edit(manifest, **asked)
        return Request.of(manifest, asked.pop("prompt"), **asked)

    def doubts(self, bundle: Bundle, backend: str = "", device: str = "") -> list[str]:
        """Why the picture may not become the same again, a sentence each."""
        told, own = self.parameters, {"content": bundle.content, "bundle": bundle.digest}
        name = "content" if "content" in told else "bundle"
        found = []
        if told.get(name) != own[name]:
            found.append(
                f"{self.path} was painted with another bundle ({told.get('variant')}, "
                f"{told.get('precision', 'unknown precision')}, {str(told.get(name))[:10]}); "
                "the picture will not be the same"
            )
        if "content" not in told:
            found.append(
                f"{self.path} is of an earlier version, which did not record everything: given pictures, "
                "--paste, --outpaint, --canny, --no-auto-resize and --tile must be given again"
            )
        for word, value in (("backend", backend), ("device", device)):
            if value not in ("", "auto", told.get(word, value)):
                found.append(
                    f"{self.path} was painted on {told[word]}, not {value}; values may differ by a little"
                )
        return found

    def _place(self, option: str, record: Mapping[str, str], given: Path | None) -> Path:
        path = record.get("path")
        if path and not given and not picture.is_named_as_one(path):
            raise RequestError(
                f"{self.path} names {path}, which has no picture's ending, and it is not opened; "
                f"give the picture with --{option}"
            )
        places = [given] if given else [Path(path), self.path.parent / path] if path else []
        place = next(filter(_is_there, places), None)
        if place is None:
            lost = given or path or f"the picture given as {option}"
            raise RequestError(
                f"{lost} is not there, and {self.path} was painted from it; give it with --{option}"
            )
        read = picture.read_mask if option == "mask" else picture.read
        if digest(read(place)) != record["sha256"]:
            raise RequestError(
                f"{place} is not the picture that {self.path} was painted from (its pixels differ); "
                f"give that one with --{option}, or leave --from out"
            )
        return place


def _is_there(place: Path) -> bool:
    """Whether a path, which is whatever a file says, is that of a file."""
    try:
        return place.is_file()
    except (OSError, ValueError):  # longer than the disk's names may be, or with a NUL
        return False


def merged(
    found: Recorded, said: Mapping[str, Any], options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, tuple[Any, Any]]]:
    """The options of a command that paints a picture again.

    Args:
        found: what the picture's file says.
        said: the options that were given on the command line. They take precedence, but for the pictures
            that the file names: those must be the same ones.
        options: all options of the command, of which those that are in neither have their defaults.

    Returns:
        The options, and those given that are not as in the file: name -> its value now, and its value there.

    Raises:
        RequestError: as `Recorded.found`.
    """
    pictures = found.found(said)
    asked = {**options, **found.options, **said, **pictures}
    silent = {*found.machine, *pictures, "output", "force", "quality", "again", "batch", "count"}
    changed = {
        name: (_plain(value), _plain(found.options.get(name)))
        for name, value in said.items()
        if name not in silent and _plain(value) != _plain(found.options.get(name))
    }
    return {name: asked[name] for name in {*options, *found.options, *pictures}}, changed


def _plain(value: Any) -> Any:
    """One of several for a list of that one."""
    return value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value


def recorded(path: str | Path) -> Recorded:
    """How the picture in a file was painted; PNG, JPEG or WebP, written by this version or an earlier one.

        again = recorded("circle.png")
        (image,) = pipeline.generate(**again.arguments())

    Raises:
        RequestError: no picture, or one that does not say.
    """
    found = Recorded(Path(path), texts.recorded(path))
    needed = {"prompt": str, "seed": int, "steps": int, "width": int, "height": int, "task": str}
    for name, kind in needed.items():
        if not isinstance(found.parameters.get(name), kind):
            raise RequestError(f"{path} does not say its {name}; it cannot be painted again from its file")
    for name in (*PICTURES, LORA, BOXES):
        value = found.parameters.get(name)
        known = isinstance(value, list) if name == BOXES else _name_files(value)  # no file's name is opened
        if value and not known:
            raise RequestError(f"{path} does not say its {name}; it cannot be painted again from its file")
    return found


def _name_files(value: Any) -> bool:
    return all(map(_names_a_file, value if isinstance(value, list) else [value]))


def _names_a_file(record: Any) -> bool:
    return (
        isinstance(record, dict)
        and isinstance(record.get("sha256"), str)
        and isinstance(record.get("path"), str | None)
    )
