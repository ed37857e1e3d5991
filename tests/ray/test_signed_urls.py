"""Jobs on lists of signed URLs: a run fetches with the signatures of its list, and nothing else ever has them."""

import contextlib
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
import ray
from PIL import Image

from inpaint_encode.errors import UsageError
from inpaint_encode.job.pipeline import run_job
from tests.outputs import rejects_of, whole_output

PAIRS = 6


class SignedSite(BaseHTTPRequestHandler):
    """Serves images to requests with the signature that is valid now."""

    protocol_version = "HTTP/1.1"
    valid = "first5ec2e7"

    def do_GET(self):
        query = parse_qs(urlsplit(self.path).query)
        allowed = query.get("X-Amz-Signature") == [SignedSite.valid]
        number = int(query.get("id", ["0"])[0])
        data = picture(number, mask="mask" in self.path) if allowed and number < PAIRS else b"denied"
        self.send_response(200 if allowed else 403)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{number}"')
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def picture(number: int, *, mask: bool) -> bytes:
    levels = np.random.default_rng(number).integers(0, 256, (32, 40, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.where(levels[..., 0] > 127, 255, 0).astype(np.uint8) if mask else levels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def site():
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), SignedSite))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        stack.callback(server.shutdown)
        SignedSite.valid = "first5ec2e7"
        yield f"http://127.0.0.1:{server.server_port}"


def write_list(path: Path, site: str, signature: str, pairs: int = PAIRS, *, signed: bool = True) -> None:
    query = f"&X-Amz-Signature={signature}&X-Amz-Credential=AKIA5ec2e7&X-Amz-Date={signature}" if signed else ""
    lines = [
        {"image": f"{site}/image.png?id={number}{query}", "mask": f"{site}/mask.png?id={number}{query}", "n": number}
        for number in range(pairs)
    ]
    path.write_text("".join(f"{json.dumps({**line, 'url': line['image']})}\n" for line in lines))


def assert_no_signatures(output: str, capfd, display) -> None:
    """Look at all that the run wrote: the output, standard output and error, and the logs of Ray's workers."""
    import pyarrow.parquet as pq

    for path in Path(output).rglob("*"):
        if path.is_file():
            assert b"5ec2e7" not in path.read_bytes(), path
            if path.suffix == ".parquet":  # its pages are compressed
                assert "5ec2e7" not in str(pq.read_table(path).to_pylist()), path
    captured = capfd.readouterr()
    assert "5ec2e7" not in captured.out + captured.err + "\n".join(display.lines)
    logs = Path(ray._private.worker._global_node.get_session_dir_path(), "logs")
    texts = {path: path.read_bytes() for path in logs.rglob("*") if path.is_file()}
    assert [path for path, text in texts.items() if b"5ec2e7" in text] == []


def test_runs_use_the_signatures_of_their_list_and_leave_none(site, ray_cluster, make_job, display, tmp_path, capfd):
    path, output = tmp_path / "list.jsonl", tmp_path / "out"
    job = make_job("", "", output, pairs=path, chunk_rows=2, limit=2)
    write_list(path, site, "first5ec2e7")
    report = run_job(job, display)
    assert (report["encoded"], report["pairs"], report["pairs_left"]) == (2, PAIRS, PAIRS - 2)

    SignedSite.valid = "second5ec2e7"  # the first signatures have expired; planned chunks are left
    write_list(path, site, "second5ec2e7", PAIRS + 1)
    rest = make_job("", "", output, pairs=path, chunk_rows=2)
    report = run_job(rest, display)
    assert (report["pairs"], report["encoded"], report["changed_pairs"]) == (PAIRS + 1, PAIRS, 0)
    (reject,) = rejects_of(str(output))
    assert reject["image_uri"] == f"{site}/image.png?id={PAIRS}"  # it is no image

    write_list(path, site, "second5ec2e7", PAIRS + 1)
    again = run_job(rest, display)
    assert (again["pairs"], again["this_run"]["encoded"]) == (PAIRS + 1, 0)
    assert_no_signatures(str(output), capfd, display)


def test_expired_and_missing_signatures_are_named(site, ray_cluster, make_job, display, tmp_path, capfd):
    path, output = tmp_path / "list.jsonl", tmp_path / "out"
    write_list(path, site, "old5ec2e7", 2)
    report = run_job(make_job("", "", output, pairs=path), display)
    assert report["rejected"] == 2
    messages = [reject["message"] for reject in rejects_of(str(output))]
    assert all(
        "its signature may have expired; sign the URLs of the list again, and run with --retry" in one
        for one in messages
    )
    assert_no_signatures(str(output), capfd, display)

    write_list(path, site, "first5ec2e7", 1)
    report = run_job(make_job("", "", output, pairs=path, retry_rejected=True), display)
    assert (report["encoded"], report["rejected"]) == (1, 1)
    (reject,) = rejects_of(str(output))
    assert "the list has no signed URL for it now; sign the URLs" in reject["message"]
    write_list(path, site, "first5ec2e7", 2)
    run_job(make_job("", "", output, pairs=path, retry_rejected=True), display)
    assert whole_output(str(output))["encoded"] == 2
    assert_no_signatures(str(output), capfd, display)


def test_shards_need_a_list_without_signatures(site, make_job, display, tmp_path):
    path = tmp_path / "list.jsonl"
    write_list(path, site, "first5ec2e7")
    with pytest.raises(UsageError, match="--shard cannot be combined with a list of signed URLs"):
        run_job(make_job("", "", tmp_path / "out", pairs=path, shard="0/2"), display)
    assert not (tmp_path / "out").exists()
