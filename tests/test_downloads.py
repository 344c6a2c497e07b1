"""Downloads from a server on this machine that is slow, cut off, wrong or gone."""

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cryo_monai import downloads
from cryo_monai.__main__ import main
from cryo_monai.errors import InputError
from cryo_monai.weight_records import WeightRecord, look_up_record

CONTENT = bytes(range(256)) * 20_000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    cut_at: int | None = None  # bytes after which the next answer breaks off
    ranges = True
    requests: list[str | None]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.requests.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.server.ranges else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        body = CONTENT[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cut, self.server.cut_at = self.server.cut_at, None
        self.wfile.write(body[:cut])


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("CRYO_MONAI_CACHE", str(tmp_path / "cache"))
    made = Server(("127.0.0.1", 0), Handler)
    made.requests = []
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def record(server: Server) -> WeightRecord:
    url = f"http://127.0.0.1:{server.server_address[1]}/w.pth"
    return replace(look_up_record("r3d_18-kinetics400"), url=url, sha256_prefix=DIGEST[:8])


def test_a_file_is_fetched_verified_and_not_fetched_again(record: WeightRecord, server: Server) -> None:
    seen: list[tuple[int, int | None]] = []
    path = downloads.fetch_weights(record, DIGEST, lambda there, total: seen.append((there, total)))
    assert path == downloads.cached_path(record)
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert downloads.fetch_weights(record, DIGEST.upper()) == path
    assert len(server.requests) == 1
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_download_goes_on_where_it_stopped(record: WeightRecord, server: Server, ranges: bool) -> None:
    server.cut_at, server.ranges = 3_000_000, ranges
    with pytest.raises(InputError, match="3000000 bytes are kept, the same call goes on") as caught:
        downloads.fetch_weights(record, DIGEST)
    for part in (record.url, DIGEST, str(downloads.cached_path(record))):
        assert part in str(caught.value)
    assert not downloads.cached_path(record).exists()
    assert downloads.fetch_weights(record, DIGEST).read_bytes() == CONTENT
    assert server.requests == [None, "bytes=3000000-"]


def test_a_whole_partial_file_only_needs_its_name(record: WeightRecord, server: Server) -> None:
    target = downloads.cached_path(record)
    target.parent.mkdir(parents=True)
    target.with_name(target.name + ".part").write_bytes(CONTENT)
    assert downloads.fetch_weights(record, DIGEST).read_bytes() == CONTENT


def test_a_wrong_file_is_removed_and_never_used(record: WeightRecord) -> None:
    other = DIGEST[:8] + "a" * 56
    with pytest.raises(InputError, match=f"SHA-256 {DIGEST}, expected {other}"):
        downloads.fetch_weights(record, other)
    assert list(downloads.cached_path(record).parent.iterdir()) == []


def test_nothing_is_fetched_without_a_hash(record: WeightRecord, server: Server) -> None:
    with pytest.raises(InputError, match=r"not pinned yet.*weights pin r3d_18-kinetics400.*--sha256"):
        downloads.fetch_weights(record)
    with pytest.raises(InputError, match=f"the publisher's begins with {DIGEST[:8]}"):
        downloads.fetch_weights(record, "a" * 64)
    with pytest.raises(InputError, match="64 hexadecimal digits"):
        downloads.fetch_weights(record, "abc")
    assert server.requests == []


def test_a_pin_is_kept_and_then_enough(record: WeightRecord, tmp_path: Path) -> None:
    file, digest = downloads.pin_weights(record)
    assert digest == DIGEST
    assert json.loads(file.read_text())[record.name] == {
        "file": record.file, "sha256": DIGEST, "bytes": len(CONTENT)
    }  # fmt: skip
    downloads.cached_path(record).unlink()
    assert downloads.fetch_weights(record).read_bytes() == CONTENT
    assert downloads.find_weights(record) == downloads.cached_path(record)
    downloads.cached_path(record).write_bytes(CONTENT[:-1])
    with pytest.raises(InputError, match="not the pinned"):
        downloads.find_weights(record)


def test_a_pin_must_agree_with_the_published_file_name(record: WeightRecord) -> None:
    with pytest.raises(InputError, match="does not begin with 00000000"):
        downloads.pin_weights(replace(record, sha256_prefix="00000000"))


def test_what_only_a_browser_gets_is_said_so_with_its_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CRYO_MONAI_CACHE", str(tmp_path))
    assert main(["weights", "fetch", "resnet34-kinetics400", "--sha256", "a" * 64]) == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    for part in ("resnet-34-kinetics-cpu.pth", "https://drive.google.com", str(tmp_path)):
        assert part in line


def test_offline_the_line_names_url_hash_and_target(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], record: WeightRecord, server: Server
) -> None:
    server.shutdown()
    server.server_close()
    monkeypatch.setattr("cryo_monai.weight_records.RECORDS", (record,))
    assert main(["weights", "fetch", record.name, "--sha256", DIGEST]) == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    for part in (record.url, DIGEST, str(downloads.cached_path(record))):
        assert part in line


def test_list_names_every_record_and_a_damaged_pin_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CRYO_MONAI_CACHE", str(tmp_path))
    assert main(["weights", "list", "--backbone", "resnet50"]) == 0
    shown = capsys.readouterr().out
    for name in ("resnet50-kinetics400", "resnet50-kinetics700", "resnet50-imagenet"):
        assert name in shown
    (tmp_path / "weight_pins.json").write_text("{")
    assert main(["weights", "list"]) == 1
    assert "weight_pins.json: not readable as JSON" in capsys.readouterr().err
