"""A chunk without its encoder: what is fetched and in which order results come."""

from PIL import Image

from inpaint_encode.core.chunk import DecodedPair, Pair, Reject, fetch_and_decode
from inpaint_encode.core.circuit_breaker import CircuitBreaker
from inpaint_encode.core.counters import Counters
from inpaint_encode.core.decode import PairDecoder
from inpaint_encode.core.geometry import Sizing
from inpaint_encode.sources import PairReader


def test_masks_of_an_image_that_cannot_be_read_are_not_requested(tmp_path):
    for name in ("a.png", "mask.png"):
        Image.new("L", (16, 16), 255).save(tmp_path / name)
    images = ["a.png", "gone.png", "gone.png"]
    pairs = [Pair(str(number), f"{tmp_path}/{image}", f"{tmp_path}/mask.png") for number, image in enumerate(images)]
    reader, counters = PairReader(), Counters(float)
    decoder, breaker = PairDecoder(sizing=Sizing(multiple=8)), CircuitBreaker(reader)
    results = list(fetch_and_decode(pairs, reader, decoder, breaker, counters, threads=2))
    assert [type(result) for result in results] == [DecodedPair, Reject, Reject]
    assert [result.pair.key for result in results] == ["0", "1", "2"]
    assert {result.error for result in results[1:]} == {"fetch.not_found"}
    assert counters["objects_fetched"] == 2
