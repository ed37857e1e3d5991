"""The demo's output read by this package, by other libraries, by Ray and by a trainer."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from itertools import count, islice

import diffusers
import numpy as np
import pytest
import ray
import torch

from inpaint_encode import inpaint_input, iter_rows, open_latents
from inpaint_encode.reader.conventions import for_comfyui, for_diffusers
from inpaint_encode.reader.output import Output
from tests import recipes
from tests.outputs import write_output
from tests.pickled_parquet import with_pickled


@pytest.fixture(scope="module")
def expected(demo):
    """All rows by key, as arrays."""
    return {row["key"]: row for row in iter_rows(demo["output"])}


def check_arrays(arrays, expected) -> None:
    """Check types, shapes and values of both tensor columns of all rows."""
    for name, dtype in recipes.COLUMNS.items():
        assert arrays[name].keys() == expected.keys()
        for key, array in arrays[name].items():
            assert (array.dtype, array.shape) == (dtype, expected[key][name].shape)
            assert np.array_equal(array, expected[key][name])


@pytest.fixture(scope="module")
def read_without_ray(copied_demo, tmp_path_factory):
    """Arrays that each recipe reads in a process without Ray."""
    arrays = tmp_path_factory.mktemp("recipes") / "arrays.npz"
    command = [sys.executable, "-m", "tests.recipes", copied_demo, arrays]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    found = {reader: {name: {} for name in recipes.COLUMNS} for reader in recipes.READERS}
    with np.load(arrays) as read:
        for place, array in read.items():
            reader, column, key = place.split(":")
            found[reader][column][key] = array
    return found


class TestOtherReaders:
    """Other libraries; pyarrow with and without Ray's registered types."""

    def test_the_output_has_twenty_rows_of_many_shapes(self, expected):
        assert len(expected) == 20
        assert len({row["samples"].shape for row in expected.values()}) > 5

    @pytest.mark.parametrize("reader", recipes.READERS)
    def test_without_ray(self, read_without_ray, expected, reader):
        check_arrays(read_without_ray[reader], expected)

    def test_pyarrow_beside_ray(self, copied_demo, expected):
        import pyarrow as pa
        import pyarrow.parquet as pq
        import ray.data  # noqa: F401 - registers the type of its tensors

        table = pq.read_table(copied_demo)
        assert isinstance(table["samples"].type, pa.ExtensionType)
        keys = table["key"].to_pylist()
        check_arrays(
            {name: dict(zip(keys, table[name].to_pylist(), strict=True)) for name in recipes.COLUMNS}, expected
        )

    def test_ray_data(self, demo_rows, expected):
        check_arrays({name: {row["key"]: row[name] for row in demo_rows} for name in recipes.COLUMNS}, expected)

    def test_pyarrow_and_a_bucket(self, demo, expected):
        import pyarrow.parquet as pq
        import s3fs

        table = pq.read_table(demo["output"].removeprefix("s3://"), filesystem=s3fs.S3FileSystem(), columns=["key"])
        assert set(table["key"].to_pylist()) == expected.keys()


class TestOurs:
    def test_rows_from_the_bucket(self, demo, expected):
        dataset = open_latents(demo["output"])
        rows = list(dataset)
        check_arrays({name: {row["key"]: row[name].numpy() for row in rows} for name in recipes.COLUMNS}, expected)
        for row in rows:
            plain = {name: value for name, value in row.items() if not torch.is_tensor(value)}
            assert plain == {name: expected[row["key"]][name] for name in plain}
            assert dataset[row["key"]]["image_uri"] == row["image_uri"]

    def test_rows_by_the_conventions_of_tools(self, demo):
        """Tensors follow the convention; other columns stay."""
        dataset = open_latents(demo["output"])
        metadata = Output.open(demo["output"]).metadata
        for made, rule in ((dataset.for_diffusers(), for_diffusers), (dataset.for_comfyui(), for_comfyui)):
            for row, by_rule in zip(dataset, made, strict=True):
                wanted = rule(row, metadata)
                assert by_rule.keys() - wanted.keys() == {n for n, v in row.items() if not torch.is_tensor(v)}
                assert all(torch.equal(by_rule[name], tensor) for name, tensor in wanted.items())
                assert by_rule["key"] == row["key"]

    def test_to_ray_by_a_convention(self, demo, expected):
        dataset = open_latents(demo["output"], columns=["key", "samples", "noise_mask"]).for_comfyui()
        rows = dataset.to_ray().take_all()
        assert {name for row in rows for name in row} == {"key", "samples", "noise_mask"}
        types = {"samples": np.float32, "noise_mask": np.uint8}
        check_arrays({name: {row["key"]: row[name][0].astype(types[name]) for row in rows} for name in types}, expected)

    def test_to_ray_unpacks_masks(self, ray_cluster, tmp_path):
        written = write_output(str(tmp_path), [[], [(4, 6), (5, 3)] * 3, [(4, 6)] * 2], mask_encoding="packed")
        rows = {row["key"]: row for row in open_latents(str(tmp_path)).to_ray().take_all()}
        assert rows.keys() == {row["key"] for row in written}
        for row in written:
            assert rows[row["key"]]["noise_mask"].dtype == np.uint8
            assert np.array_equal(rows[row["key"]]["noise_mask"], row["noise_mask"])
            assert rows[row["key"]]["caption"] == row["caption"]

    def test_to_ray_unpickles_nothing(self, ray_cluster, tmp_path):
        write_output(str(tmp_path / "out"), [[(4, 6)], [], [(5, 3)]])
        for path in (tmp_path / "out").glob("*.parquet"):
            path.write_bytes(with_pickled(path.read_bytes(), "caption", tmp_path / "canary", "struct"))
        dataset = open_latents(str(tmp_path / "out"))
        with pytest.raises(ray.exceptions.RayTaskError, match="column caption has the extension type"):
            dataset.to_ray().take_all()
        rows = open_latents(str(tmp_path / "out"), columns=["key", "samples"]).to_ray().take_all()
        assert [row["samples"].shape for row in rows] == [(4, 4, 6), (4, 5, 3)]
        assert not (tmp_path / "canary").exists()


def batches_of_epochs(stream) -> Iterator[dict]:
    for epoch in count():
        stream.set_epoch(epoch)
        yield from stream


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_training_loop_learns(demo, one_thread):
    """A small inpainting model learns to predict the noise in 200 steps."""
    torch.manual_seed(0)
    dataset = open_latents(demo["output"]).for_diffusers()
    channels = dataset[0]["latents"].shape[0]
    unet = diffusers.UNet2DConditionModel(
        in_channels=2 * channels + 1,
        out_channels=channels,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        mid_block_type=None,
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=8,
    )
    noises = diffusers.DDPMScheduler()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=2e-3)
    losses = []
    for batch in islice(batches_of_epochs(dataset.stream(batch_size=4, shuffle=True)), 200):
        noise = torch.randn_like(batch["latents"])
        times = torch.randint(0, noises.config.num_train_timesteps, (len(noise),))
        noisy = noises.add_noise(batch["latents"], noise, times)
        predicted = unet(inpaint_input(noisy, batch), times, torch.zeros(len(noise), 1, 8)).sample
        loss = torch.nn.functional.mse_loss(predicted, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    before, after = statistics.mean(losses[:20]), statistics.mean(losses[-20:])
    print(f"loss {before:.3f} -> {after:.3f}")
    assert after < before / 2


RANK = """
import json, sys, torch
from torch.utils.data import DataLoader
from inpaint_encode import open_latents
rank, store, output = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
stream = open_latents(output).stream(batch_size=3, shuffle=True, seed=1)
loader, epochs = DataLoader(stream, batch_size=None, num_workers=2), []
for epoch in range(2):
    stream.set_epoch(epoch)
    epochs.append([batch["key"] for batch in loader])
print(json.dumps(epochs))
torch.distributed.destroy_process_group()
"""


def test_two_ranks_with_two_workers_see_every_row_once_an_epoch(demo, expected, tmp_path):
    """Two processes of torch.distributed, each with workers that read the bucket."""
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    commands = [[sys.executable, "-c", RANK, str(rank), tmp_path / "store", demo["output"]] for rank in range(2)]
    ranks = [subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) for command in commands]
    outputs = [json.loads(rank.communicate(timeout=600)[0]) for rank in ranks]
    orders = []
    for epoch in range(2):
        seen = [[key for batch in output[epoch] for key in batch] for output in outputs]
        assert [len(keys) for keys in seen] == [10, 10]
        assert sorted(seen[0] + seen[1]) == sorted(expected)
        orders.append(seen)
    assert orders[0] != orders[1]
    assert set(orders[0][0]) != set(orders[1][0])
