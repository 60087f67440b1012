"""What this machine gives tokgolf to work with: versions, device, compiler, disk, hub, extras.

Unlike the errors of a command it looks before any work is done, and goes on after what it finds
wrong. Nothing is changed; the hub is asked for its front page at most.
"""

import importlib.metadata
import os
import platform
import shutil
import tempfile
import threading
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import tokgolf

Status = Literal["ok", "warn", "fail"]

HUB = "https://huggingface.co"
HUB_SECONDS = 1.5
ENOUGH_BYTES = 1_000_000_000  # a run of 4M weights keeps two checkpoints of 100 MB, and its tokens
FEW_BYTES = 100_000_000
COMPILERS = ("g++", "clang++")  # torch.compile tries $CXX, or else the first of these
TRUE = {"1", "on", "yes", "true"}  # what the hub's client takes for true


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at; `advice` says what to do where `status` is not ok."""

    name: str
    status: Status
    found: str
    advice: str = ""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What tokgolf says it needs: of Python, of libraries, and of these for each extra."""

    python: str
    libraries: tuple[Requirement, ...]
    extras: dict[str, tuple[Requirement, ...]]


def examine(folder: Path, *, compiles: bool = False) -> list[Check]:
    """Every check, in the order to read them; `compiles` tries the compiler (half a minute).

    `folder` is where runs would be written. Fails are what nothing works without.
    """
    hub = Later(lambda: check_hub(os.environ))
    found = needs()
    checks = [check_python(found.python), *check_libraries(found.libraries)]
    checks += [*check_devices(), check_compiler(os.environ, try_it=compiles)]
    checks += [check_folder("folder", folder)]
    checks += [check_folder("temporary", Path(tempfile.gettempdir()))]
    return [*checks, hub.result(), *check_extras(found.extras)]


def needs() -> Needs:
    """What pyproject.toml asks for in a checkout, or else the installed package's metadata."""
    project = Path(tokgolf.__file__).resolve().parents[1] / "pyproject.toml"
    if project.is_file():
        table = tomllib.loads(project.read_text("utf-8"))["project"]
        texts = table["optional-dependencies"]
        return Needs(
            python=table["requires-python"],
            libraries=tuple(map(Requirement, table["dependencies"])),
            extras={name: tuple(map(Requirement, lines)) for name, lines in texts.items()},
        )
    metadata = importlib.metadata.metadata("tokgolf")
    lines = [Requirement(line) for line in importlib.metadata.requires("tokgolf") or []]
    names = metadata.get_all("Provides-Extra") or []
    return Needs(
        python=metadata["Requires-Python"],
        libraries=tuple(line for line in lines if _belongs(line, "")),
        extras={
            name: tuple(line for line in lines if not _belongs(line, "") and _belongs(line, name))
            for name in names
        },
    )


def _belongs(line: Requirement, extra: str) -> bool:
    return line.marker is None or line.marker.evaluate({"extra": extra})


def check_python(bounds: str) -> Check:
    """The interpreter's version against `requires-python`."""
    version = platform.python_version()
    if SpecifierSet(bounds).contains(version, prereleases=True):
        return Check(name="python", status="ok", found=f"{version} (needs {bounds})")
    advice = f"make the environment with a Python {bounds}"
    return Check(name="python", status="fail", found=f"{version}, not {bounds}", advice=advice)


def check_libraries(wanted: tuple[Requirement, ...]) -> Iterator[Check]:
    """One line for all that are as wanted, and one for each that is not."""
    good = []
    for line in wanted:
        version = version_of(line.name)
        if version is not None and line.specifier.contains(version, prereleases=True):
            good.append(f"{line.name} {version}")
            continue
        found = f"{line.name} is {version or 'missing'}, not {line.specifier}"
        advice = f"pip install '{line}'"
        yield Check(name="library", status="fail", found=found, advice=advice)
    if good:
        yield Check(name="libraries", status="ok", found=", ".join(good))


def version_of(library: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_devices() -> Iterator[Check]:
    """The CPU's instructions and threads, and the CUDA devices. The one check that loads torch."""
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library that is not there
        reason = str(error).splitlines()[0]
        advice = "install torch again, for this kind of machine"
        yield Check(name="cpu", status="fail", found=f"torch: {reason}", advice=advice)
        return
    mkldnn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    bf16 = mkldnn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    kind = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    yield Check(
        name="cpu",
        status="ok" if bf16 else "warn",
        found=f"{kind}, {'with' if bf16 else 'without'} bf16 instructions",
        advice="" if bf16 else "training uses fp32 and takes longer; nothing else changes",
    )
    yield check_threads(torch.get_num_threads(), usable_cores())
    if not torch.cuda.is_available():
        driver = shutil.which("nvidia-smi")
        advice = f"{driver} is here: install a torch built for CUDA" if driver else ""
        status: Status = "warn" if driver else "ok"
        yield Check(name="cuda", status=status, found="no device, the CPU is used", advice=advice)
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        memory = f"{device.total_memory / 1e9:.0f} GB, CUDA {torch.version.cuda}"
        yield Check(name=f"cuda:{index}", status="ok", found=f"{device.name}, {memory}")


def usable_cores() -> int:
    """Cores that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1


def check_threads(threads: int, cores: int) -> Check:
    """torch's threads against the cores there are: more than these slow each other down."""
    found = f"{threads}, on {cores} usable {'core' if cores == 1 else 'cores'}"
    if threads <= cores:
        return Check(name="threads", status="ok", found=found)
    return Check(name="threads", status="warn", found=found, advice=f"set OMP_NUM_THREADS={cores}")


def check_compiler(environment: "os._Environ[str] | dict[str, str]", *, try_it: bool) -> Check:
    """The C++ compiler that torch.compile uses on a CPU; training goes on without, slower."""
    names = [environment["CXX"]] if environment.get("CXX") else [*COMPILERS]
    path = next((found for name in names if (found := shutil.which(name))), None)
    if path is None:
        advice = "training runs uncompiled and slower; install g++, or name a compiler in CXX"
        found = f"no {' or '.join(names)}"
        return Check(name="compiler", status="warn", found=found, advice=advice)
    if not try_it:
        return Check(name="compiler", status="ok", found=f"{path} (not tried; --compile does)")
    import torch

    try:
        result = torch.compile(lambda x: (x * 2 + 1).relu().sum())(torch.ones(64))
    except Exception as error:  # the compiler's own errors have no common base
        reason = str(error).strip().splitlines()[0]
        advice = "training runs uncompiled and slower"
        return Check(name="compiler", status="warn", found=f"{path}: {reason}", advice=advice)
    right = float(result) == 64 * 3
    return Check(
        name="compiler",
        status="ok" if right else "fail",
        found=f"{path}, tried: {'works' if right else f'gives {float(result)}, not 192'}",
        advice="" if right else "train with --set compile=off",
    )


def check_folder(name: str, folder: Path) -> Check:
    """Whether a file can be written in `folder`, and what is free on its disk."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"tokgolf")
        free = shutil.disk_usage(folder).free
    except OSError as error:
        advice = (
            "go to a folder of yours" if name == "folder" else "set TMPDIR to a folder of yours"
        )
        found = f"{folder}: {error.strerror or error}"
        return Check(name=name, status="fail", found=found, advice=advice)
    status: Status = "ok" if free >= ENOUGH_BYTES else "warn" if free >= FEW_BYTES else "fail"
    return Check(
        name=name,
        status=status,
        found=f"{folder} is writable, {free / 1e9:,.1f} GB free",
        advice="" if status == "ok" else f"free some space: {ENOUGH_BYTES / 1e9:.0f} GB or more",
    )


def check_hub(environment: "os._Environ[str] | dict[str, str]") -> Check:
    """Whether corpora can be streamed from the hub. Without it all but these works."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        if environment.get(name, "").lower() in TRUE:
            return Check(name="hub", status="ok", found=f"offline, as {name} asks: the cache only")
    hub = environment.get("HF_ENDPOINT") or HUB
    try:
        request = urllib.request.Request(hub, method="HEAD")
        with urllib.request.urlopen(request, timeout=HUB_SECONDS):
            pass
    except urllib.error.HTTPError:
        pass  # it answers
    except (OSError, ValueError) as error:
        return _no_hub(hub, str(getattr(error, "reason", error)))
    return Check(name="hub", status="ok", found=f"{hub} answers")


def _no_hub(hub: str, reason: str) -> Check:
    advice = (
        "fineweb and hf: corpora need it, files and stdlib do not; HF_HUB_OFFLINE=1 saves the wait"
    )
    return Check(name="hub", status="warn", found=f"{hub}: {reason}", advice=advice)


class Later:
    """A check of the hub that runs beside the others, and is given up when it takes too long: a
    name server that never answers holds up a connection, whatever its time limit says."""

    def __init__(self, work: Callable[[], Check]) -> None:
        self.found: Check | None = None
        self.thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self.thread.start()

    def _run(self, work: Callable[[], Check]) -> None:
        self.found = work()

    def result(self) -> Check:
        """What was found, after at most `HUB_SECONDS` more."""
        self.thread.join(HUB_SECONDS)
        return self.found or _no_hub(os.environ.get("HF_ENDPOINT") or HUB, "no answer in time")


def check_extras(extras: dict[str, tuple[Requirement, ...]]) -> Iterator[Check]:
    """Each optional extra: what is there of it, and how to get the rest."""
    for name, wanted in extras.items():
        lines = [line for line in wanted if line.name != "tokgolf"]  # an extra may name another
        versions = {line.name: version_of(line.name) for line in lines}
        bad = [
            line
            for line in lines
            if (version := versions[line.name]) is not None
            and not line.specifier.contains(version, prereleases=True)
        ]
        missing = [library for library, version in versions.items() if version is None]
        if bad:
            found = ", ".join(f"{line.name} is {versions[line.name]}" for line in bad)
            advice = f"pip install '{bad[0]}'"
            yield Check(name=f"[{name}]", status="warn", found=found, advice=advice)
        elif missing:
            found = f"without {', '.join(missing)} (optional: pip install 'tokgolf[{name}]')"
            yield Check(name=f"[{name}]", status="ok", found=found)
        else:
            found = ", ".join(f"{library} {version}" for library, version in versions.items())
            yield Check(name=f"[{name}]", status="ok", found=found)
