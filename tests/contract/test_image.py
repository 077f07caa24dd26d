"""The Dockerfile: what it promises, and its own steps run here as far as they go without a container engine.

There is no base image here. A virtual environment of this machine's Python stands at /usr/local for it, so where the
base has another Python than this machine, the steps run with this machine's.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

import exporter
from tests.processes import REPOSITORY, free_port

pytestmark = pytest.mark.timeout(300)

BIN = Path(sys.executable).parent
BASE_PATH = "/usr/local/bin:/usr/bin:/bin"
LARGEST_BYTES = 58_000_000
GLIBC = {"bookworm": (2, 36), "trixie": (2, 41)}
FROM_OUTSIDE = re.compile(r"HOME|UV_CACHE_DIR|(PIP|UV_INDEX|UV_DEFAULT_INDEX|SSL_CERT)\w*|\w+_proxy", re.IGNORECASE)


class Instruction(NamedTuple):
    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Stage:
    base: str
    name: str
    instructions: tuple[Instruction, ...]

    def of(self, name: str) -> list[str]:
        return [each.value for each in self.instructions if each.name == name]

    def last(self, name: str) -> str:
        return self.of(name)[-1]

    def environment(self) -> dict[str, str]:
        variables = {"PATH": BASE_PATH}
        for value in self.of("ENV"):
            variables |= pairs(value, variables)
        return variables


def instructions(text: str) -> list[Instruction]:
    kept = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    found = []
    for line in re.sub(r"\\\n\s*", "", kept).splitlines():
        if line.strip():
            name, value = line.split(maxsplit=1)
            found.append(Instruction(name.upper(), value))
    return found


def stages(found: list[Instruction]) -> list[Stage]:
    starts = [index for index, each in enumerate(found) if each.name == "FROM"]
    made = []
    for start, end in zip(starts, [*starts[1:], len(found)], strict=True):
        base, _, name = found[start].value.partition(" AS ")
        made.append(Stage(base, name, tuple(found[start + 1 : end])))
    return made


def expanded(value: str, variables: Mapping[str, str]) -> str:
    return re.sub(r"\$\{?(\w+)\}?", lambda match: variables[match[1]], value)


def pairs(value: str, variables: Mapping[str, str]) -> dict[str, str]:
    split = [word.partition("=") for word in shlex.split(value)]
    return {key: expanded(text, variables) for key, _, text in split}


FOUND = instructions((REPOSITORY / "Dockerfile").read_text(encoding="utf-8"))
STAGES = stages(FOUND)
FINAL = STAGES[-1]
BASE = FOUND[0].value.removeprefix("BASE=")
VENV = STAGES[0].environment()["UV_PROJECT_ENVIRONMENT"]


def allowed(name: str) -> bool:
    """Whether .dockerignore lets a file through: the last line that names it or a folder above it decides."""
    ignored = False
    for line in (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.removeprefix("!").removeprefix("**/")
        if pattern and not pattern.startswith("#"):
            parts = name.split("/")
            tops = ["/".join(parts[: count + 1]) for count in range(len(parts))]
            if any(fnmatchcase(top, pattern) for top in (parts if "**/" in line else tops)):
                ignored = not line.startswith("!")
    return not ignored


def context() -> list[str]:
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=REPOSITORY, capture_output=True, check=True, text=True).stdout.split("\0")
    return [name for name in names if name and allowed(name) and (REPOSITORY / name).is_file()]


# What it promises


def test_hadolint_has_nothing_to_say():
    linted = subprocess.run(
        [BIN / "hadolint", "--no-color", "--failure-threshold=style", REPOSITORY / "Dockerfile"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert (linted.returncode, linted.stdout, linted.stderr) == (0, "", "")


def test_the_base_is_a_slim_debian_with_a_python_that_we_support():
    match = re.fullmatch(r"python:(3\.\d+)-slim-(\w+)", BASE)
    assert match
    assert match[2] in GLIBC
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"Programming Language :: Python :: {match[1]}" in project["classifiers"]
    assert len(STAGES) >= 2
    assert {stage.base for stage in STAGES} == {"${BASE}"}


def test_no_digest_is_typed_by_hand():
    for name in ("Dockerfile", "Makefile", ".github/workflows/release.yml"):
        assert not re.search(r"[0-9a-f]{40}", (REPOSITORY / name).read_text(encoding="utf-8")), name


def test_what_is_installed_while_building_is_pinned():
    for command in (command for stage in STAGES for command in stage.of("RUN")):
        for package in re.findall(r"pip install (?:--\S+ )*(.+)", command):
            assert re.fullmatch(r"[a-z-]+==[\d.]+", package), package
        assert "uv sync" not in command or "--locked" in command


def test_the_user_is_a_number_and_not_root():
    user, _, group = FINAL.last("USER").partition(":")
    assert int(user) >= 10_000
    assert int(group) >= 10_000
    names = [each.name for each in FINAL.instructions]
    assert not {"RUN", "COPY"} & set(names[names.index("USER") :]), "that user could write what it made"


def test_nvml_is_all_that_is_asked_of_the_driver_and_no_gpu_by_name():
    assert FINAL.environment()["NVIDIA_DRIVER_CAPABILITIES"] == "utility"
    for each in FOUND:
        assert not re.search(r"NVIDIA_VISIBLE_DEVICES|CUDA|LD_LIBRARY_PATH|LD_PRELOAD", each.value), each
        assert not re.search(r"nvidia/|alpine|musl", each.value), each


def test_nothing_secret_or_from_elsewhere_goes_in():
    for each in FOUND:
        assert each.name not in ("ADD", "VOLUME", "ONBUILD", "SHELL"), each
        assert not re.search(r"secret|token|password|api_?key|https?://", each.value, re.IGNORECASE), each
        assert not (each.name == "RUN" and "--mount" in each.value), each


def test_the_final_stage_only_takes_what_the_first_made():
    (name,) = {stage.name for stage in STAGES if stage is not FINAL}
    assert FINAL.of("COPY") == [f"--from={name} {VENV} {VENV}"]
    for command in FINAL.of("RUN"):
        assert not re.search(r"\b(pip|uv|apt|apt-get|curl|wget|gcc|make|chmod|chown)\b", command), command


def test_the_command_is_the_program_itself_and_serves_when_nothing_is_said():
    program = json.loads(FINAL.last("ENTRYPOINT"))
    assert program == [f"{VENV}/bin/llm-cost-exporter"]
    assert json.loads(FINAL.last("CMD")) == ["serve"]
    assert FINAL.last("EXPOSE") == "9409"


def test_the_labels_say_what_it_is_and_the_builder_says_which():
    labels = pairs(FINAL.last("LABEL"), {"VERSION": "1.2.3"})
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    prefix = "org.opencontainers.image."
    assert labels[f"{prefix}title"] == project["name"]
    assert labels[f"{prefix}licenses"] == project["license"]
    assert labels[f"{prefix}version"] == "1.2.3"


def test_only_what_the_build_needs_goes_in():
    named = [source for stage in STAGES for value in stage.of("COPY") if "--from" not in value
             for source in shlex.split(value)[:-1]]  # fmt: skip
    assert {name.split("/")[0] for name in context()} == {name.split("/")[0] for name in named}
    for name in (".git/config", ".venv/bin/python", ".env", "config.yml", "tests/conftest.py", "docs/security.md",
                 "exporter/__pycache__/x.pyc", "exporter/core/__pycache__/x.pyc", "Dockerfile"):  # fmt: skip
        assert not allowed(name), name


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_dependency_comes_as_a_wheel_for_the_base(machine: str):
    """A slim base has no compiler."""
    match = re.fullmatch(r"python:3\.(\d+)-slim-(\w+)", BASE)
    assert match
    packages = tomllib.loads((REPOSITORY / "uv.lock").read_text(encoding="utf-8"))["package"]
    for name in sorted(needed(packages)):
        wheels = [wheel["url"].rsplit("/", 1)[1] for package in packages if package["name"] == name
                  for wheel in package.get("wheels", ())]  # fmt: skip
        assert any(fits(wheel, int(match[1]), GLIBC[match[2]], machine) for wheel in wheels), name


def needed(packages: list[dict[str, Any]]) -> set[str]:
    """The names that the program and its extras are locked to, those of other platforms included."""
    known = {package["name"]: package for package in packages}
    extras = known["llm-cost-exporter"]["optional-dependencies"].values()
    names = {dependency["name"] for extra in extras for dependency in extra}
    waiting = ["llm-cost-exporter", *names]
    while waiting:
        for dependency in known[waiting.pop()].get("dependencies", ()):
            if dependency["name"] not in names:
                names.add(dependency["name"])
                waiting.append(dependency["name"])
    return names


def fits(wheel: str, minor: int, glibc: tuple[int, int], machine: str) -> bool:
    python, abi, platforms = wheel.removesuffix(".whl").split("-")[-3:]
    if platforms == "any":
        return "py3" in python
    made_for = [(int(major), int(rest)) for major, rest in re.findall(rf"manylinux_(\d+)_(\d+)_{machine}", platforms)]
    made_for += [(2, 17)] if f"manylinux2014_{machine}" in platforms else []
    since = re.fullmatch(r"cp3(\d+)", python)
    right = since is not None and (abi == f"cp3{minor}" or (abi == "abi3" and int(since[1]) <= minor))
    return right and any(each <= glibc for each in made_for)


def test_the_release_builds_on_the_digest_that_it_found_and_tested():
    workflow = yaml.safe_load((REPOSITORY / ".github/workflows/release.yml").read_text(encoding="utf-8"))
    assert workflow[True] == {"push": {"tags": ["v*"]}}
    assert workflow["permissions"] == {"contents": "read"}
    (job,) = workflow["jobs"].values()
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"]) for step in job["steps"] if "uses" in step)
    commands = [step.get("run", "") for step in job["steps"]]
    (resolves,) = (index for index, each in enumerate(commands) if "imagetools inspect" in each)
    (tests,) = (index for index, each in enumerate(commands) if ".ci/run" in each)
    (builds,) = (index for index, each in enumerate(commands) if "buildx build" in each)
    assert resolves < tests < builds
    assert 'echo "BASE=$base@$digest" >> "$GITHUB_ENV"' in commands[resolves]
    assert '"$BASE"' in commands[tests]
    for flag in ('--build-arg BASE="$BASE"', '--build-arg VERSION="$VERSION"', "--platform linux/amd64,linux/arm64",
                 "--provenance=mode=max", "--sbom=true"):  # fmt: skip
        assert flag in commands[builds]


@pytest.mark.parametrize("line", ["^ARG BASE=", '^__version__ = "'])
def test_what_the_release_reads_from_our_files_stands_there(line: str):
    text = (REPOSITORY / ".github/workflows/release.yml").read_text(encoding="utf-8")
    (command,) = re.findall(rf"\$\((sed -n 's/{re.escape(line)}.+?)\)\n", text)
    read = subprocess.run(["sh", "-c", command], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert read.strip() == (BASE if "BASE" in line else exporter.__version__)


# Its steps, run here


class Image(NamedTuple):
    """The final stage below a folder of this machine; paths of the image begin there."""

    root: Path

    def here(self, text: str) -> str:
        return here(self.root, text)

    @property
    def environment(self) -> dict[str, str]:
        return {key: self.here(value) for key, value in FINAL.environment().items()}

    @property
    def program(self) -> list[str]:
        return [self.here(word) for word in json.loads(FINAL.last("ENTRYPOINT"))]

    @property
    def packages(self) -> Path:
        (folder,) = (self.root / VENV[1:]).glob("lib/python3.*/site-packages")
        return folder

    @contextlib.contextmanager
    def running(self, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
        """Run the image's command in its environment, as its user where this one may become it.

        No file takes a byte from this process (RLIMIT_FSIZE), as on a file system that is mounted to be read only.
        """
        command = ["prlimit", "--fsize=0", "setpriv", "--no-new-privs", *self.program, *arguments]
        process = subprocess.Popen(
            command, cwd="/", env=self.environment, text=True, **identity(),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        with process:
            try:
                yield process
            finally:
                process.kill()

    def listing(self) -> dict[str, tuple[int, int, int]]:
        return {
            str(path): (status.st_mode, status.st_size, status.st_mtime_ns)
            for path in sorted(self.root.rglob("*"))
            for status in [path.lstat()]
        }


def here(root: Path, text: str) -> str:
    """Rewrite the image's own paths; what belongs to the system stays."""
    return re.sub(r"(?<![\w./-])/(?=(?:opt|src|usr/local)\b)", f"{root}/", text)


def identity() -> dict[str, Any]:
    if os.geteuid() != 0:
        return {}
    user, group = map(int, FINAL.last("USER").split(":"))
    return {"user": user, "group": group, "extra_groups": []}


def python_of_this_machine() -> str:
    """The first Python that the image's user may run: one below /root is out of its reach."""
    asked = "import sys; print(sys.version_info >= (3, 11), sys.base_prefix)"
    for prefix in (sys.base_prefix, "/usr/local", "/usr"):
        with contextlib.suppress(OSError):
            answer = subprocess.run(
                [f"{prefix}/bin/python3", "-c", asked],
                cwd="/", env={}, check=False, capture_output=True, text=True, **identity(),
            )  # fmt: skip
            if answer.stdout.split() == ["True", prefix]:
                return f"{prefix}/bin/python3"
    pytest.skip("no Python 3.11 or newer on this machine is within reach of the image's user")


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    folder = Path(tempfile.mkdtemp(prefix="image-"))  # not pytest's own, which only its owner may enter
    folder.chmod(0o755)
    try:
        yield build(folder)
    finally:
        for path in folder.rglob("*"):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o755)
        shutil.rmtree(folder)


def build(folder: Path) -> Image:
    began = time.monotonic()
    root, base = folder / "root", folder / "base"
    seeded = ["--seed", "--python", python_of_this_machine(), str(root / "usr/local")]
    subprocess.run([BIN / "uv", "venv", "--quiet", *seeded], check=True)
    root.rename(base)
    built: dict[str, Path] = {}
    for stage in STAGES:
        shutil.copytree(base, root, symlinks=True)
        run_stage(stage, root, built)
        if stage is not FINAL:
            built[stage.name] = root.rename(folder / stage.name)
    image = Image(root)
    for path in root.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o555 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o444)
    print(f"\nthe image's steps took {time.monotonic() - began:.1f} s")
    return image


def run_stage(stage: Stage, root: Path, built: Mapping[str, Path]) -> None:
    """Do as the stage says, its instructions in their order."""
    outside = {key: value for key, value in os.environ.items() if FROM_OUTSIDE.fullmatch(key)}
    variables, folder = {"PATH": BASE_PATH}, Path("/")
    for name, value in stage.instructions:
        if name == "ENV":
            variables |= pairs(value, variables)
        elif name == "WORKDIR":
            folder = Path(value)
            (root / value[1:]).mkdir(parents=True, exist_ok=True)
        elif name == "COPY":
            copy(shlex.split(value), root, root / str(folder)[1:], built)
        elif name == "RUN":
            environment = outside | {key: here(root, text) for key, text in variables.items()}
            run(here(root, value), root / str(folder)[1:], environment)
        else:
            assert name in ("ARG", "LABEL", "USER", "EXPOSE", "ENTRYPOINT", "CMD"), f"{name} is not known here"


def run(command: str, folder: Path, environment: Mapping[str, str]) -> None:
    ran = subprocess.run(
        ["/bin/sh", "-c", command], cwd=folder, env=environment, check=False, capture_output=True, text=True
    )
    if ran.returncode and "CI" not in os.environ and re.search(r"connect|resolv|dns|timed out", ran.stderr, re.I):
        pytest.skip(f"the image's packages cannot be fetched from here: {ran.stderr[-300:]}")
    assert ran.returncode == 0, f"{command}\n{ran.stdout}\n{ran.stderr}"


def copy(words: list[str], root: Path, folder: Path, built: Mapping[str, Path]) -> None:
    if words[0].startswith("--from="):
        _, source, target = words
        shutil.copytree(built[words[0].removeprefix("--from=")] / source[1:], root / target[1:], symlinks=True)
        return
    *sources, target = words
    for source in sources:
        names = [name for name in context() if name == source or name.startswith(f"{source}/")]
        assert names, f"{source} does not go in"
        for name in names:
            inside = folder / target / (Path(name).relative_to(source) if name != source else Path(name).name)
            inside.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, inside)


def test_the_image_holds_what_is_locked_and_nothing_of_ours_to_develop_with(image: Image):
    installed = {
        re.sub(r"[-_.]+", "-", path.name.rsplit("-", 2)[0]).lower() for path in image.packages.glob("*.dist-info")
    }
    lock = tomllib.loads((REPOSITORY / "uv.lock").read_text(encoding="utf-8"))
    assert "aiohttp" in installed
    assert installed <= needed(lock["package"]) | {"llm-cost-exporter"}
    assert not list((image.root / VENV[1:]).glob("bin/*uv*")) + list((image.root / VENV[1:]).glob("bin/*pip*"))
    assert not (image.root / "src").exists()


def test_the_program_in_the_image_is_ours_whole(image: Image):
    ours = {name for name in context() if name.startswith("exporter/")}
    ours |= {f"exporter/shipped/{name}" for name in context() if name.startswith(("rules/", "grafana/"))}
    theirs = {
        str(path.relative_to(image.packages))
        for path in (image.packages / "exporter").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert theirs == ours
    assert not list(image.packages.glob("*.pth")), "an editable install points at the builder's folder"


def test_every_module_has_bytecode_that_needs_no_look_at_its_source(image: Image):
    for source in image.packages.rglob("*.py"):
        compiled = list(source.parent.glob(f"__pycache__/{source.stem}.cpython-3*.pyc"))
        assert len(compiled) == 1, source
        assert compiled[0].read_bytes()[4:8] == (0b01).to_bytes(4, "little"), f"{source}: not an unchecked hash"


def test_the_image_adds_little_to_its_base(image: Image):
    added = sum(path.lstat().st_size for path in (image.root / VENV[1:]).rglob("*"))
    print(f"\nthe image adds {added / 1e6:.1f} MB to its base")
    assert added < LARGEST_BYTES


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["doctor", "--help"]], ids=" ".join)
def test_the_command_answers(image: Image, arguments: list[str]):
    with image.running(*arguments) as process:
        output, _ = process.communicate(timeout=20)
    assert process.returncode == 0, output
    assert arguments != ["--version"] or output == f"llm-cost-exporter, version {exporter.__version__}\n"


def test_without_flags_it_says_in_one_line_what_is_missing(image: Image):
    with image.running(*json.loads(FINAL.last("CMD"))) as process:
        output, _ = process.communicate(timeout=20)
    assert process.returncode == 2
    assert "expected --config.file=FILE, or --engine.url=URL" in output


def test_it_serves_where_nothing_can_be_written_and_ends_when_told(image: Image):
    before = image.listing()
    port = free_port()
    engine = ["--engine.url=http://127.0.0.1:1", "--gpu.usd-per-hour=1", "--interval=1s"]  # nothing answers there
    with image.running("serve", *engine, f"--web.listen-address=127.0.0.1:{port}") as process:
        assert wait_for(process, port, "/-/ready") == 200
        time.sleep(2)  # some beats
        assert ask(port, "/metrics") == 200
        ids = re.findall(r"^(?:Uid|Gid|Groups|CapEff|NoNewPrivs):[ \t]*(.*?) *$", status_of(process), re.MULTILINE)
        process.terminate()
        output, _ = process.communicate(timeout=10)
    assert process.returncode == 0, output
    assert "Traceback" not in output
    assert image.listing() == before
    if os.geteuid() != 0:
        pytest.skip("all of it held, but as this user: only root can become the image's")
    user, group = FINAL.last("USER").split(":")
    assert ids == ["\t".join([user] * 4), "\t".join([group] * 4), "", "0" * 16, "1"]


def status_of(process: "subprocess.Popen[str]") -> str:
    return Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")


def wait_for(process: "subprocess.Popen[str]", port: int, path: str) -> int:
    ends = time.monotonic() + 20
    while time.monotonic() < ends and process.poll() is None:
        with contextlib.suppress(OSError):
            return ask(port, path)
        time.sleep(0.05)
    process.kill()
    raise AssertionError(process.communicate()[0])


def ask(port: int, path: str) -> int:
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()
