"""Completion of the command line in a real bash, fish and zsh."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from hardpatch.cli import VERBS, main
from hardpatch.pretrain import recipes
from tests.terminal import Terminal

COMPLETE = """
source "$1"; shift
words=("$@"); COMP_WORDS=("${words[@]}"); COMP_CWORD=$((${#words[@]} - 1)); COMPREPLY=()
COMP_LINE="${words[*]}"; COMP_POINT=${#COMP_LINE}
function=$(complete -p hardpatch | sed 's/.*-F \\([^ ]*\\).*/\\1/')
$function hardpatch "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the script of every shell."""
    folder = tmp_path_factory.mktemp("completion")
    for shell in ("bash", "zsh", "fish"):
        with pytest.MonkeyPatch.context() as patch, open(folder / shell, "w", encoding="utf-8") as file:
            patch.setattr("sys.stdout", file)
            assert main(["--print_completion", shell]) == 0
    return folder


def completed(scripts: Path, place: Path, *words: str) -> list[str]:
    bash = shutil.which("bash")
    assert bash is not None
    command = [bash, "-c", COMPLETE, "bash", str(scripts / "bash"), "hardpatch", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=place).stdout.split()


def test_every_verb_is_completed(scripts: Path, tmp_path: Path) -> None:
    assert set(completed(scripts, tmp_path, "")) >= set(VERBS)
    assert completed(scripts, tmp_path, "fin") == ["finetune"]


def test_options_choices_and_names(scripts: Path, tmp_path: Path) -> None:
    assert completed(scripts, tmp_path, "pretrain", "--resu") == ["--resume"]
    assert completed(scripts, tmp_path, "pretrain", "--method.ho") == ["--method.host"]
    assert completed(scripts, tmp_path, "pretrain", "--host", "") == ["mae", "simmim", "beit", "ibot"]
    assert completed(scripts, tmp_path, "pretrain", "--display", "q") == ["quiet"]
    assert completed(scripts, tmp_path, "knn", "run", "--pool", "") == ["mean", "class"]
    assert completed(scripts, tmp_path, "pretrain", "--recipe", "") == recipes.names()
    assert completed(scripts, tmp_path, "recipes", "cif") == [n for n in recipes.names() if n.startswith("cif")]
    assert set(completed(scripts, tmp_path, "study", "")) >= {"plan", "all", "fig2", "table4"}
    assert "--predictor" in completed(scripts, tmp_path, "study", "fig2", "--pred")


def test_paths(scripts: Path, tmp_path: Path) -> None:
    (tmp_path / "my_images").mkdir()
    (tmp_path / "my_table.parquet").touch()
    assert set(completed(scripts, tmp_path, "stats", "my_")) == {"my_images", "my_table.parquet"}
    assert completed(scripts, tmp_path, "finetune", "RUN", "--out", "my_") == ["my_images"]
    assert set(completed(scripts, tmp_path, "pretrain", "--data", "my_")) == {"my_images", "my_table.parquet"}


def test_scripts_are_valid_and_name_every_verb(scripts: Path) -> None:
    for shell in ("bash", "zsh", "fish"):
        text = (scripts / shell).read_text(encoding="utf-8")
        assert [verb for verb in VERBS if verb not in text] == []
        program = shutil.which(shell)
        if program is not None:
            subprocess.run([program, "-n", str(scripts / shell)], check=True)


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish: apt-get install fish")
def test_fish(scripts: Path, tmp_path: Path) -> None:
    def offered(line: str) -> list[str]:
        command = ["fish", "-c", f"source '{scripts / 'fish'}'; complete -C '{line}'"]
        environment = os.environ | {"HOME": str(tmp_path)}
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path, env=environment)
        return [line.split("\t")[0] for line in done.stdout.splitlines()]

    assert offered("hardpatch fin") == ["finetune"]
    assert offered("hardpatch pretrain --resu") == ["--resume"]
    assert offered("hardpatch pretrain --host ") == ["mae", "simmim", "beit", "ibot"]
    assert offered("hardpatch recipes cif") == [name for name in recipes.names() if name.startswith("cif")]
    assert set(offered("hardpatch study fi")) == {"fig2", "fig4", "figS1", "figS2"}


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh: apt-get install zsh")
def test_zsh(scripts: Path, tmp_path: Path) -> None:
    shutil.copy(scripts / "zsh", tmp_path / "_hardpatch")
    start = "import os; os.execvp('zsh', ['zsh', '-f'])"
    terminal = Terminal(["-c", start], columns=160, lines=60, environment={"PS1": "> "})

    def typed(keys: str, shown: str) -> None:
        terminal.read(lambda text: text.splitlines()[-1:] == [">"], 60)  # a prompt
        os.write(terminal.control, keys.encode())
        terminal.read(lambda text: shown in text, 60)
        os.write(terminal.control, b"\x03")  # leave the line

    try:
        typed(f"fpath=('{tmp_path}' $fpath); autoload -U compinit; compinit -u -D; echo re''ady\n", "\nready")
        typed("hardpatch fin\t", "hardpatch finetune")
        typed("hardpatch pretrain --resu\t", "hardpatch pretrain --resume")
        typed("hardpatch pretrain --host \t", "beit    ibot    mae     simmim")
        typed("hardpatch recipes cifar10_\t", "hardpatch recipes cifar10_tiny")
    finally:
        terminal.process.kill()
        terminal.process.wait()


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--print_completion", "bsh"]) == 2
    assert capsys.readouterr().err == (
        "hardpatch: --print_completion: expected one of bash, zsh, fish, got 'bsh'; did you mean 'bash'?\n"
    )
