"""The faulty network of these tests passes on everything that it must not change."""

import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor

from inpaint_encode.stores import s3 as s3_store
from inpaint_encode.stores import storage
from inpaint_encode.stores.storage import ABSENT
from tests.buckets import bucket_prefix, listed


def test_large_bodies_pass_in_both_directions(proxy, s3):
    uri, data = f"{bucket_prefix(s3)}/big", os.urandom(30_000_000)
    version = storage.write(uri, data)
    assert storage.read(uri) == (data, version)
    assert proxy.counts["requests"] == 2


def test_chunks_trailers_and_expect_100_continue_pass(proxy, s3):
    uri = f"{bucket_prefix(s3)}/chunked"
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    signer = s3_store._session().create_client("s3", "us-east-1", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    target = signer.generate_presigned_url("put_object", {"Bucket": bucket, "Key": key})
    host, _, path = target.removeprefix("http://").partition("/")
    head = f"PUT /{path} HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
    with socket.create_connection(host.split(":"), timeout=5) as connection:
        connection.sendall(head.encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
        connection.sendall(b"3\r\nabc\r\n4\r\ndefg\r\n0\r\nX-Trailer: 1\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
    assert storage.read(uri).data == b"abcdefg"


def test_a_held_request_arrives_when_released(proxy, s3):
    prefix = bucket_prefix(s3)
    proxy.hold(lambda method, path: method == "PUT" and path.endswith("/late x"))
    with ThreadPoolExecutor() as pool:
        late = pool.submit(storage.write, f"{prefix}/late x", b"late", expect=ABSENT)
        while not proxy.counts["held"]:
            time.sleep(0.01)
        storage.write(f"{prefix}/late x2", b"in time")
        assert listed(prefix).keys() == {"late x2"} and not late.done()
        proxy.release()
        version = late.result()
    assert storage.read(f"{prefix}/late x") == (b"late", version)
