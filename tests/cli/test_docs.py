"""Every command line of the README and the docs is typed, from their own text, as far as it costs nothing."""

import importlib.util
import re
import shlex
import shutil
import tomllib
from contextlib import chdir
from itertools import takewhile
from pathlib import Path

import pytest

from mup_lightning.cli.main import VERBS, help_of, main, parse
from mup_lightning.config.schema import Config
from mup_lightning.plan.plan import plan
from mup_lightning.slurm.options import SubmitSettings
from mup_lightning.studies.sweep.spec import SweepSettings, load
from tests.cli.test_make import REPOSITORY, installed, make, typed  # noqa: F401

PAGES = [REPOSITORY / "README.md", REPOSITORY / "data/README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
PLACEHOLDERS = {"NAME": "lr_width", "AGAIN": "again", "N": "2", "FILE.yaml": "recipes/experiment/lr_width.yaml"}
OTHERS = {"git", "apt-get", "export", "source", "scancel", "sbatch"}
"""Programs that are not ours; what they are given is not checked."""


def lines():
    """Command lines: those of blocks that begin with one, and those in the text that say more than a program's name."""
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        for block in re.findall(r"^```\n(.*?)^```", text, re.S | re.M):
            if is_command(block):
                yield from (line for line in block.splitlines() if line.strip())
        prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
        yield from (code for code in re.findall(r"`([^`\n]+)`", prose) if is_command(code) and " " in code)


def is_command(text):
    """Whether it begins with a program."""
    first = text.split()[0]
    return first in TYPE or first in OTHERS


def words_of(line):
    """A command line in words, with something in place of what a reader puts there."""
    words = [word for word in shlex.split(line, comments=True) if word != "..."]
    names = "|".join(map(re.escape, PLACEHOLDERS))
    return [re.sub(rf"(?<![\w-])({names})(?![\w.-])", lambda found: PLACEHOLDERS[found[1]], word) for word in words]


def type_make(words, venv):
    """What make runs instead is typed."""
    out, err = make(venv, *words)
    assert not err, err
    for command in typed(venv, *words) if "mup-lightning" in out else []:
        type_program(command)


def type_program(words, *_):
    """Its options are parsed; what they make is built, and shared out among as many processes."""
    words = list(takewhile(lambda word: word not in ("&&", "|", "<", ">"), words))
    verb = VERBS.get(" ".join(words[:2])) or VERBS[words[0]]
    rest = words[len(verb.name.split()) :]
    if "--help" in rest:
        assert help_of(verb)
        return
    if verb.name == "recipe":
        assert main(words) == 0
        return
    for word in rest:
        if word.startswith("weights="):
            Path(word.removeprefix("weights=")).mkdir(exist_ok=True)
            Path(word.removeprefix("weights="), "config.json").write_text('{"model_type": "gpt2"}')
        write_in_place_of_the_reader(Path(word.rpartition("=")[2]))
    if not rest:  # the name of a verb
        return
    made = {type(argument): argument for argument in parse(verb, rest)}
    config, submitted = made.get(Config), made.get(SubmitSettings)
    if swept := submitted if submitted and submitted.sweep else made.get(SweepSettings):
        assert load(swept.sweep if submitted else swept.file, swept.set).grids
    elif verb.name in ("train", "submit", "config"):
        devices = (submitted and submitted.slurm.gpus) or config.trainer.devices
        processes = devices * config.trainer.nodes
        assert plan(config, (processes,)).accumulation[processes]


def write_in_place_of_the_reader(file):
    """Files that ship are there; others the reader has written, or an earlier command has."""
    if file.suffix in (".yaml", ".csv", ".json") and not file.exists():
        assert file.parts[0] not in ("recipes", "docs"), file
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")


def type_python(words, *_):
    """A module of ours is there to be run, and knows the options."""
    assert words[0] == "-m"
    spec = importlib.util.find_spec(words[1])
    file = Path(spec.origin).with_name("__main__.py") if spec.submodule_search_locations else Path(spec.origin)
    program = file.read_text()
    assert '__name__ == "__main__"' in program
    assert all(word.removeprefix("--") in program for word in words[2:] if word.startswith("--"))


def type_pytest(words, *_):
    """The tests are there."""
    assert all(Path(word).exists() for word in words if not word.startswith("-"))


def type_pip(words, *_):
    """The package is ours, and has the extras."""
    name, _, extra = words[1].rstrip("]").partition("[")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert (words[0], name) == ("install", project["name"])
    assert extra in project["optional-dependencies"]


def type_srun(words, *_):
    """The program that it runs is typed."""
    type_program(words[words.index("mup-lightning") + 1 :])


TYPE = {
    "make": type_make,
    "mup-lightning": type_program,
    "python": type_python,
    "pytest": type_pytest,
    "pip": type_pip,
    "srun": type_srun,
}


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """The repository as a reader has it, who may write there."""
    folder = tmp_path_factory.mktemp("repository")
    for name in ("recipes", "docs", "tests"):
        (folder / name).symlink_to(REPOSITORY / name)
    shutil.copytree(REPOSITORY / "data", folder / "data", ignore=shutil.ignore_patterns("prepared"))
    with chdir(folder):
        yield


@pytest.mark.parametrize("line", sorted({" ".join(line.split()) for line in lines()}), ids=str)
def test_it_can_be_typed(installed, line):  # noqa: F811
    program, *words = words_of(line)
    if program not in OTHERS:
        TYPE[program](words, installed)


def test_a_block_is_all_commands_or_none():
    for page in PAGES:
        for block in re.findall(r"^```\n(.*?)^```", page.read_text().replace("\\\n", " "), re.S | re.M):
            lines = [line for line in block.splitlines() if line.strip() and line[0] not in " #"]
            assert "#SBATCH" in block or {is_command(line) for line in lines} == {is_command(block)}, block
