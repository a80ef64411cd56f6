"""Real servers as child processes: they start, survive what tests do to them, and never outlive their starter."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from contracts.errors import ConfigurationError, TransportError
from deploy.embedded.guardian import exists
from deploy.embedded.kafka_home import KafkaHome, MetadataProbe, start_apache_kafka
from deploy.embedded.processes import Child, Server, on_free_port
from deploy.embedded.redis_server import RedisProgram, find_redis, start_redis
from tests.helpers import wait_until_sync


def connect(server: Server) -> redis.Redis:
    return redis.Redis.from_url(server.address, socket_timeout=0.5, retry=None)


def test_a_shared_redis_answers_and_says_where_it_came_from(redis_server: Server) -> None:
    with connect(redis_server) as client:
        assert client.ping()
    assert redis_server.name.split()[0] in {"Redis", "Valkey"}
    assert "HEADRACE_REDIS__URL" in redis_server.description


def test_redis_refuses_whoever_lacks_the_password(redis_url: str) -> None:
    stranger = redis.Redis.from_url("redis://127.0.0.1:" + redis_url.rpartition(":")[2])
    with stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()


def test_the_password_is_in_no_command_line_and_in_no_readable_file(own_redis: Server, tmp_path: Path) -> None:
    password = own_redis.address.split(":")[2].split("@")[0]
    assert password not in Path(f"/proc/{own_redis.pids[0]}/cmdline").read_text(encoding="ascii")
    assert stat.S_IMODE((tmp_path / "redis" / "redis.conf").stat().st_mode) == 0o600
    assert password not in repr(own_redis) + own_redis.description


def test_a_stopped_redis_comes_back_on_its_address_with_its_data(own_redis: Server) -> None:
    with connect(own_redis) as client:
        client.set("key", "value")
        own_redis.stop()
        assert own_redis.pids == ()
        own_redis.start()
        assert client.get("key") == b"value"


def test_a_paused_redis_hangs_until_it_is_resumed(own_redis: Server) -> None:
    with connect(own_redis) as client:
        assert client.ping()
        own_redis.children[0].pause()
        with pytest.raises(redis.TimeoutError):
            client.ping()
        own_redis.children[0].resume()
        assert client.ping()


def test_a_paused_server_can_be_stopped_and_stopping_twice_is_nothing(own_redis: Server) -> None:
    own_redis.children[0].pause()
    own_redis.stop()
    own_redis.stop()
    assert own_redis.pids == ()


def test_a_server_that_cannot_start_shows_the_end_of_its_log(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho this is why; exit 3\n")
    broken.chmod(0o755)
    with pytest.raises(TransportError, match=r"(?s)ended with status 3 before it was ready.*this is why"):
        start_redis(tmp_path / "data", program=RedisProgram(broken, "a test"))


def test_a_server_that_never_becomes_ready_is_killed(tmp_path: Path) -> None:
    child = Child("The sleeper", ["sleep", "60"], log=tmp_path / "log", ready=lambda: False)
    with pytest.raises(TransportError, match="was not ready in time"):
        child.start(seconds=0.2)
    assert not child.is_running


def test_a_port_that_was_taken_in_between_is_given_up_for_another() -> None:
    tried: list[int] = []

    def start(port: int) -> Server:
        tried.append(port)
        if len(tried) == 1:
            raise TransportError("bind: Address already in use")
        return Server("a test", f"127.0.0.1:{port}", "")

    assert on_free_port(start).address == f"127.0.0.1:{tried[1]}"


def test_a_server_dies_with_a_starter_that_was_killed_even_while_it_is_paused(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from deploy.embedded.redis_server import start_redis\n"
        "server = start_redis(Path(sys.argv[1])); server.children[0].pause(); print(server.pids[0], flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    wait_until_sync(lambda: not exists(int(done.stdout)), "the server outlived its starter")


def test_a_server_started_in_a_thread_outlives_that_thread(tmp_path: Path) -> None:
    code = (
        "import sys, threading; from pathlib import Path; from deploy.embedded.redis_server import start_redis\n"
        "found = []; thread = threading.Thread(target=lambda: found.append(start_redis(Path(sys.argv[1]))))\n"
        "thread.start(); thread.join(); print(found[0].children[0].is_running); found[0].stop()"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout == "True\n", done.stderr


def test_the_shared_broker_answers_and_says_how_to_choose_another(kafka_server: Server) -> None:
    port = int(kafka_server.address.rpartition(":")[2])
    assert MetadataProbe(port, brokers=1)()
    assert "choose another" in kafka_server.description


def test_a_killed_embedded_log_comes_back_on_its_address(own_log: Server) -> None:
    probe = MetadataProbe(int(own_log.address.rpartition(":")[2]), brokers=1)
    own_log.kill()
    assert not probe()
    own_log.start()
    assert probe()


@pytest.mark.slow
def test_one_of_three_brokers_can_be_killed_and_started_again(three_brokers: Server) -> None:
    first, second, _ = three_brokers.children
    port = int(three_brokers.address.split(",")[1].rpartition(":")[2])
    first.kill()
    assert second.is_running
    wait_until_sync(MetadataProbe(port, brokers=2), "the others lost their controller", timeout=20)
    first.start()
    assert MetadataProbe(port, brokers=3)()


def test_a_data_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "server.properties").write_text("listeners=PLAINTEXT://:9092\n")
    with pytest.raises(ConfigurationError, match="choose another data folder"):
        start_apache_kafka(KafkaHome(tmp_path, Path("java"), "17"), tmp_path)


def test_the_program_found_first_is_the_one_on_the_path() -> None:
    program = find_redis()
    assert os.access(program.path, os.X_OK)
