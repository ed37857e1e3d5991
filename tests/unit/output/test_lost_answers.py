"""The store does every first write of a path, and its answer is lost: no run takes its own file for another run's."""

from inpaint_encode.reader import Output
from inpaint_encode.stores import storage
from tests.indexed import IndexedRun, numbered, write_pairs
from tests.outputs import files_of


def lose_first_answers(proxy):
    seen: set[str] = set()
    proxy.share, proxy.kinds = 1.0, ("lost",)
    proxy.only = lambda method, path: method == "PUT" and path not in seen and not seen.add(path)


def test_a_run_that_overwrites_an_output_is_exact(s3, tmp_path, proxy, make_job):
    output, pairs = s3.uri(tmp_path.name), write_pairs(tmp_path / "list.jsonl", numbered(6))
    before = IndexedRun(output, make_job, pairs).commit().finish()
    storage.write(f"{output}/_report.json", b"of the overwritten job")
    lose_first_answers(proxy)
    run = IndexedRun(output, make_job, pairs, overwrite=True)
    assert not {"_index.json", "_report.json"} & set(files_of(output))
    run.commit(rejected=["k001"]).finish()
    proxy.share = 0.0
    assert proxy.counts["lost"] > 8
    assert not any(before.state.job in path for path in files_of(output))
    opened = Output.open(output)
    assert opened.keys.note.rows == 5
    assert [(file.path, file.version) for file in opened.files] == [
        (f"{run.state.job}-{chunk}.parquet", result.version) for chunk, result in sorted(run.results.items())
    ]
