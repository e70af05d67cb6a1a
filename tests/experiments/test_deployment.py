"""The deployment: what the demo shows, that nothing of it is left, and that the guide says so."""

import configparser
import contextlib
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    load_pem_private_key,
    load_ssh_private_key,
    load_ssh_public_key,
)
from flwr.app import Array, ArrayRecord
from flwr.cli.app import app as flwr
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL, HEARTBEAT_PATIENCE
from typer.testing import CliRunner

from experiments.demos.deployment_runtime import (
    superlink_options,
    supernode_command,
    write_certificates,
    write_key,
)
from fedmedian.clients import InProcessGrid
from tests.tools.places import DOCS, ROOT

PATIENCE = 600.0


@dataclass
class Traces:
    """Which folders and ports were in use while a command ran."""

    homes: set[Path] = field(default_factory=set)
    ports: set[int] = field(default_factory=set)

    def gather(self, watched):
        self.homes |= {Path(home) for home in watched.homes()}
        ours = {process.pid for process in watched.running()}
        for one in psutil.net_connections("tcp"):
            if one.pid in ours and one.status == psutil.CONN_LISTEN:
                self.ports.add(one.laddr.port)

    def are_gone(self):
        return not any(home.exists() for home in self.homes) and not any(map(answers, self.ports))


def deploy(watch, output):
    return watch("-m", "experiments.demos.deployment", output=output)


def a_client_app_runs(watched):
    """Tell whether a SuperNode has started one, as for each message of a round."""
    for one in watched.running():
        with contextlib.suppress(psutil.Error):
            if any(word.endswith("flwr-clientapp") for word in one.cmdline()):
                return True
    return False


def answers(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
@pytest.mark.timeout(PATIENCE + 60)
class TestDemo:
    @dataclass(frozen=True)
    class Outcome:
        output: str
        returncode: int
        left_over: list
        traces: Traces

    @pytest.fixture(scope="class")
    @classmethod
    def outcome(cls, watch, tmp_path_factory):
        file, traces = tmp_path_factory.mktemp("demo") / "output.txt", Traces()
        with file.open("w") as output, deploy(watch, output) as watched:
            deadline = time.monotonic() + PATIENCE
            while watched.process.poll() is None:
                assert time.monotonic() < deadline, file.read_text()
                traces.gather(watched)
                time.sleep(4)
            return cls.Outcome(
                file.read_text(), watched.process.returncode, watched.running(), traces
            )

    def lines(self, outcome, text):
        return [line for line in outcome.output.splitlines() if text in line]

    def test_it_succeeds(self, outcome):
        assert outcome.returncode == 0, outcome.output

    def test_a_supernode_whose_key_is_not_registered_is_refused(self, outcome):
        (line,) = self.lines(outcome, "key is not registered")
        assert "Failed to activate SuperNode" in line

    def test_three_supernodes_join(self, outcome):
        found = re.findall(r"SuperNode of partition (\d) is node (\d+)", outcome.output)
        assert [partition for partition, _ in found] == ["0", "1", "2"]
        assert len({node for _, node in found}) == 3

    def test_the_one_that_is_killed_in_a_round_is_missed_by_its_partition(self, outcome):
        (killed,) = self.lines(outcome, "has been killed")
        assert "partition 2" in killed
        (lost,) = self.lines(outcome, "dropped the reply of node")
        assert "WARNING" in lost
        assert "(partition 2): error 5" in lost
        (round_2,) = self.lines(outcome, "accepted 2 replies, dropped 1")
        output = outcome.output
        assert output.index("round   1/4") < output.index(killed) < output.index(lost)
        assert output.index(lost) < output.index(round_2) < output.index("round   2/4")

    def test_the_guide_quotes_the_server(self, outcome):
        guide = (DOCS / "deployment.md").read_text()
        (quoted,) = re.findall(r"^(WARNING .*?) …$", guide, flags=re.MULTILINE)
        (lost,) = self.lines(outcome, "dropped the reply of node")
        assert re.sub(r"node \d+", "node", quoted) in re.sub(r"node \d+", "node", lost)

    def test_it_is_refused_until_it_has_been_missed_and_then_accepted_as_the_same_node(
        self, outcome
    ):
        refused, accepted = self.lines(outcome, "was started again")
        assert "is refused" in refused
        node = re.search(r"SuperNode of partition 2 is node (\d+)", outcome.output)[1]
        assert accepted.endswith(f"is accepted: node {node}.")

    def test_it_takes_part_again(self, outcome):
        trains_again = outcome.output.index("The SuperNode of partition 2 trains again")
        accepted = [m.start() for m in re.finditer("accepted 3 replies, dropped 0", outcome.output)]
        assert len(accepted) == 3
        assert accepted[1] > trains_again

    def test_it_is_back_in_the_next_round_at_the_cost_of_one_whole_model(self, outcome):
        (line,) = self.lines(outcome, "are sent the whole model")
        model = re.search(r"1 of 3 clients are sent the whole model, ([\d,]+) bytes each", line)[1]
        assert "1 are new, have failed" in line
        output = outcome.output
        assert output.index("round   2/4") < output.index(line) < output.index("round   3/4")
        # .npy files have a header for each of four arrays.
        whole = int(model.replace(",", "")) + 4 * 128
        found = re.findall(r"([\d,]+) bytes down per client", output)
        first, with_dead, with_returned, last = (int(one.replace(",", "")) for one in found)
        assert first == whole
        assert with_dead == last < whole / 30
        assert with_returned == pytest.approx((whole + 2 * last) / 3, abs=100)

    def test_the_model_is_trained(self, outcome):
        accuracies = re.findall(r"round +(\d)/4 +accuracy (\d\.\d+)", outcome.output)
        assert [number for number, _ in accuracies] == ["0", "1", "2", "3", "4"]
        assert float(accuracies[0][1]) < 0.3
        assert float(accuracies[-1][1]) > 0.75  # .819: the app has a seed

    def test_no_process_no_listener_and_no_folder_is_left(self, outcome):
        assert len(outcome.traces.homes) >= 4
        assert len(outcome.traces.ports) >= 4
        assert outcome.left_over == []
        assert outcome.traces.are_gone()


@pytest.mark.slow
def test_ctrl_c_in_a_round_leaves_nothing_behind(watch, tmp_path):
    file, traces = tmp_path / "output.txt", Traces()
    with file.open("w") as output, deploy(watch, output) as watched:
        deadline = time.monotonic() + PATIENCE / 2
        while not a_client_app_runs(watched):
            assert time.monotonic() < deadline
            assert watched.process.poll() is None
            time.sleep(0.5)
        traces.gather(watched)
        watched.process.send_signal(signal.SIGINT)
        watched.process.wait(timeout=PATIENCE / 2)
        assert watched.process.returncode not in (0, None)
        assert "has been stopped" in file.read_text()
        assert len(traces.ports) >= 4
        assert watched.running() == []
        assert traces.are_gone()


class TestCredentials:
    def test_the_servers_certificate_is_for_this_machine_and_signed_by_the_ca(self, tmp_path):
        write_certificates(tmp_path)
        check_certificates(tmp_path, "localhost")

    def test_a_key_is_what_flower_loads_and_only_its_owner_reads(self, tmp_path):
        public = write_key(tmp_path / "key")
        check_key(tmp_path / "key", public)
        assert (tmp_path / "key").stat().st_mode & 0o077 == 0


def check_certificates(folder, name):
    ca, server = (
        x509.load_pem_x509_certificate((folder / file).read_bytes())
        for file in ("ca.crt", "server.pem")
    )
    server.verify_directly_issued_by(ca)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert name in names.get_values_for_type(x509.DNSName)
    key = load_pem_private_key((folder / "server.key").read_bytes(), None)
    assert key.public_key() == server.public_key()


def check_key(private, public):
    loaded = load_ssh_private_key(private.read_bytes(), None)
    assert loaded.public_key() == load_ssh_public_key(public.read_bytes())


def flags(words):
    return sorted(word for word in words if word.startswith("--"))


class TestGuide:
    @pytest.fixture(scope="class")
    @classmethod
    def guide(cls):
        return (DOCS / "deployment.md").read_text()

    def fences(self, guide, language):
        return re.findall(rf"^```{language}\n(.*?)^```", guide, flags=re.DOTALL | re.MULTILINE)

    def commands(self, guide, program):
        """All commands of a program in the shell snippets, in words."""
        text = "".join(self.fences(guide, "sh")).replace("\\\n", " ")
        lines = (line.strip() for line in text.splitlines())
        return [shlex.split(line) for line in lines if line.startswith(f"{program} ")]

    @pytest.fixture
    def supernode_flags(self):
        return flags(supernode_command(Path("ca"), "a:1", Path("key"), 1, 0, 3))

    def unit(self, guide):
        (text,) = self.fences(guide, "ini")
        unit = configparser.ConfigParser(interpolation=None, strict=True)
        unit.optionxform = str
        unit.read_string(text.replace("\\\n", " "))
        return unit

    def test_the_superlink_is_started_as_in_the_demo(self, guide):
        (command,) = self.commands(guide, "flower-superlink")
        assert flags(command) == flags([*superlink_options(Path("etc")), "--host", "--port"])

    def test_supernodes_are_started_as_in_the_demo(self, guide, supernode_flags):
        once, in_a_loop = self.commands(guide, "flower-supernode")
        assert once == in_a_loop
        assert flags(once) == supernode_flags

    def test_systemd_starts_a_supernode_as_in_the_demo(self, guide, supernode_flags):
        service = self.unit(guide)["Service"]
        program, *options = shlex.split(service["ExecStart"])
        (once, _) = self.commands(guide, "flower-supernode")
        assert options == once[1:]
        assert flags(options) == supernode_flags
        environment = dict(word.split("=", 1) for word in shlex.split(service["Environment"]))
        assert str(Path(program).parent) in environment["PATH"].split(":")
        assert environment["FLWR_HOME"] == f"/var/lib/{service['StateDirectory']}"

    def test_supernodes_are_restarted_for_ever_once_the_server_has_missed_them(self, guide):
        unit = self.unit(guide)
        assert unit["Service"]["Restart"] == "always"
        assert unit["Unit"]["StartLimitIntervalSec"] == "0"
        pause = int(unit["Service"]["RestartSec"])
        asks_every = 3
        assert pause > HEARTBEAT_PATIENCE * HEARTBEAT_DEFAULT_INTERVAL + asks_every
        assert f"  sleep {pause}\n" in guide

    @pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
    def test_systemd_understands_the_unit(self, guide, tmp_path):
        (text,) = self.fences(guide, "ini")
        program = shlex.split(self.unit(guide)["Service"]["ExecStart"])[0]
        unit = tmp_path / "flower-supernode.service"
        unit.write_text(text.replace(program, "/bin/true"))
        verdict = subprocess.run(
            ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False
        )
        assert "flower-supernode.service" not in verdict.stderr
        assert verdict.returncode == 0

    @pytest.mark.skipif(
        None in (shutil.which("openssl"), shutil.which("ssh-keygen")),
        reason="needs OpenSSL and SSH",
    )
    def test_certificates_and_keys_are_made(self, guide, tmp_path):
        made = [
            one for one in self.fences(guide, "sh") if one.startswith(("openssl", "ssh-keygen"))
        ]
        for script in made:
            subprocess.run(["sh", "-euc", script], cwd=tmp_path, capture_output=True, check=True)
        check_certificates(tmp_path, "superlink.example.org")
        check_key(tmp_path / "key", tmp_path / "key.pub")

    def test_every_other_command_is_known(self, guide):
        commands = "".join(self.fences(guide, "console")).splitlines()
        known = ("make deploy-demo", "/opt/flower/bin/pip install ", "flwr ", "systemctl enable ")
        assert all(command.startswith(known) for command in commands)
        for words in map(shlex.split, commands):
            if words[0] == "flwr":
                group = words[1:3] if words[1] == "supernode" else words[1:2]
                told = CliRunner().invoke(flwr, [*group, "--help"])
                assert told.exit_code == 0
                assert all(option in told.output for option in flags(words))

    def test_make_runs_the_demo(self):
        plan = subprocess.run(
            ["make", "--dry-run", "deploy-demo"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert "-m experiments.demos.deployment" in plan

    def test_the_users_configuration_names_the_superlink_of_the_commands(self, guide):
        (text,) = self.fences(guide, "toml")
        superlinks = tomllib.loads(text)["superlink"]
        name = superlinks["default"]
        (once, _) = self.commands(guide, "flower-supernode")
        assert superlinks[name]["address"] == once[once.index("--superlink") + 1]
        assert f"flwr run . {name} --stream" in guide

    def test_the_snippet_of_what_the_server_waits_for_trains(self, guide, make_app):
        app = make_app(lambda model, _: ({"x": model["x"] - 1}, {"num-examples": 1}))
        (snippet,) = self.fences(guide, "python")
        arrays = ArrayRecord({"x": Array(np.zeros(1000, np.float32))})
        names = {"grid": InProcessGrid(app, 2), "arrays": arrays}
        exec(snippet, names)
        assert names["strategy"].min_available_nodes == 2
        # Unseeded: two clients' steps are .81 of their length, and -16.1 ± 0.04 over 60 runs.
        assert names["result"].arrays["x"].numpy().mean() == pytest.approx(-16.1, abs=0.4)
