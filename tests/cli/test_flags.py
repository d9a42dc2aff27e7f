"""Settings from flags, the YAML file and Python arguments: one meaning, and a sentence for what has none."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine_core.config.errors import ConfigError
from frontend.cli.flags import CHOICES, GROUPS, HELP, SIZES, SWITCHES, ServeArgs, make_args, parse_size
from frontend.cli.main import build_parser, main, read_settings


def settings(*arguments: str) -> ServeArgs:
    return read_settings(build_parser().parse_args(["serve", *arguments]))


def test_every_setting_has_a_flag_a_group_and_a_help_text() -> None:
    names = {field.name for field in msgspec.structs.fields(ServeArgs)}
    grouped = [name for group in GROUPS.values() for name in group.split()]
    assert sorted([*grouped, "model"]) == sorted(names) == sorted(HELP)
    assert {*CHOICES, *SIZES, *SWITCHES} <= names


def test_defaults() -> None:
    args = settings("m")
    assert args == ServeArgs(model="m")
    assert (args.host, args.port, args.max_num_seqs, args.block_size) == ("127.0.0.1", 8000, None, 16)


def test_flags_of_every_kind() -> None:
    args = settings(
        *("--model", "m", "--served-model-name", "a", "b", "--max-model-len", "1K", "--gpu-memory-utilization", "0.5"),
        *("--enforce-eager", "--no-enable-prefix-caching", "--dtype", "float16", "--port", "0", "--seed", "-3"),
    )
    assert args == ServeArgs(
        model="m",
        served_model_name=["a", "b"],
        max_model_len=1024,
        gpu_memory_utilization=0.5,
        enforce_eager=True,
        enable_prefix_caching=False,
        dtype="float16",
        port=0,
        seed=-3,
    )


def test_who_names_the_model(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("model: from-file")
    assert settings("--default-model", "d").model == "d"
    assert settings("--default-model", "d", "--config", str(file)).model == "from-file"
    assert settings("--default-model", "d", "--config", str(file), "--model", "flag").model == "flag"
    assert settings("--model", "flag", "positional").model == "positional"


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(
        "model: m\nmax-model-len: 4K\nmax_num_seqs: 8\nport: 1\nserved-model-name: x\n"
        "enable-prefix-caching: false\nseed:\ndrain-timeout: 5\n"
    )
    args = settings("--config", str(file), "--port", "2", "--enable-prefix-caching")
    assert args == ServeArgs(
        model="m", max_model_len=4096, max_num_seqs=8, port=2, served_model_name=["x"], drain_timeout=5.0
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("modle: m", r"there is no setting 'modle'"),
        ("config: other.yaml", r"there is no setting 'config'"),
        ("port: many", r"--port: Expected `int`, got `str`"),
        ("port: 70000", r"--port: Expected `int` <= 65535"),
        ("port: [1]", r"--port"),
        ("max-num-seqs: 0", r"--max-num-seqs: Expected `int` >= 1"),
        ("gpu_memory_utilization: 1.5", r"--gpu-memory-utilization"),
        ("served-model-name: [1]", r"--served-model-name: Expected `str`"),
        ("dtype: int3", r"--dtype: Invalid enum value 'int3'"),
        ("port: 1\nport_: 2", r"there is no setting 'port_'"),
        ("max-num-seqs: 1\nmax_num_seqs: 2", r"sets 'max_num_seqs' twice"),
        ("- a", r"must hold `name: value` lines"),
        ("a: [", r"is not valid YAML"),
        ("!!python/object/apply:os.system ['true']", r"is not valid YAML"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path: Path, content: str, reason: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=reason) as error:
        settings("m", "--config", str(file))
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        settings("m", "--config", str(tmp_path / "c.yaml"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not"):
        settings("m", "--config", str(tmp_path / "binary.yaml"))


@pytest.mark.parametrize(
    ("text", "number"),
    [("7", 7), ("8k", 8000), ("8K", 8192), ("2M", 2 * 2**20), ("1.5G", 3 * 2**29), ("3KiB", 3072), ("2 GiB", 2**31)],
)
def test_sizes(text: str, number: int) -> None:
    assert parse_size("max_model_len", text) == number


@pytest.mark.parametrize("text", ["", "k", "-1", "1e3", "8x", "0x10", "1.5.2", "٣k "])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError, match="--max-model-len"):
        parse_size("max_model_len", text)


@pytest.mark.parametrize(
    "values",
    [{"ports": 1}, {"port": -1}, {"port": None}, {"drain_timeout": float("nan")}, {"seed": 2**63}, {"model": 3}],
)
def test_python_arguments_are_checked_alike(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as error:
        make_args(values)
    assert next(iter(values)).replace("_", "-") in str(error.value).replace("_", "-")


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve", "m", "--prot", "1"],
        ["serve", "m", "--por", "1"],  # no abbreviations
        ["serve", "m", "--port"],
        ["serve", "m", "--port", "x"],
        ["serve", "m", "--dtype", "int3"],
        ["serve"],
        ["sevre"],
        [],
        ["plan", "/nowhere/at/all"],
    ],
    ids=" ".join,
)
def test_a_bad_command_line_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("quire: ")
    assert captured.err.count("\n") == 1


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out.startswith("quire 0.")
