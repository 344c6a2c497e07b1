"""Entries of the Protein Data Bank from a server on this machine."""

import gzip
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import gemmi
import pytest
from atomic_models import write_protein

from cryo_monai.__main__ import main
from cryo_monai.errors import InputError
from cryo_monai.simulation import load_structures, protein_bank
from cryo_monai.simulation.protein_bank import fetch_entry, is_pdb_id


class Server(ThreadingHTTPServer):
    content: bytes = b""
    asked: list[str]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if not self.path.startswith("/1ABC"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("CRYO_MONAI_CACHE", str(tmp_path / "cache"))
    made = Server(("127.0.0.1", 0), Handler)
    made.asked = []
    document = gemmi.read_structure(str(write_protein(tmp_path))).make_mmcif_document()
    made.content = gzip.compress(document.as_string().encode())
    (tmp_path / "1abc.pdb").unlink()
    monkeypatch.setattr(protein_bank, "URL", f"http://127.0.0.1:{made.server_port}/{{}}.cif.gz")
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def test_an_entry_is_fetched_once_and_its_hash_kept(server: Server, tmp_path: Path) -> None:
    [structure] = load_structures(["1abc"], voxel_size=10.0, resolution=20.0)
    assert structure.name == "1abc"
    assert structure.origin["chains"] == 2
    record = json.loads((tmp_path / "cache" / "structures" / "1abc.json").read_text())
    assert record["sha256"] == structure.origin["sha256"]
    fetch_entry("1ABC")
    assert server.asked == ["/1ABC.cif.gz"]
    (tmp_path / "cache" / "structures" / "1abc.cif.gz").write_bytes(b"other")
    with pytest.raises(InputError, match="its SHA-256 is not"):
        fetch_entry("1abc")


def test_what_cannot_be_fetched_gets_one_line(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=r"2abc: http.*2ABC.cif.gz.*not downloaded"):
        fetch_entry("2abc")
    server.content = b"<html>busy</html>"
    with pytest.raises(InputError, match="sent no gzip file"):
        fetch_entry("1abc")
    assert not list((tmp_path / "cache" / "structures").glob("*"))
    # Nobody listens there: as good as no connection.
    monkeypatch.setattr(protein_bank, "URL", "http://127.0.0.1:9/{}.cif.gz")
    monkeypatch.chdir(tmp_path)
    assert main(["simulate", "data", "--structures", "1abc,o_440kda", "--num_per_class", "3"]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "1abc: http://127.0.0.1:9/1ABC.cif.gz" in lines[0]
    assert "not downloaded" in lines[0]
    assert not (tmp_path / "data").exists()


def test_ids_look_like_1bxn() -> None:
    assert is_pdb_id("1bxn")
    assert is_pdb_id("6T3E")
    assert not any(map(is_pdb_id, ("c2_64kda", "bxn1", "1bx", "1bxnn")))


@pytest.mark.network
def test_the_protein_data_bank_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRYO_MONAI_CACHE", str(tmp_path))
    [structure] = load_structures(["3hhb"], voxel_size=10.0, resolution=20.0)
    assert structure.origin["chains"] == 4
