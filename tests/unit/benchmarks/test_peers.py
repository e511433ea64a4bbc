import pytest

from benchmarks.measured import Absent
from benchmarks.peers import executables, redis_client
from benchmarks.peers.redis_benchmark import requests_per_second
from benchmarks.peers.servers import Server, proxy_settings


def program(folder, name):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("#!/bin/sh\necho 'v1.2.3 of it'\necho more\n")
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def _no_programs(monkeypatch, tmp_path):
    """Whatever this machine has installed."""
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.delenv(executables.FOLDER_VARIABLE, raising=False)
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)


def test_a_program_that_is_nowhere_is_absent_with_a_reason(tmp_path):
    found = executables.find("redis-server", tmp_path / "cache")
    assert isinstance(found, Absent)
    assert executables.FOLDER_VARIABLE in found.why
    assert "bench-peers" in found.why


def test_the_named_folder_goes_before_path_and_path_before_the_cache(tmp_path, monkeypatch):
    cached = program(tmp_path / "cache" / "usr" / "bin", "etcd")
    assert executables.find("etcd", tmp_path / "cache").path == cached
    on_path = program(tmp_path / "path", "etcd")
    assert executables.find("etcd", tmp_path / "cache").path == on_path
    named = program(tmp_path / "named", "etcd")
    monkeypatch.setenv(executables.FOLDER_VARIABLE, str(tmp_path / "named"))
    assert executables.find("etcd", tmp_path / "cache").path == named


def test_a_file_that_cannot_be_executed_is_no_program(tmp_path):
    program(tmp_path / "cache" / "bin", "etcd").chmod(0o644)
    assert isinstance(executables.find("etcd", tmp_path / "cache"), Absent)


def test_an_unpacked_program_finds_its_libraries(tmp_path, monkeypatch):
    program(tmp_path / "usr" / "bin", "redis-server")
    libraries = tmp_path / "usr" / "lib" / "x86_64-linux-gnu"
    libraries.mkdir(parents=True)
    assert executables.find("redis-server", tmp_path).environment == {"LD_LIBRARY_PATH": str(libraries)}
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/lib")
    assert executables.find("redis-server", tmp_path).environment == {"LD_LIBRARY_PATH": f"{libraries}:/opt/lib"}


def test_a_program_says_its_version_in_one_line(tmp_path):
    program(tmp_path / "bin", "etcd")
    assert executables.find("etcd", tmp_path).version == "v1.2.3 of it"


def test_dependencies_are_libraries_that_can_be_downloaded():
    listing = """\
redis-tools
  Depends: libc6
  Depends: libjemalloc2
 |Depends: libsystemd0
  PreDepends: libfirst
  Depends: adduser
  Depends: <libvirtual>
  Suggests: libsuggested
  Depends: libjemalloc2
"""
    assert executables.dependencies(listing) == ["libc6", "libfirst", "libjemalloc2", "libsystemd0"]


def test_fetching_without_debians_tools_says_so(tmp_path):
    assert "no apt-get and dpkg" in executables.fetch(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_nothing_is_fetched_when_everything_is_there(tmp_path):
    for name in executables.PACKAGES:
        program(tmp_path / "cache" / "bin", name)
    assert executables.fetch(tmp_path / "cache") == ""


def test_a_download_that_fails_is_told_and_not_raised(tmp_path, monkeypatch):
    for tool in ("apt-get", "apt-cache", "dpkg", "dpkg-query"):
        path = program(tmp_path / "path", tool)
        path.write_text("#!/bin/sh\necho 'no network here' >&2\nexit 100\n")
    assert "no network here" in executables.fetch(tmp_path / "cache")


def test_packages_are_unpacked_with_the_libraries_that_are_missing(tmp_path):
    bin_folder, log = tmp_path / "path", tmp_path / "log"
    scripts = {
        "apt-cache": "printf 'redis-tools\\n  Depends: libthere\\n  Depends: libmissing\\n'",
        "dpkg-query": '[ "$4" = libthere ] && printf installed; true',
        "apt-get": f'echo "$@" >> {log}; shift 2; for name in "$@"; do : > "$name.deb"; done',
        "dpkg": f'echo dpkg "$1" >> {log}',
    }
    for name, text in scripts.items():
        program(bin_folder, name).write_text(f"#!/bin/sh\n{text}\n")
    assert executables.fetch(tmp_path / "cache") == ""
    told = log.read_text().splitlines()
    assert told[0] == "--quiet download etcd-server nutcracker redis-server redis-tools libmissing"
    assert told[1:] == ["dpkg -x"] * 5


def test_the_figure_of_redis_benchmark_is_found_in_its_columns():
    output = (
        'WARNING: Could not fetch server CONFIG\n"test","rps","avg_latency_ms","p99_latency_ms"\n'
        '"MGET key:__rand_int__","8771.93","0.4","1.2"\n'
    )
    assert requests_per_second(output) == 8771.93
    with pytest.raises(ValueError, match="no figure"):
        requests_per_second("Error: Server closed the connection\n")


def test_the_proxy_is_told_its_servers():
    settings = proxy_settings(9000, [Server("redis-server", 9001, (1,)), Server("redis-server", 9002, (2,))], 4)
    assert "listen: 127.0.0.1:9000" in settings
    assert "server_connections: 4" in settings
    assert "   - 127.0.0.1:9001:1 server-1\n   - 127.0.0.1:9002:1 server-2\n" in settings


def test_a_server_that_is_absent_cannot_be_used():
    found = redis_client.usable(Absent("redis-server", "not there"), "redis-py")
    assert found == Absent("redis-py", "not there")


def test_a_server_without_its_client_cannot_be_used(monkeypatch):
    monkeypatch.setattr(redis_client, "find_spec", lambda name: None)
    found = redis_client.usable(Server("redis-server", 1, (1,)), "redis-py")
    assert isinstance(found, Absent)
    assert found.why.startswith("redis and hiredis not installed")
