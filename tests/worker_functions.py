"""``python -m tests.worker_functions``: list the functions that a worker runs, from the bucket to the Parquet file."""

import sys
import tempfile
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pyarrow as pa

import inpaint_encode
from inpaint_encode.core.decode import PairDecoder
from inpaint_encode.core.encoder import BatchEncoder
from inpaint_encode.job.stages import EncodeStage, commit_stage, fetch_stage
from inpaint_encode.output.lease import acquire_lease
from inpaint_encode.output.resume import Remaining, job_record, open_output, row_metadata
from inpaint_encode.schema import data_schema
from inpaint_encode.settings import EncodeJob, Output, Source, VaeSource
from inpaint_encode.sources import open_source
from inpaint_encode.vae.load import load_vae
from inpaint_encode.vae.registry import vae_metadata

ROOT = str(Path(inpaint_encode.__file__).parent)


def functions_of_a_worker(images: str, masks: str, vae: str, output: str) -> dict[str, list[str]]:
    """Run the three stages on every chunk; return the functions of the package that were called, by file.

    Lambdas and comprehensions belong to their functions. Loading the VAE does not count: a worker does it once.
    """
    job = EncodeJob(source=Source(images=images, masks=masks), vae=VaeSource(vae=vae), output=Output(output=output))
    metadata = row_metadata(job.rows, job.decoding, vae_metadata(load_vae(job.vae), job.vae))
    schema = data_schema(metadata)
    make_schema = partial(pa.schema, list(schema), metadata=schema.metadata)
    encode = EncodeStage(
        lambda device: BatchEncoder.load(job.vae, metadata, device, compiled=False),
        "auto",
        make_schema,
        0,
        1,
        decode_deferred=None,
    )
    called: set[tuple[str, str]] = set()

    def profile(frame, event, _argument):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(ROOT) and not code.co_name.startswith("<"):
            called.add((code.co_filename[len(ROOT) + 1 :], code.co_qualname))

    with acquire_lease(f"{output}/_lease.json", lambda _: None) as lease:
        record = job_record(job, metadata)
        state, inventory = open_output(output, record, overwrite=False, token=lease.token)
        work = pa.concat_tables(Remaining(state, inventory, job, open_source(job.source)).work())
        decoder = PairDecoder.of(metadata, max_pixels=job.limits.max_pixels)
        limits = {"access": job.access.to_access(), "max_bytes": job.limits.max_bytes, "threads": 2}
        threading.setprofile(profile)
        sys.setprofile(profile)
        encode._encoder._thread = ThreadPoolExecutor(1)  # a thread that began before is not profiled
        try:
            for index in range(work.num_rows):
                row = encode(fetch_stage(work.slice(index, 1), decoder=decoder, **limits))
                (receipt,) = commit_stage(row, state=state, make_schema=make_schema).to_pylist()
                assert receipt["fatal"] is None, receipt["fatal"]
                assert receipt["encoded"] > 0
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
    by_file = defaultdict(list)
    for file, name in sorted(called):
        by_file[file].append(name)
    return dict(by_file)


def main() -> None:
    import os

    from inpaint_encode.demo import VAE
    from inpaint_encode.demo.pairs import upload, write_demo_pairs, write_random_pairs
    from inpaint_encode.demo.s3server import LocalS3

    with tempfile.TemporaryDirectory() as folder, LocalS3(Path(folder) / "s3") as s3:
        os.environ.update(s3.environment)
        write_demo_pairs(Path(folder) / "pairs")
        upload(Path(folder) / "pairs", s3.uri())
        of_demo = functions_of_a_worker(s3.uri("images"), s3.uri("masks"), str(VAE), s3.uri("out"))
        write_random_pairs(Path(folder) / "one", 1, seed=1, smallest=64, largest=64)
        upload(Path(folder) / "one", s3.uri("one"))
        of_one = functions_of_a_worker(s3.uri("one", "images"), s3.uri("one", "masks"), str(VAE), s3.uri("out-one"))
    for pairs, by_file in (("one pair", of_one), ("the demo's pairs", of_demo)):
        print(f"{pairs}: {sum(map(len, by_file.values()))} functions in {len(by_file)} files")
        for file, names in by_file.items():
            print(f"  {file}: {', '.join(names)}")


if __name__ == "__main__":
    main()
