"""Settings from flags, the YAML file and Python arguments: one meaning, and a sentence for what has none."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine_core.config.errors import ConfigError
from frontend.cli.commands import build_parser, read_settings
from frontend.cli.flags import CHOICES, GROUPS, HELP, SIZES, SWITCHES, ServeArgs, make_args, parse_size
from frontend.cli.main import main


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
    assert settings("--model", "same", "same").model == "same"
    with pytest.raises(ConfigError, match="MODEL positional and --model flag differ"):
        settings("--model", "flag", "positional")


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
        ("port: many", r"--port: 'many' is not a whole number from 0 to 65535\.$"),
        ("port: 70000", r"--port: 70000 is not a whole number from 0 to 65535\.$"),
        ("port: [1]", r"--port: \[1\] is not a whole number"),
        ("port: true", r"--port: true is not a whole number"),
        ("enforce-eager: maybe", r"--enforce-eager: 'maybe' is not true or false\.$"),
        ("model: [x]", r"--model: \['x'\] is not a text\.$"),
        ("max-model-len: many", r"--max-model-len: 'many' is not a whole number"),
        ("allowed-origins: http://a/", r"--allowed-origins: 'http://a/' is not what a browser sends"),
        ("max-num-seqs: 0", r"--max-num-seqs: 0 is not a whole number from 1 to 8192\.$"),
        ("gpu_memory_utilization: 1.5", r"--gpu-memory-utilization: 1\.5 is not a number above 0 and up to 1\.$"),
        ("served-model-name: [1]", r"--served-model-name: 1 is not a text of 1 to 256 characters\.$"),
        ("served-model-name: 1", r"--served-model-name: 1 is not a text of .* or a list of such\.$"),
        ("dtype: int3", r"--dtype: 'int3' is not one of auto, float32, float16, bfloat16\.$"),
        ("port: 1\nport_: 2", r"there is no setting 'port_'"),
        ("max-num-seqs: 1\nmax_num_seqs: 2", r"sets 'max_num_seqs' twice"),
        ("block_size: 16\nport: 1\nblock_size: 32", r"sets 'block_size' twice"),
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


@pytest.mark.parametrize("text", ["", "k", "-1", "1e3", "8x", "0x10", "1.5.2", "٣k ", "9" * 5000])
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


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"gpu_memory_utilization": "nan"}, "nan is not a number above 0 and up to 1"),
        ({"num_threads": 1025}, "--num-threads: 1025 is not a whole number from 0 to 1024"),
        ({"max_model_len": None, "port": None}, "--port: None is not a whole number"),
        ({"max_model_len": "0"}, "--max-model-len: 0 is not a whole number of at least 1"),
        ({"dtype": ["auto"]}, r"--dtype: \['auto'\] is not one of auto, float32"),
        ({"tool_call_parser": "nobody"}, "--tool-call-parser: 'nobody' is not one of auto, none, gpt_oss, "),
        ({"served_model_name": ["a", ""]}, "--served-model-name: '' is not a text of 1 to 256 characters"),
        ({"host": "h" * 500, "seed": "x" * 500}, r"--seed: '?x{99}\.\.\. is not"),
        ({"api_key": ["sk-1" * 2000]}, "--api-key: what was given is not a text of 1 to 4096 characters"),
    ],
)
def test_a_refusal_says_what_was_given_and_what_may_be(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        make_args(values)


ORIGINS = ["*", "https://chat.example", "http://localhost:3000", "http://[::1]:8080", "chrome-extension://abc"]
NO_ORIGINS = ["notanorigin", "https://chat.example/", "https://chat.example/x", "https://Chat.example", "https://"]
NO_ORIGINS += ["https://*.example", "https://chat.example:443", "https://chat.example:", " https://a", "a.example:80"]


NO_HOSTS = ["http://chat.example", "chat.example:8000", "Chat.example", "chat.example/", "a b", ".example"]


def test_hosts_are_names_without_ports() -> None:
    hosts = ["chat.example", "10.0.0.7", "[::1]", "box", "*"]
    assert make_args({"allowed_hosts": hosts}).allowed_hosts == hosts
    for host in NO_HOSTS:
        with pytest.raises(ConfigError, match=r"--allowed-hosts: .* is not the name of a host"):
            make_args({"allowed_hosts": ["box", host]})


def test_origins_are_what_browsers_send() -> None:
    assert make_args({"allowed_origins": ORIGINS}).allowed_origins == ORIGINS
    for origin in NO_ORIGINS:
        with pytest.raises(ConfigError, match=r"--allowed-origins: .* is not what a browser sends"):
            make_args({"allowed_origins": ["*", origin]})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "m", "--prot", "1"], "quire serve has no flag --prot; is --port meant? (see quire serve --help)"),
        (["plan", "m", "--at-lenght=7"], "quire plan has no flag --at-lenght; is --at-length meant?"),
        (["top", "--limt", "1"], "quire top has no flag --limt; is --limit meant? (see quire top --help)"),
        (["serve", "m", "--xyzzy"], "quire serve has no flag --xyzzy (see quire serve --help)."),
        (["serve", "m", "-tp", "2"], "quire serve has no flag -tp (see quire serve --help)."),
        (["serve", "m", "--gpu", "H100"], "--gpu is no flag of quire serve: it belongs to quire plan (see "),
        (["serve", "m", "--tensor-parallel-size=2"], "--tensor-parallel-size is no flag of quire serve: it belongs to"),
        (["serve", "m", "--json"], "it belongs to quire plan and quire top (see quire serve --help)."),
        (["serve", "m", "other"], "quire serve does not know what 'other' is for (see quire serve --help)."),
    ],
)
def test_what_a_subcommand_does_not_know(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_help_lists_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    assert "{auto,float32,float16,bfloat16}" in capsys.readouterr().out


INTERRUPTED = """
import importlib.abc, os, runpy, signal, sys

class Interrupts(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in a shell's background would ignore it
sys.meta_path.insert(0, Interrupts())
sys.argv = ["quire", "plan", "/nowhere/at/all"]
runpy.run_module("frontend.cli.main", run_name="__main__")
"""


@pytest.mark.parametrize("module", ["msgspec", "psutil", "yaml", "frontend.cli.plan"])
def test_ctrl_c_while_it_imports_is_quiet(module: str) -> None:
    command = [sys.executable, "-P", "-c", INTERRUPTED.format(module=module)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (-signal.SIGINT, "", "")


def test_ctrl_c_is_left_to_programs_that_import_us() -> None:
    code = (
        "import signal, sys; before = signal.getsignal(signal.SIGINT); import quire, frontend.cli.main as main\n"
        "assert signal.getsignal(signal.SIGINT) is before\n"
        "assert main.main(['plan', '/nowhere/at/all']) == 2\n"
        "assert signal.getsignal(signal.SIGINT) is before"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True, timeout=60, stderr=subprocess.DEVNULL)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out.startswith("quire 0.")
